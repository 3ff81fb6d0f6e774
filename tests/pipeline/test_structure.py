"""Rules of the structure."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from ruamel.yaml import YAML

from convae.names import flatten
from convae.params import load_params
from convae.reporting.report import LEFT_OUT


def imported(path):
    """Names that a file imports, including lazy imports, but not those for type checkers only."""
    tree = ast.parse(path.read_text())
    unread = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and node not in unread:
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node not in unread:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize(
    ("package", "home"), [("mlflow", "tracking"), ("pytorch_lightning", "training"), ("optuna", "search")]
)
def test_each_framework_is_imported_in_one_package(repository, package, home):
    users = {
        path.relative_to(repository).as_posix()
        for folder in ("src", "pipeline")
        for path in (repository / folder).rglob("*.py")
        if any(name.split(".")[0] == package for name in imported(path))
    }
    assert users
    assert all(user.startswith(f"src/convae/{home}/") for user in users)


def modules(repository):
    """Every file of the library by its name within the package: `models.layers`."""
    source = repository / "src/convae"
    names = {".".join(path.relative_to(source).with_suffix("").parts): path for path in source.rglob("*.py")}
    return {name.removesuffix("__init__").removesuffix("."): path for name, path in names.items()}


def own_imports(path, known):
    """The modules of the library that a file imports."""
    for name in imported(path):
        if name == "convae" or name.startswith("convae."):
            inner = name.removeprefix("convae").removeprefix(".")
            yield inner if inner in known else inner.rpartition(".")[0]


def test_imports_are_acyclic(repository):
    known = modules(repository)
    graph = {name: set(own_imports(path, known)) - {name} for name, path in known.items() if name}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


# A module may import modules of its own row and of the rows above. The longest matching name counts, so that
# opening a store and fetching a model from it are below the encoder, which can be loaded from there, and the error that
# MLflow's server understands is below the models that it serves.
ORDER = [
    {"errors", "environment", "files", "names", "processes", "terminal"},
    {"params"},
    {"models", "datasets", "devices", "experiment", "images", "remote"},
    {"tracking.moving", "tracking.store", "tracking.fetch", "tracking.refusal"},
    {"addresses"},
    {"features", "encoder", "training", "evaluation", "history"},
    {"classifier", "estimators", "export", "model_card", "named_pictures"},
    {"checking", "commands", "hub", "index", "serving"},
    {"tracking", "reporting", "comparing"},
    {"stages"},
    {"search"},
    {"cli"},
    {"__main__"},
]


def test_imports_follow_the_layers(repository):
    level = {name: height for height, names in enumerate(ORDER) for name in names}

    def height(module):
        return level[module] if module in level else level[module.partition(".")[0]]

    known = modules(repository)
    for name, path in known.items():
        for other in own_imports(path, known):
            if name and other:  # not the package itself
                assert height(other) <= height(name), f"{path} imports {other}"


STAGES = ["validate", "download", "prepare", "train", "features", "evaluate", "report"]
LADDER = "benchmark/ladder"
RECORD = ("tracking", "history")  # nothing that a stage writes depends on them


@pytest.mark.parametrize(
    ("project", "stage", "script"),
    [*((".", stage, f"pipeline/{stage}.py") for stage in STAGES), (LADDER, "inputs", f"{LADDER}/parameters.py")],
)
def test_a_stage_depends_on_exactly_the_modules_that_it_imports(repository, project, stage, script):
    known, script = modules(repository), repository / script
    found, waiting = {script}, [script]
    while waiting:
        names = [name for name in own_imports(waiting.pop(), known) if name.partition(".")[0] not in RECORD]
        waiting += {known[name] for name in names} - found
        found |= {known[name] for name in names}
    home = (repository / project).resolve()
    dependencies = YAML(typ="safe").load((home / "dvc.yaml").read_text())["stages"][stage]["deps"]
    paths = [(home / name).resolve() for name in dependencies]
    named = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    named = [file for file in named if file.suffix == ".py"]
    not_empty = {file for file in named if file.stat().st_size}
    assert not_empty == {file for file in found if file.stat().st_size}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "train"])
def test_only_train_imports_lightning(repository, stage):
    code = f"import sys, pipeline.{stage}; print('pytorch_lightning' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_only_evaluate_depends_on_test_features_and_train_never_on_test_images(repository):
    stages = YAML(typ="safe").load((repository / "dvc.yaml").read_text())["stages"]
    assert [name for name, stage in stages.items() if "data/features" in stage["deps"]] == ["evaluate"]
    assert not {"data/prepared", "data/prepared/test"} & set(stages["train"]["deps"])


def parameters_of(stage):
    return [key for one in stage["params"] for key in (one["params.yaml"] if isinstance(one, dict) else [one])]


DECIDE_NOTHING = ("train.devices", "train.nodes", "train.strategy", "train.accelerator", "train.checkpoint_minutes")


def test_files_that_cannot_change_a_result_are_not_dependencies(repository):
    stages = YAML(typ="safe").load((repository / "dvc.yaml").read_text())["stages"]
    keys = {key for stage in stages.values() for key in parameters_of(stage)}
    assert not [key for key in keys if key.startswith(("tracking", *DECIDE_NOTHING))]
    assert "train" not in keys


def test_the_report_depends_on_every_parameter_that_it_shows(repository):
    stages = YAML(typ="safe").load((repository / "dvc.yaml").read_text())["stages"]
    keys = parameters_of(stages["report"])
    shown = [
        key
        for key in flatten(load_params(repository / "params.yaml").model_dump(mode="json"))
        if not key.startswith(LEFT_OUT)
    ]
    assert [key for key in shown if not any(key == known or key.startswith(f"{known}.") for known in keys)] == []


def test_every_group_of_the_benchmark_has_rows(repository):
    code = (
        "from importlib import import_module; from benchmark.speed.__main__ import GROUPS; "
        "print(all(callable(import_module(f'benchmark.speed.{group}').rows) for group in GROUPS))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
