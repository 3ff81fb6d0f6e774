import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from helpers import (
    ROWS,
    failing_server,
    free_port,
    kill_with_recorder,
    mlflow_server,
    recorded,
    silent_server,
    stop,
    wait_for,
)
from mlflow import MlflowClient
from recorded import record

from convae.errors import ConvaeError
from convae.history.lock import path_md5
from convae.params import Params
from convae.tracking import runs
from convae.tracking.runs import start_run
from convae.tracking.store import store_uri

StartStage = Callable[[str], "subprocess.Popen[str]"]


def history(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, str]]:
    return [(entry.step, repr(entry.value)) for entry in client.get_metric_history(run_id, name)]


def test_a_stage_is_recorded_completely(client: MlflowClient, params: Params) -> None:
    losses = [1 / 3, 0.1, float("nan"), 1e-30]
    with start_run("train", params) as run:
        for step, loss in enumerate(losses):
            run.log_metrics({"own_loss": loss, "learning_rate": 0.003 * step}, step=step)
        run.log_tags({"device": "cpu"})

    (train,) = recorded(client)
    run_id, tags = train.info.run_id, train.data.tags
    assert (train.info.run_name, train.info.status) == ("train fashion_mnist", "FINISHED")
    # The parameters that the stage reads, as written in params.yaml.
    assert train.data.params == {"data.dataset": "fashion_mnist", "train.epochs": "1"}
    assert history(client, run_id, "own_loss") == [(step, repr(loss)) for step, loss in enumerate(losses)]
    assert history(client, run_id, "learning_rate") == [(step, repr(0.003 * step)) for step in range(4)]
    # The contents of its outputs.
    assert history(client, run_id, "train_loss") == [(0, "0.5"), (1, "0.25")]
    assert history(client, run_id, "validation_loss") == [(0, "0.625")]
    assert history(client, run_id, "test.accuracy") == [(0, "0.75")]
    assert {item.path for item in client.list_artifacts(run_id)} == {"training.csv", "metrics.json"}
    # Where it ran.
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert tags["mlflow.source.git.commit"] == commit
    assert (tags["git.dirty"], tags["dvc.stage"], tags["convae.origin"]) == ("false", "train", "executed")
    assert (tags["device"], tags["threads"]) == ("cpu", "2")
    assert (tags["version.torch"], tags["version.mlflow"]) == (version("torch"), version("mlflow"))
    assert tags["process.host"].startswith(socket.gethostname())
    assert tags["process.pid"] == str(os.getpid())
    assert float(tags["process.started"]) == pytest.approx(psutil.Process().create_time(), abs=0.01)
    # Its inputs and outputs, by content.
    images = path_md5(Path("data/prepared/train"))
    assert tags["input.data/prepared/train"] == images
    assert tags["output.models/autoencoder"] == path_md5(Path("models/autoencoder"))
    (dataset,) = client.get_run(run_id).inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == (
        "fashion_mnist prepared/train",
        images.removesuffix(".dir"),
    )
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "train")]
    assert "data/prepared/train" in tags["mlflow.note.content"]


def test_recorded_parameters_are_those_that_the_stage_read(
    client: MlflowClient, start_stage: StartStage, workspace: Path
) -> None:
    """params.yaml is edited while the recorder is still starting."""
    edit = (
        "from pathlib import Path\nfile = Path('params.yaml')\n"
        "file.write_text(file.read_text().replace('epochs: 1 ', 'epochs: 99 '))\n"
        "run.log_tags({'own': params.train.epochs})"
    )
    process = start_stage(edit)
    assert process.communicate() == ("", "")
    assert "epochs: 99 " in Path("params.yaml").read_text()
    (train,) = recorded(client)
    assert (train.data.params["train.epochs"], train.data.tags["own"]) == ("1", "1")


def test_a_model_is_linked_to_its_run_and_not_copied(client: MlflowClient, workspace: Path) -> None:
    record(f"sqlite:///{workspace}/mlflow.db")
    (train,) = recorded(client)
    (model,) = client.search_logged_models([train.info.experiment_id])
    assert (model.name, model.source_run_id, str(model.status)) == ("autoencoder", train.info.run_id, "READY")
    assert model.tags["path"] == "models/autoencoder"
    assert model.tags["md5"] == path_md5(Path("models/autoencoder"))
    assert [output.model_id for output in client.get_run(train.info.run_id).outputs.model_outputs] == [model.model_id]
    assert [item for item in Path("mlartifacts").rglob("config.json")] == []


def test_curves_are_visible_while_the_stage_runs(client: MlflowClient, params: Params) -> None:
    with start_run("train", params) as run:
        run.log_metrics({"train_loss": 0.5}, step=0)
        wait_for(lambda: any("train_loss" in run.data.metrics for run in recorded(client)))
        (train,) = recorded(client)
        assert train.info.status == "RUNNING"
        assert history(client, train.info.run_id, "train_loss") == [(0, "0.5")]
    # The first epoch is also in reports/training.csv, but only once in the run.
    assert history(client, train.info.run_id, "train_loss") == [(0, "0.5"), (1, "0.25")]


def test_a_run_is_named_after_its_experiment(
    client: MlflowClient, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "rusty-lamb")
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "\n")
    record(f"sqlite:///{workspace}/mlflow.db")
    (train,) = recorded(client)
    assert train.info.run_name == "train fashion_mnist rusty-lamb"
    assert (train.data.tags["dvc.experiment"], train.data.tags["git.dirty"]) == ("rusty-lamb", "true")
    assert "`dvc exp apply rusty-lamb`" in train.data.tags["mlflow.note.content"]


def test_runs_go_to_the_main_repository(
    workspace: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", workspace, copy], check=True)
    for database in copy.glob("mlflow.db*"):
        database.unlink()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(workspace))
    with start_run("train", params):
        pass
    assert not Path("mlflow.db").exists()
    assert not Path("mlartifacts").exists()
    (train,) = recorded(MlflowClient(f"sqlite:///{workspace}/mlflow.db"))
    kept = workspace / "mlartifacts" / train.info.run_id / "artifacts/training.csv"
    assert kept.read_bytes() == Path("reports/training.csv").read_bytes()


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

    (train,) = recorded(client)
    assert train.info.status == status
    assert train.info.end_time is not None
    assert train.data.tags.get("problem") == problem
    assert train.data.metrics == {"train_loss": 0.5}
    assert "convae.key" not in train.data.tags
    assert train.data.tags["input.data/prepared/train"] == path_md5(Path("data/prepared/train"))
    assert [item.dataset.name for item in train.inputs.dataset_inputs] == ["fashion_mnist prepared/train"]


def test_the_recorder_closes_the_run_of_a_killed_stage(client: MlflowClient, start_stage: StartStage) -> None:
    process = start_stage("run.log_metrics({'train_loss': 0.5})\ntime.sleep(600)")
    wait_for(lambda: any(run.data.metrics for run in recorded(client)))
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: recorded(client)[0].info.status == "KILLED")


def test_the_next_run_closes_one_whose_processes_vanished(
    client: MlflowClient, params: Params, start_stage: StartStage
) -> None:
    kill_with_recorder(start_stage("run.log_metrics({'train_loss': 0.5})\ntime.sleep(600)"), client)
    assert recorded(client)[0].info.status == "RUNNING"
    Path("data/prepared/train/images.npy").write_text("others")
    with start_run("train", params):
        pass
    vanished, train = recorded(client)
    assert (vanished.info.status, train.info.status) == ("KILLED", "FINISHED")


def test_runs_of_another_clone_are_left_to_it(client: MlflowClient, params: Params, start_stage: StartStage) -> None:
    kill_with_recorder(start_stage("run.log_metrics({'train_loss': 0.5})\ntime.sleep(600)"), client)
    (run,) = recorded(client)
    client.set_tag(run.info.run_id, "convae.repository", "another clone")
    Path("data/prepared/train/images.npy").write_text("others")
    with start_run("train", params):
        pass
    assert [run.info.status for run in recorded(client)] == ["RUNNING", "FINISHED"]


def test_an_interrupted_stage_resumes_in_the_same_run(
    client: MlflowClient, params: Params, start_stage: StartStage
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "first-try")
        kill_with_recorder(start_stage("run.log_row({'point': 0, 'train_loss': 0.5})\ntime.sleep(600)"), client)
    (killed,) = recorded(client)
    assert (killed.info.run_name, killed.data.tags["dvc.experiment"]) == ("train fashion_mnist first-try", "first-try")
    for _ in range(2):
        with start_run("train", params) as run:
            run.log_row({"point": 0, "train_loss": 0.5})
            run.log_row({"point": 1, "train_loss": 0.25})
    resumed, again = recorded(client)
    assert resumed.info.status == again.info.status == "FINISHED"
    assert resumed.info.run_id == killed.info.run_id
    assert int(resumed.data.tags["process.pid"]) == os.getpid()
    assert resumed.info.run_name == "train fashion_mnist"
    assert "dvc.experiment" not in resumed.data.tags
    for train in (resumed, again):
        history = client.get_metric_history(train.info.run_id, "train_loss")
        assert sorted((entry.step, entry.value) for entry in history) == [(0, 0.5), (1, 0.25)]


def test_sigterm_handler_is_restored(workspace: Path, params: Params) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, start_run("train", params):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_user_without_a_name_is_no_error(
    client: MlflowClient, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", unknown)
    with start_run("train", params):
        pass
    (train,) = recorded(client)
    assert train.info.status == "FINISHED"
    assert "mlflow.user" not in train.data.tags


@pytest.mark.parametrize("switch", ["variable", "parameter"])
def test_tracking_switched_off_leaves_no_trace(
    switch: str, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if switch == "variable":
        monkeypatch.setenv("CONVAE_TRACKING", "off")
    else:
        tracking = params.tracking.model_copy(update={"enabled": False})
        params = params.model_copy(update={"tracking": tracking})
    before = psutil.Process().children()  # scikit-learn's, of tests that ran earlier
    with start_run("train", params) as run:
        run.log_metrics({"train_loss": 0.5})
        run.log_tags({"device": "cpu"})
        assert psutil.Process().children() == before
    assert list(tmp_path.iterdir()) == []


def test_a_stage_itself_never_imports_mlflow(workspace: Path) -> None:
    code = """
import sys
from pathlib import Path
from urllib.request import urlopen
from convae.params import load_params
from convae.tracking.runs import start_run
with start_run("train", load_params()) as run:
    run.log_metrics({"train_loss": 0.5})
sys.exit("mlflow" in sys.modules or "torch" in sys.modules or "dvc" in sys.modules)
"""
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


@pytest.mark.slow
def test_eight_concurrent_processes_on_a_fresh_database(fresh: Path) -> None:
    code = """
import sys
from convae.params import load_params
from convae.tracking.runs import start_run
with start_run("train", load_params()) as run:
    run.log_metrics({"index": int(sys.argv[1])})
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(index)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for index in range(8)
    ]
    assert [process.communicate()[0] for process in processes] == [b""] * 8
    client = MlflowClient(f"sqlite:///{fresh}/mlflow.db")
    found = recorded(client)
    assert sorted(run.data.metrics["index"] for run in found) == list(range(8))
    assert {run.info.status for run in found} == {"FINISHED"}
    assert len({run.data.tags["convae.key"] for run in found}) == 1
    assert recorded(client, ROWS) == []


def record_four_epochs(params: Params) -> list[int]:
    finished = []
    with start_run("train", params) as run:
        for step in range(4):
            run.log_metrics({"train_loss": 0.5}, step=step)
            finished.append(step)
    return finished


def assert_one_warning(capfd: pytest.CaptureFixture[str], reason: str) -> None:
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.count("\n") == 1, errors
    assert errors.startswith("train: no longer recorded in MLflow (")
    assert reason in errors
    assert errors.endswith("); results are unaffected\n")
    assert "secret" not in errors


def test_a_server_that_refuses_connections_causes_one_warning(
    fresh: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@{server}")
    assert record_four_epochs(params) == [0, 1, 2, 3]
    assert_one_warning(capfd, f"http://{server}: ")


@pytest.mark.parametrize("status", [403, 500])
def test_a_server_that_fails_every_request_causes_one_warning(
    status: int, fresh: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with failing_server(status) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert record_four_epochs(params) == [0, 1, 2, 3]
    assert_one_warning(capfd, "MlflowException: ")


@pytest.mark.parametrize(("timeout", "patience", "reason"), [("1", 60, "{address}: "), ("60", 4, "no answer in time")])
def test_a_hanging_server_causes_one_warning(
    timeout: str,
    patience: float,
    reason: str,
    fresh: Path,
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = psutil.Process().children()
    monkeypatch.setattr(runs, "SERVER_PATIENCE", patience)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", timeout)
    with silent_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert record_four_epochs(params) == [0, 1, 2, 3]
    assert_one_warning(capfd, reason.format(address=address))
    assert psutil.Process().children() == before


def test_a_silent_server_does_not_block_a_stage_of_many_epochs(
    fresh: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "SERVER_PATIENCE", 2)
    with silent_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with start_run("train", params) as run:
            for step in range(10_000):
                run.log_metrics({"train_loss": 0.5, "validation_loss": 0.5}, step=step)
    assert_one_warning(capfd, "no answer in time")


ANNOUNCE_THE_WAIT = """\
wait = run._wait
def announced(*end):
    print("waiting", flush=True)
    return wait(*end)
run._wait = announced"""


def test_ctrl_c_while_waiting_for_the_server_leaves_the_stage_successful(fresh: Path, start_stage: StartStage) -> None:
    with silent_server() as address:
        os.environ["MLFLOW_TRACKING_URI"] = address
        process = start_stage(ANNOUNCE_THE_WAIT)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert errors == "train: no longer recorded in MLflow (interrupted); results are unaffected\n"
    assert process.returncode == 0


def test_a_corrupt_database_causes_one_warning(
    workspace: Path, params: Params, capfd: pytest.CaptureFixture[str]
) -> None:
    (workspace / "mlflow.db").write_bytes(b"this is no database, and never was one")
    assert record_four_epochs(params) == [0, 1, 2, 3]
    assert_one_warning(capfd, "DatabaseError: ")


def test_without_dvc_there_is_one_warning(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert record_four_epochs(params) == [0, 1, 2, 3]
    assert_one_warning(capfd, "NotDvcRepoError")


def is_down(address: str) -> bool:
    try:
        urlopen(f"{address}/health", timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.slow
def test_a_server_records_until_it_dies(
    fresh: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with mlflow_server(fresh) as (address, server):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert record_four_epochs(params) == [0, 1, 2, 3]
        assert capfd.readouterr() == ("", "")
        client = MlflowClient(address)
        (train,) = recorded(client)
        assert train.info.status == "FINISHED"
        assert train.data.params["data.dataset"] == "fashion_mnist"
        assert [step for step, _ in history(client, train.info.run_id, "train_loss")] == [0, 1, 2, 3]
        local = Path(client.download_artifacts(train.info.run_id, "metrics.json"))
        assert json.loads(local.read_text())["test"]["accuracy"] == 0.75
        capfd.readouterr()

        with start_run("train", params) as run:
            run.log_metrics({"train_loss": 0.5}, step=0)
            wait_for(lambda: len(recorded(client)) == 2)
            stop(server)
            wait_for(lambda: is_down(address))
            run.log_metrics({"train_loss": 0.4}, step=1)
        assert_one_warning(capfd, "MlflowException: ")
