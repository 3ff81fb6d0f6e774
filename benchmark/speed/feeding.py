"""Draw batches without a network: the time that an epoch spends on data alone."""

from collections.abc import Iterator

import numpy as np
import torch

from benchmark.speed.measuring import Row, at_least, rates, timed
from convae.models.preprocessing import Preprocessing
from convae.stages.runner import keep_freed_memory
from convae.training.batches import ImageBatches

BATCH = 64
COUNT = 60_000
SHAPES = {"28×28": (1, 28, 28), "32×32×3": (3, 32, 32)}


def rows() -> Iterator[Row]:
    """Shuffled images per second, as `float32` in [0, 1]."""
    for name, shape in SHAPES.items():
        rate = rates(COUNT, (ours, usual, limit), 5, shape)
        yield at_least(f"feeding {name}, images/s, to the usual", 100, rate["ours"] / rate["usual"], **rate)


def ours(shape: tuple[int, int, int]) -> float:
    """The batches of training, scaled to [0, 1] by the network's preprocessing."""
    keep_freed_memory()
    images, preprocessing = _images(shape), Preprocessing(shape[0])

    def epoch() -> None:
        for batch, _ in ImageBatches(images, BATCH, seed=0).of_epoch(0):
            preprocessing(batch)

    return timed(epoch)


def usual(shape: tuple[int, int, int]) -> float:
    """A DataLoader over Pillow images and torchvision's transforms."""
    from benchmark.speed.usual import loader

    images = _images(shape)

    def epoch() -> None:
        for _ in loader(images, BATCH, shuffle=True):
            pass

    return timed(epoch)


def limit(shape: tuple[int, int, int]) -> float:
    """Rows of an array, scaled to [0, 1]."""
    keep_freed_memory()
    images = torch.from_numpy(_images(shape))

    def epoch() -> None:
        for chosen in torch.randperm(COUNT).split(BATCH):
            images.index_select(0, chosen) / 255

    return timed(epoch)


def _images(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(COUNT, *shape), dtype=np.uint8)
