"""The scikit-learn classifiers that read features, and the choice of their settings on validation images."""

import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import ParameterGrid
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC, LinearSVC

from convae.errors import ConvaeError
from convae.evaluation.logistic_regression import fit_path
from convae.evaluation.scores import check_finite, class_scores
from convae.files import row_chunks

if TYPE_CHECKING:
    from convae.params import ClassifierParams

CLASSIFIERS: dict[str, type[BaseEstimator]] = {
    "logistic_regression": LogisticRegression,
    "linear_svm": LinearSVC,
    "ridge": RidgeClassifier,
    "k_nearest_neighbors": KNeighborsClassifier,
    "rbf_svm": SVC,
    "mlp": MLPClassifier,
    "gradient_boosting": HistGradientBoostingClassifier,
}

# Settings that the parameters leave open, chosen for tens of thousands of images with thousands of features. MLP and
# gradient boosting stop early, on a tenth of the training images that they hold out.
FIXED: dict[str, dict[str, Any]] = {
    "linear_svm": {"dual": "auto"},
    "k_nearest_neighbors": {"algorithm": "brute"},
    "rbf_svm": {"break_ties": True, "cache_size": 1000},  # its own predict then agrees with the highest score
    "mlp": {"early_stopping": True},
}

MOST_IN_MEMORY = 1 << 34  # bytes of features; larger arrays are read from disk in every pass


def fit_best(
    params: "ClassifierParams",
    train: np.ndarray,
    y: np.ndarray,
    validation: np.ndarray,
    y_validation: np.ndarray,
    seed: int,
) -> tuple[BaseEstimator, list[dict[str, Any]]]:
    """Fit every candidate and return the best on validation images by `params.select_by`, the first if several tie.

    Args:
        params: the kind of classifier, its candidate settings, and the metric that chooses among them.
        train: features `float32 [N, D]`, possibly memory-mapped; logistic regression reads them in pieces.
        y: labels `int64 [N]`.
        validation: features `float32 [M, D]`.
        y_validation: labels `int64 [M]`.
        seed: seeds initial weights and any other random draws.

    Returns:
        The fitted classifier, and for each candidate its settings, the metric that chooses (such as
        `validation_accuracy`) and `converged`, false if the solver stopped before the optimum.

    Raises:
        ConvaeError: features are not finite or all the same, all labels are the same, a setting is invalid, or the
            classifier needs more than 16 GiB of features in memory.

    Example:
        >>> from convae.params import Params
        >>> params = Params.default().classifier.model_copy(update={"kind": "ridge"})
        >>> features, labels = np.array([[0.0], [1.0]], np.float32), np.array([0, 1])
        >>> best, tried = fit_best(params, features, labels, features, labels, seed=0)
        >>> best.predict(features).tolist(), tried[0]["validation_accuracy"]
        ([0, 1], 1.0)
    """
    from convae.evaluation.metrics import DIGITS, FIGURES  # needs pandas, which classifying alone does not

    _check(train, y, validation)
    _check_size(params.kind, train)
    best, highest, tried = None, -1.0, []
    figure = f"validation_{params.select_by}"
    fitted = _fit_in_turn(params, train, y, seed)
    size = f"{len(train)} images, {train.shape[1]} numbers each"
    for settings in _grid(params):
        name = ", ".join([params.kind, *(f"{key} = {value}" for key, value in settings.items())])
        print(f"{name}: fitting ({size})", file=sys.stderr, flush=True)
        try:
            estimator, converged = next(fitted)
            scores = class_scores(estimator, validation, int(y.max()) + 1)
        except ValueError as error:  # such as more neighbours than training images
            raise ConvaeError(f"classifier {name}: {str(error).splitlines()[0]}") from None
        value = FIGURES[params.select_by](y_validation, scores.argmax(axis=1))
        print(f"{name}: {figure.replace('_', ' ')} {100 * value:.2f} %", file=sys.stderr, flush=True)
        tried.append({**settings, figure: round(value, DIGITS), "converged": converged})
        if value > highest:
            best, highest = estimator, value
    return best, tried


def make_classifier(kind: str, seed: int) -> BaseEstimator:
    """An unfitted classifier of one of the seven kinds; `fit_path` fits logistic regression instead.

    Example:
        >>> make_classifier("linear_svm", seed=0)
        LinearSVC(random_state=0)
    """
    estimator = CLASSIFIERS[kind](**FIXED.get(kind, {}))
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)
    return estimator


def _check(train: np.ndarray, y: np.ndarray, validation: np.ndarray) -> None:
    check_finite(train, "training")
    check_finite(validation, "validation")
    if len(np.unique(y)) < 2:
        raise ConvaeError("all training images belong to one class; a classifier needs at least two")
    if all((train[rows] == train[0]).all() for rows in row_chunks(train)):
        raise ConvaeError("all training images have the same features: all filters are dead; change train or model")


def _check_size(kind: str, train: np.ndarray) -> None:
    if train.nbytes <= MOST_IN_MEMORY:
        return
    size = f"{train.nbytes / 1e9:.3g} GB of training features"
    if kind != "logistic_regression":
        advice = "logistic_regression reads them from disk in pieces"
        raise ConvaeError(f"classifier.kind = {kind}: needs {size} in memory; {advice}")
    print(f"{size}: {kind} reads them from disk in pieces", file=sys.stderr, flush=True)


def _grid(params: "ClassifierParams") -> list[dict[str, Any]]:
    grid = list(ParameterGrid(params.candidates))
    if params.kind == "logistic_regression":  # ascending, as each fit starts from the one before
        grid.sort(key=lambda settings: settings["C"])
    return grid


def _fit_in_turn(
    params: "ClassifierParams", train: np.ndarray, y: np.ndarray, seed: int
) -> Iterator[tuple[BaseEstimator, bool]]:
    """Yield a fitted classifier for each entry of `_grid`, and whether its solver converged."""
    if params.kind == "logistic_regression":
        yield from fit_path(train, y, [settings["C"] for settings in _grid(params)], params.class_weight)
        return
    weighted = {"class_weight": params.class_weight} if params.class_weight else {}
    for settings in _grid(params):
        estimator = make_classifier(params.kind, seed).set_params(**settings, **weighted)
        yield estimator, _fit(estimator, train, y)


def _fit(estimator: BaseEstimator, train: np.ndarray, y: np.ndarray) -> bool:
    """Fit and return whether the solver converged: the table of candidates has a column for it instead of warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(train, y)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
