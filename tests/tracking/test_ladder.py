"""Each cell of the ladder is a row in MLflow, once."""

import json
from pathlib import Path

from mlflow import MlflowClient

from convae.params import TrackingParams
from convae.tracking.ladder import ladder_cells, record, record_live

CELL = {
    "dataset": "digits",
    "system": "default",
    "seed": 0,
    "objective": "reconstruct",
    "note": None,
    "test_accuracy": 0.9625,
    "dimension": 2048,
    "protocol": "x" * 600,
    "by_dimension": [{"dimension": 64, "test_accuracy": 0.9}, {"dimension": 2048, "test_accuracy": 0.9625}],
    "by_labels": None,
}


def rows(uri, experiment="convae-ladder"):
    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_a_cell_is_recorded_once_and_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert record(uri, "convae", [CELL, {**CELL, "seed": 1}]) == 2
    assert record(uri, "convae", [CELL, {**CELL, "seed": 1}]) == 0
    assert record(uri, "convae", [{**CELL, "protocol": "in other words", "note": "shortened"}]) == 0
    assert record(uri, "convae", [{**CELL, "test_accuracy": 0.97}]) == 1
    found = rows(uri)
    assert {run.info.run_name for run in found} == {"default digits seed 0", "default digits seed 1"}
    assert {run.info.status for run in found} == {"FINISHED"}
    oldest = min(found, key=lambda run: (run.info.start_time, run.data.params["seed"]))
    assert oldest.data.params["system"] == "default"
    assert oldest.data.params["protocol"] == CELL["protocol"]
    assert oldest.data.metrics["test_accuracy"] == 0.9625
    history = MlflowClient(uri).get_metric_history(oldest.info.run_id, "test_accuracy_by_dimension")
    assert [(entry.step, entry.value) for entry in history] == [(64, 0.9), (2048, 0.9625)]


def test_an_unusable_store_causes_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("mlflow.db").write_text("no database")
    record_live(TrackingParams(enabled=True, uri=None, experiment="convae"), CELL)
    assert "ladder: no longer recorded in MLflow" in capsys.readouterr().err


def test_the_cells_of_a_repository_are_those_of_its_ladder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert ladder_cells() == []
    Path("reports").mkdir()
    Path("reports/ladder.json").write_text(json.dumps([CELL]))
    assert ladder_cells() == [CELL]
