import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from helpers import REPOSITORY, free_port, recorded, wait_for
from mlflow import MlflowClient
from threadpoolctl import threadpool_info

from convae.params import Params
from convae.stages.runner import run_stage
from convae.tracking.runs import Run

StartStage = Callable[[str], "subprocess.Popen[str]"]


SLEEPY = "print('begun', flush=True)\ntime.sleep(600)"
SWALLOWING = (
    "try:\n    print('begun', flush=True)\n    time.sleep(600)\nexcept SystemExit:\n"
    "    print('swallowed', flush=True)\ntime.sleep(600)"
)
LIKE_LIGHTNING = "try:\n    print('begun', flush=True)\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    sys.exit(1)"


@pytest.mark.parametrize(
    ("sent", "code", "line"),
    [(signal.SIGTERM, 143, "train: terminated\n"), (signal.SIGINT, 130, "train: interrupted\n")],
)
def test_killed_stage_closes_its_run(
    sent: signal.Signals, code: int, line: str, start_stage: StartStage, client: MlflowClient
) -> None:
    process = start_stage(SLEEPY)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    wait_for(lambda: [run.info.status for run in recorded(client)] == ["RUNNING"])
    process.send_signal(sent)
    assert process.communicate() == ("", line)
    assert process.returncode == code
    assert [run.info.status for run in recorded(client)] == ["KILLED"]


@pytest.mark.parametrize(
    ("body", "printed", "sent", "code", "line"),
    [
        (LIKE_LIGHTNING, ["begun\n"], signal.SIGINT, 130, "train: interrupted\n"),
        (SWALLOWING, ["begun\n", "swallowed\n"], signal.SIGTERM, 143, "train: terminated\n"),
    ],
    ids=["turned into an exit", "first one swallowed"],
)
def test_a_library_that_catches_a_signals_exception_hides_no_signal(
    body: str,
    printed: list[str],
    sent: signal.Signals,
    code: int,
    line: str,
    start_stage: StartStage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONVAE_TRACKING", "off")
    process = start_stage(body)
    assert process.stdout is not None
    for expected in printed:
        assert process.stdout.readline() == expected
        process.send_signal(sent)
    assert process.communicate() == ("", line)
    assert process.returncode == code


def test_a_users_mistake_is_reported_without_traceback(
    start_stage: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVAE_TRACKING", "off")
    process = start_stage("raise ConvaeError('data.root: empty\\ndata.dataset: wrong')")
    assert process.communicate() == ("", "train: data.root: empty\ntrain: data.dataset: wrong\n")
    assert process.returncode == 1


@pytest.mark.parametrize(
    "body",
    ["bytearray(1 << 62)", "import numpy\nnumpy.empty(1 << 50)", "import torch\ntorch.empty(1 << 60)"],
    ids=["Python", "NumPy", "torch"],
)
def test_too_little_memory_is_reported_without_traceback(
    body: str, start_stage: StartStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVAE_TRACKING", "off")
    process = start_stage(body)
    output, errors = process.communicate()
    assert (output, process.returncode) == ("", 1)
    assert errors.startswith("train: ")
    assert errors.endswith("; smaller settings in params.yaml need less memory\n")
    assert errors.count("\n") == 1


def test_wrong_parameters_stop_a_stage_before_it_begins(start_stage: StartStage, workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("seed: 0 ", "seed: -1 "))
    output, errors = start_stage("print('begun')").communicate()
    assert output == ""
    assert errors.startswith("train: params.yaml: seed = -1")
    assert errors.count("\n") == 1


def test_bug_keeps_its_traceback_and_fails_the_run(client: MlflowClient) -> None:
    def body(params: Params, run: Run) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run_stage("train", body)
    assert [run.info.status for run in recorded(client)] == ["FAILED"]


def test_body_gets_parameters_run_and_limited_threads(client: MlflowClient) -> None:
    seen: dict[str, object] = {}

    def body(params: Params, run: Run) -> None:
        seen["dataset"] = params.data.dataset
        seen["threads"] = {library["num_threads"] for library in threadpool_info()}
        seen["later"] = os.environ["OMP_NUM_THREADS"]
        run.log_metrics({"own_loss": 0.5}, step=3)

    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("threads: 2 ", "threads: 1 "))
    run_stage("train", body)
    assert seen == {"dataset": "fashion_mnist", "threads": {1}, "later": "1"}
    (train,) = recorded(client)
    assert train.info.status == "FINISHED"
    assert train.data.tags["threads"] == "1"
    assert train.data.metrics["duration_seconds"] > 0
    assert [(entry.step, entry.value) for entry in client.get_metric_history(train.info.run_id, "own_loss")] == [
        (3, 0.5)
    ]


def test_second_stage_in_one_workspace_waits_for_the_first(
    start_stage: StartStage, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVAE_TRACKING", "off")
    first = start_stage(SLEEPY)
    assert first.stdout is not None
    assert first.stdout.readline() == "begun\n"
    second = start_stage("open('touched', 'w')")
    assert second.stderr is not None
    message = f"train: waiting for another stage in this folder to end (train, process {first.pid})\n"
    assert second.stderr.readline() == message
    assert not Path("touched").exists()

    first.kill()  # even SIGKILL releases the lock
    first.wait()
    assert second.wait() == 0
    assert Path("touched").exists()


def test_ranks_above_zero_share_the_lock_and_record_nothing(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    calls = []
    Path(".convae").mkdir()
    with FileLock(".convae/stages.lock"):
        run_stage("train", lambda params, run, processes: calls.append(params.data.dataset), parallel=True)
        run_stage("evaluate", lambda params, run: calls.append("evaluate"))  # which a single process does
    assert calls == ["fashion_mnist"]
    assert recorded(client) == []


def test_processes_with_different_parameters_are_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from convae.stages.runner import run_stage\nrun_stage('train', lambda *_: None, parallel=True)"
    environment = os.environ | {"CONVAE_TRACKING": "off", "PYTHONPATH": str(REPOSITORY / "src"), "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def start(rank: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", script]
        return subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)

    first = start(0)
    wait_for(Path(".convae/stages.holder").exists)  # it has read the parameters
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 0 ", "seed: 1 "))
    processes = [first, start(1)]
    line = "params.yaml was edited while the processes started; run the stage again\n"
    assert [process.communicate()[1] for process in processes] == [f"train: {line}", f"train, process 1: {line}"]
    assert [process.returncode for process in processes] == [1, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_stage_ends_when_dvc_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "train.py").write_text(
        "import os, time\nfrom pathlib import Path\nfrom convae.stages.runner import run_stage\n"
        "def train(params, run):\n"
        "    Path('pid.partial').write_text(str(os.getpid()))\n    Path('pid.partial').rename('pid')\n"
        "    time.sleep(600)\n"
        "run_stage('train', train)\n"
    )
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  train:\n    cmd: exec {sys.executable} train.py\n")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], check=True)
    environment = {**os.environ, "CONVAE_TRACKING": "off", "PYTHONPATH": str(REPOSITORY / "src")}
    with Path("log").open("wb") as log:
        repro = subprocess.Popen([*dvc, "repro"], env=environment, stdout=log, stderr=log)
    try:
        wait_for(Path("pid").exists)
        stage = psutil.Process(int(Path("pid").read_text()))
    finally:
        repro.kill()
        repro.wait()
    wait_for(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE)
    assert "train: terminated" in Path("log").read_text()
