"""Logistic regression for tens of thousands of images with thousands of features, faster than scikit-learn's.

It has the same optimum as `sklearn.linear_model.LogisticRegression`, and gets there faster for three reasons:

- Activations pooled over neighbouring cells are strongly correlated, so L-BFGS needs many steps along directions of
  small variance. We run it in coordinates with a curvature of about one in every direction, estimated from the
  principal directions of a few thousand images.
- One pass over the features, which may be memory-mapped, yields both loss and gradient.
- L-BFGS is torch's. SciPy's has its own threads, which wait for work next to NumPy's and slow them down.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.extmath import randomized_svd

from convae.files import row_chunks

Loss = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray, np.ndarray]]  # of weights and bias; gradients

ITERATIONS = 200
TOLERANCE = 6e-4  # largest component of the gradient, in scaled coordinates
IMAGES, DIRECTIONS = 4000, 512  # the principal directions: from how many images, and how many
SAMPLE_VALUES = 1 << 27  # half a gigabyte: fewer images if they have very many features
CURVATURE = 0.05  # of the loss in a class's score: p(1 - p), averaged over images and classes


def fit_path(
    x: np.ndarray, y: np.ndarray, inverse_penalties: Iterable[float], class_weight: str | None = None
) -> Iterator[tuple[LogisticRegression, bool]]:
    """Fit one classifier for each C, starting from the one before.

        minimise over W, b:  mean over images of -v[y] log softmax(W x + b)[y]  +  |W|² / (2 C N)

    The weight v of a class is 1 or, if `balanced`, N / (number of classes * its number of images). For two classes
    scikit-learn keeps only the difference w of their rows, and |W|² is |w|².

    Args:
        x: features `float32 [N, D]`, finite.
        y: labels `int64 [N]` of at least two classes.
        inverse_penalties: values of C; ascending values converge fastest.
        class_weight: `balanced`, or None.

    Yields:
        The fitted scikit-learn classifier, and whether it has reached the optimum within `TOLERANCE`.

    Example:
        >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
        >>> [(estimator.C, estimator.predict(x).tolist(), converged) for estimator, converged in
        ...     fit_path(x, np.array([0, 0, 1, 1]), [0.1, 1.0])]
        [(0.1, [0, 0, 1, 1], True), (1.0, [0, 0, 1, 1], True)]
    """
    classes, target = np.unique(y, return_inverse=True)
    importance = compute_sample_weight(class_weight, y).astype(np.float32) if class_weight else None
    coordinates = _Coordinates(x, importance)
    weights, bias = np.zeros((len(classes), x.shape[1]), np.float32), np.zeros(len(classes), np.float32)
    loss_of = partial(_loss, x, target, importance)
    for c in inverse_penalties:
        # Our two rows are w/2 and -w/2, whose squares add up to |w|²/2: twice the penalty makes up for it.
        penalty = (2 if len(classes) == 2 else 1) / (c * len(x))
        weights, bias, iterations, converged = _minimize(loss_of, penalty, coordinates, weights, bias)
        estimator = LogisticRegression(C=c, class_weight=class_weight, max_iter=ITERATIONS)
        estimator.classes_, estimator.coef_, estimator.intercept_ = classes, weights, bias
        if len(classes) == 2:
            estimator.coef_, estimator.intercept_ = weights[1:] - weights[:1], bias[1:] - bias[:1]
        estimator.n_features_in_, estimator.n_iter_ = x.shape[1], np.array([iterations], np.int32)
        yield estimator, converged


class _Coordinates:
    """Coordinates of the weights in which the curvature of the loss is about one in every direction."""

    def __init__(self, x: np.ndarray, importance: np.ndarray | None) -> None:
        count = min(len(x), IMAGES, max(1, SAMPLE_VALUES // x.shape[1]))
        rows = np.linspace(0, len(x) - 1, count).astype(int)  # spread, as rows may be sorted by class
        some = x[rows]
        # A weighted image contributes as if its features were larger by the root of its weight.
        if importance is not None:
            some = some * np.sqrt(importance[rows, None])
        _, singular, self.directions = randomized_svd(
            some, min(DIRECTIONS, *some.shape), n_iter=2, power_iteration_normalizer="QR", random_state=0
        )
        self.variances = singular**2 / len(some)
        # Directions beyond the principal ones share their mean variance.
        rest = max(0.0, float(np.vdot(some, some)) / len(some) - float(self.variances.sum()))
        self.other_variance = rest / max(1, x.shape[1] - len(self.variances))

    def scale(self, weights: np.ndarray, penalty: float, power: float) -> np.ndarray:
        """Apply H^power to each row of `[K, D]`, where H is the estimated curvature.

        Power -1/2 maps scaled coordinates to weights, and gradients of weights to scaled coordinates. Power 1/2 inverts
        both.
        """
        along = (CURVATURE * self.variances + penalty) ** power
        other = (CURVATURE * self.other_variance + penalty) ** power
        scaled: np.ndarray = other * weights + (weights @ self.directions.T * (along - other)) @ self.directions
        return scaled.astype(np.float32)


def _minimize(
    loss_of: Loss, penalty: float, coordinates: _Coordinates, weights: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Minimise from `weights` and `bias`; return the optimum, the number of iterations, and whether it converged."""
    scaled = torch.from_numpy(coordinates.scale(weights, penalty, 0.5))
    scaled_bias = torch.from_numpy(bias * np.float32(CURVATURE**0.5))
    optimizer = torch.optim.LBFGS(
        [scaled, scaled_bias],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=TOLERANCE,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def plain() -> tuple[np.ndarray, np.ndarray]:
        return coordinates.scale(scaled.numpy(), penalty, -0.5), scaled_bias.numpy() / np.float32(CURVATURE**0.5)

    def closure() -> float:
        tried, tried_bias = plain()
        loss, weights_gradient, bias_gradient = loss_of(tried, tried_bias)
        weights_gradient += np.float32(penalty) * tried
        scaled.grad = torch.from_numpy(coordinates.scale(weights_gradient, penalty, -0.5))
        scaled_bias.grad = torch.from_numpy(bias_gradient / np.float32(CURVATURE**0.5))
        return loss + penalty / 2 * float(np.vdot(tried, tried))

    optimizer.step(closure)
    closure()  # the current gradients belong to the last point tried, not to the optimum
    assert scaled.grad is not None
    assert scaled_bias.grad is not None
    largest = max(float(scaled.grad.abs().max()), float(scaled_bias.grad.abs().max()))
    return *plain(), optimizer.state[scaled]["n_iter"], largest <= TOLERANCE


def _loss(
    x: np.ndarray, target: np.ndarray, importance: np.ndarray | None, weights: np.ndarray, bias: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Negative log-likelihood, averaged over images weighted by their importance, and its gradients."""
    loss, weights_gradient, bias_gradient = 0.0, np.zeros_like(weights), np.zeros_like(bias)
    for rows in row_chunks(x):
        scores = x[rows] @ weights.T + bias
        scores -= scores.max(axis=1, keepdims=True)
        log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        own = (np.arange(len(log_probabilities)), target[rows])
        likelihoods = log_probabilities[own]
        residuals = np.exp(log_probabilities)
        residuals[own] -= 1
        if importance is not None:
            likelihoods *= importance[rows]
            residuals *= importance[rows, None]
        loss -= float(likelihoods.sum(dtype=np.float64))
        weights_gradient += residuals.T @ x[rows]
        bias_gradient += residuals.sum(0)
    return loss / len(x), weights_gradient / np.float32(len(x)), bias_gradient / np.float32(len(x))
