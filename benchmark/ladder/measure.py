"""Measure a frozen encoder on test images, after every choice has been made on validation images."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from convae.datasets.image_set import ImageSet, write_image_set
from convae.evaluation.classifiers import class_scores, fit_best
from convae.evaluation.evaluate import load_part
from convae.evaluation.metrics import DIGITS
from convae.features.extract import extract_features
from convae.files import row_chunks
from convae.names import PARTS
from convae.params import Params
from convae.training.train import train_encoder

NEIGHBORS, NEIGHBORS_DIMENSION = 10, 256
DIMENSIONS = (64, 256, 1024)
PCA_IMAGES = 4000  # enough for the principal directions; tens of thousands would take minutes
LABELS, FEW_LABELS, DRAWS = (1, 10, 100, 1000), (1, 10), 5
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
        """Open the output of `extract_features`."""
        parts = {name: load_part(name, features, prepared) for name in PARTS}
        return cls(
            {name: part.features for name, part in parts.items()}, {name: part.labels for name, part in parts.items()}
        )

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


def measure_cell(params: Params, prepared: Path, encoder: Path, curves: bool, first: bool) -> dict[str, Any]:
    """Extract the features of a trained encoder and measure how well they can be classified.

    Works in the current folder, with scratch folders that it removes.

    Args:
        params: the cell's experiment.
        prepared: the folder with the image sets.
        encoder: the folder with the encoder.
        curves: measure with few labels, too.
        first: with `curves`, measure at fewer dimensions and with more labels, too.
    """
    saved = extract_features(params, encoder, prepared, FEATURES)
    features = Features.load(FEATURES, prepared)
    validation, test = features.accuracies(params)
    row = {
        "test_accuracy": test,
        "validation_accuracy": validation,
        "knn_accuracy": _neighbors(features),
        "test_images": len(features.y["test"]),
        "dimension": features.dimension,
        "encoder_parameters": saved.parameter_count,
        "protocol": {
            "classifier": params.classifier.kind,
            "training_images": len(features.y["train"]),
            "validation_images": len(features.y["validation"]),
            "neighbors": NEIGHBORS,
            "components": NEIGHBORS_DIMENSION,
            "component_images": PCA_IMAGES,
        },
        "by_dimension": _by_dimension(params, features, test) if curves and first else None,
        "by_labels": _by_labels(params, prepared, features, LABELS if first else FEW_LABELS) if curves else None,
    }
    shutil.rmtree(FEATURES)
    return row


def _accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    return round(float(np.mean(found == truth)), DIGITS)


def _reduce(features: Features, dimension: int) -> Features:
    """The first principal components, fitted on `PCA_IMAGES` training images; at most as many as there are images."""
    x = features.x["train"]
    some = np.random.default_rng(0).permutation(len(x))[:PCA_IMAGES]  # at random: images may be sorted by class
    count = min(dimension, features.dimension, len(some))
    pca = PCA(count, svd_solver="randomized", random_state=0).fit(x[np.sort(some)])
    return features.change(lambda x: np.concatenate([pca.transform(x[rows]) for rows in row_chunks(x)]))


def _neighbors(features: Features) -> float:
    reduced = _reduce(features, NEIGHBORS_DIMENSION)
    classifier = KNeighborsClassifier(NEIGHBORS, algorithm="brute").fit(reduced.x["train"], reduced.y["train"])
    return _accuracy(classifier.predict(reduced.x["test"]), reduced.y["test"])


def _by_dimension(params: Params, features: Features, full: float) -> list[dict[str, float]]:
    reduced = _reduce(features, DIMENSIONS[-1])
    possible = [count for count in DIMENSIONS if count < features.dimension and count <= reduced.dimension]
    fewer = {count: reduced.change(partial(_first, count)) for count in possible}
    accuracies = {count: some.accuracies(params)[1] for count, some in fewer.items()} | {features.dimension: full}
    return [{"dimension": count, "test_accuracy": accuracy} for count, accuracy in accuracies.items()]


def _first(count: int, x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[:, :count])


def _by_labels(params: Params, prepared: Path, features: Features, counts: tuple[int, ...]) -> list[dict[str, float]]:
    """Test accuracy with `counts` labels per class, drawn five times; a supervised system is trained on them alone."""
    y = features.y["train"]
    rows: list[dict[str, float]] = []
    for count in [count for count in counts if count <= np.bincount(y).min()]:
        for draw in range(DRAWS):
            generator = np.random.default_rng((count, draw))
            chosen = [generator.choice(np.flatnonzero(y == label), count, replace=False) for label in np.unique(y)]
            known = np.sort(np.concatenate(chosen))
            supervised = params.objective.kind == "classify"
            accuracy = _learn_from(params, prepared, known) if supervised else features.accuracies(params, known)[1]
            rows.append({"labels_per_class": count, "draw": draw, "test_accuracy": accuracy})
    return rows


def _learn_from(params: Params, prepared: Path, known: np.ndarray) -> float:
    """Test accuracy of an encoder trained on these training images and their labels alone."""
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
    accuracy = Features.load(scratch / "features", scratch).accuracies(params)[1]
    shutil.rmtree(scratch)
    return accuracy
