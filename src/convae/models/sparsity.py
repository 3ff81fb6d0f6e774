"""Sparsity of the code: winners take all (Makhzani & Frey 2015)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.models.shared_batch import SharedBatch

MOMENTUM = 0.02


class WinnerTakeAll(nn.Module):
    """Keep the activations that win their block and, of these, the strongest of each map over the batch.

    "Winner-take-all autoencoders" (NIPS 2015), section 3: spatial sparsity keeps the largest activation of a map, here
    one in every block; lifetime sparsity keeps the largest part of a map's winners over the batch. Strength is
    the magnitude, so that activations of either sign compete. Gradients reach the winners alone.

    One image should not depend on those beside it, so in evaluation mode a winner stays where it exceeds the
    map's weakest winner of the training batches, averaged with a momentum of 0.02.

    Args:
        filters: n.
        block: height and width in pixels; None keeps all activations.
        lifetime: part of the winners kept, in (0, 1]; None keeps all.
        batch: over which winners compete.
    """

    weakest_winner: Tensor

    def __init__(self, filters: int, block: tuple[int, int] | None, lifetime: float | None, batch: SharedBatch) -> None:
        super().__init__()
        self.block = block
        self.lifetime = lifetime
        self.batch = batch
        self.register_buffer("weakest_winner", torch.zeros(filters))

    def forward(self, maps: Tensor) -> Tensor:
        """Activation maps `[N, n, H, W]` with zeros for all but the winners."""
        kept, places = self.keep(maps)
        winners = maps.flatten(2).gather(2, places) * kept
        return torch.zeros_like(maps).flatten(2).scatter(2, places, winners).view_as(maps)

    def keep(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a block's largest activation is kept, `bool [N, n, blocks]`, and where in its map it stands."""
        strengths, places = self._spatial_winners(maps.detach().abs())
        if self.lifetime is None:
            return torch.ones_like(places, dtype=torch.bool), places
        if self.training:
            weakest = self._weakest_winner(strengths)
            weakest = weakest.to(self.weakest_winner.dtype)
            self.weakest_winner.lerp_(weakest, MOMENTUM if self.weakest_winner.any() else 1.0)
        else:
            weakest = self.weakest_winner
        return strengths >= weakest.view(1, -1, 1), places

    def _spatial_winners(self, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
        """The largest of each block and where in its map it stands, `[N, n, blocks]` both."""
        height, width = magnitudes.shape[2:]
        window = (min(self.block[0], height), min(self.block[1], width)) if self.block else (1, 1)
        strengths, places = F.max_pool2d(magnitudes, window, ceil_mode=True, return_indices=True)
        return strengths.flatten(2), places.flatten(2)

    def _weakest_winner(self, strengths: Tensor) -> Tensor:
        """Of each map the least strength that is among the largest `lifetime` over the batch, `[n]`."""
        assert self.lifetime is not None
        by_map = self.batch.whole(strengths).transpose(0, 1).flatten(1)
        return by_map.topk(max(1, round(self.lifetime * by_map.shape[1])), dim=1).values[:, -1]
