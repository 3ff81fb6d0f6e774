"""An encoder layer, and the decoder layer that mirrors it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.models.geometry import LayerGeometry, Size
from convae.models.shared_batch import BatchNorm2d, Dropout, SharedBatch

ACTIVATIONS = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
POOLINGS = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}


class EncoderLayer(nn.Module):
    """Convolution, optional batch normalisation, activation, optional dropout and optional pooling, in this order.

    Args:
        channels: channels D of the input.
        layer: an entry of `model.layers`.
        batch: the training batch for batch normalisation and dropout.

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
        self.convolution = nn.Conv2d(channels, layer["filters"], kernel, stride, zeros)
        self.norm = BatchNorm2d(layer["filters"], batch) if layer["batch_norm"] else nn.Identity()
        self.activation = ACTIVATIONS[layer["activation"]]()
        self.dropout = Dropout(layer["dropout"], batch)
        self.pool = POOLINGS[layer["pool"]["kind"]](self.geometry.pool) if layer["pool"] else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Turn `[N, D, H, W]` into activation maps `[N, n, H', W']`."""
        result: Tensor = self.pool(self.dropout(self.activation(self.norm(self.convolution(maps)))))
        return result


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
