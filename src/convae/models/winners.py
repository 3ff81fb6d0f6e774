"""Winner-take-all sparsity that computes little more than the winners.

Few activations win: `systems/whitened_wta_cae.yaml` keeps about eighty of an image's 50 176. Finding them takes all
maps, but no gradients. Their values, the reconstruction and all gradients depend only on the patches under the winners:
they are the same sums as in whole convolutions, without the zeros.
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
    """The R activations of a batch that are not zero."""

    values: Tensor  # [R], with gradients
    filters: Tensor  # int64 [R], the index of each winner's map
    pixels: Tensor  # int64 [R, D·k_h·k_w], indices of the patch under each winner in the flattened padded input
    padded: torch.Size  # shape of the padded input, [N, D, H + zeros, W + zeros]


def can_find_winners(layer: EncoderLayer, sparsity: nn.Module, incoming: Tensor) -> bool:
    """Whether values and gradients depend only on the winners' patches, and these are smaller than the maps.

    Example:
        >>> from convae.models.shared_batch import SharedBatch
        >>> from convae.params import LayerParams
        >>> layer = EncoderLayer(1, LayerParams(filters=8).model_dump(), batch := SharedBatch())
        >>> blocks = [(2, 2), (4, 4)]  # a patch of 9 pixels is smaller than a block of 16
        >>> [can_find_winners(layer, WinnerTakeAll(8, block, None, batch), torch.zeros(1, 1, 8, 8)) for block in blocks]
        [False, True]
    """
    if not isinstance(sparsity, WinnerTakeAll) or sparsity.block is None or incoming.requires_grad:
        return False
    if layer.input or layer.geometry.reflect:  # patches of padded zeros are cut here
        return False
    if not isinstance(layer.norm, nn.Identity) or not isinstance(layer.pool, nn.Identity) or layer.dropout.p:
        return False
    # Each block of a map has `lifetime` winners on average, and each winner a patch of the size of a filter.
    return layer.convolution.weight[0].numel() * (sparsity.lifetime or 1) <= math.prod(sparsity.block)


def find_winners(layer: EncoderLayer, sparsity: WinnerTakeAll, incoming: Tensor) -> Winners:
    """Find the winners among a layer's activation maps of `incoming`, `[N, D, H, W]`.

    Example:
        >>> from convae.models.shared_batch import SharedBatch
        >>> from convae.params import LayerParams
        >>> layer = EncoderLayer(1, LayerParams(filters=8).model_dump(), batch := SharedBatch())
        >>> winners = find_winners(layer, WinnerTakeAll(8, (4, 4), None, batch), torch.rand(1, 1, 8, 8))
        >>> winners.values.shape, winners.pixels.shape  # four blocks in each of eight maps, and patches of 3×3
        (torch.Size([32]), torch.Size([32, 9]))
    """
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
    # The winners' values again, this time with gradients: the patch under each times its filter.
    sums = (
        padded.flatten().index_select(0, pixels.flatten()).view_as(pixels) * weight.flatten(1).index_select(0, filters)
    ).sum(1)
    values = layer.activation(sums + bias.index_select(0, filters))
    return Winners(values, filters, pixels, padded.shape)


def decode_winners(decoder: DecoderLayer, winners: Winners, size: Size) -> Tensor:
    """Decode the code whose only nonzero activations are the winners, to `[N, D, *size]`.

    Example:
        >>> from convae.models.shared_batch import SharedBatch
        >>> from convae.params import LayerParams
        >>> layer = EncoderLayer(1, LayerParams(filters=8).model_dump(), batch := SharedBatch())
        >>> sparsity, decoder = WinnerTakeAll(8, (4, 4), None, batch), DecoderLayer(layer, tied=True)
        >>> images = torch.rand(1, 1, 8, 8)
        >>> decoded = decode_winners(decoder, find_winners(layer, sparsity, images), (8, 8))
        >>> torch.allclose(decoded, decoder(sparsity(layer(images)), (8, 8)), atol=1e-5)
        True
    """
    parts = winners.values[:, None] * decoder.weight.flatten(1).index_select(0, winners.filters)
    empty = parts.new_zeros(winners.padded.numel())
    # Patches overlap, so their pixels add up.
    whole = empty.index_add(0, winners.pixels.flatten(), parts.flatten()).view(winners.padded)
    top, left = decoder.geometry.zeros
    return whole[:, :, top : top + size[0], left : left + size[1]] + decoder.bias[:, None, None]


def _window(patch: torch.Size, size: Size, device: torch.device) -> Tensor:
    """Offsets of the pixels of a patch `[D, k_h, k_w]` in a flattened image `[D, *size]`."""
    depth, height, width = (torch.arange(side, device=device) for side in patch)
    return ((depth[:, None, None] * size[0] + height[:, None]) * size[1] + width).flatten()
