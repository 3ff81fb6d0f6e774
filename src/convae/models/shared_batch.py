"""Draws, means and comparisons over a batch that several processes share.

Each process obtains what a single process would compute for the same images, up to the order of sums. Losses are
weighted so that their mean over processes is the mean over the batch, because DDP averages gradients over processes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from convae.errors import ConvaeError
from convae.processes import ALONE, Processes


class SharedBatch:
    """The current training batch. A network, its objective and its corruption all refer to the same instance.

    Args:
        processes: the processes that share the batch; each holds the images of `Processes.share_of`.

    Attributes:
        images: number of images in the batch over all processes; 0 if this process holds the whole batch.

    Example:
        >>> batch = SharedBatch(Processes(rank=1, count=2))
        >>> batch.begin(5)
        >>> batch.drawn(torch.arange, 3).tolist()
        [2, 3, 4]
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self.processes = processes
        self.images = 0

    def begin(self, images: int) -> None:
        """Begin a batch with this number of images over all processes; 0 ends sharing."""
        self.images = images if self.processes.count > 1 else 0

    def drawn(self, draw: Callable[[int], Tensor], images: int) -> Tensor:
        """Return `draw(images)` for this process's images."""
        # Each process draws for the whole batch and keeps its share, so that all generators stay in step.
        return draw(self.images)[self.processes.share_of(self.images)] if self.images else draw(images)

    def mean(self, total: Tensor, images: int, values: int = 1) -> Tensor:
        """Mean over the batch, given the `total` over this process's `images` images of `values` values each."""
        # DDP divides the sum of gradients by the number of processes, so multiply by it here.
        return total * self.processes.count / total.new_full((), values * (self.images or images))

    def counted_mean(self, total: Tensor, number: Tensor) -> Tensor:
        """Mean over the batch, given the `total` over the `number` values of this process that count.

        Zero if no value of the batch counts.
        """
        everywhere = number.to(total.dtype)
        if self.images:
            dist.all_reduce(everywhere)
        return total * self.processes.count / everywhere.clamp(min=1)

    def whole(self, rows: Tensor) -> Tensor:
        """Gather the rows `[n, ...]` of all processes, in order, without gradients."""
        if not self.images:
            return rows
        count = self.processes.count
        filled = rows.new_zeros((-(-self.images // count), *rows.shape[1:]))  # gathering needs equal sizes
        filled[: len(rows)] = rows
        parts = [torch.empty_like(filled) for _ in range(count)]
        dist.all_gather(parts, filled)
        shares = [Processes(rank, count).share_of(self.images) for rank in range(count)]
        return torch.cat([part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)])


def room_like(maps: Tensor, images: int) -> Tensor:
    """An uninitialised tensor for `images` images like those in `maps`, `[n, C, H, W]`, in the same memory format.

    Example:
        >>> room_like(torch.zeros(2, 8, 5, 5), images=6).shape
        torch.Size([6, 8, 5, 5])
    """
    if len(maps) == images:
        return maps
    last = maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((images, *maps.shape[1:]), dtype=maps.dtype, device=maps.device, memory_format=layout)


class Dropout(nn.Dropout):
    """Dropout that draws for the whole batch.

    Example:
        >>> Dropout(1.0, SharedBatch())(torch.ones(1, 1, 1, 2)).tolist()
        [[[[0.0, 0.0]]]]
    """

    def __init__(self, probability: float, batch: SharedBatch) -> None:
        super().__init__(probability)
        self.batch = batch

    def forward(self, maps: Tensor) -> Tensor:
        """As `nn.Dropout`."""
        if not (self.batch.images and self.training and self.p):
            return super().forward(maps)
        kept = self.batch.drawn(lambda count: F.dropout(torch.ones_like(room_like(maps, count)), self.p), len(maps))
        return maps * kept


class _Sum(torch.autograd.Function):
    """Sum over processes. Its gradient is summed as well, because every process uses the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Sum the values."""
        dist.all_reduce(total := values.clone())
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum the gradients."""
        dist.all_reduce(total := gradients[0].clone())
        return total


class _WholeBatchNorm(_BatchNorm):
    """Batch normalisation over the whole batch."""

    def __init__(self, channels: int, batch: SharedBatch) -> None:
        super().__init__(channels)
        self.batch = batch

    def forward(self, values: Tensor) -> Tensor:
        """As torch's module of the same name, but training on a single value per map, with no variance, is an error."""
        if self.training and (self.batch.images or len(values)) * values.shape[2:].numel() == 1:
            raise ConvaeError(
                "batch normalisation has only one value per map to learn from; use a larger train.batch_size, more "
                "training images or larger maps"
            )
        return self._normalize(values) if self.batch.images and self.training else super().forward(values)

    def _normalize(self, values: Tensor) -> Tensor:
        """Normalise over the whole batch as `nn.SyncBatchNorm` does, which does not run on CPUs."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        others = [0, *range(2, values.dim())]
        number = self.batch.images * values.shape[2:].numel()
        mean = _Sum.apply(values.float().sum(others, keepdim=True)) / number
        centered = values.float() - mean
        variance = _Sum.apply(centered.square().sum(others, keepdim=True)) / number
        with torch.no_grad():  # as in torch, the running variance is the unbiased one
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * (number / max(1, number - 1)), self.momentum)
        weight, bias = self.weight.view_as(mean), self.bias.view_as(mean)
        normalized: Tensor = centered * (variance + self.eps).rsqrt() * weight + bias
        return normalized.to(values.dtype)


class BatchNorm1d(_WholeBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the whole batch.

    Example:
        >>> BatchNorm1d(8, SharedBatch())(torch.zeros(1, 8))
        Traceback (most recent call last):
        convae.errors.ConvaeError: batch normalisation has only one value per map to learn from; ...
    """


class BatchNorm2d(_WholeBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the whole batch.

    Example:
        >>> BatchNorm2d(1, SharedBatch())(torch.tensor([[[[3.0, 5.0]]]])).round().tolist()
        [[[[-1.0, 1.0]]]]
    """
