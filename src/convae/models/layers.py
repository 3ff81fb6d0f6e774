"""An encoder layer, and the decoder layer that mirrors it."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.models.geometry import LayerGeometry, Size
from convae.models.shared_batch import BatchNorm2d, Dropout, SharedBatch
from convae.models.windows import WindowInput

ACTIVATIONS = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
LEAST_DEVIATION = 1e-6
POOLINGS = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}


class EncoderLayer(nn.Module):
    """Convolution, optional batch normalisation, activation, optional dropout and optional pooling, in this order.

    A layer with an `input` convolves whitened windows: its filters have unit length, and no bias.

    Args:
        channels: channels D of the input.
        layer: an entry of `model.layers`.
        batch: the training batch for batch normalisation and dropout.

    Attributes:
        channels: channels of the input of the layer above.

    Example:
        >>> from convae.params import LayerParams
        >>> layer = EncoderLayer(3, LayerParams(filters=8, stride=2).model_dump(), SharedBatch())
        >>> layer(torch.zeros(5, 3, 28, 32)).shape
        torch.Size([5, 8, 14, 16])
    """

    def __init__(self, channels: int, layer: dict[str, Any], batch: SharedBatch) -> None:
        super().__init__()
        self.geometry = LayerGeometry.of(layer)
        kernel, stride, zeros = self.geometry.kernel, self.geometry.stride, self.geometry.zeros
        self.input = WindowInput(channels, self.geometry, **layer["input"]) if layer.get("input") else None
        if self.input:
            self.convolution = nn.Conv2d(self.input.channels, layer["filters"], 1, bias=False)
        else:
            border: Literal["zeros", "reflect"] = "reflect" if self.geometry.reflect else "zeros"
            self.convolution = nn.Conv2d(channels, layer["filters"], kernel, stride, zeros, padding_mode=border)
        self.output = LayerOutput(layer["filters"], **layer["output"]) if layer.get("output") else None
        self.channels = self.output.channels if self.output else layer["filters"]
        self.norm = BatchNorm2d(layer["filters"], batch) if layer["batch_norm"] else nn.Identity()
        self.activation = ACTIVATIONS[layer["activation"]]()
        self.dropout = Dropout(layer["dropout"], batch)
        self.pool = POOLINGS[layer["pool"]["kind"]](self.geometry.pool) if layer["pool"] else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Turn `[N, D, H, W]` into activation maps `[N, n, H', W']`."""
        convolved = self.input.convolve(maps, *self.folded()) if self.input else self.convolution(maps)
        result: Tensor = self.pool(self.dropout(self.activation(self.norm(convolved))))
        return result

    def pass_on(self, maps: Tensor) -> Tensor:
        """Turn activation maps into the input of the layer above."""
        return self.output(maps) if self.output else maps

    @property
    def unit_filters(self) -> Tensor:
        """The filters of whitened windows, `[n, q]`, of unit length."""
        return F.normalize(self.convolution.weight.flatten(1))

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Filters `[n, D, k_h, k_w]` of the layer's own input, and their biases `[n]`, if there are any."""
        return self.input.fold(self.unit_filters) if self.input else (self.convolution.weight, self.convolution.bias)


class LayerOutput(nn.Module):
    """Rectifies a layer's activation maps, pools them, raises them to a power and standardises each map.

    Args:
        filters: number of maps n.
        rectification: `none`, `positive`: max(a - t, 0), or `both`: also max(-a - t, 0), see `Readout`.
        threshold: t, in units of the maps.
        pool: `kind` and `size`, or None.
        power: exponent applied to the magnitudes of the pooled values.
        standardize: whether each map has zero mean and unit variance over the training images.

    Attributes:
        channels: maps that the layer above reads.

    Example:
        >>> output = LayerOutput(8, "both", 0.5, {"kind": "mean", "size": 2}, power=0.5, standardize=False)
        >>> output(torch.ones(5, 8, 6, 6)).shape
        torch.Size([5, 16, 3, 3])
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        filters: int,
        rectification: str,
        threshold: float,
        pool: dict[str, Any] | None,
        power: float,
        standardize: bool,
    ) -> None:
        super().__init__()
        self.rectification = rectification
        self.threshold = threshold
        self.pool = POOLINGS[pool["kind"]](pool["size"]) if pool else nn.Identity()
        self.power = power
        self.standardize = standardize
        self.channels = filters * (2 if rectification == "both" else 1)
        if standardize:
            self.register_buffer("mean", torch.zeros(self.channels))
            self.register_buffer("scale", torch.ones(self.channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Turn activation maps `[N, n, H, W]` into the input of the layer above, `[N, channels, H', W']`."""
        pooled = self.before_standardization(maps)
        if not self.standardize:
            return pooled
        return pooled.sub_(self.mean[:, None, None]).div_(self.scale[:, None, None])

    def before_standardization(self, maps: Tensor) -> Tensor:
        """All steps but the last."""
        pooled = [self.pool(part) for part in rectified(maps, self.rectification, self.threshold)]
        return signed_power(torch.cat(pooled, 1), self.power, self.rectification)

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Fit the standardisation to activation maps of training images, each batch `[N, n, H, W]`."""
        if not self.standardize:
            return
        count, total, squares = 0, torch.zeros(self.channels).double(), torch.zeros(self.channels).double()
        for maps in batches:
            values = self.before_standardization(maps).transpose(0, 1).flatten(1).double()
            count += values.shape[1]
            total += values.sum(1)
            squares += values.square().sum(1)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > LEAST_DEVIATION, deviation, 1))  # a constant map stays as it is


def rectified(maps: Tensor, rectification: str, threshold: float) -> Iterator[Tensor]:
    """Yield the maps themselves, max(a - t, 0), or that and max(-a - t, 0).

    Example:
        >>> [maps.tolist() for maps in rectified(torch.tensor([-3.0, 2.0]), "both", threshold=1.0)]
        [[0.0, 1.0], [2.0, 0.0]]
    """
    if rectification == "none":
        yield maps
        return
    yield (maps - threshold).relu_()
    if rectification == "both":
        yield (-threshold - maps).relu_()


def pool_over_grid(maps: Tensor, grid: Size, pooling: str) -> Tensor:
    """Pool maps `[N, n, H, W]` over the cells of a grid, to `[N, n, *grid]`: their `mean` or `max`.

    Example:
        >>> pool_over_grid(torch.arange(4.0).view(1, 1, 1, 4), (1, 2), "mean").tolist()
        [[[[0.5, 2.5]]]]
    """
    height, width = maps.shape[2:]
    if height % grid[0] == 0 and width % grid[1] == 0:
        # The same cells as in adaptive pooling, much faster; and on a GPU, only these gradients are deterministic.
        cell = (height // grid[0], width // grid[1])
        return F.avg_pool2d(maps, cell) if pooling == "mean" else F.max_pool2d(maps, cell)
    return F.adaptive_avg_pool2d(maps, grid) if pooling == "mean" else F.adaptive_max_pool2d(maps, grid)


def signed_power(values: Tensor, power: float, rectification: str) -> Tensor:
    """Raise magnitudes to a power; values keep their sign."""
    if power == 1:
        return values
    if values.requires_grad:  # at zero, the power has no finite derivative
        zero = values == 0
        return values.sign() * values.abs().masked_fill(zero, 1).pow(power).masked_fill(zero, 0)
    magnitudes = values.abs().pow_(power)
    # Rectified values have no sign to restore.
    return magnitudes if rectification != "none" else magnitudes.copysign_(values)


class DecoderLayer(nn.Module):
    """A transposed convolution with an encoder layer's geometry, which restores the layer's input size exactly.

    At stride 1 and padding `full` it equals the seed CAE's valid convolution with D filters, rotated by 180 degrees.
    Pooling is undone by repeating each value over its window.

    Args:
        layer: the encoder layer to mirror.
        tied: whether to share the encoder's filters.

    Example:
        >>> from convae.params import LayerParams
        >>> layer = EncoderLayer(3, LayerParams(filters=8, stride=2).model_dump(), SharedBatch())
        >>> DecoderLayer(layer, tied=True)(torch.zeros(5, 8, 14, 16), size=(27, 32)).shape
        torch.Size([5, 3, 27, 32])
    """

    def __init__(self, layer: EncoderLayer, tied: bool) -> None:
        super().__init__()
        self.geometry = layer.geometry
        convolution = layer.convolution
        self.weight = convolution.weight if tied else nn.Parameter(torch.zeros_like(convolution.weight))
        self.bias = nn.Parameter(torch.zeros(convolution.in_channels))

    def forward(self, maps: Tensor, size: Size) -> Tensor:
        """Turn activation maps `[N, n, H', W']` into `[N, D, *size]`."""
        geometry = self.geometry
        if geometry.pool != (1, 1):
            maps = F.interpolate(maps, size=geometry.convolved(size), mode="nearest")
        appended = geometry.output_padding(size)
        return F.conv_transpose2d(maps, self.weight, self.bias, geometry.stride, geometry.zeros, appended)
