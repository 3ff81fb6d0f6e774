"""`make ladder DATASET=digits` with fewer systems and seeds, and the pipeline's commands next to it."""

import json
import sys
from pathlib import Path
from statistics import mean

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow

UP_TO_DATE = "Data and pipelines are up to date."
CELLS = {
    "default_untrained-0",
    "dense_autoencoder-1",
    "supervised_cnn-1",
}


@pytest.fixture(scope="module")
def ladder(clone):
    """A clone after `make ladder`."""
    repository = clone()
    path = repository.folder / "benchmark/ladder/ladder.yaml"
    yaml = YAML()
    settings = yaml.load(path)
    settings["quick"] |= {"systems": ["default_untrained"], "seeds": [0]}
    settings["others"] |= {"datasets": ["digits"], "systems": ["dense_autoencoder", "supervised_cnn"], "seeds": [1]}
    settings["curves"] = ["default_untrained", "supervised_cnn"]
    settings["data"]["digits"] |= {
        "train.epochs": 1,
        "train.threads": 1,
        "data.validation_size": 0.2,
        "features.grid": 2,
    }
    yaml.dump(settings, path)
    climb(repository)
    return repository


def climb(repository, check=True):
    return repository.run("make", "ladder", "DATASET=digits", f"BIN={Path(sys.executable).parent}", check=check)


def cells(repository):
    return {f"{row['system']}-{row['seed']}": row for row in json.loads(repository.read("reports/ladder.json"))}


def test_every_cell_is_a_row_with_what_was_promised(ladder):
    rows = cells(ladder)
    assert set(rows) == CELLS
    for row in rows.values():
        assert row["dataset"] == "digits"
        assert 0.8 < row["test_accuracy"] <= 1
        assert 0.7 < row["knn_accuracy"] <= 1
        assert row["commit"].endswith("-dirty")  # ladder.yaml was edited
    assert len({row["protocol"] for row in rows.values()}) == 1
    assert "mean over a grid of 2×2 cells" in rows["default_untrained-0"]["protocol"]
    assert "Code: 256 directions" in rows["default_untrained-0"]["protocol"]
    assert rows["default_untrained-0"]["dimension"] == 96 * 2 * 4
    assert rows["dense_autoencoder-1"]["dimension"] == 256  # of a sigmoid, which has no negative side
    assert rows["dense_autoencoder-1"]["encoder_parameters"] == 256 * (64 + 1)
    assert rows["default_untrained-0"]["control_of"] == "default"
    assert all(row["training_seconds"] >= 0 and row["extraction_seconds"] >= 0 for row in rows.values())


def test_codes_end_at_the_full_width_and_few_labels_are_drawn_several_times(ladder):
    rows = cells(ladder)
    row = rows["default_untrained-0"]
    assert [entry["dimension"] for entry in row["by_dimension"]] == [64, 128, 256, 96 * 2 * 4]
    assert row["by_dimension"][-1]["test_accuracy"] == row["test_accuracy"]
    draws = [(entry["labels_per_class"], entry["draw"]) for entry in row["by_labels"]]
    # No class has a thousand.
    assert draws == [(count, draw) for count, several in ((1, 5), (10, 5), (100, 3)) for draw in range(several)]
    means = [mean(e["test_accuracy"] for e in row["by_labels"] if e["labels_per_class"] == n) for n in (1, 10, 100)]
    assert means == sorted(means)
    assert rows["dense_autoencoder-1"]["by_labels"] is None
    assert len(rows["supervised_cnn-1"]["by_labels"]) == 6


def test_every_cell_is_a_row_in_mlflow(ladder):
    client = MlflowClient(f"sqlite:///{ladder.folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("convae-ladder").experiment_id])
    assert len(runs) == len(CELLS)
    accuracies = {f"{run.data.params['system']}-{run.data.params['seed']}": run.data.metrics for run in runs}
    assert all(accuracies[name]["test_accuracy"] == row["test_accuracy"] for name, row in cells(ladder).items())


def test_a_lost_database_has_every_cell_again_after_a_sync(ladder):
    uri = f"sqlite:///{ladder.folder}/other.db"
    said = [ladder.run("convae", "sync", MLFLOW_TRACKING_URI=uri).stdout for _ in range(2)]
    assert f"Added {len(CELLS)} ladder cells to the experiment convae-ladder." in said[0]
    assert "ladder cells" not in said[1]


def test_a_changed_system_reruns_its_own_cells_alone(ladder):
    assert "benchmark.ladder.cell" not in climb(ladder).stdout
    before = ladder.read("reports/ladder.json")
    path = ladder.folder / "systems/dense_autoencoder.yaml"
    path.write_text(path.read_text().replace("filters: 256", "filters: 32"))
    commands = [line for line in climb(ladder).stdout.splitlines() if line.startswith("> ")]
    assert [line.partition("benchmark.ladder.")[2] for line in commands] == [
        "parameters",
        "cell digits dense_autoencoder 1",
    ]
    rows, old = cells(ladder), {f"{row['system']}-{row['seed']}": row for row in json.loads(before)}
    assert [name for name, row in rows.items() if row != old[name]] == ["dense_autoencoder-1"]
    assert b"dense_autoencoder" in ladder.read("reports/ladder.html")


def test_a_cell_that_fails_leaves_the_page_of_the_others(ladder):
    path = ladder.folder / "systems/supervised_cnn.yaml"
    before = path.read_text()
    path.write_text(before.replace("seed: 0", "sead: 0"))
    (ladder.folder / "reports/ladder.html").unlink()
    failed = climb(ladder, check=False)
    path.write_text(before)
    assert failed.returncode
    assert "systems/supervised_cnn.yaml: unknown key 'sead'" in failed.stderr
    assert b"dense_autoencoder" in ladder.read("reports/ladder.html")


def test_the_commands_of_the_pipeline_ignore_the_ladder(finished, tmp_path):
    repository = finished
    repository.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    assert UP_TO_DATE in repository.run("dvc", "repro").stdout
    assert UP_TO_DATE in repository.run("dvc", "status").stdout
    repository.run("git", "commit", "--quiet", "--all", "--message", "Results")
    repository.run("dvc", "exp", "run", "--name", "ridge", "--set-param", "classifier.kind=ridge")
    repository.run("git", "checkout", "--quiet", "--force", "HEAD")
    for command in ("checkout", "push", "pull", "exp apply ridge", "gc --workspace --force", "status"):
        done = repository.run("dvc", *command.split())
    assert UP_TO_DATE in done.stdout
    assert not list((repository.folder / "benchmark/ladder").glob("cells/*"))
