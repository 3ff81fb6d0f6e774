"""Encoder health: what neither accuracy nor reconstruction error shows."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from convae.encoder import Encoder, build_autoencoder
from convae.evaluation.classifiers import check_finite
from convae.evaluation.metrics import DIGITS, reconstruction_mse
from convae.models.autoencoder import Autoencoder

VALIDATION_IMAGES, TRAINING_IMAGES = 1000, 5000
ACTIVATIONS = 1 << 26  # at most so many are looked at, and of features 1 << 24: seconds, whatever the encoder
FEATURE_VALUES = 1 << 24
CHUNK_ACTIVATIONS = 1 << 22  # held at once, 32 MiB in double precision

CONSTANT = 1e-6  # of the size of the values: what single precision leaves of zero
DEAD = 1e-3  # of the median deviation
DUPLICATE = 0.95  # correlation

# The decoder of the untrained twin. On Fashion-MNIST rates from 0.003 to 0.03 end within 1 % of each other.
STEPS, BATCH, LEARNING_RATE = 200, 32, 0.01
STEP_ACTIVATIONS = 1 << 21  # large images come in smaller batches: each has as many more places to learn from


def encoder_health(
    encoder: Encoder, training: np.ndarray, validation: np.ndarray, features: np.ndarray, seed: int
) -> dict[str, Any]:
    """What is wrong with an encoder, if anything, on samples spread evenly over the image sets.

    Args:
        encoder: stays as it is.
        training: images `uint8 [M, C, H, W]`, of which up to 5000 train the twin's decoder.
        validation: images `uint8 [N, C, H, W]`, of which up to 1000 are looked at, fewer where the activation maps
            are large.
        features: `float32 [N, D]` of the validation images, of which up to 1000 rows are looked at, fewer where D is
            large.
        seed: of the twin.

    Returns:
        `images`, the size of the validation sample; `filters`, see `layers_health`; `effective_rank`, and
        `effective_rank_limit`, the largest that the sample allows, min(rows - 1, D); `copying`, see `copying`, or None
        where there is no trained decoder. Rounded to six digits, and on one machine always the same.

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
    """Of each layer what its activation maps say, before winners take all.

    Args:
        encoder: with any number of layers.
        images: `uint8 [N, C, H, W]`.

    Returns:
        For each layer:

        - `filters`: their number.
        - `dead`: those with a constant map, the standard deviation over all images and places at most 1e-6 of the root
          mean square, or with a deviation below 1e-3 of the median of the filters that are not constant.
        - `duplicates`: those of the others whose map correlates with that of an earlier one by more than 0.95, in
          magnitude, over all images and places. A shifted copy of a filter is none.
        - `hoyer_sparsity`: (√n - L1/L2) / (√n - 1) of an image's n activations in all maps, the mean over images that
          have any: 0 where all are equally strong, 1 where there is a single one. Hoyer (2004), "Non-negative matrix
          factorization with sparseness constraints", JMLR 5, section 3.1. None where it has no value.
        - `border_ratio`: root mean square of the activations in the outermost ring of pixels over that of the
          interior; 1 would be no artefact of the border. None where maps have no interior, or nothing in it.
    """
    if not len(encoder.autoencoder.layers):
        return []
    layers = [_Activations() for _ in encoder.autoencoder.layers]
    for batch in _batches(images, CHUNK_ACTIVATIONS // _activations(encoder, images)):
        for layer, maps in zip(layers, encoder.activation_maps(batch), strict=True):
            layer.add(maps)
    return [layer.health() for layer in layers]


class _Activations:
    """Sums over a layer's activations, so that memory stays flat in the number of images."""

    def __init__(self) -> None:
        self.places = self.images = 0
        self.total: Any = 0.0  # [n]
        self.products: Any = 0.0  # [n, n]
        self.sparsity = 0.0
        self.ring, self.interior = np.zeros(2), np.zeros(2)  # sum of squares, and of how many

    def add(self, maps: np.ndarray) -> None:
        """Activation maps `float32 [N, n, H, W]`."""
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
        border = math.sqrt(self.ring[0] / self.ring[1] / energy) if energy else None
        return {
            "filters": len(alive),
            "dead": int((~alive).sum()),
            "duplicates": int(duplicates.sum()),
            "hoyer_sparsity": round(self.sparsity / self.images, DIGITS) if self.images else None,
            "border_ratio": None if border is None else round(border, DIGITS),
        }


def effective_rank(features: np.ndarray) -> float:
    """Over how many directions the variance of features `[N, D]` spreads: exp of the entropy of p = σ / Σσ.

    σ are the singular values of the centred features. It is 1 where they lie on a line, at most min(N - 1, D), and so
    bounded by the size of the sample; 0 where all are alike. Roy & Vetterli (2007), "The effective rank: a measure of
    effective dimensionality", definition 1.
    """
    centred = features - features.mean(axis=0, dtype=np.float64)
    products = centred @ centred.T if len(features) < features.shape[1] else centred.T @ centred
    singular = np.sqrt(np.linalg.eigvalsh(products).clip(min=0))
    singular = singular[singular > CONSTANT * singular[-1]]
    p = singular / singular.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def copying(encoder: Encoder, training: np.ndarray, validation: np.ndarray, seed: int) -> dict[str, Any]:
    """Whether a low reconstruction error says anything about the filters, or any filters would reconstruct as well.

    The decoder of the encoder's `untrained_twin` learns for 200 steps only, that of the encoder for all its training,
    so that the twin's error is an upper bound of what random filters allow: a twin that is as good shows that the error
    says nothing about the filters, one that is worse proves nothing. The twin has a decoder of its own even where
    the encoder's is tied, and sees no corrupted images.

    Args:
        encoder: has a trained decoder.
        training: images `uint8 [M, C, H, W]`.
        validation: images `uint8 [N, C, H, W]`.
        seed: of the twin.

    Returns:
        Mean squared errors on the validation images, in squared units of the preprocessed image: `reconstruction_mse`
        of the encoder, `twin_reconstruction_mse`, and `baseline_mse` of the mean training image.
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
    """An encoder with the same layers, preprocessing and sparsity, its filters random, and a trained decoder.

    The filters are drawn by `Autoencoder.initialize` and frozen; the statistics of batch normalisation and of winner-
    take-all follow the images.

    Args:
        encoder: stays as it is.
        training: images `uint8 [M, C, H, W]`.
        seed: of filters, batches and dropout.
    """
    config = {**encoder.config, "tied_weights": False, "readout": None}
    with torch.random.fork_rng(devices=[]):  # building a network and dropout draw from the global generator
        torch.default_generator.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        twin = build_autoencoder(config)
        twin.initialize(generator)
        twin.preprocessing.load_state_dict(encoder.autoencoder.preprocessing.state_dict())
        # Batch normalisation needs two.
        size = max(2, min(BATCH, STEP_ACTIVATIONS // _activations(encoder, training)))
        _train_decoder(twin, training, size, generator)
    return Encoder(twin, None, config)


def _train_decoder(autoencoder: Autoencoder, images: np.ndarray, size: int, generator: torch.Generator) -> None:
    """Minimise the mean squared error on batches of `size` images by Adam, its rate falling to zero by a cosine."""
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
    """How many an image has in all layers."""
    return sum(maps.size for maps in encoder.activation_maps(images[:1])) if len(encoder.autoencoder.layers) else 1


def _batches(images: np.ndarray, size: int = BATCH) -> Iterator[np.ndarray]:
    size = max(1, size)
    return (images[start : start + size] for start in range(0, len(images), size))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows, at least one, evenly spread: image sets may be in the order of their classes."""
    chosen = np.linspace(0, len(rows) - 1, max(1, min(count, len(rows)))).round().astype(int)
    return np.asarray(rows[chosen])
