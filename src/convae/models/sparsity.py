"""Sparsity of the code: winner-take-all over places (Makhzani & Frey 2015), or the strongest maps at each place."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.models.shared_batch import SharedBatch

MOMENTUM = 0.02


def sparsity_of(sparsity: dict[str, Any] | None, filters: int, batch: SharedBatch) -> nn.Module:
    """The sparsity that `objective.sparsity` describes, for a layer with this number of filters."""
    if not sparsity:
        return nn.Identity()
    if sparsity.get("per_place"):
        return StrongestMaps(filters, sparsity["per_place"])
    return WinnerTakeAll(filters, sparsity["block"], sparsity["lifetime"], batch)


class StrongestMaps(nn.Module):
    """Keep the strongest activations at each place, and multiply each map by a learned gain.

    Activations compete by magnitude, whatever their sign, as in Makhzani & Frey (2014), "k-sparse autoencoders".
    Gradients reach only the winners.

    Args:
        filters: number of maps n.
        count: activations to keep at each place, at most n.

    Example:
        >>> StrongestMaps(3, count=1)(torch.tensor([[1.0, -3.0, 2.0]])).tolist()
        [[0.0, -3.0, 0.0]]
    """

    def __init__(self, filters: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.gain = nn.Parameter(torch.ones(filters))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the activations `[N, n, ...]` with all but the strongest of each place set to zero."""
        places = maps.detach().abs().topk(self.count, dim=1).indices
        # Scattering the activations themselves would make a GPU wait: its deterministic way copies from the CPU.
        wins = torch.zeros_like(maps).scatter_(1, places, 1.0)
        return maps * wins * self.gain.view(-1, *[1] * (maps.dim() - 2))


class WinnerTakeAll(nn.Module):
    """Keep the activations that win their block and, of these, each map's strongest over the batch.

    Makhzani & Frey, "Winner-take-all autoencoders" (NIPS 2015), section 3. Spatial sparsity keeps the largest
    activation of a map, here one per block; lifetime sparsity keeps the largest fraction of a map's winners over the
    batch. Activations compete by magnitude, whatever their sign. Gradients reach only the winners.

    In evaluation mode, an image must not depend on the other images of its batch. A winner is then kept if it is at
    least as strong as the map's weakest winner in training, averaged over batches with a momentum of 0.02.

    Args:
        filters: number of maps n.
        block: height and width in pixels; None lets every activation win.
        lifetime: fraction of the winners to keep, in (0, 1]; None keeps all.
        batch: the batch over which winners compete.

    Example:
        >>> sparsity = WinnerTakeAll(1, block=(1, 2), lifetime=None, batch=SharedBatch())
        >>> sparsity(torch.tensor([[[[1.0, -3.0, 2.0, 0.5]]]])).tolist()
        [[[[0.0, -3.0, 2.0, 0.0]]]]
    """

    weakest_winner: Tensor

    def __init__(self, filters: int, block: tuple[int, int] | None, lifetime: float | None, batch: SharedBatch) -> None:
        super().__init__()
        self.block = block
        self.lifetime = lifetime
        self.batch = batch
        self.register_buffer("weakest_winner", torch.zeros(filters))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the activation maps `[N, n, H, W]` with all but the winners set to zero."""
        kept, places = self.keep(maps)
        winners = maps.flatten(2).gather(2, places) * kept
        return torch.zeros_like(maps).flatten(2).scatter(2, places, winners).view_as(maps)

    def keep(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Find the largest activation of every block.

        Returns:
            Whether it is kept, `bool [N, n, blocks]`, and its index in the flattened map, `int64 [N, n, blocks]`.
        """
        strengths, places = self._spatial_winners(maps.detach().abs())
        if self.lifetime is None:
            return torch.ones_like(places, dtype=torch.bool), places
        if self.training:
            weakest = self._weakest_winner(strengths).to(self.weakest_winner.dtype)
            # The first batch sets the average; later ones move it. A GPU need not wait to learn which it is.
            self.weakest_winner.lerp_(weakest, torch.where(self.weakest_winner.any(), MOMENTUM, 1.0))
        else:
            weakest = self.weakest_winner
        return strengths >= weakest.view(1, -1, 1), places

    def _spatial_winners(self, magnitudes: Tensor) -> tuple[Tensor, Tensor]:
        """The largest magnitude of each block and its index in the flattened map, both `[N, n, blocks]`."""
        height, width = magnitudes.shape[2:]
        window = (min(self.block[0], height), min(self.block[1], width)) if self.block else (1, 1)
        # ceil_mode keeps the smaller blocks at the lower and right edge.
        strengths, places = F.max_pool2d(magnitudes, window, ceil_mode=True, return_indices=True)
        return strengths.flatten(2), places.flatten(2)

    def _weakest_winner(self, strengths: Tensor) -> Tensor:
        """The strength `[n]` that each map's winners need in order to be among its strongest over the batch."""
        assert self.lifetime is not None
        by_map = self.batch.whole(strengths).transpose(0, 1).flatten(1)
        return by_map.topk(max(1, round(self.lifetime * by_map.shape[1])), dim=1).values[:, -1]
