"""A quick measure of the features within training: a ridge classifier on pooled activation maps.

It chooses nothing. Beside the loss, it shows whether a lower loss means better features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from convae.datasets.image_set import ImageSet
from convae.models.autoencoder import Autoencoder
from convae.models.layers import pool_over_grid, rectified

IMAGES, BATCH = 400, 25
LEAST_PER_CLASS = 10
GRID = 4  # rows and columns of cells over which maps are averaged
RIDGE = 0.1  # in units of the features' mean square


class Probe:
    """Classifies validation images by what a layer's maps say about other validation images.

    Args:
        validation: labelled images; up to 400 of them, spread evenly, are used.

    Example:
        >>> import numpy as np
        >>> from convae.params import LayerParams
        >>> network = Autoencoder(1, {}, [LayerParams(filters=4).model_dump()], tied_weights=False)
        >>> network.initialize(torch.Generator().manual_seed(0))
        >>> labels = np.array([0, 0, 1, 1])  # both halves have both classes
        >>> images = np.tile(labels[:, None, None, None] * 255, (1, 1, 8, 8)).astype(np.uint8)
        >>> Probe(ImageSet(images, labels, ("black", "white"), sha256="")).accuracy(network, depth=1)
        1.0
    """

    def __init__(self, validation: ImageSet) -> None:
        assert validation.labels is not None
        rows = validation.spread(IMAGES)
        self.images = torch.from_numpy(validation.images[rows])
        self.labels = torch.from_numpy(validation.labels[rows]).long()
        self.classes = len(validation.classes)

    @staticmethod
    def suits(validation: ImageSet) -> bool:
        """Whether there are labels, and enough of the images that it uses for each class."""
        used = min(len(validation), IMAGES)
        return validation.labels is not None and used >= LEAST_PER_CLASS * len(validation.classes)

    def accuracy(self, network: Autoencoder, depth: int, batch_size: int = BATCH) -> float:
        """Fraction of the images that a classifier fitted to the other half labels correctly.

        Features are the square roots of both signs of the maps of layer `depth`, counted from 1, averaged over a grid
        of 4×4 cells.
        """
        device = next(network.layers.parameters()).device
        with torch.no_grad():
            batches = [
                _features(network, depth, batch.to(device)) for batch in self.images.split(min(BATCH, batch_size))
            ]
        features, right = torch.cat(batches).double(), 0
        for half in (slice(0, None, 2), slice(1, None, 2)):
            other = slice(1 - (half.start or 0), None, 2)
            scores = _ridge_scores(features[half], F.one_hot(self.labels[half], self.classes), features[other])
            right += int((scores.argmax(1) == self.labels[other]).sum())
        return right / len(self.labels)


def _features(network: Autoencoder, depth: int, images: Tensor) -> Tensor:
    incoming = network.input_of(depth - 1, network.preprocessing(images))
    maps = network.layers[depth - 1](incoming).cpu()  # Apple's GPUs can't pool over every grid
    grid = (min(GRID, maps.shape[2]), min(GRID, maps.shape[3]))
    pooled = [pool_over_grid(part, grid, "mean").flatten(1) for part in rectified(maps, "both", 0)]
    return torch.cat(pooled, 1).sqrt()


def _ridge_scores(features: Tensor, target: Tensor, others: Tensor) -> Tensor:
    """Scores of `others` by a ridge regression to `target`, solved for one weight per image; see `linear_decoder`."""
    mean, offset = features.mean(0), target.double().mean(0)
    centred = features - mean
    products = centred @ centred.T
    ridge = RIDGE * products.diagonal().mean().clamp(min=1e-12) * torch.eye(len(products), dtype=products.dtype)
    weights = torch.linalg.solve(products + ridge, target - offset)
    scores: Tensor = (others - mean) @ centred.T @ weights + offset
    return scores
