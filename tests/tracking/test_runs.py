import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as Recorded

from convae.errors import ConvaeError
from convae.params import Params, flatten
from convae.tracking import runs
from convae.tracking.runs import start_run
from convae.tracking.store import store_uri

REPOSITORY = Path(__file__).parents[2]


def recorded_params(params: Params) -> dict[str, object]:
    """What a run shows: where it is recorded is left out."""
    return {key: value for key, value in flatten(params).items() if not key.startswith("tracking.")}


def recorded_runs(client: MlflowClient) -> list[Recorded]:
    experiment = client.get_experiment_by_name("convae-stages")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def test_parameters_and_histories_read_back_exactly(client: MlflowClient, params: Params) -> None:
    losses = [1 / 3, 0.1, float("nan"), 1e-30]
    with start_run("train", params) as run:
        for step, loss in enumerate(losses):
            run.log_metrics({"train_loss": loss, "learning_rate": 0.003 * step}, step=step)
        run.log_tags({"device": "cpu", "threads": 2})

    (recorded,) = recorded_runs(client)
    written = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in recorded_params(params).items()
    }
    assert recorded.data.params == written
    assert recorded.data.params["objective.sparsity.lifetime"] == "0.1"
    assert recorded.data.params["train.patience"] == "null"
    history = client.get_metric_history(recorded.info.run_id, "train_loss")
    assert [entry.step for entry in history] == [0, 1, 2, 3]
    assert [repr(entry.value) for entry in history] == [repr(loss) for loss in losses]
    rates = client.get_metric_history(recorded.info.run_id, "learning_rate")
    assert [entry.value for entry in rates] == [0.003 * step for step in range(4)]
    assert recorded.info.status == "FINISHED"
    assert recorded.info.run_name == "train fashion_mnist"
    assert recorded.data.tags["device"] == "cpu"
    assert recorded.data.tags["threads"] == "2"


def test_tags_tell_what_ran_and_in_which_process(
    client: MlflowClient, params: Params, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setenv("DVC_EXP_NAME", "rusty-lamb")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    with start_run("train", params):
        pass
    with Path("params.yaml").open("a") as stream:
        stream.write("\n")
    with start_run("train", params):
        pass

    changed, clean = (recorded.data.tags for recorded in recorded_runs(client))
    assert clean["mlflow.source.git.commit"] == changed["mlflow.source.git.commit"] == commit
    assert (clean["git.dirty"], changed["git.dirty"]) == ("false", "true")
    assert clean["mlflow.runName"] == "train fashion_mnist rusty-lamb"
    assert (clean["dvc.stage"], clean["dvc.experiment"]) == ("train", "rusty-lamb")
    assert clean["version.torch"] == version("torch")
    assert clean["version.mlflow"] == version("mlflow")
    assert (clean["process.host"], clean["process.pid"]) == (socket.gethostname(), str(os.getpid()))
    assert float(clean["process.started"]) == pytest.approx(psutil.Process().create_time(), abs=0.01)


def test_files_go_to_the_main_repository(
    params: Params, add_database: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, copy = tmp_path / "repository", tmp_path / "copy"
    repository.mkdir()
    copy.mkdir()
    add_database(repository)
    (copy / "figure.png").write_bytes(b"pixels")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(repository))
    with start_run("report", params) as run:
        run.log_file(Path("figure.png"), folder="figures")
        Path("figure.png").unlink()

    assert list(copy.iterdir()) == []
    (recorded,) = recorded_runs(MlflowClient(f"sqlite:///{repository}/mlflow.db"))
    artifacts = repository / "mlartifacts" / recorded.info.run_id / "artifacts"
    assert recorded.info.artifact_uri == artifacts.as_uri()
    assert (artifacts / "figures/figure.png").read_bytes() == b"pixels"


@pytest.mark.parametrize(
    ("error", "status", "problem"),
    [
        (ConvaeError("data.root: empty"), "FAILED", "data.root: empty"),
        (ZeroDivisionError("by zero"), "FAILED", "ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), "KILLED", None),
        (SystemExit(1), "KILLED", None),
    ],
)
def test_status_of_runs_that_end_early(
    client: MlflowClient, params: Params, error: BaseException, status: str, problem: str | None
) -> None:
    def fail() -> None:
        with start_run("train", params) as run:
            run.log_metrics({"train_loss": 0.5})
            raise error

    with pytest.raises(type(error)):
        fail()

    (recorded,) = recorded_runs(client)
    assert recorded.info.status == status
    assert recorded.info.end_time is not None
    assert recorded.data.tags.get("problem") == problem
    assert recorded.data.metrics == {"train_loss": 0.5}


def test_sigterm_handler_is_restored(workspace: Path, params: Params) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, start_run("train", params):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("switch", ["variable", "parameter"])
def test_switched_off_leaves_no_trace(
    switch: str, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if switch == "variable":
        monkeypatch.setenv("CONVAE_TRACKING", "off")
    else:
        tracking = params.tracking.model_copy(update={"enabled": False})
        params = params.model_copy(update={"tracking": tracking})
    with start_run("train", params) as run:
        run.log_metrics({"train_loss": 0.5})
        run.log_tags({"device": "cpu"})
        run.log_file(Path("missing.png"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_mlflow_is_imported_before_it_is_needed() -> None:
    code = "import sys, convae.tracking.runs; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_address_comes_from_environment_then_parameters(
    params: Params, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = params.tracking.model_copy(update={"uri": "sqlite:///kept/runs.db"})
    assert store_uri(params.tracking) == f"sqlite:///{workspace}/mlflow.db"
    assert store_uri(tracking) == f"sqlite:///{workspace}/kept/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store_uri(tracking) == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/runs.db")
    assert store_uri(tracking) == "sqlite:////elsewhere/runs.db"


def test_eight_processes_at_once_on_a_fresh_database(params: Params, tmp_path: Path) -> None:
    code = f"""
import multiprocessing, os
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from convae.params import load_params
from convae.tracking.runs import start_run
from convae.tracking.store import store_uri

params = load_params(Path({str(REPOSITORY / "params.yaml")!r}))
context = multiprocessing.get_context("fork")
ready = context.Barrier(8)

def work(index):
    ready.wait()
    with start_run("train", params) as run:
        run.log_metrics({{"index": index}})

workers = [context.Process(target=work, args=[index]) for index in range(8)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    recorded = recorded_runs(MlflowClient(f"sqlite:///{tmp_path}/mlflow.db"))
    assert sorted(run.data.metrics["index"] for run in recorded) == list(range(8))
    assert {run.info.status for run in recorded} == {"FINISHED"}
    assert {len(run.data.params) for run in recorded} == {len(recorded_params(params))}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield server.getsockname()[1]


def record_four_epochs(params: Params) -> list[int]:
    finished = []
    with start_run("train", params) as run:
        for step in range(4):
            run.log_metrics({"train_loss": 0.5}, step=step)
            run.log_file(REPOSITORY / "params.yaml")
            finished.append(step)
    return finished


def assert_one_warning(capfd: pytest.CaptureFixture[str], reason: str) -> None:
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.count("\n") == 1, errors
    assert errors.startswith("train: no longer recorded in MLflow (")
    assert reason in errors
    assert errors.endswith("); results are unaffected\n")


def test_refusing_server_costs_one_warning(
    params: Params, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    assert record_four_epochs(params) == [0, 1, 2, 3]
    assert_one_warning(capfd, "MlflowException: ")


@pytest.mark.parametrize(
    ("timeout", "patience", "reason"), [("1", 60, "HTTPConnectionPool"), ("60", 1, "no answer in time")]
)
def test_hanging_server_costs_one_warning(
    timeout: str,
    patience: float,
    reason: str,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runs, "SERVER_PATIENCE", patience)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", timeout)
    with silent_server() as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        assert record_four_epochs(params) == [0, 1, 2, 3]
    assert_one_warning(capfd, reason)


def test_spoilt_database_costs_one_warning(workspace: Path, params: Params, capfd: pytest.CaptureFixture[str]) -> None:
    (workspace / "mlflow.db").write_bytes(b"this is no database, and never was one")
    assert record_four_epochs(params) == [0, 1, 2, 3]
    assert_one_warning(capfd, "file is not a database")


def test_what_mlflow_refuses_costs_one_warning(
    workspace: Path, params: Params, capfd: pytest.CaptureFixture[str]
) -> None:
    with start_run("train", params) as run:
        run.log_metrics({"train_loss": "none"})  # type: ignore[dict-item]
        run.log_file(Path("missing.png"))
    assert_one_warning(capfd, "could not convert string to float")


@contextmanager
def mlflow_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    options = f"--host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///mlflow.db"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *options.split(),
        "--artifacts-destination",
        "artifacts",
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (URLError, ConnectionError):
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", server
    finally:
        stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_server_records_until_it_dies(
    workspace: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with mlflow_server(workspace) as (address, server):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert record_four_epochs(params) == [0, 1, 2, 3]
        assert capfd.readouterr() == ("", "")
        client = MlflowClient(address)
        (recorded,) = recorded_runs(client)
        assert recorded.info.status == "FINISHED"
        assert recorded.data.params["data.dataset"] == "fashion_mnist"
        assert [entry.step for entry in client.get_metric_history(recorded.info.run_id, "train_loss")] == [
            0,
            1,
            2,
            3,
        ]
        local = Path(client.download_artifacts(recorded.info.run_id, "params.yaml"))
        assert local.read_bytes() == (REPOSITORY / "params.yaml").read_bytes()
        capfd.readouterr()

        with start_run("train", params) as run:
            run.log_metrics({"train_loss": 0.5}, step=0)
            stop(server)
            run.log_metrics({"train_loss": 0.4}, step=1)
            run.log_file(REPOSITORY / "params.yaml")
        assert_one_warning(capfd, "MlflowException: ")
