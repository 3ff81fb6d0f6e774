"""Encoder health: faults that neither accuracy nor reconstruction error shows."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from convae.datasets.shards import spread
from convae.encoder import Encoder, build_autoencoder
from convae.evaluation.metrics import DIGITS, reconstruction_mse
from convae.evaluation.scores import check_finite
from convae.models.autoencoder import Autoencoder

VALIDATION_IMAGES, TRAINING_IMAGES = 1000, 5000
# Limits on the activations and feature values that are examined, so that even a large encoder takes only seconds.
ACTIVATIONS, FEATURE_VALUES = 1 << 26, 1 << 24
CHUNK_ACTIVATIONS = 1 << 22  # held at a time: 32 MiB in double precision

CONSTANT = 1e-6  # relative to the size of the values: rounding errors of zero in single precision
DEAD = 1e-3  # relative to the median deviation
DUPLICATE = 0.95  # correlation

# The decoder of the untrained twin. On Fashion-MNIST, learning rates from 0.003 to 0.03 end within 1 % of each other.
STEPS, BATCH, LEARNING_RATE = 200, 32, 0.01
STEP_ACTIVATIONS = 1 << 21  # batches of large images may be smaller, as each image has more places to learn from


def encoder_health(
    encoder: Encoder, training: np.ndarray, validation: np.ndarray, features: np.ndarray, seed: int
) -> dict[str, Any]:
    """Measure an encoder's health on samples spread evenly over the image sets.

    Args:
        encoder: the encoder, which is not changed.
        training: images `[M, C, H, W]`; up to 5000 of them train the twin's decoder.
        validation: images `[N, C, H, W]`; up to 1000 of them are examined, fewer if activation maps are large.
        features: `float32 [N, D]` of the validation images; up to 1000 rows are examined, fewer if D is large.
        seed: seeds the twin.

    Returns:
        `images`, the size of the validation sample; `filters`, see `layers_health`; `effective_rank`, and
        `effective_rank_limit`, the largest value that the sample allows, min(rows - 1, D); `copying`, see `copying`, or
        None without a trained decoder. Rounded to six digits, and on one machine always the same.

    Raises:
        ConvaeError: a feature is not finite.
    """
    check_finite(features, "validation")
    images = _spread(validation, min(VALIDATION_IMAGES, ACTIVATIONS // _activations(encoder, validation)))
    rows = _spread(features, min(VALIDATION_IMAGES, FEATURE_VALUES // features.shape[1]))
    return {
        "images": len(images),
        "filters": layers_health(encoder, images),
        "effective_rank": round(effective_rank(rows), DIGITS),
        "effective_rank_limit": min(len(rows) - 1, rows.shape[1]),
        "copying": copying(encoder, _spread(training, TRAINING_IMAGES), images, seed) if encoder.has_decoder else None,
    }


def layers_health(encoder: Encoder, images: np.ndarray) -> list[dict[str, Any]]:
    """Measure the health of each layer on its activation maps, before any winner-take-all.

    Args:
        encoder: an encoder with any number of layers.
        images: `[N, C, H, W]`.

    Returns:
        For each layer:

        - `filters`: number of filters.
        - `dead`: number of filters with a constant map (standard deviation over all images and places at most 1e-6 of
          the root mean square), or with a deviation below 1e-3 of the median over filters that are not constant.
        - `duplicates`: number of other filters whose map correlates with the map of an earlier filter by more than
          0.95, in magnitude, over all images and places. A shifted copy of a filter does not count.
        - `hoyer_sparsity`: (√n - L1/L2) / (√n - 1) of an image's n activations in all maps, averaged over images with
          any activation: 0 if all are equally strong, 1 if only one is not zero. None if undefined. Hoyer (2004),
          "Non-negative matrix factorization with sparseness constraints", JMLR 5, section 3.1.
        - `border_ratio`: root mean square of the activations in the outermost ring of pixels, divided by that in the
          interior; 1 without border artefacts. None if the maps have no interior, or only zeros in it.

    Example:
        >>> from convae.encoder import load_encoder
        >>> (layer,) = layers_health(load_encoder("models/encoder"), np.zeros((5, 1, 8, 8), np.uint8))
        >>> layer["filters"]
        4
    """
    if not len(encoder.autoencoder.layers):
        return []
    layers = [_Activations() for _ in encoder.autoencoder.layers]
    for batch in _batches(images, max(1, CHUNK_ACTIVATIONS // _activations(encoder, images))):
        for layer, maps in zip(layers, encoder.activation_maps(batch), strict=True):
            layer.add(maps)
    return [layer.health() for layer in layers]


class _Activations:
    """Sums over a layer's activations; memory does not grow with the number of images."""

    def __init__(self) -> None:
        self.places = self.images = 0
        self.total: Any = 0.0  # [n]
        self.products: Any = 0.0  # [n, n]
        self.sparsity = 0.0
        self.ring, self.interior = np.zeros(2), np.zeros(2)  # sum of squares, and number of values

    def add(self, maps: np.ndarray) -> None:
        """Add activation maps `float32 [N, n, H, W]`."""
        by_map = maps.swapaxes(0, 1).reshape(maps.shape[1], -1).astype(np.float64)
        self.places += by_map.shape[1]
        self.total += by_map.sum(1)
        self.products += by_map @ by_map.T

        by_image = np.abs(maps.reshape(len(maps), -1), dtype=np.float64)
        l1, l2, root = by_image.sum(1), np.linalg.norm(by_image, axis=1), math.sqrt(by_image.shape[1])
        active = l2 > 0
        if root > 1:
            self.images += int(active.sum())
            self.sparsity += float(((root - l1[active] / l2[active]) / (root - 1)).sum())

        interior = maps[:, :, 1:-1, 1:-1]
        inside = np.array([np.square(interior, dtype=np.float64).sum(), interior.size])
        self.interior += inside
        self.ring += np.array([np.square(by_image).sum(), maps.size]) - inside

    def health(self) -> dict[str, Any]:
        """One entry of `layers_health`."""
        mean = self.total / self.places
        covariance = self.products / self.places - np.outer(mean, mean)
        deviations = np.sqrt(covariance.diagonal().clip(min=0))
        varying = deviations > CONSTANT * np.sqrt(self.products.diagonal() / self.places)
        alive = varying & (deviations >= DEAD * np.median(deviations[varying])) if varying.any() else varying
        correlations = covariance[np.ix_(alive, alive)] / np.outer(deviations[alive], deviations[alive])
        duplicates = np.triu(np.abs(correlations) > DUPLICATE, k=1).any(axis=0)
        energy = self.interior[0] / self.interior[1] if self.interior[1] else 0.0
        return {
            "filters": len(alive),
            "dead": int((~alive).sum()),
            "duplicates": int(duplicates.sum()),
            "hoyer_sparsity": round(self.sparsity / self.images, DIGITS) if self.images else None,
            "border_ratio": round(math.sqrt(self.ring[0] / self.ring[1] / energy), DIGITS) if energy else None,
        }


def effective_rank(features: np.ndarray) -> float:
    """Number of directions over which features `[N, D]` vary: exp of the entropy of p = σ / Σσ.

    σ are the singular values of the centred features. The rank is 1 if the features lie on a line, 0 if they are all
    the same, and at most min(N - 1, D). Roy & Vetterli (2007), "The effective rank: a measure of effective
    dimensionality", definition 1.

    Example:
        >>> square = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)
        >>> round(effective_rank(square), 6), round(effective_rank(square * [1, 0]), 6)
        (2.0, 1.0)
    """
    # The eigenvalues of the smaller product are the squared singular values, and take much less time than an SVD.
    centred = features - features.mean(axis=0, dtype=np.float64)
    products = centred @ centred.T if len(features) < features.shape[1] else centred.T @ centred
    singular = np.sqrt(np.linalg.eigvalsh(products).clip(min=0))
    singular = singular[singular > CONSTANT * singular[-1]]
    p = singular / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def copying(encoder: Encoder, training: np.ndarray, validation: np.ndarray, seed: int) -> dict[str, Any]:
    """Compare the encoder's reconstruction error with that of random filters.

    The decoder of the `untrained_twin` learns for only 200 steps, the encoder's learned throughout training. The
    twin's error is therefore an upper bound on what random filters allow: a twin as good as the encoder shows that a
    low error says nothing about the filters; a worse twin proves nothing. The twin has its own decoder even if the
    encoder's is tied, and learns from uncorrupted images.

    Args:
        encoder: an encoder with a trained decoder.
        training: images `[M, C, H, W]`.
        validation: images `[N, C, H, W]`.
        seed: seeds the twin.

    Returns:
        Mean squared errors on the validation images, in squared units of the preprocessed image: the encoder's
        `reconstruction_mse`, `twin_reconstruction_mse`, and `baseline_mse` of the mean training image.
    """
    twin = untrained_twin(encoder, training, seed)
    mean = sum(encoder.preprocess(batch).sum(axis=0, dtype=np.float64) for batch in _batches(training)) / len(training)
    baseline = sum(np.square(encoder.preprocess(batch) - mean).sum() for batch in _batches(validation))
    return {
        "reconstruction_mse": reconstruction_mse(encoder, validation),
        "twin_reconstruction_mse": reconstruction_mse(twin, validation),
        "baseline_mse": round(float(baseline) / (len(validation) * mean.size), DIGITS),
    }


def untrained_twin(encoder: Encoder, training: np.ndarray, seed: int) -> Encoder:
    """An encoder with the same layers, preprocessing and sparsity, but random filters and a decoder trained on them.

    The filters are drawn by `Autoencoder.initialize` and frozen. The statistics of batch normalisation and
    winner-take-all follow the images.

    Args:
        encoder: the encoder, which is not changed.
        training: images `[M, C, H, W]`.
        seed: seeds filters, batches and dropout.
    """
    config = {**encoder.config, "tied_weights": False, "readout": None}
    with torch.random.fork_rng(devices=[]):  # building a network and dropout draw from the global generator
        torch.default_generator.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        twin = build_autoencoder(config)
        twin.initialize(generator)
        twin.preprocessing.load_state_dict(encoder.autoencoder.preprocessing.state_dict())
        # Batch normalisation needs at least two images.
        size = max(2, min(BATCH, STEP_ACTIVATIONS // _activations(encoder, training)))
        _train_decoder(twin, training, size, generator)
    return Encoder(twin, None, config)


def _train_decoder(autoencoder: Autoencoder, images: np.ndarray, size: int, generator: torch.Generator) -> None:
    """Minimise the mean squared error on batches of `size` images with Adam and a cosine schedule."""
    autoencoder.train().layers.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in autoencoder.parameters() if p.requires_grad], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (size,), generator=generator).numpy()
        preprocessed = autoencoder.preprocessing(torch.from_numpy(images[rows]))
        optimizer.zero_grad()
        F.mse_loss(autoencoder(preprocessed), preprocessed).backward()
        optimizer.step()
        schedule.step()


def _activations(encoder: Encoder, images: np.ndarray) -> int:
    """Number of activations of an image in all layers."""
    return sum(maps.size for maps in encoder.activation_maps(images[:1])) if len(encoder.autoencoder.layers) else 1


def _batches(images: np.ndarray, size: int = BATCH) -> Iterator[np.ndarray]:
    return (images[start : start + size] for start in range(0, len(images), size))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return np.asarray(rows[spread(len(rows), count)])
