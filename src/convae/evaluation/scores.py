"""Scores of fitted classifiers, without scikit-learn: importing it takes longer than classifying a picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from convae.errors import ConvaeError
from convae.files import row_chunks


@dataclass(frozen=True)
class LogisticScores:
    """What a fitted `sklearn.linear_model.LogisticRegression` predicts with; the probabilities are the same bits.

    Args:
        classes_: labels of the classes it knows, `int64 [K]`, ascending.
        coef_: `[K, D]`; `[1, D]` for two classes.
        intercept_: `[K]`; `[1]` for two classes.

    Raises:
        ValueError: the arrays do not belong together.

    Example:
        >>> two = LogisticScores(np.array([0, 1]), np.array([[2.0]]), np.array([-1.0]))
        >>> two.predict_proba(np.array([[0.5]])).tolist()
        [[0.5, 0.5]]
    """

    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray

    def __post_init__(self) -> None:
        classes = self.classes_
        if classes.ndim != 1 or len(classes) < 2 or classes.dtype != np.int64:
            raise ValueError("classes_ are not labels")
        if classes[0] < 0 or (classes[1:] <= classes[:-1]).any():
            raise ValueError("classes_ are not ascending labels")
        rows = len(classes) if len(classes) > 2 else 1
        if self.coef_.ndim != 2 or len(self.coef_) != rows or self.intercept_.shape != (rows,):
            raise ValueError(
                f"coef_ {self.coef_.shape} and intercept_ {self.intercept_.shape} of {len(classes)} classes"
            )
        if {self.coef_.dtype.kind, self.intercept_.dtype.kind} != {"f"}:
            raise ValueError("coef_ and intercept_ are not floating-point numbers")

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Probability of each class, `[N, K]`, for features `float32 [N, D]`."""
        scores: np.ndarray = features @ self.coef_.T + self.intercept_
        if len(self.coef_) == 1:
            from scipy.special import expit  # NumPy's exp would differ from scikit-learn's in the last bits

            second = expit(scores)
            return np.hstack([1 - second, second])
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        return scores


def class_scores(estimator: Any, features: np.ndarray, classes: int) -> np.ndarray:
    """Scores of each class, `[N, classes]`, for features `float32 [N, D]`; the highest is the prediction.

    Scores are probabilities if `has_probabilities`, otherwise decision values. For two classes scikit-learn returns
    a decision value of the second only; the first gets zero. A class without training images has probability zero, or
    a decision value of minus infinity.

    Example:
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> features = np.array([[0.0], [1.0]], np.float32)
        >>> estimator = KNeighborsClassifier(n_neighbors=1).fit(features, [0, 2])
        >>> class_scores(estimator, features, classes=3).tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if has_probabilities(estimator):
        found, missing = estimator.predict_proba(features), 0.0
    else:
        found, missing = estimator.decision_function(features), -np.inf
        if found.ndim == 1:
            found = np.column_stack([np.zeros_like(found), found])
    scores = np.full((len(features), classes), missing, found.dtype)
    scores[:, estimator.classes_] = found
    return scores


def has_probabilities(estimator: Any) -> bool:
    """Whether `class_scores` returns probabilities.

    Example:
        >>> from sklearn.linear_model import LogisticRegression, RidgeClassifier
        >>> has_probabilities(LogisticRegression()), has_probabilities(RidgeClassifier())
        (True, False)
    """
    return hasattr(estimator, "predict_proba")


def check_finite(features: np.ndarray, part: str) -> None:
    """Reject features `[N, D]` that hold NaN or infinity, reading them in pieces.

    Raises:
        ConvaeError: with the name of the part and the index of the first such image.

    Example:
        >>> check_finite(np.array([[0.0], [np.nan]]), "test")
        Traceback (most recent call last):
        convae.errors.ConvaeError: the features of test image 1 hold NaN or infinity; ...
    """
    for rows in row_chunks(features):
        bad = ~np.isfinite(features[rows]).all(axis=1)
        if bad.any():
            raise ConvaeError(
                f"the features of {part} image {rows.start + int(bad.argmax())} hold NaN or infinity; "
                "training may have diverged, try a smaller train.learning_rate"
            )
