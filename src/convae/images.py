"""Turn a user's images, in any common form, into batches for a network.

Needs only torch and NumPy; Pillow only for files and Pillow images.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from convae.datasets.reading import Reading
from convae.errors import ConvaeError
from convae.models.geometry import Size

if TYPE_CHECKING:
    from PIL.Image import Image

Array: TypeAlias = np.ndarray | Tensor
File: TypeAlias = str | os.PathLike[str]
Single: TypeAlias = "Array | File | Image"
Images: TypeAlias = "Single | Iterable[Single]"
"""One array of images, a file, a Pillow image, or an iterable of single images of any sizes.

An array is `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` (which wins if both are possible) and holds `uint8` or
floating-point numbers from 0 to 1; or, for an encoder of arrays with `data.scale`, numbers of any type in their units.
In an iterable, each array is one image, without N. The W of `[N, H, W]` must not be 1, 3 or 4, since such an array
could be a single image `[H, W, C]`."""

ROUNDING = 1e-4  # tolerance for numbers below 0 and above 1


def image_batches(images: Images, reading: Reading, batch_size: Callable[[Size], int]) -> Iterator[Tensor]:
    """Yield batches `[n, C, H, W]` of `uint8`, or of `float32` from 0 to 1, in the order of the images.

    All images of a batch have the same size.

    Args:
        images: see `Images`. An empty array yields one empty batch; other empty inputs yield none.
        reading: how to read files and Pillow images; arrays must have its number of channels.
        batch_size: returns the largest batch for images of a given size.

    Raises:
        ConvaeError: a file can't be read, or an array has a shape, type or range of values that is not allowed.

    Example:
        >>> batches = image_batches(np.zeros((5, 8, 8), np.uint8), Reading(channels=1), lambda size: 2)
        >>> [tuple(batch.shape) for batch in batches]
        [(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]
    """
    # An array of the kinds O or U holds names of files.
    if isinstance(images, Tensor) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OU"):
        array = channels_first(images, reading.channels)
        size = batch_size((array.shape[2], array.shape[3]))
        for start in range(0, max(1, len(array)), size):
            yield checked_values(array[start : start + size], reading.own_units)
        return
    one = isinstance(images, (str, os.PathLike)) or _is_pillow(images) or not isinstance(images, Iterable)
    pixels = (_single(image, reading) for image in (cast("Iterable[Single]", [images] if one else images)))
    for (shape, _), alike in groupby(pixels, lambda image: (image.shape, image.dtype)):
        while batch := list(islice(alike, batch_size((shape[1], shape[2])))):
            yield torch.stack(batch)


def _single(image: Single, reading: Reading) -> Tensor:
    """Read one image as `[C, H, W]`."""
    if isinstance(image, (np.ndarray, Tensor)):
        some = image[None, None] if image.ndim == 2 and reading.channels == 1 else image[None]
        return checked_values(channels_first(some, reading.channels), reading.own_units)[0]
    from convae.datasets.pictures import UnusableError, from_pillow, read_picture

    try:
        if isinstance(image, (str, os.PathLike)):
            return torch.tensor(read_picture(image, reading))
        if _is_pillow(image):
            return torch.tensor(from_pillow(image, reading).pixels)
    except UnusableError as error:
        raise ConvaeError(f"{'a Pillow image' if _is_pillow(image) else image}: {error}") from None
    raise ConvaeError(f"an image is a {type(image).__name__}; arrays, files and Pillow images are allowed")


def channels_first(images: Array, channels: int) -> Array:
    """View an array of images as `[N, C, H, W]`, without copying; see `Images`.

    Raises:
        ConvaeError: the shape is not allowed, or could be that of a single image.

    Example:
        >>> channels_first(np.zeros((5, 32, 28, 3)), channels=3).shape
        (5, 3, 32, 28)
    """
    shape = list(images.shape)
    if len(shape) == 3 and channels == 1 and shape[2] not in (1, 3, 4):
        return images[:, None]
    if len(shape) == 4 and shape[1] == channels:
        return images
    if len(shape) == 4 and shape[3] == channels:
        return images.permute(0, 3, 1, 2) if isinstance(images, Tensor) else images.transpose(0, 3, 1, 2)
    allowed = f"[N, {channels}, H, W] or [N, H, W, {channels}]" + (" or [N, H, W]" if channels == 1 else "")
    hint = ""
    if len(shape) == 2 or (len(shape) == 3 and (channels > 1 or shape[2] in (1, 3, 4))):
        hint = "; for a single image, pass images[None]"
    if len(shape) == 3 and channels == 1:
        hint += f"; for grey images {shape[2]} pixels wide, images[:, None]"
    raise ConvaeError(f"images have the shape {shape}; expected for {channels} channel(s): {allowed}{hint}")


def channel_axis(shape: Sequence[int]) -> int:
    """The axis, 1 or 3, that most likely holds the channels of an array with this shape.

    One or three channels are recognised. Otherwise two sides that are alike are height and width, and else the channels
    are the fewer; the first axis wins if neither decides.

    Example:
        >>> channel_axis([9, 200, 12, 12]), channel_axis([9, 12, 12, 200]), channel_axis([9, 32, 28, 4])
        (1, 3, 3)
    """
    _, first, middle, last = shape
    if first in (1, 3) or last in (1, 3):
        return 1 if first in (1, 3) else 3
    if (first == middle) != (middle == last):
        return 3 if first == middle else 1
    return 3 if last < first else 1


def checked_values(images: Array, own_units: bool) -> Tensor:
    """Check values and return a contiguous tensor of `uint8`, or of `float32` from 0 to 1 or in the encoder's units."""
    if isinstance(images, np.ma.MaskedArray):
        raise ConvaeError("images are a masked array, but encoders ignore masks; fill it with images.filled(0)")
    fractions = images.is_floating_point() if isinstance(images, Tensor) else images.dtype.kind == "f"
    kind = str(images.dtype).removeprefix("torch.")
    if own_units:
        return _finite(images)
    if not fractions and kind != "uint8":
        raise ConvaeError(f"images are {kind}; uint8 from 0 to 255 or floating-point numbers from 0 to 1 are needed")
    if isinstance(images, np.ndarray):
        # "W" copies read-only arrays, about which torch would warn.
        images = torch.from_numpy(np.require(images, np.float32 if fractions else np.uint8, ["C", "W"]))
    images = images.detach().contiguous()
    if fractions:
        images = images.float()
        if images.numel() and not (images.min() >= -ROUNDING and images.max() <= 1 + ROUNDING):  # also catches NaN
            raise ConvaeError(
                f"images have values from {images.min():g} to {images.max():g}; allowed are floating-point numbers "
                "from 0 to 1, or uint8 from 0 to 255"
            )
        images = images.clamp(0, 1)
    return images


def _finite(images: Array) -> Tensor:
    """A contiguous tensor of `float32`, without NaN or infinity."""
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "uif":
            raise ConvaeError(f"images are {images.dtype}; numbers are needed")
        images = torch.from_numpy(np.require(images, np.float32, ["C", "W"]))
    images = images.detach().float().contiguous()
    if not bool(images.isfinite().all()):
        raise ConvaeError("images hold NaN or infinity")
    return images


def _is_pillow(image: object) -> "TypeGuard[Image]":
    return hasattr(image, "getexif")  # without importing Pillow
