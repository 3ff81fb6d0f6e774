"""Logistic regression on 55 000 images with 3136 features, against scikit-learn's own solver at the same penalty."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmark.speed.experiments import with_filters
from benchmark.speed.images import SCRATCH, fashion_mnist, untrained
from benchmark.speed.measuring import THREADS, Row, alternate, at_least, in_new_process, timed
from convae.evaluation.logistic_regression import fit_path
from convae.features.extract import extract_features
from convae.files import row_chunks
from convae.stages.runner import limit_threads

C = 0.003
TOLERANCE = 0.001  # in validation accuracy

Fit = Callable[[np.ndarray, np.ndarray], LogisticRegression]


def rows() -> Iterator[Row]:
    """Seconds per fit, at equal accuracy."""
    fashion_mnist()
    in_new_process(make_features)
    (own_accuracy, passes), (usual_accuracy, _) = (in_new_process(quality, fit) for fit in (ours, usual))
    # A faster fit counts only if it is as accurate.
    assert own_accuracy >= usual_accuracy - TOLERANCE, f"validation: ours {own_accuracy}, usual {usual_accuracy}"
    contestants = {"ours": partial(fit_time, ours), "usual": partial(fit_time, usual), "limit": partial(limit, passes)}
    seconds = alternate(contestants, 3)
    yield at_least("logistic regression, seconds, of the usual", 3, seconds["usual"] / seconds["ours"], **seconds)


def ours(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """Fit with the solver of the stage `evaluate`."""
    return next(fit_path(x, y, [C]))[0]


def usual(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """Fit with scikit-learn's defaults."""
    return LogisticRegression(C=C).fit(x, y)


def fit_time(fit: Fit) -> float:
    """Seconds of a fit."""
    with limit_threads(THREADS):
        return timed(fit, *_features("train"))


def quality(fit: Fit) -> tuple[float, int]:
    """Accuracy on validation images, and the number of iterations of the fit."""
    with limit_threads(THREADS):
        classifier = fit(*_features("train"))
        return float(classifier.score(*_features("validation"))), int(classifier.n_iter_[0])


def limit(passes: int) -> float:
    """The two matrix products of each iteration alone: features by weights, and residuals by features."""
    x = torch.from_numpy(_features("train")[0])
    weights = torch.zeros(10, x.shape[1])

    def multiply() -> None:
        for _ in range(passes):
            for rows_ in row_chunks(x.numpy()):
                scores = x[rows_] @ weights.T
                scores.T @ x[rows_]

    return timed(multiply)


def make_features() -> None:
    """Write features of `whitened_wta_cae`, untrained and with half of its filters."""
    params = with_filters(32)
    with limit_threads(THREADS):
        extract_features(params, untrained(params), fashion_mnist(), SCRATCH / "features")


def _features(part: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(SCRATCH / f"features/{part}.npy", mmap_mode="r"), np.load(SCRATCH / f"features/{part}_labels.npy")
