import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from convae.params import Params, load_params
from convae.tracking.runs import start_run

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


@pytest.fixture(autouse=True)
def plain_environment() -> Iterator[None]:
    """Without what steers tracking; what a stage sets is undone."""
    before = dict(os.environ)
    for name in ("MLFLOW_TRACKING_URI", "CONVAE_TRACKING", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def add_database(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Callable[[Path], None]:
    """Puts a database whose tables exist into a folder: making them takes seconds, copying them nothing."""
    original = tmp_path_factory.mktemp("prepared") / "mlflow.db"
    tracking = params.tracking.model_copy(update={"experiment": "other", "uri": f"sqlite:///{original}"})
    with start_run("prepare", params.model_copy(update={"tracking": tracking})):
        pass

    def add(folder: Path) -> None:
        copy = folder / "mlflow.db"
        with closing(sqlite3.connect(original)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)  # with what is still in the write-ahead log

    return add


@pytest.fixture
def workspace(tmp_path: Path, add_database: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with params.yaml and a database without runs of ours."""
    add_database(tmp_path)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start_stage(workspace: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Runs a stage called `train`, whose body is given as source, in a process of its own."""
    processes = []

    def start(body: str) -> subprocess.Popen[str]:
        script = workspace / "train.py"
        lines = "\n    ".join(body.splitlines())
        script.write_text(
            "import os, sys, time\n"
            "from convae.errors import ConvaeError\n"
            "from convae.tracking.stage import run_stage\n"
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
