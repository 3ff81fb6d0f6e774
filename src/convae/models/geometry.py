"""Sizes of convolutional layers; no other module computes them.

Sizes are `(height, width)` in pixels. A layer is a convolution, optionally followed by pooling over windows that do not
overlap. A convolution with `padding` zeros on either side turns a side into

    floor((side - kernel + 2 * padding) / stride) + 1

The transposed convolution of the same geometry restores the side when `output_padding` more pixels are appended.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convae.errors import ConvaeError

Size = tuple[int, int]


class GeometryError(ConvaeError):
    """A layer does not fit its input, or its kernel does not allow its padding.

    Example:
        >>> LayerGeometry((5, 5), padding="valid").convolved((28, 3))
        Traceback (most recent call last):
        convae.models.geometry.GeometryError: a 5×5 kernel with padding 'valid' turns 28×3 into 24×-1; ...
    """


@dataclass(frozen=True)
class LayerGeometry:
    """Kernel, stride and pooling window of one layer, each as height and width, and padding: `full`, `same` or `valid`.

    `output_pool` is the window over which the maps are pooled once more on the way to the layer above. With `reflect`
    the padding mirrors the input instead of being zero.

    Example:
        >>> layer = LayerGeometry((3, 3), stride=(2, 2), padding="full", pool=(2, 2))
        >>> layer.convolved((28, 28)), layer.output((28, 28))
        ((15, 15), (7, 7))
    """

    kernel: Size
    stride: Size = (1, 1)
    padding: str = "same"
    pool: Size = (1, 1)
    output_pool: Size = (1, 1)
    reflect: bool = False

    @classmethod
    def of(cls, layer: Mapping[str, Any]) -> "LayerGeometry":
        """Read the geometry of one entry of `model.layers`."""
        pool, output = layer["pool"], layer.get("output")
        own, passed_on = (tuple(one["size"]) if one else (1, 1) for one in (pool, output and output["pool"]))
        reflect = layer.get("border") == "reflect"
        return cls(tuple(layer["kernel"]), tuple(layer["stride"]), layer["padding"], own, passed_on, reflect)

    @property
    def zeros(self) -> Size:
        """Zeros added on either side: k-1 for `full`, (k-1)/2 for `same`, none for `valid`.

        Raises:
            GeometryError: padding is `same` and a side of the kernel is even.
        """
        if self.padding == "full":
            return (self.kernel[0] - 1, self.kernel[1] - 1)
        if self.padding == "same":
            if not (self.kernel[0] % 2 and self.kernel[1] % 2):
                raise GeometryError(
                    f"padding 'same' needs an odd kernel, found {show(self.kernel)}; use an odd one, 'full' or 'valid'"
                )
            return (self.kernel[0] // 2, self.kernel[1] // 2)
        return (0, 0)

    def convolved(self, size: Size) -> Size:
        """Size of the activation maps before pooling.

        Raises:
            GeometryError: the maps would have no pixel.
        """
        height, width = self._reach(size)
        convolved = (height // self.stride[0] + 1, width // self.stride[1] + 1)
        if min(convolved) < 1:
            raise GeometryError(
                f"a {show(self.kernel)} kernel with padding '{self.padding}' turns {show(size)} into "
                f"{show(convolved)}; a smaller kernel or more padding is needed"
            )
        if self.reflect and (size[0] <= self.zeros[0] or size[1] <= self.zeros[1]):
            raise GeometryError(
                f"border 'reflect' mirrors {show(self.zeros)} pixels, more than {show(size)} have; use zeros"
            )
        return convolved

    def output(self, size: Size) -> Size:
        """Size of the activation maps after pooling.

        Raises:
            GeometryError: the maps would have no pixel.
        """
        return _pooled(self.convolved(size), self.pool)

    def passed_on(self, size: Size) -> Size:
        """Size of what the layer above reads.

        Raises:
            GeometryError: it would have no pixel.
        """
        return _pooled(self.output(size), self.output_pool)

    def output_padding(self, size: Size) -> Size:
        """Pixels that a transposed convolution must append to restore `size` (0 to stride - 1)."""
        height, width = self._reach(size)
        return height % self.stride[0], width % self.stride[1]

    def _reach(self, size: Size) -> Size:
        """Pixels by which the kernel can move over the padded input."""
        (height, width), (top, left) = size, self.zeros
        return height + 2 * top - self.kernel[0], width + 2 * left - self.kernel[1]


def _pooled(size: Size, window: Size) -> Size:
    pooled = (size[0] // window[0], size[1] // window[1])
    if min(pooled) < 1:
        raise GeometryError(
            f"pooling over {show(window)} turns {show(size)} into {show(pooled)}; at most {show(size)} is possible"
        )
    return pooled


def layer_sizes(size: Size, layers: Iterable[LayerGeometry], stacked_on: str = "maps") -> list[tuple[Size, Size]]:
    """Input size and activation map size of each layer.

    Args:
        size: size of the images.
        layers: first to last.
        stacked_on: the input of each layer after the first: the `maps` of the layer below, or its `reconstructions`,
            which have the size of the images.

    Raises:
        GeometryError: names the first layer that does not fit, its input size and what its output size would be.

    Example:
        >>> layer_sizes((28, 28), [LayerGeometry((3, 3), padding="full"), LayerGeometry((5, 5), pool=(2, 2))])
        [((28, 28), (30, 30)), ((30, 30), (15, 15))]
    """
    sizes = []
    for index, layer in enumerate(layers):
        try:
            output, passed_on = layer.output(size), layer.passed_on(size)
        except GeometryError as error:
            raise GeometryError(f"model.layers[{index}]: {error}") from None
        sizes.append((size, output))
        if stacked_on == "maps":
            size = passed_on
    return sizes


@dataclass(frozen=True)
class ReceptiveField:
    """The part of the image that a pixel of an activation map depends on.

    Attributes:
        size: its height and width.
        step: pixels of the image between the parts of neighbouring pixels of the map.
        start: row and column where the part of the map's first pixel starts; negative if that is in the padding.
    """

    size: Size
    step: Size
    start: Size

    @classmethod
    def of(cls, layers: Sequence[LayerGeometry]) -> "ReceptiveField":
        """The receptive field of the last layer's maps, each layer reading the maps of the one below.

        Dumoulin & Visin (2016), "A guide to convolution arithmetic for deep learning".

        Example:
            >>> ReceptiveField.of([LayerGeometry((7, 7), output_pool=(2, 2)), LayerGeometry((3, 3))])
            ReceptiveField(size=(12, 12), step=(2, 2), start=(-5, -5))
        """
        axes = []
        for axis in (0, 1):
            size, step, start = 1, 1, 0
            for number, layer in enumerate(layers, 1):
                size += (layer.kernel[axis] - 1) * step
                start -= layer.zeros[axis] * step
                step *= layer.stride[axis]
                passed_on = layer.output_pool[axis] if number < len(layers) else 1
                for pool in (layer.pool[axis], passed_on):
                    size += (pool - 1) * step
                    step *= pool
            axes.append((size, step, start))
        (height, down, top), (width, right, left) = axes
        return cls((height, width), (down, right), (top, left))


def smallest_size(layers: Sequence[LayerGeometry], stacked_on: str = "maps") -> Size:
    """Height and width of the smallest image for which every layer's activation maps have at least one pixel.

    Example:
        >>> smallest_size([LayerGeometry((3, 5), pool=(2, 2)), LayerGeometry((3, 3), padding="valid")])
        (6, 6)
    """

    def smallest(axis: int) -> int:
        # From the last layer down: the smallest input whose output has the pixels that the layer above needs.
        needed = 1
        for layer in reversed(layers):
            convolved = layer.pool[axis] * layer.output_pool[axis] * (needed if stacked_on == "maps" else 1)
            side = (convolved - 1) * layer.stride[axis] + layer.kernel[axis] - 2 * layer.zeros[axis]
            side = max(side, layer.zeros[axis] + 1 if layer.reflect else 1)
            needed = max(side, 1 if stacked_on == "maps" else needed)
        return needed

    return smallest(0), smallest(1)


def resolve_kernels(size: Size, layers: Iterable[Mapping[str, Any]], stacked_on: str) -> list[dict[str, Any]]:
    """Replace each kernel `image` in the entries of `model.layers` by the input size of its layer.

    Raises:
        GeometryError: see `layer_sizes`.

    Example:
        >>> layer = {"kernel": "image", "stride": (1, 1), "padding": "valid", "pool": None}
        >>> resolve_kernels((28, 32), [layer], "maps")[0]["kernel"]
        [28, 32]
    """
    resolved: list[dict[str, Any]] = []
    for layer in layers:
        below = list(map(LayerGeometry.of, resolved))
        on_maps = below and stacked_on == "maps"
        incoming = below[-1].passed_on(layer_sizes(size, below, stacked_on)[-1][0]) if on_maps else size
        resolved.append({**layer, "kernel": list(incoming) if layer["kernel"] == "image" else layer["kernel"]})
    return resolved


def check_filter_bank(filters: int, kernel: Size) -> None:
    """Check that the bank of hand-made filters has this number of filters for kernels of this size.

    The bank has two Sobel filters, a Laplacian and a Gaussian for kernels of at least 3×3 pixels, and 12 Gabor filters
    per wavelength: the kernel's side, half of it, and so on down to two pixels.

    Raises:
        GeometryError: the bank has fewer filters, or the kernel is smaller than 3×3.

    Example:
        >>> check_filter_bank(28, (7, 7))
        >>> check_filter_bank(29, (7, 7))
        Traceback (most recent call last):
        convae.models.geometry.GeometryError: ...: 29 filters of 7×7 pixels; 4 to 28 are possible
    """
    side = min(kernel)
    most = 4 + 12 * int(math.log2(side / 2) + 1) if side >= 3 else 0
    if not 4 <= filters <= most:
        possible = f"4 to {most} are possible" if most else "at least 3×3 are needed"
        raise GeometryError(
            f"model.initialization = filter_bank: {filters} filters of {show(kernel)} pixels; {possible}"
        )


def show(size: Size) -> str:
    """Format a size for messages.

    Example:
        >>> show((28, 32))
        '28×32'
    """
    return f"{size[0]}×{size[1]}"
