"""What the ladder says of a frozen encoder: measured on test images once every choice was made on validation images."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from convae.datasets.image_set import ImageSet, write_image_set
from convae.evaluation.classifiers import class_scores, fit_best
from convae.evaluation.metrics import DIGITS
from convae.features.extract import extract_features
from convae.params import Params
from convae.training.train import train_encoder

NEIGHBORS, NEIGHBORS_DIMENSION = 10, 256
DIMENSIONS = (64, 256, 1024)
PCA_IMAGES = 4000  # principal directions need no more, and tens of thousands would take minutes
LABELS, FEW_LABELS, DRAWS = (1, 10, 100, 1000), (1, 10), 5
LEAST_EPOCH = 3200  # images: a few labelled ones are shown again and again, or there would be next to no steps
PREPARED, FEATURES = Path("data/prepared"), Path("features")


class Features:
    """Features and labels of training, validation and test images."""

    def __init__(self, folder: Path) -> None:
        self.x = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("train", "validation", "test")}
        self.y = {part: np.load(folder / f"{part}_labels.npy") for part in self.x}

    def accuracies(self, params: Params, rows: np.ndarray | None = None) -> tuple[float, float]:
        """Accuracy on validation and on test images of the classifier that is best on the former.

        Args:
            params: its section `classifier`.
            rows: indices of the training images whose labels are known; None: all.
        """
        x, y = self.x["train"], self.y["train"]
        if rows is not None:
            x, y = x[rows], y[rows]
        classifier, _ = fit_best(params.classifier, x, y, self.x["validation"], self.y["validation"], params.seed)
        classes = int(y.max()) + 1
        found = [class_scores(classifier, self.x[part], classes).argmax(1) for part in ("validation", "test")]
        validation, test = (float(np.mean(f == self.y[p])) for f, p in zip(found, ("validation", "test"), strict=True))
        return round(validation, DIGITS), round(test, DIGITS)


def measure_cell(params: Params, encoder: Path, curves: bool, first: bool) -> dict[str, Any]:
    """Read the features of a trained encoder and measure what they are worth.

    Args:
        params: the cell's experiment.
        encoder: its folder.
        curves: measure with few labels too.
        first: measure at fewer dimensions and with many labels as well.
    """
    saved = extract_features(params, encoder, PREPARED, FEATURES)
    features = Features(FEATURES)
    validation, test = features.accuracies(params)
    width = features.x["train"].shape[1]
    labels = LABELS if first else FEW_LABELS
    row = {
        "test_accuracy": test,
        "validation_accuracy": validation,
        "knn_accuracy": _neighbors(_reduce(features, min(width, NEIGHBORS_DIMENSION))),
        "test_images": len(features.y["test"]),
        "dimension": width,
        "encoder_parameters": saved.parameter_count,
        "protocol": _protocol(params, features),
        "by_dimension": _by_dimension(params, features, width, test) if curves and first else None,
        "by_labels": _by_labels(params, features, labels) if curves else None,
    }
    shutil.rmtree(FEATURES)
    return row


def _protocol(params: Params, features: Features) -> str:
    train, validation = len(features.y["train"]), len(features.y["validation"])
    return (
        f"Classifier: {params.classifier.kind.replace('_', ' ')} on {train} training images, the best of the "
        f"candidates in the system's file on {validation} validation images, whose labels choose among them with few "
        f"training labels too. k-NN: {NEIGHBORS} neighbours in {NEIGHBORS_DIMENSION} principal components of "
        f"{PCA_IMAGES} images. With few labels a system that learns from labels sees their images alone."
    )


def _reduce(features: Features, dimension: int) -> Features:
    """The first principal components, found on some thousand training images."""
    x = features.x["train"]
    some = np.random.default_rng(0).permutation(len(x))[:PCA_IMAGES]  # they may be in the order of their classes
    pca = PCA(dimension, svd_solver="randomized", random_state=0).fit(x[np.sort(some)])
    reduced = object.__new__(Features)
    reduced.x = {part: _project(pca, x) for part, x in features.x.items()}
    reduced.y = features.y
    return reduced


def _project(pca: PCA, x: np.ndarray) -> np.ndarray:
    return np.concatenate([pca.transform(x[start : start + 4096]) for start in range(0, len(x), 4096)])


def _neighbors(reduced: Features) -> float:
    classifier = KNeighborsClassifier(NEIGHBORS, algorithm="brute")
    classifier.fit(reduced.x["train"], reduced.y["train"])
    found = classifier.predict(reduced.x["test"])
    return round(float(np.mean(found == reduced.y["test"])), DIGITS)


def _by_dimension(params: Params, features: Features, width: int, full: float) -> list[dict[str, float]]:
    rows = []
    reduced = _reduce(features, min(width, DIMENSIONS[-1]))
    for dimension in DIMENSIONS:
        if dimension < width:
            fewer = object.__new__(Features)
            fewer.x = {part: np.ascontiguousarray(x[:, :dimension]) for part, x in reduced.x.items()}
            fewer.y = reduced.y
            rows.append({"dimension": dimension, "test_accuracy": fewer.accuracies(params)[1]})
    return [*rows, {"dimension": width, "test_accuracy": full}]


def _by_labels(params: Params, features: Features, counts: tuple[int, ...]) -> list[dict[str, float]]:
    """With so many labels a class, drawn five times; a system that learns from labels learns anew from these alone."""
    y = features.y["train"]
    rows: list[dict[str, float]] = []
    for count in counts:
        if np.bincount(y).min() < count:
            break
        for draw in range(DRAWS):
            generator = np.random.default_rng((count, draw))
            chosen = [generator.choice(np.flatnonzero(y == label), count, replace=False) for label in np.unique(y)]
            known = np.sort(np.concatenate(chosen))
            if params.objective.kind == "classify":
                accuracy = _learn_from(params, known)
            else:
                accuracy = features.accuracies(params, known)[1]
            rows.append({"labels_per_class": count, "draw": draw, "test_accuracy": accuracy})
    return rows


def _learn_from(params: Params, known: np.ndarray) -> float:
    """Test accuracy of an encoder that is trained with the labels of these training images alone."""
    whole = ImageSet.load(PREPARED / "train")
    assert whole.labels is not None
    scratch = Path("few")
    shutil.rmtree(scratch, ignore_errors=True)
    write_image_set(scratch / "train", (len(known), *whole.images.shape[1:]), [whole.images[known]],
                    whole.labels[known], whole.classes)  # fmt: skip
    for part in ("validation", "test"):
        (scratch / part).symlink_to((PREPARED / part).absolute())
    training = ImageSet.load(scratch / "train")
    again = np.resize(np.arange(len(known)), max(len(known), LEAST_EPOCH))
    training = replace(training, images=training.images[again], labels=whole.labels[known][again])
    encoder, _, _ = train_encoder(params, training, ImageSet.load(PREPARED / "validation"), lambda row: None)
    encoder.save(scratch / "encoder")
    extract_features(params, scratch / "encoder", scratch, scratch / "features")
    accuracy = Features(scratch / "features").accuracies(params)[1]
    shutil.rmtree(scratch)
    return accuracy
