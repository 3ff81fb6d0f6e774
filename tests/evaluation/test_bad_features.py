"""Features and image sets that are damaged or do not belong together: `evaluate` says so in one line."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convae.encoder import Encoder
from convae.errors import ConvaeError
from convae.evaluation.evaluate import evaluate
from convae.files import read_json, write_json
from convae.params import Params

Damage = Callable[[np.ndarray], np.ndarray]


def with_value(value: float) -> Damage:
    def damage(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[7, 3] = value
        return rows

    return damage


ARRAYS: dict[str, tuple[str, Damage, str]] = {
    # the file, what becomes of its array, what the line says
    "NaN": ("train.npy", with_value(np.nan), "the features of training image 7 hold NaN or infinity"),
    "infinity": ("validation.npy", with_value(np.inf), "the features of validation image 7 hold NaN or infinity"),
    "NaN in the test part": ("test.npy", with_value(np.nan), "the features of test image 7 hold NaN or infinity"),
    "one row": ("train.npy", lambda rows: rows[0], "train.npy: shape [32] for 400 images"),
    "a number": ("train.npy", lambda rows: rows[0, 0], "train.npy: shape [] for 400 images"),
    "doubles": ("train.npy", lambda rows: rows.astype(np.float64), "train.npy: not an array of float32"),
    "words": ("test.npy", lambda rows: rows.astype(str), "test.npy: not an array of float32"),
    "a column too few": ("test.npy", lambda rows: rows[:, 1:], "numbers of features differ: {'train': 32,"),
    "a row too few": ("train.npy", lambda rows: rows[1:], "train.npy: shape [399, 32] for 400 images"),
    "a row too many": ("test.npy", lambda rows: np.concatenate([rows, rows[:1]]), "test.npy: shape [101, 32] for 100"),
    "no row": ("test.npy", lambda rows: rows[:0], "test.npy: shape [0, 32] for 100 images"),
    "three axes": ("test.npy", lambda rows: rows[:, None], "test.npy: shape [100, 1, 32] for 100 images"),
    "all alike": ("train.npy", np.zeros_like, "all training images have the same features"),
    "labels too few": ("train_labels.npy", lambda labels: labels[1:], "train_labels.npy: not the labels of"),
    "labels of others": ("test_labels.npy", lambda labels: labels[::-1], "test_labels.npy: not the labels of"),
    "labels of a table": ("test_labels.npy", lambda labels: labels[:, None], "test_labels.npy: not the labels of"),
    "labels as words": ("test_labels.npy", lambda labels: labels.astype(str), "test_labels.npy: not the labels of"),
}  # fmt: skip

FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("features/train.npy", Path.unlink, "train.npy: not readable features"),
    "empty": ("features/train.npy", lambda path: path.write_bytes(b""), "train.npy: not readable features"),
    "archive": ("features/train.npy", lambda path: np.savez(path.open("wb"), np.ones(3)), "not an array of float32"),
    "archive cut": ("features/train.npy", lambda path: path.write_bytes(b"PK\3\4"), "train.npy: not readable features"),
    "labels of nothing": (
        "features/train_labels.npy",
        lambda path: path.write_bytes(b""),
        "train.npy: not readable features",
    ),
    "images of nothing": (
        "prepared/test/images.npy",
        lambda path: path.write_bytes(b""),
        "prepared/test: not a readable image set",
    ),
    "description of nothing": (
        "prepared/test/description.json",
        lambda path: path.write_text("{}"),
        "prepared/test: not a readable image set",
    ),
    "description of a list": (
        "prepared/test/description.json",
        lambda path: path.write_text("[]"),
        "prepared/test: not a readable image set",
    ),
    "text": ("features/train.npy", lambda path: path.write_text("hello"), "train.npy: not readable features"),
    "truncated": (
        "features/test.npy",
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        "test.npy: not readable features",
    ),
    "header cut": (
        "features/test.npy",
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        "test.npy: not readable features",
    ),
    "labels missing": ("features/test_labels.npy", Path.unlink, "test_labels.npy: not the labels of"),
    "images missing": ("prepared/test/images.npy", Path.unlink, "prepared/test: not a readable image set"),
    "images cut": (
        "prepared/test/images.npy",
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        "prepared/test: not a readable image set",
    ),
    "images of another size": (
        "prepared/test/images.npy",
        lambda path: np.save(path, np.load(path)[:, :, 1:]),
        "images, labels and description differ in size",
    ),
    "description missing": ("prepared/test/description.json", Path.unlink, "prepared/test: not a readable image set"),
    "description cut": (
        "prepared/test/description.json",
        lambda path: path.write_text("{"),
        "prepared/test: not a readable image set",
    ),
    "unlabelled part": ("prepared/test/labels.npy", Path.unlink, "test_labels.npy: not the labels of"),
}


@pytest.fixture
def refused(params: Params, encoder: Encoder, digits: Path, tmp_path: Path) -> Callable[[str], None]:
    """Evaluate `tmp_path`, which must fail with this message in one line and keep earlier results."""
    write_json(tmp_path / "reports/metrics.json", {"earlier": 1})

    def run(message: str) -> None:
        with pytest.raises(ConvaeError) as mistake:
            evaluate(
                params,
                encoder,
                tmp_path / "features",
                digits,
                classifier=tmp_path / "classifier",
                reference=tmp_path / "reference",
                predictions=tmp_path / "test.parquet",
                reports=tmp_path / "reports",
            )
        assert message in str(mistake.value)
        assert "\n" not in str(mistake.value)
        assert read_json(tmp_path / "reports/metrics.json") == {"earlier": 1}
        assert not (tmp_path / "classifier").exists()

    return run


@pytest.mark.parametrize("case", ARRAYS)
def test_invalid_arrays_are_refused(refused: Callable[[str], None], tmp_path: Path, case: str) -> None:
    name, damage, message = ARRAYS[case]
    path = tmp_path / "features" / name
    np.save(path, damage(np.load(path)))
    refused(message)


@pytest.mark.parametrize("case", FILES)
def test_damaged_files_are_refused(refused: Callable[[str], None], tmp_path: Path, case: str) -> None:
    name, damage, message = FILES[case]
    damage(tmp_path / name)
    refused(message)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["features/train.npy", "features/train_labels.npy", "prepared/train/images.npy"])
def test_nothing_is_unpickled(refused: Callable[[str], None], tmp_path: Path, name: str) -> None:
    trap = tmp_path / "unpickled"
    for content in (pickle.dumps(Trap(trap)), None):
        if content is None:
            np.save(tmp_path / name, np.array([Trap(trap)], object), allow_pickle=True)
        else:
            (tmp_path / name).write_bytes(content)
        refused("not a readable image set" if "images" in name else "not readable features")
        assert not trap.exists()
