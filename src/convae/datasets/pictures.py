"""Decode a picture to an array, in the same way for the pipeline and for users of an encoder.

Only a file that is unambiguously one grey or colour picture is read. Any other raises `UnusableError` with the reason.
"""

import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from convae.datasets.bands import read_bands
from convae.datasets.foreign import FORMAT_NAMES, FORMATS, what_it_is
from convae.datasets.reading import MOST_BYTES, MOST_PIXELS, Reading
from convae.names import printable

# TIFF tags, and the number of channels for each PhotometricInterpretation: white is zero, black is zero, RGB, palette,
# CMYK, YCbCr.
HEIGHT, BITS, PHOTOMETRIC, STRIPS, SAMPLES, ROWS_PER_STRIP, PLANAR = 257, 258, 262, 273, 277, 278, 284
COLOR_MAP, SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 320, 330, 332, 338, 339
WHITE_IS_ZERO, PALETTE = 0, 3
DIM = 64  # of 255: the brightest value of 14-bit data that is stored in 16 bits without scaling
DEPTHS = {1, 2, 4, 8, 12, 16}
CHANNELS = {WHITE_IS_ZERO: 1, 1: 1, 2: 3, PALETTE: 1, 5: 4, 6: 3}
TRANSPARENCY = ((1,), (2,))  # values of ExtraSamples that mean one alpha channel
NUMBERS = {2: "signed numbers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}
BANDS = ", or set data.color: bands"

TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# For the EXIF orientations from 2 on; 1 is upright.
TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
TURN_OF = {orientation: Image.Transpose[name] for orientation, name in enumerate(TURNS, start=2)}


class UnusableError(Exception):
    """A picture can't be used. The message is the reason.

    Example:
        >>> decode(b"", Reading(channels=1))
        Traceback (most recent call last):
        convae.datasets.pictures.UnusableError: empty file; get it again
    """


class Picture(NamedTuple):
    """A decoded picture, and what decoding may have lost.

    Attributes:
        pixels: `uint8 [C, H, W]`.
        cropped: fraction of the picture's area that was cropped away.
        dim: whether the picture has more than 8 bits per channel, but no value above a quarter of white.

    Example:
        >>> photo = from_pillow(Image.new("L", (40, 30)), Reading(channels=1, size=(30, 30)))
        >>> photo.pixels.shape, photo.cropped, photo.dim
        ((1, 30, 30), 0.25, False)
    """

    pixels: np.ndarray
    cropped: float
    dim: bool = False


def read_picture(path: str | os.PathLike[str], reading: Reading) -> np.ndarray:
    """Read the pixels `uint8 [C, H, W]` of a file; see `decode`.

    Raises:
        UnusableError: the file can't be read, or see `decode`.

    Example:
        >>> read_picture("picture.png", Reading(channels=3, size=(16, 16))).shape
        (3, 16, 16)
    """
    _check_reading(reading)
    try:
        if Path(path).is_dir():
            raise UnusableError("a folder; name the files in it")
        if not Path(path).is_file() and Path(path).exists():  # reading a pipe might never end
            raise UnusableError("a pipe or a device; save it as a file first")
        if (size := Path(path).stat().st_size) > MOST_BYTES:
            raise UnusableError(f"{size} bytes; at most {MOST_BYTES} are allowed")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise UnusableError(getattr(error, "strerror", None) or str(error)) from None
    return decode(content, reading).pixels


def decode(content: bytes, reading: Reading) -> Picture:
    """Decode a PNG, JPEG, WebP, BMP or TIFF picture, turned upright by its EXIF orientation; or bands, see `bands.py`.

    Transparent pixels are blended with white. Channels of more than 8 bits are scaled so that `reading.white_level`
    becomes 255. CMYK is converted to RGB without a profile, and colour profiles are ignored. If a JPEG file (MPO) holds
    several pictures, the first is read: it is the photo, and the others are its previews and depth maps.

    Args:
        content: the bytes of the file.
        reading: the channels and size of the result.

    Raises:
        UnusableError: the file is damaged, too large or of another format, or is not unambiguously one picture: it has
            several frames or pages, bands other than grey, colour and transparency, signed or floating-point numbers,
            more than 16 bits per channel, or values above `reading.white_level`.

    Example:
        >>> stream = io.BytesIO()
        >>> Image.new("RGB", (40, 30), "red").save(stream, "PNG")
        >>> picture = decode(stream.getvalue(), Reading(channels=3, size=(30, 30)))
        >>> picture.pixels.shape, picture.pixels[:, 0, 0].tolist(), picture.cropped
        ((3, 30, 30), [255, 0, 0], 0.25)
    """
    if other := what_it_is(content) if content else "empty file; get it again":
        raise UnusableError(other)
    with _one_line_errors():
        _check_reading(reading)
        if reading.bands:
            return Picture(_bands(content, reading), 0.0)
        try:
            opened = Image.open(io.BytesIO(content), formats=[name.upper() for name in FORMATS])
        except UnidentifiedImageError:  # its own message is useless: a memory address
            tags = _tiff_tags(content)
            _check_tiff(tags)
            if tags:
                bits = max(tags.get(BITS, (1,)))
                raise UnusableError(f"a TIFF with an unsupported layout of {bits} bits; save it as PNG") from None
            raise UnusableError(f"not a readable {FORMAT_NAMES} image") from None
        with opened as image:
            if image.width * image.height > MOST_PIXELS:
                raise UnusableError(f"{image.width}×{image.height} pixels; at most {MOST_PIXELS} are allowed")
            _check_single(image)
            _check_tiff(getattr(image, "tag_v2", {}))
            if image.format == "BMP" and _raw_mode(image) == "BGRX":
                _check_padding(content, image)
            deep = _has_deep_colours(image)
            flat = _flat_from_deep(image, content, reading.white_level) if deep else _flat(image, reading.white_level)
            dim = (deep or image.mode.startswith("I;16")) and int(np.asarray(flat.convert("RGB")).max()) <= DIM
            return _finish(flat, _turn(image), reading)._replace(dim=dim)


def from_pillow(image: Image.Image, reading: Reading) -> Picture:
    """Convert a Pillow image; see `decode`.

    Pillow drops the lower 8 of 16 bits per colour channel. Such images are rejected if they still know their file's
    depth; a PNG that has been loaded, or a copy of any image, does not.

    Raises:
        UnusableError: see `decode`, or Pillow can't convert the image's mode.

    Example:
        >>> from_pillow(Image.new("L", (40, 30), 7), Reading(channels=1)).pixels.shape
        (1, 30, 40)
    """
    _check_reading(reading)
    if reading.bands:  # Pillow keeps three bands at most, and not always their depth
        raise UnusableError("an array, or the TIFF file itself, is needed: Pillow does not keep all bands")
    with _one_line_errors():
        _check_single(image)
        tags = getattr(image, "tag_v2", {})
        _check_tiff(tags)
        if _has_deep_colours(image) or (max(tags.get(BITS, (1,))) > 8 and not image.mode.startswith("I")):
            raise UnusableError("16 bits per channel, of which Pillow keeps only 8; pass the file instead")
        return _finish(_flat(image, reading.white_level), _turn(image), reading)


def _check_reading(reading: Reading) -> None:
    """Reject pictures where arrays are needed."""
    if reading.bands:
        return
    if reading.channels not in (1, 3):
        raise UnusableError(f"a picture has 1 or 3 channels; an array of {reading.channels} is needed")
    if reading.own_units:
        raise UnusableError("an array in the units of the training images is needed, and a picture has no such units")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except UnusableError:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableError(f"too many pixels: {error}") from None
    except Exception as error:  # a damaged file can make Pillow's parsers raise nearly anything
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise UnusableError(printable(f"damaged, or it violates its format ({reason})")) from None


def _bands(content: bytes, reading: Reading) -> np.ndarray:
    if content[:4] not in TIFF_HEADS:
        raise UnusableError("not a TIFF, which data.color: bands needs")
    try:
        return read_bands(content, reading)
    except ValueError as error:
        raise UnusableError(printable(str(error))) from None


def _tiff_tags(content: bytes) -> Mapping[int, Any]:
    """The tags of the first page of a TIFF that Pillow can't open; empty for other formats."""
    if content[:4] not in TIFF_HEADS:
        return {}
    tags = ImageFileDirectory_v2(content[:16] if b"+" in content[:4] else content[:8])
    stream = io.BytesIO(content)
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def _check_single(image: Image.Image) -> None:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        bands = BANDS if image.format == "TIFF" else ""
        raise UnusableError(f"{frames} frames or pages; save each as a separate file{bands}")


def _check_padding(content: bytes, image: Image.Image) -> None:
    """Reject a BMP whose fourth bytes, unused according to the format, hold data nevertheless."""
    fourth = np.frombuffer(content, np.uint8, 4 * image.width * image.height, int.from_bytes(content[10:14], "little"))
    if len(np.unique(fourth[3::4])) > 1:
        raise UnusableError("4 bands, and BMP does not define the fourth; save it as PNG")


def _check_tiff(tags: Mapping[int, Any]) -> None:
    """Reject bands and numbers that Pillow would drop, change or mistake for transparency without a warning."""
    if not tags:
        return
    photometric, bits = tags.get(PHOTOMETRIC), tags.get(BITS, (1,))
    bands = tags.get(SAMPLES, len(bits))
    if photometric is None:
        raise UnusableError("a TIFF that does not say whether 0 is black or white; save it as grey or RGB")
    if SUB_IFDS in tags:
        raise UnusableError("a TIFF with more pictures inside, like a camera's raw file; save the right one by itself")
    if photometric not in CHANNELS:
        raise UnusableError(f"a TIFF of photometric interpretation {photometric}; save it as grey or RGB")
    for kind in tags.get(SAMPLE_FORMAT, ()):
        if kind in NUMBERS:
            raise UnusableError(f"{NUMBERS[kind]} of {max(bits)} bits; save unsigned integers of 8 or 16 bits{BANDS}")
    if bands != CHANNELS[photometric] + (tags.get(EXTRA_SAMPLES) in TRANSPARENCY):
        raise UnusableError(f"{bands} bands; save one as grey or three as RGB{BANDS}")
    if not set(bits) <= DEPTHS:
        raise UnusableError(f"{max(bits)} bits per channel; 8 or 16 are allowed")
    if max(bits) > 8 and bands > 1 and tags.get(PLANAR) == 2:
        raise UnusableError(f"{max(bits)} bits per channel in separate planes; save the bands interleaved")
    if photometric == PALETTE and max(tags.get(COLOR_MAP, (0,))) < 256:
        raise UnusableError("a palette of 8 bits where TIFF requires 16, which would read as black; save it again")
    if tags.get(INK_SET, 1) != 1:
        raise UnusableError("inks other than CMYK; save it as RGB")
    rows = min(tags.get(ROWS_PER_STRIP, tags[HEIGHT]), tags[HEIGHT])
    strips = -(-tags[HEIGHT] // max(1, rows)) * (bands if tags.get(PLANAR) == 2 else 1)
    if STRIPS in tags and len(tags[STRIPS]) < strips:
        raise UnusableError(f"truncated: {len(tags[STRIPS])} of {strips} strips; get it again")


def _turn(image: Image.Image) -> Image.Transpose | None:
    image.load()  # already turns a TIFF upright, and removes its orientation
    return TURN_OF.get(image.getexif().get(ExifTags.Base.Orientation, 1))


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name for the layout of numbers in the file; empty once they are decoded."""
    tiles: Any = getattr(image, "tile", None)
    return str(_arguments(tiles[0])[0]) if tiles else ""


def _arguments(tile: Any) -> tuple[Any, ...]:
    """What Pillow passes to its decoder, beginning with the raw mode."""
    return tile.args if isinstance(tile.args, tuple) else (tile.args,)


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether there are several channels of 16 bits, of which Pillow would keep the upper 8."""
    raw_mode = _raw_mode(image)  # BGR;16 has 16 bits per pixel, not per channel
    return ";16" in raw_mode and not raw_mode.startswith("BGR") and not image.mode.startswith("I")


def _flat_from_deep(image: Image.Image, content: bytes, white_level: int | None) -> Image.Image:
    """Scale several channels of 16 bits to 8, and blend with white."""
    raw_mode = _raw_mode(image)
    kind = raw_mode.partition(";")[0]
    if kind == "LA":  # two numbers of two bytes each, decoded as if they were four channels of one byte
        levels = _decoded_as(content, "RGBA").view(">u2")
    elif kind in ("RGB", "RGBA"):
        # Pillow keeps the upper byte of each number. Decoding again in the opposite byte order gives the lower one.
        is_little = raw_mode.endswith("L") or (raw_mode.endswith("N") and sys.byteorder == "little")
        upper = _decoded_as(content, raw_mode).astype(np.uint16)
        levels = upper << 8 | _decoded_as(content, f"{kind};16{'B' if is_little else 'L'}")
    else:
        raise UnusableError(f"{kind} with 16 bits per channel; save it as RGB")
    if kind == "RGB":
        clear = (levels == image.info.get("transparency", -1)).all(axis=2)
        colours, alpha = levels, np.where(clear, 0, 255).astype(np.uint8)
    else:
        colours, opaque = levels[..., :-1], levels[..., -1]
        alpha = _scaled(opaque, 16, white_level if white_level and opaque.max() <= white_level else None)
    scaled = _scaled(colours, 16, white_level)
    flat = Image.fromarray(scaled[..., 0] if kind == "LA" else scaled)
    flat.putalpha(Image.fromarray(alpha))
    return _on_white(flat)


def _decoded_as(content: bytes, raw_mode: str) -> np.ndarray:
    """Decode to `uint8 [H, W, C]` with another of Pillow's names for the layout of the numbers."""
    with Image.open(io.BytesIO(content), formats=[name.upper() for name in FORMATS]) as image:
        tiles: Any = image.tile
        image.tile = [tile._replace(args=(raw_mode, *_arguments(tile)[1:])) for tile in tiles]
        return np.array(image)


def _flat(image: Image.Image, white_level: int | None) -> Image.Image:
    """Convert to 8 bits per channel, without transparency."""
    clear = image.info.get("transparency", -1)
    if image.mode in ("I", "F"):
        numbers = "integers" if image.mode == "I" else "floating-point numbers"
        raise UnusableError(f"{numbers} of 32 bits; 8 or 16 bits per channel are allowed")
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", {})
        levels = np.asarray(image)
        pixels = _scaled(levels, max(tags.get(BITS, (16,))), white_level)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            pixels = 255 - pixels
        return Image.fromarray(np.where(levels == clear, 255, pixels).astype(np.uint8))
    if image.has_transparency_data:
        if (raw_mode := _raw_mode(image)) in ("L;2", "L;4"):  # Pillow scales the pixels to 8 bits, but not this value
            image = image.copy()
            image.info["transparency"] = clear * (85 if raw_mode == "L;2" else 17)
        return _on_white(image)
    return image


def _scaled(levels: np.ndarray, bits: int, white_level: int | None) -> np.ndarray:
    """Scale to `uint8`, so that `white_level`, or else the largest number of `bits` bits, becomes 255."""
    white = white_level or 2**bits - 1
    if white_level and levels.size and levels.max() > white:
        raise UnusableError(f"a value of {levels.max()}, above data.white_level = {white}")
    # Integer arithmetic that rounds to the nearest: (255 * level + white / 2) / white.
    return ((levels.astype(np.uint32) * 510 + white) // (2 * white)).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _finish(flat: Image.Image, turn: Image.Transpose | None, reading: Reading) -> Picture:
    """Convert to the channels and size of `reading`."""
    # Steps that change nothing are skipped, because Pillow would copy the picture anyway.
    if flat.mode != (mode := "L" if reading.channels == 1 else "RGB"):
        flat = flat.convert(mode)
    if turn is not None:
        flat = flat.transpose(turn)
    cropped = 0.0
    if reading.size:
        height, width = reading.size
        ratio = flat.width * height / (flat.height * width)
        if reading.fit == "crop":
            cropped = 1 - min(ratio, 1 / ratio)
            flat = ImageOps.fit(flat, (width, height), Image.Resampling.BILINEAR)
        elif reading.fit == "stretch":
            flat = flat.resize((width, height), Image.Resampling.BILINEAR)
        else:
            inner = max(1, round(width * min(ratio, 1))), max(1, round(height / max(ratio, 1)))
            scaled = flat.resize(inner, Image.Resampling.BILINEAR)
            flat = Image.new(mode, (width, height))
            flat.paste(scaled, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return Picture(np.asarray(flat).reshape(flat.height, flat.width, reading.channels).transpose(2, 0, 1), cropped)
