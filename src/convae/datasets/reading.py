"""How a picture becomes an array of pixels. Saved with the encoder, so that new pictures are read the same way."""

from dataclasses import dataclass
from typing import Literal, get_args

Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class Reading:
    """The shape of the array, and what is to happen to a picture that has another one.

    Attributes:
        channels: 1 is grey (ITU-R 601-2 luma), 3 are RGB.
        size: height and width in pixels; None leaves each picture as large as it is.
        fit: `crop` scales the largest centred part with the right ratio, `pad` scales the whole picture and adds
            black at two sides, `stretch` ignores its aspect ratio.
        white_level: the value that is white where a channel has more than 8 bits; None is the largest that the bits
            allow. Pictures of 8 bits stay as they are.
    """

    channels: int
    size: tuple[int, int] | None = None
    fit: Fit = "crop"
    white_level: int | None = None

    def __post_init__(self) -> None:
        """Refuse what a damaged file may say."""
        if self.fit not in get_args(Fit) or not (self.white_level is None or 0 < self.white_level < 2**16):
            raise ValueError(f"no such reading: fit {self.fit}, white_level {self.white_level}")
