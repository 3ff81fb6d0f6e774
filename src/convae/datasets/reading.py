"""How to turn a picture into an array of pixels. Saved with the encoder, so that new pictures are read the same way."""

from dataclasses import dataclass
from typing import Literal, get_args

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class Reading:
    """The shape of the array, and how to fit pictures of other shapes and depths.

    Attributes:
        channels: 1 for grey (ITU-R 601-2 luma), 3 for RGB.
        size: height and width in pixels; None keeps each picture's size.
        fit: `crop` scales the largest centred region with the right aspect ratio, `pad` scales the whole picture and
            adds black on two sides, `stretch` ignores the aspect ratio.
        white_level: the value of white in channels of more than 8 bits; None means the largest that the bits allow.
            Pictures of 8 bits are not affected.

    Raises:
        ValueError: `fit` or `white_level` is out of range.

    Example:
        >>> Reading(channels=3, size=(64, 64), fit="pad")
        Reading(channels=3, size=(64, 64), fit='pad', white_level=None)
    """

    channels: int
    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    white_level: int | None = None

    def __post_init__(self) -> None:
        """Check the values, which may come from a damaged file."""
        if self.fit not in get_args(Fit) or not (self.white_level is None or 0 < self.white_level < 2**16):
            raise ValueError(f"no such reading: fit {self.fit}, white_level {self.white_level}")
