"""Fixtures: a small DVC repository whose only stage, `train`, is recorded in MLflow."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from helpers import REPOSITORY, made_once
from mlflow import MlflowClient

from convae.history.git import now
from convae.history.git import workspace as workspace_now
from convae.history.lock import begun, ended, load_stage
from convae.params import Params, load_params
from convae.tracking.context import context_tags, process_tags, user_tags
from convae.tracking.records import Records
from convae.tracking.store import open_store

# The conftest.py of each folder that records stages imports these fixtures.
__all__ = ["client", "fresh", "params", "plain_environment", "start_stage", "templates", "workspace"]
PIPELINE = """\
stages:
  train:
    cmd: python train.py
    deps: [data/prepared/train]
    params: [data.dataset, train.epochs]
    outs:
      - models/autoencoder
      - reports/training.csv: {cache: false}
      - reports/metrics.json: {cache: false}
"""
FILES = {
    "dvc.yaml": PIPELINE,
    ".gitignore": "/data/\n/models/\n/mlflow.db*\n/mlartifacts/\n/.convae/\n",
    "data/prepared/train/images.npy": "pixels",
    "models/autoencoder/config.json": "{}",
    "reports/training.csv": "epoch,train_loss,validation_loss\n0,0.5,0.625\n1,0.25,\n",
    "reports/metrics.json": '{"test": {"accuracy": 0.75, "note": "words"}, "validation": {"accuracy": 0.5}}',
}


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


@pytest.fixture(autouse=True)
def plain_environment() -> Iterator[None]:
    """Remove the variables that control tracking, and undo what a stage sets."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "DVC_", "CONVAE_")):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="session")
def templates() -> Path:
    """The repository and a database with its tables: creating both takes seconds, copying no time."""
    return made_once("templates", _make_templates)


def _make_templates(folder: Path) -> None:
    repository = folder / "repository"
    for name, content in FILES.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(content)
    shutil.copy(REPOSITORY / "params.yaml", repository)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        run("git", "init", "--quiet")
        run("git", "config", "user.name", "Test")
        run("git", "config", "user.email", "test@example.org")
        run(sys.executable, "-m", "dvc", "init", "--quiet")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", "Begin")
        open_store(f"sqlite:///{folder}/mlflow.db")


def record(uri: str) -> None:
    """Record the stage in the current folder as its recorder does, but in this process."""
    definition, place = load_stage("train"), workspace_now(now())
    execution = ended(begun(definition), definition)
    records = Records(uri, "convae")
    run_id = records.begin(execution, place, process_tags() | user_tags() | context_tags())
    records.complete(run_id, execution, place, Path())
    records.client.set_terminated(run_id, "FINISHED")


@pytest.fixture
def fresh(tmp_path: Path, templates: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository as the current folder, with nothing recorded yet."""
    folder = tmp_path / "repository"
    shutil.copytree(templates / "repository", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def workspace(fresh: Path, templates: Path) -> Path:
    """The same with an empty database."""
    with closing(sqlite3.connect(templates / "mlflow.db")) as source, closing(sqlite3.connect("mlflow.db")) as target:
        source.backup(target)  # with what is still in the write-ahead log
    return fresh


@pytest.fixture
def start_stage(fresh: Path) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Run the stage `train`, whose body is given as source, in a separate process."""
    processes = []

    def start(body: str) -> "subprocess.Popen[str]":
        script = fresh / "train.py"
        lines = "\n    ".join(body.splitlines())
        script.write_text(
            "import os, sys, time\n"
            "from convae.errors import ConvaeError\n"
            "from convae.stages.runner import run_stage\n"
            f"def train(params, run):\n    {lines}\n"
            "run_stage('train', train)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
        process = subprocess.Popen(
            [sys.executable, script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def client(workspace: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{workspace}/mlflow.db")
