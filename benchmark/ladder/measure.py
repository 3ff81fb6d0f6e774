"""Measure a frozen encoder on test images, after every choice has been made on validation images."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from convae.datasets.image_set import ImageSet, write_image_set
from convae.evaluation.classifiers import fit_best
from convae.evaluation.evaluate import load_part
from convae.evaluation.metrics import DIGITS
from convae.evaluation.scores import class_scores
from convae.features.extract import extract_features
from convae.names import PARTS
from convae.params import Params
from convae.training.train import train_encoder

NEIGHBORS = 10
DIMENSIONS = (64, 128, 256)
NEIGHBORS_DIMENSION = 64  # in longer codes, many directions of noise weigh as much as the others
DRAWS = {1: 5, 10: 5, 100: 3, 1000: 1}  # of labels per class; the more there are, the less accuracies differ
FEW_LABELS = 100  # per class, at most, for other seeds than the first and for systems that learn from labels
SUPERVISED_DRAWS = 2  # a system that learns from labels is trained anew for each
LEAST_EPOCH = 3200  # images: a few labelled ones are repeated, because an epoch of ten would be a single step
FEATURES = Path("features")


@dataclass(frozen=True)
class Features:
    """Features of training, validation and test images.

    Attributes:
        x: for each part, features `float32 [N, D]`.
        y: for each part, labels `int64 [N]`.
    """

    x: dict[str, np.ndarray]
    y: dict[str, np.ndarray]

    @classmethod
    def load(cls, features: Path, prepared: Path) -> "Features":
        """Open the features that `extract_features` wrote."""
        parts = {name: load_part(name, features, prepared) for name in PARTS}
        return cls(
            {name: part.features for name, part in parts.items()}, {name: part.labels for name, part in parts.items()}
        )

    @classmethod
    def load_code(cls, features: Path, prepared: Path) -> "Features":
        """Open the compact code beside the features."""
        parts = {name: load_part(name, features, prepared) for name in PARTS}
        codes = {name: part.code for name, part in parts.items() if part.code is not None}
        return cls(codes, {name: part.labels for name, part in parts.items()})

    @property
    def dimension(self) -> int:
        """Number of features per image, D."""
        return int(self.x["train"].shape[1])

    def change(self, function: Callable[[np.ndarray], np.ndarray]) -> "Features":
        """The same images with `function` applied to the features of each part."""
        return replace(self, x={part: function(x) for part, x in self.x.items()})

    def accuracies(self, params: Params, known: np.ndarray | slice = slice(None)) -> tuple[float, float]:
        """Validation and test accuracy of the classifier that is best on validation images.

        Args:
            params: the experiment; `classifier` and `seed` are used.
            known: the training images to learn from.
        """
        y = self.y["train"][known]
        classifier, _ = fit_best(
            params.classifier, self.x["train"][known], y, self.x["validation"], self.y["validation"], params.seed
        )
        validation, test = (
            _accuracy(class_scores(classifier, self.x[part], int(y.max()) + 1).argmax(1), self.y[part])
            for part in ("validation", "test")
        )
        return validation, test


def measure_cell(
    params: Params, prepared: Path, encoder: Path, curves: bool, first: bool
) -> tuple[dict[str, Any], float]:
    """Extract the features and the compact code of a trained encoder and measure how well they can be classified.

    Where the classifier reads the code, the row measures it in place of the features.

    Works in the current folder, with scratch folders that it removes.

    Args:
        params: the cell's experiment.
        prepared: the folder with the image sets.
        encoder: the folder with the encoder.
        curves: measure with few labels, too.
        first: with `curves`, measure with more labels, too.

    Returns:
        The numbers of the row, and the seconds that extraction took.
    """
    start = time.monotonic()
    saved = extract_features(params, encoder, prepared, FEATURES)
    seconds = time.monotonic() - start
    code = Features.load_code(FEATURES, prepared)
    features = code if params.classifier.reads == "code" else Features.load(FEATURES, prepared)
    validation, test = features.accuracies(params)
    row = {
        "test_accuracy": test,
        "validation_accuracy": validation,
        "knn_accuracy": _neighbors(code),
        "test_images": len(features.y["test"]),
        "dimension": features.dimension,
        "encoder_parameters": saved.parameter_count,
        "protocol": {
            "classifier": params.classifier.kind,
            "training_images": len(features.y["train"]),
            "validation_images": len(features.y["validation"]),
            "neighbors": NEIGHBORS,
            "neighbors_dimension": NEIGHBORS_DIMENSION,
        },
        "by_dimension": _by_dimension(params, code, features, test),
        "by_labels": _by_labels(params, prepared, features, first) if curves else None,
    }
    shutil.rmtree(FEATURES)
    return row, seconds


def _accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    return round(float(np.mean(found == truth)), DIGITS)


def _neighbors(code: Features) -> float:
    code = _shorter(code, min(NEIGHBORS_DIMENSION, code.dimension))
    classifier = KNeighborsClassifier(NEIGHBORS, algorithm="brute").fit(code.x["train"], code.y["train"])
    return _accuracy(classifier.predict(code.x["test"]), code.y["test"])


def _by_dimension(params: Params, code: Features, features: Features, full: float) -> list[dict[str, float]]:
    """Test accuracy of codes of several dimensions, and of the features themselves."""
    dimensions = [count for count in DIMENSIONS if count <= code.dimension and count < features.dimension]
    accuracies = {count: _shorter(code, count).accuracies(params)[1] for count in dimensions}
    accuracies[features.dimension] = full
    return [{"dimension": count, "test_accuracy": accuracy} for count, accuracy in accuracies.items()]


def _shorter(code: Features, count: int) -> Features:
    """The code of `count` numbers: the first directions of a longer one, with the same total variance."""
    squares = np.square(code.x["train"], dtype=np.float64).sum(0)
    scale = np.float32(np.sqrt(squares.sum() / squares[:count].sum()))
    return code.change(partial(_first, count, scale))


def _first(count: int, scale: np.float32, x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[:, :count]) * scale


def _by_labels(params: Params, prepared: Path, features: Features, first: bool) -> list[dict[str, float]]:
    """Test accuracy with few labels per class, drawn several times; a supervised system is trained on them alone."""
    y = features.y["train"]
    supervised = params.objective.kind == "classify"
    rows: list[dict[str, float]] = []
    for count, draws in DRAWS.items():
        if count > np.bincount(y).min() or (count > FEW_LABELS and (supervised or not first)):
            continue
        for draw in range(min(draws, SUPERVISED_DRAWS) if supervised else draws):
            generator = np.random.default_rng((count, draw))
            chosen = [generator.choice(np.flatnonzero(y == label), count, replace=False) for label in np.unique(y)]
            known = np.sort(np.concatenate(chosen))
            accuracy = _learn_from(params, prepared, known) if supervised else features.accuracies(params, known)[1]
            rows.append({"labels_per_class": count, "draw": draw, "test_accuracy": accuracy})
    return rows


def _learn_from(params: Params, prepared: Path, known: np.ndarray) -> float:
    """Test accuracy of an encoder trained on these training images and their labels alone."""
    load = Features.load_code
    if params.classifier.reads == "features":  # the code would be fitted for nothing
        params = params.model_copy(update={"features": params.features.model_copy(update={"code": None})})
        load = Features.load
    whole = ImageSet.load(prepared / "train")
    assert whole.labels is not None
    images, labels = whole.images[known], whole.labels[known]
    scratch = Path("few")
    shutil.rmtree(scratch, ignore_errors=True)
    write_image_set(scratch / "train", images.shape, [images], labels, whole.classes)
    for part in ("validation", "test"):
        (scratch / part).symlink_to((prepared / part).absolute())
    again = np.resize(np.arange(len(known)), max(len(known), LEAST_EPOCH))
    training = replace(ImageSet.load(scratch / "train"), images=images[again], labels=labels[again])
    encoder, _, _ = train_encoder(params, training, ImageSet.load(prepared / "validation"), lambda row: None)
    encoder.save(scratch / "encoder")
    extract_features(params, scratch / "encoder", scratch, scratch / "features")
    accuracy = load(scratch / "features", scratch).accuracies(params)[1]
    shutil.rmtree(scratch)
    return accuracy
