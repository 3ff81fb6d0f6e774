"""Corruption of the images from which a denoising or masked autoencoder reconstructs the originals."""

import torch
from torch import Tensor
from torch.nn import functional as F

from convae.models.shared_batch import SharedBatch, room_like


class Corruption:
    """Noise or masked blocks, drawn from torch's global generator.

    `gaussian` and `uniform` add noise (Vincent et al. 2010, "Stacked denoising autoencoders", JMLR 11, section 3.3).
    `masking` sets blocks to zero in all channels, and only the masked pixels count in the loss (He et al. 2022, "Masked
    autoencoders are scalable vision learners", section 3).

    Args:
        kind: `gaussian`, `uniform` or `masking`.
        level: the standard deviation (`gaussian`) or largest deviation (`uniform`) in units of the preprocessed image,
            or the fraction of blocks that are masked.
        block: height and width of a masked block in pixels; noise ignores it.
        batch: the batch for which to draw.

    Example:
        >>> masking = Corruption("masking", 1.0, (2, 2), SharedBatch())
        >>> corrupted, counted = masking(torch.ones(1, 3, 5, 5))
        >>> corrupted.sum().item(), tuple(counted.shape), counted.all().item()
        (0.0, (1, 1, 5, 5), True)
    """

    def __init__(self, kind: str, level: float, block: tuple[int, int], batch: SharedBatch) -> None:
        self.kind = kind
        self.level = level
        self.block = block
        self.batch = batch

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Corrupt images `[N, C, H, W]`.

        Returns:
            The corrupted images, and a mask `bool [N, 1, H, W]` of the pixels that count in the loss (None: all).
        """
        if self.kind == "gaussian":
            noise = self.batch.drawn(lambda number: torch.randn_like(room_like(images, number)), len(images))
            return images + self.level * noise, None
        if self.kind == "uniform":
            noise = self.batch.drawn(lambda number: torch.rand_like(room_like(images, number)), len(images))
            return images + self.level * (2 * noise - 1), None
        height, width = images.shape[2:]
        # Blocks at the lower and right edge may reach beyond the image.
        rows, columns = -(-height // self.block[0]), -(-width // self.block[1])
        draws = self.batch.drawn(lambda number: torch.rand(number, 1, rows, columns, device=images.device), len(images))
        blocks = draws < self.level
        covered = blocks.repeat_interleave(self.block[0], dim=2).repeat_interleave(self.block[1], dim=3)
        hidden = covered[..., :height, :width]
        return images.masked_fill(hidden, 0), hidden


def reconstruction_error(reconstruction: Tensor, target: Tensor, counted: Tensor | None, batch: SharedBatch) -> Tensor:
    """Mean squared error over all pixels, or over those in the mask `counted`, `bool [N, 1, H, W]`.

    Args:
        reconstruction: `[N, C, H, W]`.
        target: `[N, C, H, W]`.
        counted: the mask that `Corruption` returned.
        batch: the batch over which to average.

    Example:
        >>> counted = torch.tensor([[[[True, False]]]])
        >>> reconstruction_error(torch.tensor([[[[3.0, 9.0]]]]), torch.zeros(1, 1, 1, 2), counted, SharedBatch()).item()
        9.0
    """
    if counted is None:
        total = F.mse_loss(reconstruction, target, reduction="sum")
        return batch.mean(total, len(target), target.shape[1:].numel())
    errors = (reconstruction - target).square().mean(1, keepdim=True)
    return batch.counted_mean((errors * counted).sum(), counted.sum())
