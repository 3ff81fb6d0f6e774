PYTHON ?= python3
BIN := .venv/bin
# Stages call `python`, which must be the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help run test test-slow test-gpu lowest check build ui ladder search chaos benchmark encoders

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/'

run: $(BIN)/.installed  ## install, run the stages that a change affects, show the result
	$(BIN)/dvc repro
	@$(BIN)/python -m pipeline.summary

# With more threads, workers on the same cores would wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadfile --no-loadscope-reorder

test: $(BIN)/.installed  ## run the quick tests: 13 minutes on two cores
	$(PYTEST) -m 'not slow'

test-slow: $(BIN)/.installed  ## run the slow tests: interruptions, searches, several processes, a team, the ladder, PostgreSQL, a browser
	$(PYTEST) -m slow

test-gpu: $(BIN)/.installed  ## run the tests that need a CUDA GPU
	$(BIN)/pytest -m gpu

# Direct dependencies are the oldest, indirect ones the newest that fit. uv asks PyPI, or the index in UV_DEFAULT_INDEX.
lowest:          ## run the quick tests with the oldest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/pip install uv
	.venv-lowest/bin/uv pip compile --resolution lowest-direct --extra test pyproject.toml -o .venv-lowest/requirements.txt
	.venv-lowest/bin/pip install -r .venv-lowest/requirements.txt
	.venv-lowest/bin/pip install --no-deps --no-build-isolation -e .
	touch .venv-lowest/bin/.installed
	$(MAKE) test BIN=.venv-lowest/bin

check: $(BIN)/.installed  ## check lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --num-workers 2

# The tools have an environment of their own: no test needs them, so they stay out of the extras and the lock.
build:           ## build the sdist and the wheel in dist/ and check them
	$(PYTHON) -m venv --clear .venv-build
	.venv-build/bin/pip install -r requirements-build.txt
	.venv-build/bin/python -m build
	.venv-build/bin/twine check --strict dist/convae-*
	.venv-build/bin/check-wheel-contents dist/convae-*.whl

ui: $(BIN)/.installed  ## compare experiments in MLflow, on this machine only
	$(BIN)/convae ui

ladder: $(BIN)/.installed  ## compare every system on DATASET=digits, fashion_mnist or cifar10 (default: all): reports/ladder.html
	$(if $(filter-out digits fashion_mnist cifar10,$(DATASET)),$(error DATASET=$(DATASET): digits, fashion_mnist or cifar10 is allowed))
	OMP_WAIT_POLICY=passive $(BIN)/dvc --cd benchmark/ladder repro --keep-going $(if $(DATASET),--glob '*@$(DATASET)-*'); \
	    status=$$?; $(BIN)/python -m benchmark.ladder.page && exit $$status

search: $(BIN)/.installed  ## search for the best parameters as search.yaml says; each call is one worker
	$(BIN)/convae search search.yaml

encoders: $(BIN)/.installed  ## retrain the package's encoders, or only NAME=fashion_mnist or cifar10
	$(BIN)/python -m pipeline.encoders $(NAME)

chaos: $(BIN)/.installed  ## stop the pipeline in many ways at random moments, on DATASET=digits (default) or fashion_mnist
	$(BIN)/python tests/chaos.py --dataset $(or $(DATASET),digits)

benchmark: $(BIN)/.installed  ## compare the speed with common practice: reports/benchmark.md, an hour on an idle machine
	$(BIN)/python -m benchmark.speed

# Other environments, such as a container's, are not for this rule to change.
.venv/bin/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --require-hashes -r requirements.lock
	.venv/bin/pip install --no-deps --no-build-isolation -e .
	@touch $@
