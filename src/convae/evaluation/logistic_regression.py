"""scikit-learn's logistic regression, fitted sooner to tens of thousands of images with thousands of features.

The optimum is that of `sklearn.linear_model.LogisticRegression`; three things make the way there short.

- Activations pooled over neighbouring cells are strongly correlated, and L-BFGS needs many steps along directions of
  small variance. It works in coordinates in which the curvature is about one in every direction, estimated from the
  principal directions of some thousand images.
- Loss and gradient come out of one pass over the features, which may be memory-mapped.
- Its vectors are torch's: SciPy's L-BFGS has threads of its own, which wait for work beside NumPy's and slow them down.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.extmath import randomized_svd

from convae.files import row_chunks

ITERATIONS = 200
TOLERANCE = 6e-4  # of the gradient's largest part, in scaled coordinates
IMAGES, DIRECTIONS = 4000, 512  # from which the principal directions are found, and how many
SAMPLE_VALUES = 1 << 27  # fewer images where they have very many features: half a gigabyte
CURVATURE = 0.05  # of the loss in a class's score: p(1 - p), averaged over images and classes


def fit_path(
    x: np.ndarray, y: np.ndarray, inverse_penalties: Iterable[float], class_weight: str | None = None
) -> Iterator[tuple[LogisticRegression, bool]]:
    """Fit one classifier for each C, starting from the one before.

        minimise over W, b:  mean over images of -v[y] log softmax(W x + b)[y]  +  |W|² / (2 C N)

    The weight v of a class is 1 or, if `balanced`, N / (number of classes * its number of images). Of two classes
    scikit-learn knows the difference w of their rows alone, and |W|² is |w|².

    Args:
        x: features `float32 [N, D]`, finite.
        y: labels `int64 [N]` of at least two classes.
        inverse_penalties: values of C; increasing ones make the way shortest.
        class_weight: `balanced`, or None.

    Yields:
        The fitted scikit-learn classifier, and whether it is at the optimum up to `TOLERANCE`.
    """
    classes, target = np.unique(y, return_inverse=True)
    importance = None
    if class_weight:
        importance = compute_class_weight(class_weight, classes=classes, y=y).astype(np.float32)[target]
    coordinates = _Coordinates(x, importance)
    weights, bias = np.zeros((len(classes), x.shape[1]), np.float32), np.zeros(len(classes), np.float32)
    for c in inverse_penalties:
        # Two rows that are each other's opposite have half the square of their difference.
        penalty = (2 if len(classes) == 2 else 1) / (c * len(x))
        weights, bias, iterations, converged = _minimize(x, target, importance, penalty, coordinates, weights, bias)
        yield _estimator(c, class_weight, classes, weights, bias, iterations), converged


class _Coordinates:
    """Coordinates of the weights in which the curvature is about one."""

    def __init__(self, x: np.ndarray, importance: np.ndarray | None) -> None:
        count = min(len(x), IMAGES, max(1, SAMPLE_VALUES // x.shape[1]))
        rows = np.linspace(0, len(x) - 1, count).astype(int)  # spread, as rows may be in the order of classes
        some = x[rows]
        if importance is not None:
            some = some * np.sqrt(importance[rows, None])
        _, singular, self.directions = randomized_svd(
            some, min(DIRECTIONS, *some.shape), n_iter=2, power_iteration_normalizer="QR", random_state=0
        )
        self.variances = singular**2 / len(some)
        rest = max(0.0, float(np.vdot(some, some)) / len(some) - float(self.variances.sum()))
        self.other_variance = rest / max(1, x.shape[1] - len(self.variances))

    def scale(self, weights: np.ndarray, penalty: float, power: float) -> np.ndarray:
        """H^power applied to each row of `[K, D]`, H the estimated curvature.

        Power -1/2 gives weights from scaled coordinates, and the gradient in these from that in weights; 1/2 goes back.
        """
        along = (CURVATURE * self.variances + penalty) ** power
        other = (CURVATURE * self.other_variance + penalty) ** power
        scaled: np.ndarray = other * weights + (weights @ self.directions.T * (along - other)) @ self.directions
        return scaled.astype(np.float32)


def _minimize(
    x: np.ndarray,
    target: np.ndarray,
    importance: np.ndarray | None,
    penalty: float,
    coordinates: _Coordinates,
    weights: np.ndarray,
    bias: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Weights, bias, how many iterations it took, and whether the gradient vanishes there."""
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
        loss, weights_gradient, bias_gradient = _loss(x, target, importance, tried, tried_bias)
        weights_gradient += np.float32(penalty) * tried
        scaled.grad = torch.from_numpy(coordinates.scale(weights_gradient, penalty, -0.5))
        scaled_bias.grad = torch.from_numpy(bias_gradient / np.float32(CURVATURE**0.5))
        return loss + penalty / 2 * float(np.vdot(tried, tried))

    optimizer.step(closure)
    closure()  # the gradients at hand are of the point that was tried last
    assert scaled.grad is not None
    assert scaled_bias.grad is not None
    largest = max(float(scaled.grad.abs().max()), float(scaled_bias.grad.abs().max()))
    return *plain(), optimizer.state[scaled]["n_iter"], largest <= TOLERANCE


def _loss(
    x: np.ndarray, target: np.ndarray, importance: np.ndarray | None, weights: np.ndarray, bias: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean over images of the negative log-likelihood, each times its importance, and its gradients."""
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


def _estimator(
    c: float, class_weight: str | None, classes: np.ndarray, weights: np.ndarray, bias: np.ndarray, iterations: int
) -> LogisticRegression:
    estimator = LogisticRegression(C=c, class_weight=class_weight, max_iter=ITERATIONS)
    if len(classes) == 2:
        weights, bias = weights[1:] - weights[:1], bias[1:] - bias[:1]
    estimator.classes_, estimator.coef_, estimator.intercept_ = classes, weights, bias
    estimator.n_features_in_, estimator.n_iter_ = weights.shape[1], np.array([iterations], np.int32)
    return estimator
