"""A shorter `make chaos`: one run of the pipeline that is stopped in each of its stages."""

import pytest
from chaos import EXPERIMENT, FULL_DISK, Disturbance, run_undisturbed, small_disk, stop_in_turn
from clones import make_clone

DISTURBANCES = [
    Disturbance("download", "SIGKILL of group", 0.3),
    Disturbance("prepare", "SIGKILL of stage", 0.6),
    Disturbance("train", "SIGKILL of dvc", 0.7),
    Disturbance("train", "SIGINT of group", 0.8),
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
def test_a_pipeline_interrupted_in_every_stage_ends_with_the_same_bits(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVAE_TRACKING", "off")  # test_tracking.py stops stages that are recorded
    experiment = (*EXPERIMENT, "classifier.kind=ridge")
    clone = make_clone(folder / "convae", *experiment, history=False)
    undisturbed = make_clone(folder / "undisturbed", *experiment, history=False)
    durations = run_undisturbed(undisturbed, "dvc", "repro")
    disturbances = [one for one in DISTURBANCES if one.way != FULL_DISK or folder != tmp_path]
    assert stop_in_turn(clone, disturbances, durations, "dvc", "repro") == ""
    assert clone.read("dvc.lock") == undisturbed.read("dvc.lock")
