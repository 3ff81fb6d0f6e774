"""The style of all figures, grids of pictures, and reproducible PNG files."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from convae.datasets.image_set import ImageSet
from convae.datasets.reading import Scale

INK, GREY, BLUE, ORANGE = "#1f2933", "#7b8794", "#2166ac", "#d6604d"
DPI = 150
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # class names may contain dollar signs
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.08,
}
TILE_PIXELS, GAP = 96, 9  # least side of a picture in a grid, and the space between two
LONGEST_NAME = 22
LONGEST_IN_GALLERY = 17  # as wide as a picture of a gallery
STRIP = 8  # channels shown at most
STRETCHED_BY = 500  # images that decide what is black and white
SLANTED: dict[str, Any] = {"rotation": 40, "horizontalalignment": "left", "rotation_mode": "anchor"}


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all figures, regardless of the user's matplotlib settings."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def save_figure(figure: Figure, path: Path | BytesIO, palette: bool = True) -> None:
    """Write a PNG file without date or version, so that the same figure gives the same bytes.

    Args:
        figure: the figure.
        path: the file.
        palette: use 256 colours at most: grey figures look the same, colour photographs nearly so, and files are less
            than half as large.

    Example:
        >>> files = BytesIO(), BytesIO()
        >>> for file in files:
        ...     save_figure(tile([np.zeros((3, 28, 28, 3))], row_labels=["black"]), file)
        >>> files[0].getvalue() == files[1].getvalue()
        True
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font may lack the script of a class name
        figure.savefig(buffer := BytesIO(), format="png", metadata={"Software": None})
    picture = Image.open(buffer).convert("RGB")
    if palette:
        picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.save(path, "PNG", dpi=(DPI, DPI), optimize=True)


def short(name: str, longest: int = LONGEST_NAME) -> str:
    """A name on one line, cut off after `longest` characters.

    Example:
        >>> short("ankle   boot"), short("a very long name", longest=6)
        ('ankle boot', 'a ver…')
    """
    line = " ".join(name.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


@dataclass(frozen=True)
class Paint:
    """Turns images of an image set into pictures from 0 to 1.

    Numbers of `uint8` are divided by 255. Other images are stretched: in each channel, a thousandth of the pixels
    becomes black, and another thousandth white.

    Attributes:
        scale: that of the encoder.
        black, white: what becomes 0 and 1 in each channel of scaled images; None without stretching.
        channels: numbers of the channels to show as red, green and blue, or None.

    Example:
        >>> images = np.zeros((2, 5, 8, 8), np.uint8)
        >>> Paint()(images).shape, Paint().strip(images).shape
        ((2, 8, 8, 3), (2, 8, 40, 3))
    """

    scale: Scale | None = None
    black: np.ndarray | None = None
    white: np.ndarray | None = None
    channels: tuple[int, ...] | None = None

    @classmethod
    def of(cls, image_set: ImageSet, scale: Scale | None, channels: tuple[int, ...] | None) -> "Paint":
        """For an image set; `scale` is the encoder's, and `channels` as in `report.channels`."""
        if image_set.images.dtype == np.uint8 and not scale:
            return cls(channels=channels)
        sample = cls(scale).fractions(image_set.images[image_set.spread(STRETCHED_BY)])
        black, white = np.percentile(sample, [0.1, 99.9], axis=(0, 2, 3))[..., None, None]
        return cls(scale, black, np.where(white > black, white, black + 1), channels)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images `[..., C, H, W]` as `[..., H, W, 3]`; unless three channels are chosen, other numbers become grey."""
        return to_rgb(self._stretched(self.fractions(images)))

    def strip(self, images: np.ndarray, scaled: bool = False) -> np.ndarray:
        """As calling it does, but channels other than grey or RGB, up to eight, stand in a row: `[..., H, C·W, 3]`.

        Args:
            images: `[..., C, H, W]`.
            scaled: whether the images are scaled already, as reconstructions are.
        """
        images = self._stretched(images if scaled else self.fractions(images))
        if images.shape[-3] in (1, 3):
            return to_rgb(images)
        channels = [to_rgb(images[..., [one], :, :]) for one in range(min(STRIP, images.shape[-3]))]
        return np.concatenate(channels, axis=-2)

    def fractions(self, images: np.ndarray) -> np.ndarray:
        """Scaled images, about 0 to 1."""
        if self.scale:
            return self.scale.apply(images)
        return images / 255 if images.dtype == np.uint8 else images

    def _stretched(self, images: np.ndarray) -> np.ndarray:
        if self.black is not None and self.white is not None:
            images = (images - self.black) / (self.white - self.black)
        return images[..., list(self.channels), :, :] if self.channels else images


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Images `[..., C, H, W]` in [0, 1] as `[..., H, W, 3]`; other numbers of channels than 3 become grey.

    Example:
        >>> to_rgb(np.zeros((2, 1, 28, 28))).shape
        (2, 28, 28, 3)
    """
    if images.shape[-3] != 3:
        images = np.repeat(images.mean(axis=-3, keepdims=True), 3, axis=-3)
    return np.moveaxis(np.clip(images, 0, 1), -3, -1)


def signed_to_rgb(values: np.ndarray) -> np.ndarray:
    """Values `[..., H, W]` in [-1, 1] as colours `[..., H, W, 3]`: zero is white, positive blue, negative red.

    Example:
        >>> red, green, blue = signed_to_rgb(np.array([[1.0]]))[0, 0]
        >>> bool(blue > red)
        True
    """
    colours: np.ndarray = matplotlib.colormaps["RdBu"]((np.clip(values, -1, 1) + 1) / 2)
    return colours[..., :3]


def tile(
    rows: Sequence[np.ndarray], row_labels: Sequence[str] = (), column_labels: Sequence[str] = (), inches: float = 0.8
) -> Figure:
    """Pictures in a grid, with sharp pixels.

    Args:
        rows: the pictures of each row, `[n, H, W, 3]` in [0, 1]; no row is longer than the first.
        row_labels: shown on the left; may be empty.
        column_labels: shown on top, slanted if long; may be empty.
        inches: width of a picture.

    Example:
        >>> figure = tile([np.zeros((2, 28, 28, 3))], column_labels=["cat", "dog"])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['cat', 'dog']
    """
    _, height, width, _ = rows[0].shape
    # Scaled by a whole number here, so that all pixels come out equally large.
    scale = math.ceil(TILE_PIXELS / max(height, width))
    step_y, step_x = height * scale + GAP, width * scale + GAP
    canvas = np.ones((step_y * len(rows) - GAP, step_x * len(rows[0]) - GAP, 3))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            canvas[i * step_y :, j * step_x :][: large.shape[0], : large.shape[1]] = large
    figure = Figure(figsize=(inches * canvas.shape[1] / step_x, inches * canvas.shape[0] / step_x))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="nearest")
    axes.set_yticks([i * step_y + (step_y - GAP) / 2 for i in range(len(row_labels))], map(short, row_labels))
    centres = [j * step_x + (step_x - GAP) / 2 for j in range(len(column_labels))]
    label_columns(axes, centres, column_labels, slanted=max(map(len, column_labels), default=0) > 9)
    return figure


def gallery(pictures: Sequence[np.ndarray], above: Sequence[str], below: Sequence[str], columns: int) -> Figure:
    """Pictures in rows, each with its own text above and below.

    Args:
        pictures: each `[H, W, 3]` in [0, 1].
        above: text in orange, for each picture; each line is cut off after 17 characters.
        below: text in black, for each picture, cut off likewise.
        columns: pictures in a row.

    Example:
        >>> figure = gallery([np.zeros((8, 8, 3))], above=["cat"], below=["dog"], columns=1)
        >>> figure.axes[0].get_title(), figure.axes[0].texts[0].get_text()
        ('cat', 'dog')
    """
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.25 * columns, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, picture, title, text in zip(grid, pictures, above, below, strict=False):
        axes.imshow(picture, interpolation="nearest")
        lines = "\n".join(short(line, LONGEST_IN_GALLERY) for line in title.splitlines())
        axes.set_title(lines, fontsize=8, color=ORANGE, pad=3)
        below_it = short(text, LONGEST_IN_GALLERY)
        axes.text(0.5, -0.04, below_it, ha="center", va="top", fontsize=8, transform=axes.transAxes)
    return figure


def label_columns(axes: Axes, centres: Sequence[float], names: Sequence[str], slanted: bool) -> None:
    """Write names above the columns of a picture, and remove its frame and tick marks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.set_xticks(centres, map(short, names), **(SLANTED if slanted else {}))
