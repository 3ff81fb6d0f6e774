"""The convolutional autoencoder: an encoder of any number of layers and the decoder that mirrors it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convae.models.geometry import Size, layer_sizes
from convae.models.layers import DecoderLayer, EncoderLayer
from convae.models.preprocessing import Preprocessing
from convae.models.shared_batch import SharedBatch
from convae.models.sparsity import sparsity_of
from convae.models.winners import can_find_winners, decode_winners, find_winners
from convae.processes import ALONE, Processes


class Autoencoder(nn.Module):
    """Preprocessing, encoder layers and the mirrored decoder.

    Every decoder layer but the last ends in the activation of the encoder layer below, whose maps it reconstructs; the
    last is linear. A network without layers is its preprocessing, and the preprocessed images are its activation maps.
    Layers with an `input` reconstruct whitened windows place by place, and have no decoder of images.

    Args:
        channels: channels of the images.
        preprocessing: `local_contrast` and `whitening`, see `Preprocessing`.
        layers: entries of `model.layers`.
        tied_weights: whether the decoder uses the encoder's filters.
        stacked_on: the input of each layer after the first: the activation `maps` of the layer below, or its
            `reconstructions`, which have the channels of the image.
        sparsity: `block` and `lifetime` of the `WinnerTakeAll` between encoder and decoder, or `per_place` of
            `StrongestMaps`, or None.
        processes: the processes that share the training batches.

    Example:
        >>> layer = {"filters": 8, "kernel": (3, 3), "stride": (1, 1), "padding": "full", "activation": "tanh"}
        >>> layer |= {"batch_norm": False, "dropout": 0, "pool": None}
        >>> network = Autoencoder(1, {}, [layer], tied_weights=False)
        >>> images = torch.zeros(5, 1, 28, 28)
        >>> [tuple(maps.shape) for maps in network.encode(images)], tuple(network(images).shape)
        ([(5, 8, 30, 30)], (5, 1, 28, 28))
    """

    # nn.ModuleList is not generic, so type checkers can't know what these hold.
    layers: Any  # nn.ModuleList of EncoderLayer
    decoder: Any  # nn.ModuleList of DecoderLayer or Identity
    sparsity: Any  # nn.ModuleList of WinnerTakeAll, StrongestMaps or Identity

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
        encoder: list[EncoderLayer] = []
        incoming = self.preprocessing.channels
        for layer in layers:
            encoder.append(EncoderLayer(incoming, layer, self.batch))
            if stacked_on == "maps":
                incoming = encoder[-1].channels
        self.geometry = [layer.geometry for layer in encoder]
        self.layers = nn.ModuleList(encoder)
        decoder = [nn.Identity() if layer.input else DecoderLayer(layer, tied_weights) for layer in encoder]
        self.decoder = nn.ModuleList(decoder)
        self.sparsity = nn.ModuleList([sparsity_of(sparsity, layer["filters"], self.batch) for layer in layers])

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all filters from a normal distribution with deviation 1 / sqrt(fan-in), and set biases to zero."""
        for layer, decoder in zip(self.layers, self.decoder, strict=True):
            filters: Tensor = layer.convolution.weight
            nn.init.normal_(filters, std=filters[0].numel() ** -0.5, generator=generator)
            if layer.input:
                continue
            nn.init.zeros_(layer.convolution.bias)
            nn.init.zeros_(decoder.bias)
            if decoder.weight is not filters:
                # Each of the D outputs of the transposed convolution sums over n maps: a fan-in of n·k_h·k_w.
                nn.init.normal_(decoder.weight, std=decoder.weight[:, 0].numel() ** -0.5, generator=generator)

    def encode(self, preprocessed: Tensor) -> list[Tensor]:
        """Return the activation maps `[N, n, H', W']` of every layer, first to last."""
        maps = [preprocessed] if not len(self.layers) else []
        for index, layer in enumerate(self.layers):
            maps.append(layer(preprocessed))
            if index + 1 < len(self.layers):
                preprocessed = self.pass_on(index, preprocessed, maps[-1])
        return maps

    def input_of(self, index: int, preprocessed: Tensor) -> Tensor:
        """Return the input `[N, D, H', W']` of layer `index`."""
        for below in range(index):
            preprocessed = self.pass_on(below, preprocessed, self.layers[below](preprocessed))
        return preprocessed

    def pass_on(self, index: int, incoming: Tensor, maps: Tensor) -> Tensor:
        """Return the input of the layer above, given a layer's input and its activation maps."""
        if self.stacked_on == "maps":
            passed_on: Tensor = self.layers[index].pass_on(maps)
            return passed_on
        return self.reconstruct_layer(index, incoming, maps)

    def reconstruct_layer(self, index: int, incoming: Tensor, maps: Tensor | None = None) -> Tensor:
        """Reconstruct a layer's input `[N, D, H', W']` from its activation maps, after sparsity if there is any.

        Without `maps`, they are computed. With winner-take-all sparsity that is much cheaper than passing them in,
        since only the winners are then computed with gradients.
        """
        height, width = incoming.shape[2:]
        layer, sparsity, decoder = self.layers[index], self.sparsity[index], self.decoder[index]
        if maps is None and can_find_winners(layer, sparsity, incoming):
            decoded = decode_winners(decoder, find_winners(layer, sparsity, incoming), (height, width))
            return self._imitate(index, decoded)
        return self._decode(index, sparsity(layer(incoming) if maps is None else maps), (height, width))

    def forward(self, preprocessed: Tensor) -> Tensor:
        """Reconstruct preprocessed images `[N, C, H, W]` from the last layer's maps, after sparsity if there is any."""
        last = len(self.layers) - 1
        if last == 0:  # computes only the winners where possible
            return self.reconstruct_layer(0, preprocessed)
        height, width = preprocessed.shape[2:]
        sizes = layer_sizes((height, width), self.geometry, self.stacked_on)
        code: Tensor = self.sparsity[last](self.encode(preprocessed)[last])
        # A layer stacked on reconstructions decodes straight to the image.
        for index in range(last, -1, -1) if self.stacked_on == "maps" else [last]:
            code = self._decode(index, code, sizes[index][0])
        return code

    def _decode(self, index: int, code: Tensor, size: Size) -> Tensor:
        """Decode a layer's code to its input, of `size`, ending in the activation of the layer below."""
        return self._imitate(index, self.decoder[index](code, size))

    def _imitate(self, index: int, decoded: Tensor) -> Tensor:
        if index and self.stacked_on == "maps" and not self.layers[index - 1].output:
            decoded = self.layers[index - 1].activation(decoded)
        return decoded
