import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from convae.history.deviation import largest_deviation, metric_deviations


def test_deviations_are_relative_to_the_largest_magnitude(tmp_path):
    old = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    new = old.copy()
    new[1, 2] += 0.5
    for name, values in (("old", old), ("new", new)):
        np.save(tmp_path / f"{name}.npy", values)
        save_file({"constant": np.ones(2), "filters": values}, tmp_path / f"{name}.safetensors")
    for suffix in ("npy", "safetensors"):
        assert largest_deviation(tmp_path / f"old.{suffix}", tmp_path / f"new.{suffix}") == pytest.approx(0.25)
        assert largest_deviation(tmp_path / f"old.{suffix}", tmp_path / f"old.{suffix}") == 0


@pytest.mark.parametrize("other", [np.zeros((2, 3)), np.zeros(2), np.full((2, 2), np.nan), np.full((2, 2), -np.inf)])
def test_other_shapes_nan_and_infinity_deviate_infinitely(tmp_path, other):
    np.save(tmp_path / "old.npy", np.ones((2, 2)))
    np.save(tmp_path / "new.npy", other)
    assert largest_deviation(tmp_path / "old.npy", tmp_path / "new.npy") == np.inf


def test_a_folder_deviates_as_its_worst_file(tmp_path):
    for folder, value in (("old", 2.0), ("new", 3.0)):
        (tmp_path / folder / "below").mkdir(parents=True)
        np.save(tmp_path / folder / "same.npy", np.ones(3))
        np.save(tmp_path / folder / "below/other.npy", np.full(3, value))
        (tmp_path / folder / "words.txt").write_text(folder)
    assert largest_deviation(tmp_path / "old", tmp_path / "new") == 0.5
    (tmp_path / "new/same.npy").unlink()
    assert largest_deviation(tmp_path / "old", tmp_path / "new") == np.inf
    (tmp_path / "words").mkdir()
    assert largest_deviation(tmp_path / "words", tmp_path / "words") is None


def test_metrics_deviate_by_name(tmp_path):
    for name, accuracy in (("old", 0.5), ("new", 0.25)):
        content = {"test": {"accuracy": accuracy, "f1": 1.0}, "kind": name, name: 1}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = metric_deviations(tmp_path / "old.json", tmp_path / "new.json")
    assert found == {"test.accuracy": 0.25, "old": np.inf, "new": np.inf}
