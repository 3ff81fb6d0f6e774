"""The convolutional autoencoder: an encoder of any number of layers and the decoder that mirrors it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.models.geometry import LayerGeometry, Size, layer_sizes
from convae.models.preprocessing import Preprocessing
from convae.models.sparsity import WinnerTakeAll

ACTIVATIONS = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
POOLINGS = {"max": nn.MaxPool2d, "mean": nn.AvgPool2d}


class EncoderLayer(nn.Module):
    """Convolution, activation and, where asked for, batch normalisation before it, dropout and pooling after it."""

    def __init__(self, channels: int, layer: dict[str, Any]) -> None:
        super().__init__()
        self.geometry = LayerGeometry.of(layer)
        kernel, stride, zeros = self.geometry.kernel, self.geometry.stride, self.geometry.zeros
        self.convolution = nn.Conv2d(channels, layer["filters"], kernel, stride, zeros)
        self.norm = nn.BatchNorm2d(layer["filters"]) if layer["batch_norm"] else nn.Identity()
        self.activation = ACTIVATIONS[layer["activation"]]()
        self.dropout = nn.Dropout(layer["dropout"])
        self.pool = POOLINGS[layer["pool"]["kind"]](self.geometry.pool) if layer["pool"] else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """`[N, D, H, W]` to activation maps `[N, n, H', W']`."""
        result: Tensor = self.pool(self.dropout(self.activation(self.norm(self.convolution(maps)))))
        return result


class DecoderLayer(nn.Module):
    """The transpose of an encoder layer's geometry: it gives back the size that came in, whatever it was.

    At stride 1 and padding `full` this is the valid convolution with D filters of the seed CAE, filters turned by 180
    degrees. Pooling is undone by repeating each value over its window.
    """

    def __init__(self, layer: EncoderLayer, tied: bool) -> None:
        super().__init__()
        self.geometry = layer.geometry
        convolution = layer.convolution
        self.weight = convolution.weight if tied else nn.Parameter(torch.zeros_like(convolution.weight))
        self.bias = nn.Parameter(torch.zeros(convolution.in_channels))

    def forward(self, maps: Tensor, size: Size) -> Tensor:
        """Activation maps `[N, n, H', W']` to `[N, D, *size]`."""
        geometry = self.geometry
        if geometry.pool != (1, 1):
            maps = F.interpolate(maps, size=geometry.convolved(size), mode="nearest")
        return F.conv_transpose2d(
            maps, self.weight, self.bias, geometry.stride, geometry.zeros, geometry.output_padding(size)
        )


class Autoencoder(nn.Module):
    """Preprocessing, encoder layers and the mirrored decoder.

    Hidden layers of the decoder end in the activation of the encoder layer whose input they imitate; the last is
    linear. Without layers there is nothing but the preprocessing, whose result stands for the activation maps.

    Args:
        channels: of the images.
        preprocessing: `local_contrast` and `whitening`, see `Preprocessing`.
        layers: entries of `model.layers`.
        tied_weights: the decoder uses the encoder's filters.
        stacked_on: what comes into a layer after the first: the activation `maps` of the one below, or its
            `reconstructions`, which have the channels of the image.
        sparsity: `block` and `lifetime` of `WinnerTakeAll`, through which the code passes to the decoder, or None.
    """

    layers: Any  # nn.ModuleList of EncoderLayer, which type checkers can't be told
    decoder: Any  # nn.ModuleList of DecoderLayer
    sparsity: Any  # nn.ModuleList of WinnerTakeAll or Identity

    def __init__(
        self,
        channels: int,
        preprocessing: dict[str, Any],
        layers: Sequence[dict[str, Any]],
        tied_weights: bool,
        stacked_on: str = "maps",
        sparsity: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(channels, **preprocessing)
        self.stacked_on = stacked_on
        filters = [layer["filters"] for layer in layers]
        incoming = [self.preprocessing.channels, *filters]
        if stacked_on == "reconstructions":
            incoming = [self.preprocessing.channels] * len(layers)
        encoder = [EncoderLayer(depth, layer) for depth, layer in zip(incoming, layers, strict=False)]
        self.geometry = [layer.geometry for layer in encoder]
        self.layers = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList([DecoderLayer(layer, tied_weights) for layer in encoder])
        self.sparsity = nn.ModuleList([WinnerTakeAll(n, **sparsity) if sparsity else nn.Identity() for n in filters])

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all filters as the seed CAE does, normal with a deviation of 1 / sqrt(fan-in); set biases to zero."""
        for layer, decoder in zip(self.layers, self.decoder, strict=True):
            filters: Tensor = layer.convolution.weight
            nn.init.normal_(filters, std=filters[0].numel() ** -0.5, generator=generator)
            nn.init.zeros_(layer.convolution.bias)
            nn.init.zeros_(decoder.bias)
            if decoder.weight is not filters:  # transposed: its fan-in is that of the convolution it undoes
                nn.init.normal_(decoder.weight, std=decoder.weight[:, 0].numel() ** -0.5, generator=generator)

    def encode(self, preprocessed: Tensor) -> list[Tensor]:
        """Activation maps of every layer, `[N, n, H', W']` each."""
        maps = [preprocessed] if not len(self.layers) else []
        for index, layer in enumerate(self.layers):
            maps.append(layer(preprocessed))
            if self.stacked_on == "maps":
                preprocessed = maps[-1]
            elif index + 1 < len(self.layers):
                preprocessed = self.decode_layer(index, maps[-1], preprocessed)
        return maps

    def input_of(self, index: int, preprocessed: Tensor) -> Tensor:
        """What comes into a layer, `[N, D, H', W']`."""
        for below in range(index):
            maps = self.layers[below](preprocessed)
            on_maps = self.stacked_on == "maps"
            preprocessed = maps if on_maps else self.decode_layer(below, maps, preprocessed)
        return preprocessed

    def reconstruct_layer(self, index: int, incoming: Tensor) -> Tensor:
        """A single layer's reconstruction of what comes into it, `[N, D, H', W']`."""
        return self.decode_layer(index, self.layers[index](incoming), incoming)

    def decode_layer(self, index: int, maps: Tensor, incoming: Tensor) -> Tensor:
        """What a layer's activation maps make of `incoming`, sparse and with the activation of `decode`."""
        result: Tensor = self.decoder[index](self.sparsity[index](maps), _size(incoming))
        if index and self.stacked_on == "maps":
            result = self.layers[index - 1].activation(result)
        return result

    def decode(self, code: Tensor, size: Size) -> Tensor:
        """The last layer's activation maps back to preprocessed images `[N, C, *size]`."""
        if self.stacked_on == "reconstructions":
            result: Tensor = self.decoder[-1](code, size)
            return result
        sizes = layer_sizes(size, self.geometry)
        for index in reversed(range(len(self.layers))):
            code = self.decoder[index](code, sizes[index][0])
            if index:
                code = self.layers[index - 1].activation(code)
        return code

    def forward(self, preprocessed: Tensor) -> Tensor:
        """Reconstruct preprocessed images `[N, C, H, W]` from their code, sparse where asked for."""
        code = self.sparsity[-1](self.encode(preprocessed)[-1])
        return self.decode(code, _size(preprocessed))


def _size(maps: Tensor) -> Size:
    height, width = maps.shape[2:]
    return height, width
