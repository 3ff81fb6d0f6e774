"""The convolutional autoencoder: an encoder of any number of layers and the decoder that mirrors it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convae.models.geometry import Size, layer_sizes
from convae.models.layers import DecoderLayer, EncoderLayer
from convae.models.preprocessing import Preprocessing
from convae.models.shared_batch import SharedBatch
from convae.models.sparsity import WinnerTakeAll
from convae.models.winners import can_find_winners, decode_winners, find_winners
from convae.processes import ALONE, Processes


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
        processes: those that share its training batches.
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
        processes: Processes = ALONE,
    ) -> None:
        super().__init__()
        self.batch = SharedBatch(processes)
        self.preprocessing = Preprocessing(channels, **preprocessing)
        self.stacked_on = stacked_on
        filters = [layer["filters"] for layer in layers]
        incoming = [self.preprocessing.channels, *filters]
        if stacked_on == "reconstructions":
            incoming = [self.preprocessing.channels] * len(layers)
        encoder = [EncoderLayer(depth, layer, self.batch) for depth, layer in zip(incoming, layers, strict=False)]
        self.geometry = [layer.geometry for layer in encoder]
        self.layers = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList([DecoderLayer(layer, tied_weights) for layer in encoder])
        self.sparsity = nn.ModuleList(
            [WinnerTakeAll(n, **sparsity, batch=self.batch) if sparsity else nn.Identity() for n in filters]
        )

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
            if index + 1 < len(self.layers):
                preprocessed = self.pass_on(index, preprocessed, maps[-1])
        return maps

    def input_of(self, index: int, preprocessed: Tensor) -> Tensor:
        """What comes into a layer, `[N, D, H', W']`."""
        for below in range(index):
            preprocessed = self.pass_on(below, preprocessed, self.layers[below](preprocessed))
        return preprocessed

    def pass_on(self, index: int, incoming: Tensor, maps: Tensor) -> Tensor:
        """What the layer above sees of a layer's activation maps of `incoming`."""
        return maps if self.stacked_on == "maps" else self.reconstruct_layer(index, incoming, maps)

    def reconstruct_layer(self, index: int, incoming: Tensor, maps: Tensor | None = None) -> Tensor:
        """A layer's reconstruction `[N, D, H', W']` of what came into it, from its activation maps, sparse if asked.

        The maps need not be given; where winners take all, most of what they cost is then saved.
        """
        height, width = incoming.shape[2:]
        layer, sparsity, decoder = self.layers[index], self.sparsity[index], self.decoder[index]
        if maps is None and can_find_winners(layer, sparsity, incoming):
            decoded = decode_winners(decoder, find_winners(layer, sparsity, incoming), (height, width))
            return self._imitate(index, decoded)
        return self._decode(index, sparsity(layer(incoming) if maps is None else maps), (height, width))

    def forward(self, preprocessed: Tensor) -> Tensor:
        """Reconstruct preprocessed images `[N, C, H, W]` from the last layer's code, sparse where asked for."""
        last = len(self.layers) - 1
        if last == 0:
            return self.reconstruct_layer(0, preprocessed)
        height, width = preprocessed.shape[2:]
        sizes = layer_sizes((height, width), self.geometry, self.stacked_on)
        code: Tensor = self.sparsity[last](self.encode(preprocessed)[last])
        for index in range(last, -1, -1) if self.stacked_on == "maps" else [last]:
            code = self._decode(index, code, sizes[index][0])
        return code

    def _decode(self, index: int, code: Tensor, size: Size) -> Tensor:
        """A layer's code back to what came into it: of `size`, and ending in the activation of the layer below."""
        return self._imitate(index, self.decoder[index](code, size))

    def _imitate(self, index: int, decoded: Tensor) -> Tensor:
        if index and self.stacked_on == "maps":
            decoded = self.layers[index - 1].activation(decoded)
        return decoded
