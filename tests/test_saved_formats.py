"""Models that earlier versions saved and published still load and compute the same; made by `saved/make.py`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pytest
import sklearn

from convae.classifier import load_image_classifier
from convae.encoder import load_encoder
from convae.errors import ConvaeError
from convae.files import read_json

FORMATS = {"format3": 3, "format4": 4}


@pytest.fixture(params=FORMATS)
def saved(request: pytest.FixtureRequest) -> Path:
    return Path(__file__).parent / "saved" / request.param


@pytest.fixture
def expected(saved: Path) -> dict[str, np.ndarray]:
    with np.load(saved / "expected.npz") as arrays:
        return dict(arrays)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@contextmanager
def if_scikit_learn_allows(published: Path) -> Iterator[None]:
    """Another scikit-learn version loads a saved classifier, or one line names the version that saved it."""
    try:
        yield
    except ConvaeError as error:
        same = f"scikit-learn=={sklearn.__version__}" in (published / "requirements.txt").read_text().split()
        if same or "; it was saved by scikit-learn " not in str(error):
            raise
        pytest.skip(str(error))


def test_an_older_saved_encoder_loads(saved: Path, expected: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = saved / "convae-encoder/data/model/encoder"
    assert read_json(folder / "config.json")["format"] == FORMATS[saved.name]
    encoder = load_encoder(folder)
    assert_same(encoder.features(expected["images"]), expected["features"])
    encoder.save(tmp_path / "again")
    assert_same(load_encoder(tmp_path / "again").features(expected["images"]), expected["features"])


def test_an_older_saved_classifier_loads(saved: Path, expected: dict[str, np.ndarray]) -> None:
    with if_scikit_learn_allows(saved / "convae-classifier"):
        classifier = load_image_classifier(saved / "convae-classifier/data/model")
    assert_same(classifier.scores(expected["images"]), expected["scores"])
    assert classifier.predict(expected["images"]) == expected["labels"].tolist()


def test_an_older_published_encoder_loads(saved: Path, expected: dict[str, np.ndarray]) -> None:
    model = mlflow.pyfunc.load_model(str(saved / "convae-encoder"))
    assert_same(model.predict(expected["images"]), expected["features"])


def test_an_older_published_classifier_loads(saved: Path, expected: dict[str, np.ndarray]) -> None:
    with if_scikit_learn_allows(saved / "convae-classifier"):
        model = mlflow.pyfunc.load_model(str(saved / "convae-classifier"))
    table = model.predict(expected["images"])
    assert table.pop("label").tolist() == expected["labels"].tolist()
    assert_same(table.to_numpy(), expected["scores"])
