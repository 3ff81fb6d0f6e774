"""How pictures and arrays become pixels. Saved with the encoder, so that new images are read in the same way."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import numpy as np

Fit = Literal["crop", "pad", "stretch"]
MOST_PIXELS = 89_478_485  # of a picture: Pillow's own threshold for a decompression bomb
MOST_BYTES = 1 << 30  # of a file, which is read whole, so that the same bytes are hashed and decoded
TYPES = ("uint8", "uint16", "int16", "float32")  # of arrays and bands
SCALE_HINT = "set data.scale to range, percentile or standard, or to [low, high], the numbers that become 0 and 1"


@dataclass(frozen=True)
class Reading:
    """The shape of the array, and how to fit pictures of other shapes and depths.

    Attributes:
        channels: 1 for grey (ITU-R 601-2 luma), 3 for RGB; or the number of bands.
        size: height and width in pixels; None keeps each picture's size.
        fit: `crop` scales the largest centred region with the right aspect ratio, `pad` scales the whole picture and
            adds black on two sides, `stretch` ignores the aspect ratio.
        white_level: the value of white in channels of more than 8 bits; None means the largest that the bits allow.
            Pictures of 8 bits are not affected.
        bands: pictures are TIFF files whose bands or pages are the channels, of any number.
        own_units: arrays and bands hold numbers in units of their own, which the encoder scales. Other pictures have no
            such units.

    Raises:
        ValueError: `fit` or `white_level` is out of range.

    Example:
        >>> Reading(channels=3, size=(64, 64), fit="pad")
        Reading(channels=3, size=(64, 64), fit='pad', white_level=None, own_units=False, bands=False)
    """

    channels: int
    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    white_level: int | None = None
    own_units: bool = False
    bands: bool = False

    def __post_init__(self) -> None:
        """Check the values, which may come from a damaged file."""
        if self.fit not in get_args(Fit) or not (self.white_level is None or 0 < self.white_level < 2**16):
            raise ValueError(f"no such reading: fit {self.fit}, white_level {self.white_level}")


@dataclass(frozen=True)
class Scale:
    """How the numbers of each channel become about 0 to 1: minus `offset`, divided by `divisor`.

    Raises:
        ValueError: the two differ in length, or a number is not finite, or a divisor zero.

    Example:
        >>> Scale((1000.0,), (2000.0,)).apply(np.array([[[1000, 3000]]], np.uint16)).tolist()
        [[[0.0, 1.0]]]
    """

    offset: tuple[float, ...]
    divisor: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the values, which may come from a damaged file."""
        if len(self.offset) != len(self.divisor) or not all(map(isfinite, (*self.offset, *self.divisor))):
            raise ValueError("no such scale")
        if not all(self.divisor):
            raise ValueError("a scale divides by zero")

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Scale images `[..., C, H, W]` to `float32`."""
        offset, divisor = (np.array(one, np.float32)[:, None, None] for one in (self.offset, self.divisor))
        scaled: np.ndarray = (images.astype(np.float32) - offset) / divisor
        return scaled

    def undo(self, images: np.ndarray) -> np.ndarray:
        """Return scaled images `float32 [..., C, H, W]` to their units."""
        offset, divisor = (np.array(one, np.float32)[:, None, None] for one in (self.offset, self.divisor))
        restored: np.ndarray = images * divisor + offset
        return restored
