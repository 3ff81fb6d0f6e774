"""A batch of which several processes have a share each: what is drawn for, averaged over or compared within it.

Each function gives every process what one alone would have for the same images, up to the order of sums. Losses are
so weighted that their mean over the processes is that over the batch: gradients are averaged over processes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from convae.errors import ConvaeError
from convae.processes import count, share_of

_images = 0  # in the batch of all processes; 0: the whole batch is here


def share_batch(images: int) -> None:
    """From now on a batch has so many images, of which this process, if it is not alone, has those of `share_of`."""
    global _images
    _images = images if count() > 1 else 0


def drawn(draw: Callable[[int], Tensor], images: int) -> Tensor:
    """What `draw` gives for these images; it is drawn for the whole batch, so that all generators stay alike."""
    return draw(_images)[share_of(_images)] if _images else draw(images)


def room_like(maps: Tensor, images: int) -> Tensor:
    """A tensor for so many images like those in `maps`, `[n, C, H, W]`, in the same order of memory."""
    if len(maps) == images:
        return maps
    last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((images, *maps.shape[1:]), dtype=maps.dtype, device=maps.device, memory_format=layout)


def batch_mean(total: Tensor, images: int, values: int = 1) -> Tensor:
    """The mean over the batch of what adds up to `total` over this process's images, each of so many values."""
    return total * count() / total.new_full((), values * (_images or images))


def counted_mean(total: Tensor, number: Tensor) -> Tensor:
    """The same where `number` values of this process count; zero where none do anywhere."""
    everywhere = number.to(total.dtype)
    if _images:
        dist.all_reduce(everywhere)
    return total * count() / everywhere.clamp(min=1)


def whole_batch(rows: Tensor) -> Tensor:
    """The rows `[n, ...]` of all processes, in order; without gradients."""
    if not _images:
        return rows
    longest = -(-_images // count())
    filled = rows.new_zeros((longest, *rows.shape[1:]))
    filled[: len(rows)] = rows
    parts = [torch.empty_like(filled) for _ in range(count())]
    dist.all_gather(parts, filled)
    sizes = [_images * (place + 1) // count() - _images * place // count() for place in range(count())]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class Dropout(nn.Dropout):
    """Draws for the whole batch."""

    def forward(self, maps: Tensor) -> Tensor:
        """As of `nn.Dropout`."""
        if not (_images and self.training and self.p):
            return super().forward(maps)
        return maps * drawn(lambda number: F.dropout(torch.ones_like(room_like(maps, number)), self.p), len(maps))


class BatchNorm1d(nn.BatchNorm1d):
    """Normalises over the whole batch."""

    def forward(self, values: Tensor) -> Tensor:
        """As of `nn.BatchNorm1d`."""
        _check_values(self, values)
        return _normalize(self, values) if _images and self.training else super().forward(values)


class BatchNorm2d(nn.BatchNorm2d):
    """Normalises over the whole batch."""

    def forward(self, maps: Tensor) -> Tensor:
        """As of `nn.BatchNorm2d`."""
        _check_values(self, maps)
        return _normalize(self, maps) if _images and self.training else super().forward(maps)


class _Sum(torch.autograd.Function):
    """Over the processes; so is its gradient, since all of them use the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Of `values`."""
        dist.all_reduce(total := values.clone())
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Of its gradient."""
        dist.all_reduce(total := gradients[0].clone())
        return total


def _check_values(norm: nn.Module, values: Tensor) -> None:
    """Refuse to learn from a single value of each map, which has no variance."""
    if norm.training and (_images or len(values)) * values.shape[2:].numel() == 1:
        raise ConvaeError(
            "batch normalisation has one value of a map to learn from: a larger train.batch_size, more training images "
            "or larger maps are needed"
        )


def _normalize(norm: nn.BatchNorm1d | nn.BatchNorm2d, values: Tensor) -> Tensor:
    """What `nn.SyncBatchNorm` does, which GPUs alone have."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    others = [0, *range(2, values.dim())]
    number = _images * values.shape[2:].numel()
    mean = _Sum.apply(values.float().sum(others, keepdim=True)) / number
    centered = values.float() - mean
    variance = _Sum.apply(centered.square().sum(others, keepdim=True)) / number
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean.flatten(), norm.momentum)
        norm.running_var.lerp_(variance.flatten() * (number / max(1, number - 1)), norm.momentum)
    weight, bias = norm.weight.view_as(mean), norm.bias.view_as(mean)
    normalized: Tensor = centered * (variance + norm.eps).rsqrt() * weight + bias
    return normalized.to(values.dtype)
