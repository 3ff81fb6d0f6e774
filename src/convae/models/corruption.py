"""What is done to an image before it has to be reconstructed."""

import torch
from torch import Tensor
from torch.nn import functional as F

from convae.models.shared_batch import SharedBatch, room_like


class Corruption:
    """Noise, or blocks of pixels taken away, drawn from torch's global generator.

    `gaussian` and `uniform` add noise (Vincent et al. 2010, "Stacked denoising autoencoders", JMLR 11, section 3.3);
    `masking` sets blocks to zero in all channels, and only these have to be reconstructed (He et al. 2022, "Masked
    autoencoders are scalable vision learners", section 3).

    Args:
        kind: `gaussian`, `uniform` or `masking`.
        level: standard deviation, largest deviation in units of the preprocessed image, or the part of the blocks
            taken away.
        block: height and width of a block in pixels; of no use to noise.
        batch: for which noise is drawn.
    """

    def __init__(self, kind: str, level: float, block: tuple[int, int], batch: SharedBatch) -> None:
        self.kind = kind
        self.level = level
        self.block = block
        self.batch = batch

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Corrupted images `[N, C, H, W]` and, where not all pixels count, which do: `bool [N, 1, H, W]`."""
        if self.kind == "gaussian":
            noise = self.batch.drawn(lambda number: torch.randn_like(room_like(images, number)), len(images))
            return images + self.level * noise, None
        if self.kind == "uniform":
            noise = self.batch.drawn(lambda number: torch.rand_like(room_like(images, number)), len(images))
            return images + self.level * (2 * noise - 1), None
        height, width = images.shape[2:]
        rows, columns = -(-height // self.block[0]), -(-width // self.block[1])
        draws = self.batch.drawn(lambda number: torch.rand(number, 1, rows, columns, device=images.device), len(images))
        blocks = draws < self.level
        covered = blocks.repeat_interleave(self.block[0], dim=2).repeat_interleave(self.block[1], dim=3)
        hidden = covered[..., :height, :width]
        return images.masked_fill(hidden, 0), hidden


def reconstruction_error(reconstruction: Tensor, target: Tensor, counted: Tensor | None, batch: SharedBatch) -> Tensor:
    """Mean squared error over all pixels, or over those that count."""
    if counted is None:
        total = F.mse_loss(reconstruction, target, reduction="sum")
        return batch.mean(total, len(target), target.shape[1:].numel())
    errors = (reconstruction - target).square().mean(1, keepdim=True)
    return batch.counted_mean((errors * counted).sum(), counted.sum())
