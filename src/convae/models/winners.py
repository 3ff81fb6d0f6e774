"""Winner-take-all at the cost of its winners.

Of a layer's activations hardly any win: of 50 176 for an image the shipped experiment keeps about eighty. Which they
are has to be looked for in all maps, but without gradients. Their values, the reconstruction and every gradient follow
from the patches under the winners alone: the same sums as those of whole convolutions, without the zeros.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.models.geometry import Size
from convae.models.layers import DecoderLayer, EncoderLayer
from convae.models.sparsity import WinnerTakeAll


class Winners(NamedTuple):
    """The R activations that are not zero."""

    values: Tensor  # [R], with gradients
    filters: Tensor  # int64 [R], the map that each is in
    pixels: Tensor  # int64 [R, D·k_h·k_w], where its filter lies in the flattened padded input
    padded: torch.Size  # of that input, [N, D, H + zeros, W + zeros]


def can_find_winners(layer: EncoderLayer, sparsity: nn.Module, incoming: Tensor) -> bool:
    """Whether only the winners' patches count, for values and gradients, and hold fewer numbers than the maps."""
    if not isinstance(sparsity, WinnerTakeAll) or sparsity.block is None or incoming.requires_grad:
        return False
    if not isinstance(layer.norm, nn.Identity) or not isinstance(layer.pool, nn.Identity) or layer.dropout.p:
        return False
    return layer.convolution.weight[0].numel() * (sparsity.lifetime or 1) <= math.prod(sparsity.block)


def find_winners(layer: EncoderLayer, sparsity: WinnerTakeAll, incoming: Tensor) -> Winners:
    """Winners among a layer's activation maps of `incoming`, `[N, D, H, W]`."""
    with torch.no_grad():
        maps = layer(incoming)
        kept, places = sparsity.keep(maps)
    image, filters, block = kept.nonzero(as_tuple=True)
    place = places[image, filters, block]
    (top, left), (down, right) = layer.geometry.zeros, layer.geometry.stride
    padded = F.pad(incoming, (left, left, top, top))
    rows, columns = place // maps.shape[3] * down, place % maps.shape[3] * right
    _, depth, height, width = padded.shape
    corners = (image * depth * height + rows) * width + columns
    weight, bias = layer.convolution.weight, layer.convolution.bias
    pixels = corners[:, None] + _window(weight.shape[1:], (height, width), incoming.device)
    assert bias is not None
    sums = (padded.take(pixels) * weight.flatten(1).index_select(0, filters)).sum(1)
    values = layer.activation(sums + bias.index_select(0, filters))
    return Winners(values, filters, pixels, padded.shape)


def decode_winners(decoder: DecoderLayer, winners: Winners, size: Size) -> Tensor:
    """What `decoder` makes of the code that holds the winners and else zeros: `[N, D, *size]`."""
    parts = winners.values[:, None] * decoder.weight.flatten(1).index_select(0, winners.filters)
    empty = parts.new_zeros(winners.padded.numel())
    whole = empty.index_add(0, winners.pixels.flatten(), parts.flatten()).view(winners.padded)
    top, left = decoder.geometry.zeros
    return whole[:, :, top : top + size[0], left : left + size[1]] + decoder.bias[:, None, None]


def _window(patch: torch.Size, size: Size, device: torch.device) -> Tensor:
    """Offsets of a patch `[D, k_h, k_w]` in a flattened image `[D, *size]`."""
    depth, height, width = (torch.arange(side, device=device) for side in patch)
    return ((depth[:, None, None] * size[0] + height[:, None]) * size[1] + width).flatten()
