"""A shorter `make chaos`: one run of the pipeline that is stopped in each of its stages."""

import pytest
from chaos import FULL_DISK, Disturbance, small_disk, stop_in_turn
from clones import SMALL, make_clone
from helpers import recorded
from mlflow import MlflowClient

DISTURBANCES = [
    Disturbance("download", "SIGKILL of group", 0.3),
    Disturbance("prepare", "SIGKILL of stage", 0.6),
    Disturbance("train", "SIGKILL of dvc", 0.8),
    Disturbance("train", "SIGINT of group", 0.9),
    Disturbance("features", FULL_DISK, 0.3),
    Disturbance("evaluate", "SIGTERM of stage", 0.5),
    Disturbance("report", "SIGTERM of dvc", 0.5),
]


@pytest.fixture
def folder(tmp_path):
    """A folder on a disk of its own, where one may be mounted."""
    with small_disk() as disk:
        yield disk or tmp_path


@pytest.mark.slow
def test_a_pipeline_interrupted_in_every_stage_ends_with_the_same_bits(folder, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVAE_TRACKING", "off")  # test_tracking.py stops stages that are recorded
    clone = make_clone(folder / "convae", *SMALL, "train.checkpoint_minutes=0.001", history=False)
    runs = recorded(MlflowClient(f"sqlite:///{finished.folder}/mlflow.db"))
    durations = {run.data.tags["dvc.stage"]: (run.info.end_time - run.info.start_time) / 1000 for run in runs}
    disturbances = [one for one in DISTURBANCES if one.way != FULL_DISK or folder != tmp_path]
    assert stop_in_turn(clone, disturbances, durations, "dvc", "repro") == ""
    assert clone.read("dvc.lock") == finished.read("dvc.lock")
