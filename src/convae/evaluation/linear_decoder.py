"""How much of the images a linear map can read off their features.

A ridge regression from features to pixels (Hoerl & Kennard 1970, "Ridge regression: biased estimation for nonorthogonal
problems") is fitted to training images. Its error on other images measures what the features keep, in the same unit for
all encoders, even for those that have no decoder. With more features than images, the regression is solved in its dual
form, for one weight per image (Saunders, Gammerman & Vovk 1998, "Ridge regression learning algorithm in dual
variables").
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from scipy.linalg import solve

from convae.datasets.image_set import ImageSet
from convae.datasets.reading import Scale
from convae.datasets.shards import spread
from convae.evaluation.metrics import DIGITS

TRAINING_IMAGES, MEASURED_IMAGES = 4000, 2000  # at most
VALUES = 1 << 26  # features and pixels of the training images that are used: 256 MiB
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)
FOLD = 5  # a fifth of the training images chooses the ridge
BATCH = 500


class LinearDecoder:
    """Reconstructs pixels from features by a ridge regression.

    Example:
        >>> features = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> pixels = features @ [[1.0], [2.0]] + 3
        >>> LinearDecoder.fit(features, pixels, [1e-9])[0](np.array([[2.0, 2.0]])).round(6).tolist()
        [[9.0]]
    """

    def __init__(self, mean: np.ndarray, offset: np.ndarray, factors: Sequence[np.ndarray]) -> None:
        self.mean = mean
        self.offset = offset
        self.factors = factors  # whose product is the matrix of weights

    @classmethod
    def fit(cls, features: np.ndarray, pixels: np.ndarray, ridges: Sequence[float]) -> "list[LinearDecoder]":
        """Fit a decoder for each ridge.

        Args:
            features: `[N, D]`.
            pixels: `[N, P]`.
            ridges: penalties on squared weights, in units of the mean squared length of the centred features.
        """
        mean, offset = (rows.mean(axis=0, dtype=np.float64).astype(rows.dtype) for rows in (features, pixels))
        x, y = features - mean, pixels - offset
        dual = len(x) < x.shape[1]
        products = (x @ x.T if dual else x.T @ x).astype(np.float64)
        unit = products.trace() / len(x) or 1.0  # the features may be constant
        target = y if dual else x.T @ y
        decoders = []
        for ridge in ridges:
            solution = solve(products + ridge * unit * np.eye(len(products)), target, assume_a="pos").astype(x.dtype)
            decoders.append(cls(mean, offset, (x.T, solution) if dual else (solution,)))
        return decoders

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Reconstruct the pixels `[N, P]` of features `[N, D]`."""
        values = features - self.mean
        for factor in self.factors:
            values = values @ factor
        result: np.ndarray = values + self.offset
        return result

    def error(self, features: np.ndarray, images: np.ndarray, scale: Scale | None = None) -> float:
        """Mean squared error on images `[N, C, H, W]`, of pixels as `as_pixels` returns them."""
        total = sum(
            float(np.square(self(features[rows]) - as_pixels(images[rows], scale), dtype=np.float64).sum())
            for rows in (slice(start, start + BATCH) for start in range(0, len(images), BATCH))
        )
        return total / images.size


def decoder_rows(training: ImageSet, dimension: int) -> np.ndarray:
    """Numbers of the images to fit a decoder of `dimension` features to, fewer if these or the images are large."""
    return training.spread(min(TRAINING_IMAGES, VALUES // (dimension + prod(training.images.shape[1:]))))


def fit_linear_decoder(x: np.ndarray, y: np.ndarray) -> LinearDecoder:
    """Fit a decoder to training images, with the ridge that reconstructs a fifth of them best.

    Args:
        x: features `float32 [N, D]`.
        y: pixels `float32 [N, C·H·W]`, see `as_pixels`.

    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (50, 1, 4, 4), np.uint8)
        >>> pixels = as_pixels(images)
        >>> decoder = fit_linear_decoder(pixels, pixels)  # the pixels themselves are the features
        >>> decoder.error(pixels, images) < 1e-3
        True
    """
    held = np.arange(len(x)) % FOLD == FOLD - 1
    best = RIDGES[-1]
    if held.any():
        decoders = LinearDecoder.fit(x[~held], y[~held], RIDGES)
        errors = [np.square(decoder(x[held]) - y[held], dtype=np.float64).mean() for decoder in decoders]
        best = RIDGES[int(np.argmin(errors))]
    return LinearDecoder.fit(x, y, [best])[0]


def linear_reconstruction_mse(
    decoder: LinearDecoder, features: np.ndarray, images: np.ndarray, scale: Scale | None = None
) -> float:
    """Mean squared error of a decoder on up to 2000 images `[N, C, H, W]`, spread evenly; see `LinearDecoder.error`."""
    rows = spread(len(images), MEASURED_IMAGES)
    return round(decoder.error(features[rows], images[rows], scale), DIGITS)


def as_pixels(images: np.ndarray, scale: Scale | None = None) -> np.ndarray:
    """Pixels `float32 [N, C·H·W]`, about 0 to 1, of images `uint8` or `float32 [N, C, H, W]`."""
    if scale:
        images = scale.apply(images)
    pixels: np.ndarray = images.reshape(len(images), -1)
    return pixels / np.float32(255) if images.dtype == np.uint8 else pixels


def as_images(pixels: np.ndarray, like: np.ndarray, scale: Scale | None = None) -> np.ndarray:
    """Images of pixels `[N, C·H·W]`, of the type and shape of those in `like`, `[M, C, H, W]`.

    Pixels for `uint8` are cut off at 0 and 1.

    Example:
        >>> as_images(np.array([[-0.2, 0.2, 1.2]]), np.zeros((0, 1, 1, 3), np.uint8)).tolist()
        [[[[0, 51, 255]]]]
    """
    values: np.ndarray = pixels.reshape(len(pixels), *like.shape[1:])
    if scale:
        return scale.undo(values)
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8) if like.dtype == np.uint8 else values
