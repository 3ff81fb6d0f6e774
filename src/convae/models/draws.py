"""Random draws: seeds for each position of a training run, and random shifts and mirror images."""

import numpy as np
import torch
from torch import Tensor

from convae.models.shared_batch import SharedBatch


def random_seed(*position: int) -> int:
    """A seed for the random draws at a position such as (seed, epoch), unrelated to those of neighbouring positions.

    Example:
        >>> random_seed(0, 7) == random_seed(0, 7), random_seed(0, 7) == random_seed(0, 8)
        (True, False)
    """
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)


def augment(images: Tensor, flip: bool, shift: int, batch: SharedBatch) -> Tensor:
    """Shift each image of `[n, C, H, W]` by up to `shift` pixels; with `flip`, mirror half of them left to right.

    Pixels that enter at the border repeat the outermost ones. Draws from torch's global generator.

    Example:
        >>> images = torch.arange(3.0).expand(2, 1, 3, 3)
        >>> bool((augment(images, flip=False, shift=0, batch=SharedBatch()) == images).all())
        True
    """
    count, _, height, width = images.shape
    device = images.device
    offsets = batch.drawn(
        lambda number: torch.randint(-shift, shift + 1, (2, number, 1), device=device).movedim(1, 0), count
    )
    # Clamped indices repeat the outermost pixels without a padded copy of the images.
    rows = (torch.arange(height, device=device) + offsets[:, 0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + offsets[:, 1]).clamp(0, width - 1)
    if flip:
        mirrored = batch.drawn(lambda number: torch.rand(number, 1, device=device), count) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count, device=device)[:, None, None]
    return images.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
