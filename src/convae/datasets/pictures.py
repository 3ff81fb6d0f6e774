"""A picture decoded to an array, for the pipeline and for whoever uses an encoder alike.

Only what is plainly one picture, grey or in colour, is read. Everything else raises `UnusableError` with the reason.
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

from convae.datasets.foreign import FORMAT_NAMES, FORMATS, what_it_is
from convae.datasets.reading import Reading
from convae.names import printable

MOST_PIXELS = 89_478_485  # Pillow's own threshold for a decompression bomb

# TIFF's tags, and how many channels its pictures have by their PhotometricInterpretation: white is zero, black is zero,
# RGB, palette, CMYK, YCbCr.
HEIGHT, BITS, PHOTOMETRIC, STRIPS, SAMPLES, ROWS_PER_STRIP, PLANAR = 257, 258, 262, 273, 277, 278, 284
COLOR_MAP, SUB_IFDS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 320, 330, 332, 338, 339
WHITE_IS_ZERO, PALETTE = 0, 3
DIM = 64  # of 255, as 14 bits in 16 give
DEPTHS = {1, 2, 4, 8, 12, 16}
CHANNELS = {WHITE_IS_ZERO: 1, 1: 1, 2: 3, PALETTE: 1, 5: 4, 6: 3}
TRANSPARENCY = ((1,), (2,))  # the extra samples that are one
NUMBERS = {2: "signed numbers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnusableError(Exception):
    """Why one picture is not used."""


class Picture(NamedTuple):
    """Pixels `uint8 [C, H, W]`, and what may have been lost.

    Attributes:
        cropped: the part of the picture's area that was cropped away.
        dim: whether it has more than 8 bits a channel, and none of them is brighter than a quarter of white.
    """

    pixels: np.ndarray
    cropped: float
    dim: bool = False


def read_picture(path: str | os.PathLike[str], reading: Reading) -> np.ndarray:
    """The pixels of a file, `uint8 [C, H, W]`; see `decode`.

    Raises:
        UnusableError: also where there is no such file.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise UnusableError(getattr(error, "strerror", None) or str(error)) from None
    return decode(content, reading).pixels


def decode(content: bytes, reading: Reading) -> Picture:
    """Decode a PNG, JPEG, WebP, BMP or TIFF picture, upright by its EXIF orientation.

    What is transparent is laid on white. Channels of more than 8 bits are scaled so that `reading.white_level` becomes
    255. CMYK becomes RGB without a profile, and colour profiles are not applied. Of the pictures in a JPEG file (MPO)
    the first is read, which is the photo; the others are previews and depth maps of it.

    Args:
        content: the bytes of the file.
        reading: what becomes of the picture.

    Raises:
        UnusableError: damaged, of another format, too large, or not plainly one picture: several frames or pages, bands
            beside grey, colour and transparency, signed or floating-point numbers, more than 16 bits a channel, or
            values above `reading.white_level`.
    """
    if other := what_it_is(content) if content else "empty file; get it again":
        raise UnusableError(other)
    with _one_line_errors():
        try:
            opened = Image.open(io.BytesIO(content), formats=[name.upper() for name in FORMATS])
        except UnidentifiedImageError:  # its message has an address in memory
            tags = _tiff_tags(content)
            _check_tiff(tags)
            if tags:
                bits = max(tags.get(BITS, (1,)))
                raise UnusableError(f"a TIFF of {bits} bits in an order that can't be read; save it as PNG") from None
            raise UnusableError(f"not a readable {FORMAT_NAMES} image") from None
        with opened as image:
            if image.width * image.height > MOST_PIXELS:
                raise UnusableError(f"{image.width}×{image.height} pixels; at most {MOST_PIXELS} are decoded")
            _check_single(image)
            _check_tiff(getattr(image, "tag_v2", {}))
            if image.format == "BMP" and _raw_mode(image) == "BGRX":
                _check_padding(content, image)
            deep = _has_deep_colours(image)
            flat = _flat_from_deep(image, content, reading.white_level) if deep else _flat(image, reading.white_level)
            dim = (deep or image.mode.startswith("I;16")) and int(np.asarray(flat.convert("RGB")).max()) <= DIM
            return _finish(flat, _turn(image), reading)._replace(dim=dim)


def from_pillow(image: Image.Image, reading: Reading) -> Picture:
    """A picture that Pillow holds; see `decode`.

    Pillow keeps the upper 8 of 16 bits of colour. That is refused as long as it can be told from the image: a PNG that
    was loaded, and a copy of any image, have forgotten what their file said.

    Raises:
        UnusableError: as `decode`, or a mode that Pillow can't convert.
    """
    with _one_line_errors():
        _check_single(image)
        tags = getattr(image, "tag_v2", {})
        _check_tiff(tags)
        if _has_deep_colours(image) or (max(tags.get(BITS, (1,))) > 8 and not image.mode.startswith("I")):
            raise UnusableError("16 bits a channel, of which Pillow keeps 8; give the file instead")
        return _finish(_flat(image, reading.white_level), _turn(image), reading)


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
        raise UnusableError(printable(f"damaged, or not as its format demands ({reason})")) from None


def _tiff_tags(content: bytes) -> Mapping[int, Any]:
    """The first page's tags of a TIFF that Pillow can't open."""
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return {}
    tags = ImageFileDirectory_v2(content[:16] if b"+" in content[:4] else content[:8])
    stream = io.BytesIO(content)
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def _check_single(image: Image.Image) -> None:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise UnusableError(f"{frames} frames or pages; save each as a file of its own")


def _check_padding(content: bytes, image: Image.Image) -> None:
    """Refuse a BMP whose fourth bytes, which have no meaning in it, say something all the same."""
    fourth = np.frombuffer(content, np.uint8, 4 * image.width * image.height, int.from_bytes(content[10:14], "little"))
    if len(np.unique(fourth[3::4])) > 1:
        raise UnusableError("4 bands, and a BMP does not say what the fourth is; save it as PNG")


def _check_tiff(tags: Mapping[int, Any]) -> None:
    """Refuse bands and numbers that Pillow drops, takes for transparency, or turns into other ones."""
    if not tags:
        return
    photometric, bits = tags.get(PHOTOMETRIC), tags.get(BITS, (1,))
    bands = tags.get(SAMPLES, len(bits))
    if photometric is None:
        raise UnusableError("a TIFF that does not say whether 0 is black or white; save it as grey or RGB")
    if SUB_IFDS in tags:
        raise UnusableError("a TIFF with further pictures in it, as camera raw files are; save the one that is meant")
    if photometric not in CHANNELS:
        raise UnusableError(f"a TIFF of photometric interpretation {photometric}; save it as grey or RGB")
    for kind in tags.get(SAMPLE_FORMAT, ()):
        if kind in NUMBERS:
            raise UnusableError(f"{NUMBERS[kind]} of {max(bits)} bits; save whole numbers from 0, of 8 or 16 bits")
    if bands != CHANNELS[photometric] + (tags.get(EXTRA_SAMPLES) in TRANSPARENCY):
        raise UnusableError(f"{bands} bands; save one as grey or three as RGB")
    if not set(bits) <= DEPTHS:
        raise UnusableError(f"{max(bits)} bits a channel; 8 or 16 are allowed")
    if max(bits) > 8 and bands > 1 and tags.get(PLANAR) == 2:
        raise UnusableError(f"{max(bits)} bits a channel and one band after the other; save the bands interleaved")
    if photometric == PALETTE and max(tags.get(COLOR_MAP, (0,))) < 256:
        raise UnusableError("a palette of 8 bits where 16 are due, which reads as black; save it again")
    if tags.get(INK_SET, 1) != 1:
        raise UnusableError("inks other than CMYK; save it as RGB")
    rows = min(tags.get(ROWS_PER_STRIP, tags[HEIGHT]), tags[HEIGHT])
    strips = -(-tags[HEIGHT] // max(1, rows)) * (bands if tags.get(PLANAR) == 2 else 1)
    if STRIPS in tags and len(tags[STRIPS]) < strips:
        raise UnusableError(f"truncated: {len(tags[STRIPS])} of {strips} strips; get it again")


def _turn(image: Image.Image) -> Image.Transpose | None:
    image.load()  # which turns a TIFF, and removes its orientation
    return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))


def _raw_mode(image: Image.Image) -> str:
    """How numbers lie in the file, by Pillow's name for it; empty once they are decoded."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether there are several channels of 16 bits, of which Pillow keeps the upper 8."""
    raw_mode = _raw_mode(image)  # of which BGR;16 has 16 bits in all
    return ";16" in raw_mode and not raw_mode.startswith("BGR") and not image.mode.startswith("I")


def _flat_from_deep(image: Image.Image, content: bytes, white_level: int | None) -> Image.Image:
    """Several channels of 16 bits scaled to 8, without transparency."""
    raw_mode = _raw_mode(image)
    kind = raw_mode.partition(";")[0]
    if kind == "LA":  # two numbers of two bytes each, read as if they were four channels
        levels = _decoded_as(content, "RGBA").view(">u2")
    elif kind in ("RGB", "RGBA"):
        # Pillow keeps the upper byte of each number. With the order of bytes reversed that is the lower one.
        is_little = raw_mode.endswith("L") or (raw_mode.endswith("N") and sys.byteorder == "little")
        upper = _decoded_as(content, raw_mode).astype(np.uint16)
        levels = upper << 8 | _decoded_as(content, f"{kind};16{'B' if is_little else 'L'}")
    else:
        raise UnusableError(f"16 bits a channel of {kind}; save it as RGB")
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
    """Pixels `uint8 [H, W, C]`, the numbers in the file taken as they lie by another name of Pillow's."""
    with Image.open(io.BytesIO(content), formats=[name.upper() for name in FORMATS]) as image:
        tiles: Any = image.tile
        image.tile = [
            tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
            for tile in tiles
        ]
        return np.array(image)


def _flat(image: Image.Image, white_level: int | None) -> Image.Image:
    """A picture of 8 bits a channel without transparency."""
    clear = image.info.get("transparency", -1)
    if image.mode in ("I", "F"):
        numbers = "whole" if image.mode == "I" else "floating-point"
        raise UnusableError(f"{numbers} numbers of 32 bits; 8 or 16 bits a channel are allowed")
    if image.mode.startswith("I;16"):
        bits = max(getattr(image, "tag_v2", {}).get(BITS, (16,)))
        levels = np.asarray(image)
        if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
            pixels = 255 - _scaled(levels, bits, white_level)
        else:
            pixels = _scaled(levels, bits, white_level)
        return Image.fromarray(np.where(levels == clear, 255, pixels).astype(np.uint8))
    if image.has_transparency_data:
        if (raw_mode := _raw_mode(image)) in ("L;2", "L;4"):  # Pillow scales the pixels, but not this value
            image = image.copy()
            image.info["transparency"] = clear * (85 if raw_mode == "L;2" else 17)
        return _on_white(image)
    return image


def _scaled(levels: np.ndarray, bits: int, white_level: int | None) -> np.ndarray:
    """Scale to `uint8`: `white_level`, or else the largest number of so many bits, becomes 255."""
    white = white_level or 2**bits - 1
    if white_level and levels.size and levels.max() > white:
        raise UnusableError(f"a value of {levels.max()}, above data.white_level = {white}")
    return ((levels.astype(np.uint32) * 510 + white) // (2 * white)).astype(np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _finish(flat: Image.Image, turn: Image.Transpose | None, reading: Reading) -> Picture:
    """The picture with the channels and the size that are asked for."""
    # Each step only where it is needed: Pillow copies a picture also if there is nothing to do.
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
            black = Image.new(mode, (width, height))
            black.paste(
                flat.resize(inner, Image.Resampling.BILINEAR), ((width - inner[0]) // 2, (height - inner[1]) // 2)
            )
            flat = black
    return Picture(np.asarray(flat).reshape(flat.height, flat.width, reading.channels).transpose(2, 0, 1), cropped)
