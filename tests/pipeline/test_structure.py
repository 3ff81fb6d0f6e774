"""Rules of the structure that hold by test, not by good intention."""

import ast
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from convae.names import flatten
from convae.params import load_params
from convae.reporting.report import LEFT_OUT


def imported(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize(
    ("package", "home"), [("mlflow", "tracking"), ("pytorch_lightning", "training"), ("optuna", "search")]
)
def test_a_framework_is_known_in_one_place(repository, package, home):
    users = {
        path.relative_to(repository).as_posix()
        for folder in ("src", "pipeline")
        for path in (repository / folder).rglob("*.py")
        if any(name.split(".")[0] == package for name in imported(path))
    }
    assert users
    assert all(user.startswith(f"src/convae/{home}/") for user in users)


ORDER = [
    {"errors", "environment", "files", "names", "processes", "terminal"},
    {"deviation", "params"},
    {"models", "datasets", "experiment", "images", "addresses"},
    {"features", "encoder", "training", "evaluation"},
    {"classifier", "estimators", "export"},
    {"commands", "serving"},
    {"tracking", "reporting"},
    {"search"},
    {"cli"},
    {"__main__"},
]


def test_imports_run_one_way(repository):
    level = {name: height for height, names in enumerate(ORDER) for name in names}
    for path in (repository / "src/convae").rglob("*.py"):
        own = path.relative_to(repository / "src/convae").with_suffix("").parts[0]
        for name in imported(path):
            if name.startswith("convae.") and own != "__init__":
                other = name.split(".")[1]
                if (own, other) == ("addresses", "tracking"):  # late, for who loads an encoder from MLflow
                    continue
                assert level[other] <= level[own], f"{path} imports {name}"


@pytest.mark.parametrize("stage", ["validate", "download", "prepare", "features", "evaluate", "report"])
def test_only_train_imports_lightning(repository, stage):
    code = f"import sys, pipeline.{stage}; print('pytorch_lightning' in sys.modules, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_only_evaluate_depends_on_test_features_and_train_never_on_test_images(repository):
    stages = YAML(typ="safe").load((repository / "dvc.yaml").read_text())["stages"]
    assert [name for name, stage in stages.items() if "data/features" in stage["deps"]] == ["evaluate"]
    assert not {"data/prepared", "data/prepared/test"} & set(stages["train"]["deps"])


DECIDE_NOTHING = ("train.devices", "train.nodes", "train.strategy", "train.accelerator", "train.checkpoint_minutes")


def test_what_cannot_change_a_result_is_no_dependency(repository):
    stages = YAML(typ="safe").load((repository / "dvc.yaml").read_text())["stages"]
    keys = {key for stage in stages.values() for key in stage["params"]}
    assert not [key for key in keys if key.startswith(("tracking", *DECIDE_NOTHING))]
    assert "train" not in keys


def test_the_report_depends_on_every_parameter_that_it_shows(repository):
    stages = YAML(typ="safe").load((repository / "dvc.yaml").read_text())["stages"]
    keys = stages["report"]["params"]
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
