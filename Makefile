PYTHON ?= python3
BIN := .venv/bin
# Stages start `python`: it has to be the environment's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help run test check ui ladder search chaos benchmark

help:            ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/'

run: $(BIN)/.installed  ## install, run the pipeline as far as anything changed, show the result
	$(BIN)/dvc repro
	@$(BIN)/python -m pipeline.summary

# Threads of two workers on the same cores would wait for each other.
test: $(BIN)/.installed  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --dist loadfile --no-loadscope-reorder

check: $(BIN)/.installed  ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

ui: $(BIN)/.installed  ## the MLflow user interface, on this machine only
	$(BIN)/convae ui

ladder: $(BIN)/.installed  ## compare every system, DATASET=digits, fashion_mnist or cifar10 (else all): reports/ladder.html
	$(if $(filter-out digits fashion_mnist cifar10,$(DATASET)),$(error DATASET=$(DATASET): digits, fashion_mnist or cifar10 is allowed))
	$(BIN)/dvc --cd benchmark/ladder repro --keep-going $(if $(DATASET),--glob '*@$(DATASET)-*'); \
	    status=$$?; $(BIN)/python -m benchmark.ladder.page && exit $$status

search: $(BIN)/.installed  ## one worker of the search that search.yaml describes: find the best parameters
	$(BIN)/convae search search.yaml

chaos: $(BIN)/.installed  ## stop the pipeline at random moments, in every way, DATASET=digits or fashion_mnist
	$(BIN)/python tests/chaos.py --dataset $(or $(DATASET),digits)

benchmark: $(BIN)/.installed  ## how fast it is, beside the usual way: reports/benchmark.md, an hour on an idle machine
	$(BIN)/python -m benchmark.speed

$(BIN)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --require-hashes -r requirements.lock
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	@touch $@
