"""A search with real workers: one is killed during a trial, another resumes it; a hopeless trial is pruned."""

import json
import os
import signal

import optuna
import psutil
import pytest
from chaos import find_stage
from helpers import ROWS, STAGES, recorded, wait_for
from mlflow import MlflowClient
from optuna.trial import TrialState
from ruamel.yaml import YAML

SEARCH = """\
study: tiny
storage: null
trials: 3
pruning: {startup_trials: 1, warmup_epochs: 0}
space:
  train.learning_rate: {choices: [0.003, 0.0001, 1.0e-9]}
  train.epochs: {low: 2, high: 1000000}
"""

# A minute without a heartbeat would pass before another worker takes over a trial.
SEARCHING = """\
from convae.search import study
study.HEARTBEAT_SECONDS, study.GRACE_SECONDS = 2, 10
from convae.cli import main
main()
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(finished):
    """A finished pipeline whose images the trials share, with an experiment that trains and scores faster."""
    path = finished.folder / "params.yaml"
    yaml = YAML()
    content = yaml.load(path)
    del content["model"]["layers"][1]  # pruning compares numbers of epochs in one layer only
    content["model"]["layers"][0]["output"] = None
    yaml.dump(content, path)
    finished.set("model.layers.0.filters=4", "train.schedule=constant", "classifier.kind=ridge")
    finished.commit("An experiment for a search")
    return finished


def work(clone):
    """Start a worker. Unlike bash, Debian's sh stays between DVC and a stage, as it does where SHELL is not set."""
    return clone.start("python", "-c", SEARCHING, "search", "search.yaml", PYTHONPATH="src", SHELL="/bin/sh")


def training(client, experiment):
    """The training runs of a DVC experiment."""
    wanted = {"dvc.experiment": experiment, "dvc.stage": "train"}
    return [run for run in recorded(client, STAGES) if wanted.items() <= run.data.tags.items()]


def epochs(client, experiment):
    """How many epochs the training runs of an experiment have recorded."""
    runs = training(client, experiment)
    return sum(len(client.get_metric_history(run.info.run_id, "validation_loss")) for run in runs)


def test_killed_workers_lose_no_trial_and_each_is_an_experiment_and_a_row(clone):
    (clone.folder / "search.yaml").write_text(SEARCH)
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow.db")
    storage = optuna.storages.RDBStorage(f"sqlite:///{clone.folder}/search.db")
    study = optuna.create_study(storage=storage, study_name="tiny", direction="maximize")
    study.enqueue_trial({"train.learning_rate": "0.0001", "train.epochs": 2})
    study.enqueue_trial({"train.learning_rate": "0.003", "train.epochs": 30})
    study.enqueue_trial({"train.learning_rate": "1e-09", "train.epochs": 1000000})  # learns nothing and must be pruned
    first = work(clone)
    wait_for(lambda: training(client, "tiny-0"))
    second = work(clone)

    # Only the worker is killed, during training: DVC and the stage must end by themselves.
    trial = clone.folder / ".convae/search/tiny-1"
    # MLflow receives the metrics of a short training run only at its end.
    wait_for(lambda: list(trial.glob(".convae/checkpoints/*/0/last.ckpt")))
    stage = find_stage(second.pid, "train")
    os.kill(second.pid, signal.SIGKILL)
    second.communicate()
    psutil.wait_procs([stage], timeout=600)
    assert not stage.is_running()

    # The first worker resumes its trial in the same MLflow run, and ends when no trial remains.
    printed = first.communicate()[0]
    assert first.returncode == 0
    assert "resuming epoch" in (clone.folder / ".convae/search/tiny-1.log").read_text()
    (run,) = training(client, "tiny-1")
    assert run.info.status == "FINISHED"
    assert epochs(client, "tiny-1") == 30
    assert "tiny-2: pruned" in printed
    assert [run.info.status for run in training(client, "tiny-2")] == ["KILLED"]
    assert printed.splitlines()[-1] == f"dvc exp apply {study.best_trial.user_attrs['experiment']}"

    trials = study.get_trials()
    ended = [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.state for trial in trials] == ended
    values = {trial.user_attrs["experiment"]: trial.value for trial in (trials[0], trials[3])}
    assert set(values) == {"tiny-0", "tiny-1"}
    first, *others = recorded(client, ROWS)
    assert first.data.params["classifier.kind"] == "logistic_regression"  # of the finished pipeline
    rows = {run.info.run_name.partition(":")[0]: run for run in others}
    assert {name: row.data.metrics["validation.accuracy"] for name, row in rows.items()} == values
    table = json.loads(clone.run("dvc", "exp", "show", "--json").stdout)
    shown = {
        revision["name"]: revision["data"]["metrics"]["reports/metrics.json"]["data"]["validation"]["accuracy"]
        for baseline in table
        for experiment in baseline["experiments"] or []
        for revision in experiment["revs"]
    }
    assert shown == values
    assert clone.run("convae", "sync", PYTHONPATH="src").stdout.startswith("Added 0 stage runs and 0 experiments")
    assert {path.suffix for path in (clone.folder / ".convae/search").iterdir()} == {".lock", ".log"}
