"""Executions in dvc.lock are recorded in MLflow once, from any commit, branch or experiment."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from helpers import REPOSITORY, ROWS, STAGES, content, kill_with_recorder, made_once, recorded
from mlflow import MlflowClient

from convae.history.git import git, places
from convae.history.lock import Execution, chain, ordered, path_md5, read_lock
from convae.tracking import sync as module
from convae.tracking.context import process_tags
from convae.tracking.records import Records
from convae.tracking.store import ending, open_store, public

# Next to the stage `train`, which learns "weights" from the images, one that writes metrics and parameters.
REPORT_STAGE = """\
  report:
    cmd: python report.py
    deps: [models/autoencoder, reports/metrics.json, reports/training.csv]
    params: [seed, data.dataset]
    outs:
      - reports/report.html: {cache: false}
"""
TRAIN = """\
import json
from pathlib import Path
from convae.stages.runner import run_stage

def train(params, run):
    epochs = params.train.epochs
    Path("models/autoencoder").mkdir(parents=True)
    Path("models/autoencoder/config.json").write_text(str(epochs))
    rows = [f"{epoch},{1 / (epoch + 1):.6g}" for epoch in range(epochs)]
    Path("reports/training.csv").write_text("\\n".join(["epoch,train_loss", *rows, ""]))
    Path("reports/metrics.json").write_text(json.dumps({"test": {"accuracy": 1 - 1 / (epochs + 1)}}))

run_stage("train", train)
"""
REPORT = """\
from pathlib import Path
from convae.stages.runner import run_stage
run_stage("report", lambda params, run: Path("reports/report.html").write_text("<p>all is well</p>"))
"""


def dvc(*arguments: str, fails: bool = False, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout + done.stderr


def untracked(*arguments: str) -> str:
    return dvc(*arguments, CONVAE_TRACKING="off")


def set_epochs(count: int) -> None:
    lines = Path("params.yaml").read_text().splitlines(keepends=True)
    changed = [f"  epochs: {count}\n" if line.startswith("  epochs:") else line for line in lines]
    Path("params.yaml").write_text("".join(changed))


def commit(message: str) -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", message)


def add_stages() -> None:
    with Path("dvc.yaml").open("a") as stream:
        stream.write(REPORT_STAGE)
    Path("train.py").write_text(TRAIN)
    Path("report.py").write_text(REPORT)
    set_epochs(2)
    commit("Two stages")


@pytest.fixture
def pipeline(workspace: Path) -> Path:
    """The workspace with two stages that DVC can run."""
    add_stages()
    return workspace


@pytest.fixture(scope="session")
def once(templates: Path) -> Callable[[str], Path]:
    """`once("on")`: a folder in which DVC has run the stages, tracking switched on or off."""

    def run(tracking: str) -> Path:
        def make(folder: Path) -> None:
            shutil.copytree(templates / "repository", folder)
            with chdir(folder):
                add_stages()
                dvc("repro", CONVAE_TRACKING=tracking, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")

        return made_once(f"tracking-{tracking}", make)

    return run


@pytest.fixture
def computed(workspace: Path, once: Callable[[str], Path]) -> Path:
    """The workspace in which DVC has run the two stages, untracked."""
    subprocess.run(["cp", "-a", f"{once('off')}/.", workspace], check=True)
    return workspace


@pytest.fixture
def tracked(fresh: Path, once: Callable[[str], Path]) -> Path:
    """The same with its two runs and its row in MLflow."""
    subprocess.run(["cp", "-a", f"{once('on')}/.", fresh], check=True)
    open_store(f"sqlite:///{fresh}/mlflow.db", STAGES, ROWS)  # where addresses change to those of the copy
    return fresh


@pytest.fixture
def client(fresh: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{fresh}/mlflow.db")


def sync(database: str = "mlflow.db") -> tuple[int, int]:
    """Synchronise and return the numbers of runs and rows added."""
    return module.sync(Records(f"sqlite:///{Path(database).absolute()}", ROWS))


def names(client: MlflowClient) -> list[str]:
    return sorted(str(run.info.run_name) for run in recorded(client, ROWS))


def test_a_rebuilt_database_equals_the_original(tracked: Path, client: MlflowClient) -> None:
    commit("Results")
    dvc("exp", "run", "--name", "longer", "--set-param", "train.epochs=4")
    assert sync() == (0, 0)
    before = {experiment: content(client, experiment) for experiment in (STAGES, ROWS)}
    assert [len(runs) for runs in before.values()] == [4, 2]

    assert sync("other.db") == (4, 2)
    other = MlflowClient(f"sqlite:///{tracked}/other.db")
    assert {experiment: content(other, experiment) for experiment in (STAGES, ROWS)} == before
    assert {run.data.tags["convae.origin"] for run in recorded(client)} == {"executed"}
    assert {run.data.tags["convae.origin"] for run in recorded(other)} == {"restored"}
    head = git("rev-parse", "--short=7", "HEAD")
    assert names(other) == [f"{head} Results", "longer: train.epochs=4"]
    results, longer = recorded(other, ROWS)
    assert longer.data.params == {"seed": "0", "data.dataset": "fashion_mnist", "train.epochs": "4"}
    assert longer.data.metrics["test.accuracy"] == 0.8
    assert [e.value for e in other.get_metric_history(longer.info.run_id, "train_loss")] == [1.0, 0.5, 0.333333, 0.25]
    assert "Restore it with `dvc exp apply longer`" in longer.data.tags["mlflow.note.content"]
    assert f"Restore it with `git checkout {head} && dvc checkout`" in results.data.tags["mlflow.note.content"]
    assert sync("other.db") == (0, 0)


def test_commits_branches_and_experiments_are_found_without_tracking(computed: Path, client: MlflowClient) -> None:
    commit("First")
    set_epochs(3)
    untracked("repro")
    commit("Second, soon overwritten")
    set_epochs(2)
    untracked("repro")  # from DVC's run cache
    commit("As at first")
    git("switch", "--quiet", "--create", "side")
    set_epochs(5)
    untracked("repro")
    commit("On the side")
    git("switch", "--quiet", "-")
    untracked("checkout")
    untracked("exp", "run", "--name", "six", "--set-param", "train.epochs=6")
    set_epochs(7)
    untracked("repro")
    assert recorded(client) == []

    assert sync() == (10, 5)
    rows = {run.data.params["train.epochs"]: run for run in recorded(client, ROWS)}
    kinds = {epochs: str(run.info.run_name).split(" ", 1)[-1] for epochs, run in rows.items()}
    assert kinds == {
        "2": "First",
        "3": "Second, soon overwritten",
        "5": "On the side",
        "6": "train.epochs=6",
        "7": "train.epochs=7",
    }
    assert rows["7"].info.run_name == "workspace: train.epochs=7"
    assert rows["7"].data.metrics["test.accuracy"] == 0.875
    assert sync() == (0, 0)
    commit("Seven")
    assert sync() == (0, 0)
    assert any(name.endswith("Seven") for name in names(client))


def test_parameters_edited_during_a_stage_are_not_recorded(pipeline: Path, client: MlflowClient) -> None:
    def edit(old: str, new: str) -> str:
        change = f"file = Path('params.yaml'); file.write_text(file.read_text().replace({old!r}, {new!r}))"
        Path("train.py").write_text(TRAIN.replace("    Path(", f"    {change}\n    Path(", 1))
        return Path("params.yaml").read_text()

    before = edit("  epochs: 2", "  epochs: 4")
    line = "train: params.yaml was edited while the stage ran (train.epochs was 2, is 4): DVC would record"
    assert line in dvc("repro", "train", fails=True)
    assert not Path("dvc.lock").exists()
    assert recorded(client)[0].info.status == "FAILED"
    # As the message says, the result is stored under the values that produced it.
    Path("params.yaml").write_text(before)
    dvc("commit", "--force", "train")
    (train,) = read_lock(Path("dvc.lock").read_text()).values()
    assert train.params["train.epochs"] == 2
    assert sync() == (1, 0)
    # Parameters that the stage does not depend on may be edited at any time.
    edit("  patience: null", "  patience: 3")
    dvc("repro", "--force", "train")
    assert Path("params.yaml").read_text() != before


def test_a_run_is_linked_to_its_producers_by_content(tracked: Path, client: MlflowClient) -> None:
    train, report = recorded(client)
    (row,) = recorded(client, ROWS)
    link = f"#/experiments/{train.info.experiment_id}/runs"
    assert f"[train fashion_mnist]({link}/{train.info.run_id})" in report.data.tags["mlflow.note.content"]
    note = row.data.tags["mlflow.note.content"]
    assert f"[report]({link}/{report.info.run_id}/artifacts/report.html)" in note
    assert f"[train]({link}/{train.info.run_id})" in note
    (model,) = client.search_logged_models([train.info.experiment_id])
    for run in (report, row):
        assert [item.model_id for item in client.get_run(run.info.run_id).inputs.model_inputs] == [model.model_id]


def test_a_stage_restored_by_dvc_is_recorded_as_restored(computed: Path, client: MlflowClient) -> None:
    Path("reports/report.html").unlink()
    dvc("repro", "--force", "--single-item", "report")
    origins = {run.data.tags["dvc.stage"]: run.data.tags["convae.origin"] for run in recorded(client)}
    assert origins == {"train": "restored", "report": "executed"}
    assert sync() == (0, 0)


def training_runs(client: MlflowClient) -> list[tuple[str, str]]:
    """Status and origin of the training runs, in the order of the status."""
    runs = [run for run in recorded(client) if run.data.tags["dvc.stage"] == "train"]
    return sorted((run.info.status, run.data.tags["convae.origin"]) for run in runs)


@pytest.mark.parametrize("target", ["train", "report"], ids=["last stage", "another stage follows"])
def test_a_stage_that_outlived_its_recording_is_completed_once(
    pipeline: Path, client: MlflowClient, target: str
) -> None:
    """As if a server had died."""
    Path("train.py").write_text(TRAIN.replace("    Path(", BREAK + "    Path(", 1))
    line = "train: no longer recorded in MLflow (its recorder died); results are unaffected"
    assert line in dvc("repro", target)
    if target == "train":
        assert training_runs(client) == [("RUNNING", "executed")]
    assert sync() == ((1, 0) if target == "train" else (0, 0))
    assert training_runs(client) == [("FINISHED", "restored")]
    (train,) = [run for run in recorded(client) if run.data.tags["dvc.stage"] == "train"]
    assert train.data.metrics["test.accuracy"] == pytest.approx(2 / 3)
    assert sync() == (0, 0)


def test_a_killed_run_stays_killed_if_its_repetition_is_untracked(
    pipeline: Path, client: MlflowClient, start_stage: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    script = Path("train.py").read_text()
    kill_with_recorder(start_stage("run.log_metrics({'train_loss': 99.0})\ntime.sleep(600)"), client)
    Path("train.py").write_text(script)
    untracked("repro")
    assert sync() == (2, 1)
    assert training_runs(client) == [("FINISHED", "restored"), ("KILLED", "executed")]


class Breaking:
    """An MLflow client whose process ends during the n-th writing call."""

    WRITES = ("create_", "log_", "set_", "finalize_", "delete_")

    def __init__(self, client: MlflowClient, calls: int) -> None:
        self._client, self._left = client, calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith(self.WRITES):
            self._left -= 1
            if self._left < 0:
                os._exit(3)
        return getattr(self._client, name)


def write_live(records: Records) -> None:
    """Record both stages and the row as their recorders do."""
    *_, place = places()
    for execution in ordered(place.executions):
        run_id = records.begin(execution, place, process_tags())
        records.complete(run_id, execution, place, Path())
        if execution.stage == "report":
            records.add_row(execution, place, Path())
        records.client.set_terminated(run_id, "FINISHED")


def write_until(calls: int, write: Callable[[Records], object], database: str) -> None:
    """Make up to `calls` MLflow calls, then leave the status in a file, as a stage does whose recorder died."""
    records = Records(database, ROWS)
    records.client = cast("MlflowClient", Breaking(records.client, calls))
    word = ending(process_tags())
    word.parent.mkdir(parents=True, exist_ok=True)
    word.write_text("FINISHED")
    write(records)


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_live, module.sync])
def test_half_written_runs_are_repaired(
    computed: Path, client: MlflowClient, write: Callable[[Records], object]
) -> None:
    expected = None
    for calls in range(100):
        database = f"sqlite:///{computed}/{calls}.db"
        shutil.copy(computed / "mlflow.db", f"{calls}.db")
        writer = multiprocessing.get_context("fork").Process(target=write_until, args=(calls, write, database))
        writer.start()
        writer.join()
        module.sync(Records(database, ROWS))
        records = MlflowClient(database)
        assert {run.info.status for run in recorded(records)} == {"FINISHED"}
        stages = records.get_experiment_by_name(STAGES)
        assert stages is not None
        models = records.search_logged_models([stages.experiment_id])
        found = [len(models), *(content(records, experiment) for experiment in (STAGES, ROWS))]
        assert found == (expected or found), f"after {calls} calls"
        expected = found
        if writer.exitcode == 0:  # it finished
            break
    assert [len(runs) for runs in expected[1:]] == [2, 1]
    assert calls > 15


# Kills the recorder once it has started its run.
BREAK = """\
    import psutil
    from mlflow import MlflowClient
    client = MlflowClient("sqlite:///mlflow.db")
    while not (client.get_experiment_by_name("convae-stages") and client.search_runs(["2"])):
        pass
    psutil.Process().children()[0].kill()
"""


def test_duplicates_written_by_two_machines_are_removed(computed: Path, client: MlflowClient) -> None:
    assert sync() == (2, 1)
    records = Records(f"sqlite:///{computed}/mlflow.db", ROWS)
    *_, place = places()
    train, report = ordered(place.executions)
    records.restore(train, place, computed)
    records.add_row(report, place, computed)
    assert (len(recorded(client)), len(recorded(client, ROWS))) == (3, 2)
    assert sync() == (0, 0)
    assert (len(recorded(client)), len(recorded(client, ROWS))) == (2, 1)


def test_a_repeated_execution_is_a_new_run_but_no_new_row(tracked: Path, client: MlflowClient) -> None:
    dvc("repro", "--force")
    assert len(recorded(client)) == 4
    assert len({run.data.tags["convae.key"] for run in recorded(client)}) == 2
    assert len(recorded(client, ROWS)) == 1
    assert sync() == (0, 0)
    assert len(recorded(client)) == 4


def test_internal_refs_of_dvc_are_not_experiments(tracked: Path, client: MlflowClient) -> None:
    commit("Results")
    dvc("exp", "run", "--name", "longer", "--set-param", "train.epochs=4")
    git("checkout", "--quiet", "--", ".")
    dvc("exp", "apply", "longer")
    assert "refs/exps/apply" in git("for-each-ref")
    assert sync() == (0, 0)


@pytest.mark.slow
def test_an_unreachable_row_is_marked(tracked: Path, client: MlflowClient) -> None:
    commit("Results")
    for epochs in (4, 5):
        dvc("exp", "run", "--force", "--name", "mine", "--set-param", f"train.epochs={epochs}")
    assert sync() == (0, 0)
    notes = {run.data.params["train.epochs"]: run.data.tags["mlflow.note.content"] for run in recorded(client, ROWS)}
    assert notes["4"].endswith("No longer reachable from any commit or experiment.")
    assert notes["5"].endswith("Restore it with `dvc exp apply mine`")
    assert notes["2"].endswith("&& dvc checkout`")
    gone = [run for run in recorded(client) if "No longer reachable" in run.data.tags["mlflow.note.content"]]
    assert {run.data.params.get("train.epochs", "4") for run in gone} == {"4"}
    assert {run.data.tags["dvc.stage"] for run in gone} == {"train", "report"}


def test_numbers_come_from_the_commit_that_has_them(computed: Path, client: MlflowClient) -> None:
    git("add", "dvc.lock")
    git("commit", "--quiet", "--message", "As DVC proposes")
    commit("And its reports")
    set_epochs(3)
    untracked("repro")
    assert sync() == (4, 2)
    rows = {run.data.params["train.epochs"]: run for run in recorded(client, ROWS)}
    assert rows["2"].data.metrics["test.accuracy"] == pytest.approx(2 / 3)
    assert str(rows["2"].info.run_name).endswith("And its reports")


def test_an_unreadable_lock_file_is_skipped(
    computed: Path, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    commit("Results \u2028 of two lines")
    lock = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(f"<<<<<<< mine\n{lock}=======\n{lock}>>>>>>> theirs\n")
    commit("A conflict")
    Path("dvc.lock").write_text(lock)
    assert sync() == (2, 1)
    head = git("rev-parse", "--short=7", "HEAD")
    line = f"commit {head}: dvc.lock contains merge conflict markers; skipped\n"
    assert capsys.readouterr().err == line
    Path("dvc.lock").write_text("stages: 1")
    cure = "restore the committed file with `git checkout dvc.lock`"
    assert convae("sync").stderr.endswith(f"convae: dvc.lock can't be read; {cure}\n")


CONFLICT = (
    "dvc.lock contains merge conflict markers; choose a side with `git checkout --theirs params.yaml dvc.lock reports` "
    "(or --ours), then run `dvc repro`"
)


def test_a_conflict_in_the_lock_file_is_reported_in_one_line(
    computed: Path, client: MlflowClient, start_stage: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    commit("Results")
    lock = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(f"<<<<<<< mine\n{lock}=======\n{lock}>>>>>>> theirs\n")
    for command in (("sync",), ("lineage", "models/autoencoder"), ("ui",), ("verify",)):
        done = convae(*command)
        assert (done.stdout, done.stderr, done.returncode) == ("", f"convae: {CONFLICT}\n", 1)
    warning = f"train: no longer recorded in MLflow ({CONFLICT}); results are unaffected\n"
    assert start_stage("pass").communicate() == ("", warning)


def test_any_path_can_be_an_input(pipeline: Path, client: MlflowClient) -> None:
    records = Records(f"sqlite:///{pipeline}/mlflow.db", ROWS)
    *_, place = places()
    paths = ["/srv/my pictures/", "../pictures", "a//b", "naïve|`x`", "long/" * 100, "longer/" * 100]
    records.restore(Execution("download", {}, dict.fromkeys(paths, "0" * 32)), place, pipeline)
    (run,) = recorded(client)
    assert sum(name.startswith("input.") for name in run.data.tags) == len(paths)


def test_an_experiment_deleted_in_the_interface_is_restored(tracked: Path, client: MlflowClient) -> None:
    found = client.get_experiment_by_name(ROWS)
    assert found is not None
    client.delete_experiment(found.experiment_id)
    assert sync() == (0, 0)
    assert len(recorded(client, ROWS)) == 1


@pytest.mark.parametrize("password", ["secret", "sec@ret", "sec/ret"])
def test_an_address_is_shown_without_its_password(password: str) -> None:
    assert public(f"at http://me:{password}@example.org:5000/x") == "at http://example.org:5000/x"


def convae(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "convae.cli", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_lineage_of_something_copied_elsewhere(tracked: Path, client: MlflowClient, tmp_path: Path) -> None:
    commit("Results")
    shutil.copytree("models/autoencoder", tmp_path / "copy")
    done = convae("lineage", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    (train,) = [run for run in recorded(client) if run.data.tags["dvc.stage"] == "train"]
    images = path_md5(Path("data/prepared/train"))
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == [str(tmp_path / "copy"), path_md5(Path("models/autoencoder"))]
    assert lines[2][2:] == ["git", "checkout", git("rev-parse", "--short=7", "HEAD"), "&&", "dvc", "checkout"]
    assert ["run", train.info.run_id] in lines
    assert ["data", "data/prepared/train", images] in lines
    assert ["parameter", "train.epochs", "=", "2"] in lines

    (tmp_path / "copy/config.json").write_text("changed")
    done = convae("lineage", str(tmp_path / "copy"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"convae: {tmp_path}/copy: no dvc.lock in this repository has its content (MD5 ")
    done = convae("lineage", "nowhere")
    assert (done.returncode, done.stderr) == (1, "convae: nowhere: no such file or folder\n")

    done = convae("lineage", "models/autoencoder", CONVAE_TRACKING="off")
    assert done.returncode == 0
    assert "train.epochs = 2" in done.stdout
    assert train.info.run_id not in done.stdout


@pytest.mark.slow
def test_lineage_prefers_the_current_code_among_equal_results(tracked: Path, client: MlflowClient) -> None:
    commit("Results")
    definition = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(definition.replace("[data/prepared/train]", "[data/prepared/train, train.py]"))
    dvc("repro")
    commit("Other code, the same bits")
    lines = [line.split() for line in convae("lineage", "models/autoencoder").stdout.splitlines()]
    assert lines[2][2:] == ["git", "checkout", git("rev-parse", "--short=7", "HEAD"), "&&", "dvc", "checkout"]
    _, later = [run for run in recorded(client) if run.data.tags["dvc.stage"] == "train"]
    assert ["run", later.info.run_id] in lines
    assert ["data", "train.py", path_md5(Path("train.py"))] in lines
    git("checkout", "--quiet", "HEAD~")
    lines = [line.split() for line in convae("lineage", "models/autoencoder").stdout.splitlines()]
    assert lines[2][2:] == ["git", "checkout", git("rev-parse", "--short=7", "HEAD"), "&&", "dvc", "checkout"]


def test_sync_from_the_command_line(computed: Path) -> None:
    done = convae("sync")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Added 2 stage runs and 1 experiments; existing ones are unchanged.\n"
    done = convae("sync", CONVAE_TRACKING="off")
    assert (done.returncode, done.stderr) == (
        1,
        "convae: tracking is switched off, by CONVAE_TRACKING or tracking.enabled\n",
    )
    Path("mlflow.db").write_bytes(b"this is no database")
    done = convae("sync")
    assert done.returncode == 1
    assert done.stderr.startswith("convae: the MLflow store can't be used: ")
    assert done.stderr.count("\n") == 1


def test_hashes_and_keys_equal_dvcs(tracked: Path, client: MlflowClient) -> None:
    executions = read_lock(Path("dvc.lock").read_text())
    assert {run.data.tags["convae.key"] for run in recorded(client)} == {one.key for one in executions.values()}
    train, report = executions["train"], executions["report"]
    assert {**train.inputs, **train.outputs} == {path: path_md5(Path(path)) for path in [*train.inputs, *train.outputs]}
    assert [one.stage for one in ordered({"report": report, "train": train})] == ["train", "report"]
    assert chain(executions, report) == [train]
    # A lock in which one stage is newer than the others: its input differs from the present one.
    newer = replace(train, outputs=dict.fromkeys(train.outputs, "0"))
    assert chain({"train": newer, "report": report}, report) == []
