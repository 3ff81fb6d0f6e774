"""Batches cut from an image set in memory, without per-image Python, and their augmentation."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor | None]


class ImageBatches:
    """An image set as an iterable of batches, as Lightning takes one in place of a DataLoader.

    A batch is images `uint8 [n, C, H, W]` and labels `int64 [n]` or None. The order of an epoch depends on (seed,
    epoch) alone, so that a training resumed at any batch sees the same ones. With several processes each takes its
    share of every batch.

    Args:
        images: `uint8 [N, C, H, W]`, memory-mapped or not.
        batch_size: images in a batch of all processes together; the last batch of an epoch may be smaller, and takes
            one image more rather than leave it alone, over which batch normalisation has no variance.
        seed: of the order; None keeps the images' own.
        labels: `int64 [N]`, or None.
    """

    def __init__(
        self, images: np.ndarray, batch_size: int, seed: int | None = None, labels: np.ndarray | None = None
    ) -> None:
        self.images = torch.from_numpy(images)
        self.labels = None if labels is None else torch.from_numpy(labels)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.first_batch = 0  # of an epoch that is resumed
        self.rank, self.world_size = 0, 1

    def __len__(self) -> int:
        return len(self._split(torch.arange(len(self.images))))

    def __iter__(self) -> Iterator[Batch]:
        if self.seed is None:
            for rows in self._split(torch.arange(len(self.images))):
                yield self._batch(slice(int(rows[0]) + self.rank, int(rows[-1]) + 1, self.world_size))
            return
        generator = torch.Generator().manual_seed(random_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        for rows in self._split(order)[self.first_batch :]:
            yield self._batch(rows[self.rank :: self.world_size])

    def _split(self, order: Tensor) -> list[Tensor]:
        batches = list(order.split(self.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1 < self.batch_size:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def _batch(self, rows: Tensor | slice) -> Batch:
        return self.images[rows], None if self.labels is None else self.labels[rows]

    def move_to(self, device: torch.device) -> None:
        """Keep the images on a GPU from now on, if they take less than half of its free memory."""
        if device.type != "cuda" or self.images.device == device:
            return
        if self.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
            self.images = self.images.to(device)
            self.labels = None if self.labels is None else self.labels.to(device)


def random_seed(*position: int) -> int:
    """A seed for what is random at a position, such as (seed, epoch), unrelated to those of its neighbours."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)


def augment(images: Tensor, flip: bool, shift: int) -> Tensor:
    """Mirror images `[n, C, H, W]` left to right with probability one half, and move each by up to `shift` pixels.

    What comes in at the border repeats the outermost pixels. Draws from torch's global generator.
    """
    count, _, height, width = images.shape
    offsets = torch.randint(-shift, shift + 1, (2, count, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + offsets[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + offsets[1]).clamp(0, width - 1)
    if flip:
        mirrored = torch.rand(count, 1, device=images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count, device=images.device)[:, None, None]
    return images.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
