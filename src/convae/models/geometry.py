"""The sizes of convolutional layers: the one place where they are computed.

Sizes are `(height, width)` in pixels. A layer is a convolution followed, where it has one, by pooling over windows that
do not overlap. With a side, kernel, stride and `padding` zeros on either side, a convolution gives

    floor((side - kernel + 2 * padding) / stride) + 1

and the transposed convolution of the same geometry gives the side back once `output_padding` more pixels are appended.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convae.errors import ConvaeError

Size = tuple[int, int]


class GeometryError(ConvaeError):
    """A layer whose input is too small for it, or whose padding cannot be had."""


@dataclass(frozen=True)
class LayerGeometry:
    """Kernel, stride, padding (`full`, `same` or `valid`) and pooling window of one layer, each as height and width."""

    kernel: Size
    stride: Size = (1, 1)
    padding: str = "same"
    pool: Size = (1, 1)

    @classmethod
    def of(cls, layer: Mapping[str, Any]) -> "LayerGeometry":
        """The geometry of one entry of `model.layers`."""
        pool = layer["pool"]["size"] if layer["pool"] else (1, 1)
        return cls(tuple(layer["kernel"]), tuple(layer["stride"]), layer["padding"], tuple(pool))

    @property
    def zeros(self) -> Size:
        """Zeros added on either side: k-1 for `full`, (k-1)/2 for `same`, none for `valid`."""
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
        height, width = (
            (side - kernel + 2 * zeros) // stride + 1
            for side, kernel, zeros, stride in zip(size, self.kernel, self.zeros, self.stride, strict=True)
        )
        if min(height, width) < 1:
            raise GeometryError(
                f"a {show(self.kernel)} kernel with padding '{self.padding}' turns {show(size)} into "
                f"{show((height, width))}; a smaller kernel or more padding is needed"
            )
        return height, width

    def output(self, size: Size) -> Size:
        """Size of the activation maps after pooling.

        Raises:
            GeometryError: the maps would have no pixel.
        """
        convolved = self.convolved(size)
        pooled = (convolved[0] // self.pool[0], convolved[1] // self.pool[1])
        if min(pooled) < 1:
            raise GeometryError(
                f"pooling over {show(self.pool)} turns {show(convolved)} into {show(pooled)}; "
                f"at most {show(convolved)} is possible"
            )
        return pooled

    def output_padding(self, size: Size) -> Size:
        """Pixels that a transposed convolution must append to give `size` back (0 to stride - 1)."""
        height, width = (
            (side - kernel + 2 * zeros) % stride
            for side, kernel, zeros, stride in zip(size, self.kernel, self.zeros, self.stride, strict=True)
        )
        return height, width


def layer_sizes(size: Size, layers: Iterable[LayerGeometry], stacked_on: str = "maps") -> list[tuple[Size, Size]]:
    """Of each layer the size that comes in and the size of its activation maps.

    Args:
        size: of the images.
        layers: the first to the last.
        stacked_on: a layer after the first sees the `maps` of the one below, or its `reconstructions`, which have
            the size of the images.

    Raises:
        GeometryError: names the first layer that does not fit, the size that came in and what would come out.
    """
    sizes = []
    for index, layer in enumerate(layers):
        try:
            output = layer.output(size)
        except GeometryError as error:
            raise GeometryError(f"model.layers[{index}]: {error}") from None
        sizes.append((size, output))
        if stacked_on == "maps":
            size = output
    return sizes


def smallest_size(layers: Sequence[LayerGeometry], stacked_on: str = "maps") -> Size:
    """Height and width of the smallest image that leaves a pixel to the activation maps of every layer.

    Example:
        >>> smallest_size([LayerGeometry((3, 5), pool=(2, 2)), LayerGeometry((3, 3), padding="valid")])
        (6, 6)
    """

    def smallest(axis: int) -> int:
        needed = 1
        for layer in reversed(layers):
            convolved = layer.pool[axis] * (needed if stacked_on == "maps" else 1)
            side = (convolved - 1) * layer.stride[axis] + layer.kernel[axis] - 2 * layer.zeros[axis]
            needed = max(side, 1 if stacked_on == "maps" else needed)
        return needed

    return smallest(0), smallest(1)


def resolve_kernels(size: Size, layers: Iterable[Mapping[str, Any]], stacked_on: str) -> list[dict[str, Any]]:
    """Entries of `model.layers` in which the kernel `image` is the size that comes into the layer.

    Raises:
        GeometryError: as `layer_sizes`.
    """
    resolved: list[dict[str, Any]] = []
    for layer in layers:
        below = layer_sizes(size, map(LayerGeometry.of, resolved), stacked_on)
        incoming = below[-1][1] if below and stacked_on == "maps" else size
        resolved.append({**layer, "kernel": list(incoming) if layer["kernel"] == "image" else layer["kernel"]})
    return resolved


def check_filter_bank(filters: int, kernel: Size) -> None:
    """Whether the bank of hand-made filters has so many for kernels of this size.

    These are two Sobel filters, a Laplacian and a Gaussian of 3×3 pixels or more, and 12 Gabor filters for each wave:
    as long as the kernel, half as long, and so on down to two pixels.

    Raises:
        GeometryError: it has fewer, or not even these four fit.
    """
    side = min(kernel)
    most = 4 + 12 * int(math.log2(side / 2) + 1) if side >= 3 else 0
    if not 4 <= filters <= most:
        possible = f"4 to {most} are possible" if most else "at least 3×3 are needed"
        raise GeometryError(
            f"model.initialization = filter_bank: {filters} filters of {show(kernel)} pixels; {possible}"
        )


def show(size: Size) -> str:
    """`28×28`."""
    return f"{size[0]}×{size[1]}"
