"""Batches cut from an image set in memory, without per-image Python."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class ImageBatches:
    """An image set as an iterable of batches `uint8 [n, C, H, W]`, as Lightning takes one in place of a DataLoader.

    The order of an epoch depends on (seed, epoch) alone, so that a training resumed at any epoch sees the same batches.
    With several processes each takes its share of every batch.

    Args:
        images: `uint8 [N, C, H, W]`, memory-mapped or not.
        batch_size: images in a batch of all processes together; the last batch of an epoch may be smaller.
        seed: of the order; None keeps the images' own.
    """

    def __init__(self, images: np.ndarray, batch_size: int, seed: int | None = None) -> None:
        self.images = torch.from_numpy(images)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.rank, self.world_size = 0, 1

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        if self.seed is None:
            for rows in torch.arange(len(self.images)).split(self.batch_size):
                yield self.images[rows[0] : rows[-1] + 1][self.rank :: self.world_size]
            return
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        for rows in order.split(self.batch_size):
            yield self.images[rows[self.rank :: self.world_size]]

    def move_to(self, device: torch.device) -> None:
        """Keep the images on a GPU from now on, if they take less than half of its free memory."""
        if device.type != "cuda" or self.images.device == device:
            return
        if self.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
            self.images = self.images.to(device)


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch, unrelated to those of its neighbours."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> 1)
