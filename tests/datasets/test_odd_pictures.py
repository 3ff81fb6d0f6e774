"""Pictures as cameras, scanners and attackers make them: the right pixels, or one line that says why not."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import chunk, pair, png
from PIL import Image

from convae.datasets import pictures
from convae.datasets.pictures import UnusableError, from_pillow, read_picture
from convae.datasets.reading import Reading


def decode(content: bytes, *shape: Any, **reading: Any) -> np.ndarray:
    return pictures.decode(content, Reading(*shape, **reading)).pixels


def encoded(mode: str, color: Any, kind: str = "TIFF", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (1, 1), color).save(stream, kind, **options)
    return stream.getvalue()


def exif(kind: int, value: bytes) -> bytes:
    """An orientation of this TIFF type."""
    return chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHI4sI", 0x0112, kind, 1, value, 0))


PALETTE = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
PIXEL = png(1, 1, 8, 2, b"\0\1\2\3")

CONVERTED = {
    # the bytes, and the pixels [C, H, W] as lists
    "16 bits": (png(1, 1, 16, 2, b"\0" + pair(0x1212, 0xFFFF, 0x00FF)), [[[0x12]], [[0xFF]], [[1]]]),
    "16 bits and alpha": (png(1, 1, 16, 6, b"\0" + pair(0x1212, 0xFFFF, 0xFF, 0xFFFF)), [[[0x12]], [[0xFF]], [[1]]]),
    "16 bits, clear": (png(1, 1, 16, 6, b"\0" + pair(0x1234, 0xFFFF, 0xFF, 0)), [[[255]]] * 3),
    "16 bits of grey": (png(2, 1, 16, 0, b"\0" + pair(0x12FF, 0x8000)), [[[0x13, 0x80]]]),
    "16 bits of grey, one clear": (
        png(2, 1, 16, 0, b"\0" + pair(0x1234, 0x8000), chunk(b"tRNS", pair(0x1234))),
        [[[255, 0x80]]],
    ),
    "16 bits of grey and alpha": (png(2, 1, 16, 4, b"\0" + pair(0x1234, 0xFFFF, 0x1234, 0)), [[[0x12, 255]]]),
    "16 bits, one colour clear": (
        png(2, 1, 16, 2, b"\0" + pair(1, 2, 3, 1, 2, 4), chunk(b"tRNS", pair(1, 2, 4))),
        [[[0, 255]]] * 3,
    ),
    "2 bits, one grey clear": (
        png(4, 1, 2, 0, b"\0" + bytes([0b00011011]), chunk(b"tRNS", pair(1))),
        [[[0, 255, 170, 255]]],
    ),
    "2 bits": (png(4, 1, 2, 0, b"\0" + bytes([0b00011011])), [[[0, 85, 170, 255]]]),
    "palette": (png(2, 1, 8, 3, b"\0\0\1", PALETTE), [[[10, 40]], [[20, 50]], [[30, 60]]]),
    "palette with alpha": (
        png(2, 1, 8, 3, b"\0\0\1", PALETTE + chunk(b"tRNS", b"\0")),
        [[[255, 40]], [[255, 50]], [[255, 60]]],
    ),
    "entry beyond the palette": (png(2, 1, 8, 3, b"\0\0\7", PALETTE), [[[10, 0]], [[20, 0]], [[30, 0]]]),
    "one colour clear": (
        png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), chunk(b"tRNS", pair(1, 2, 3))),
        [[[255, 4]], [[255, 5]], [[255, 6]]],
    ),
    "half clear": (png(1, 1, 8, 6, b"\0" + bytes([200, 100, 0, 51])), [[[244]], [[224]], [[204]]]),
    "CMYK": (encoded("CMYK", (0, 255, 51, 102)), [[[153]], [[0]], [[122]]]),
    "YCbCr": (encoded("YCbCr", (76, 85, 255)), [[[254]], [[0]], [[0]]]),
    "orientation of no meaning": (png(1, 1, 8, 2, b"\0\1\2\3", exif(3, b"\0\x63\0\0")), [[[1]], [[2]], [[3]]]),
    "orientation in letters": (png(1, 1, 8, 2, b"\0\1\2\3", exif(2, b"ab\0\0")), [[[1]], [[2]], [[3]]]),
    "turned upside down": (
        png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), exif(3, b"\0\3\0\0")),
        [[[4, 1]], [[5, 2]], [[6, 3]]],
    ),
    "turned to the right": (
        png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), exif(3, b"\0\6\0\0")),
        [[[1], [4]], [[2], [5]], [[3], [6]]],
    ),
    "garbage behind": (PIXEL + b"garbage" * 100, [[[1]], [[2]], [[3]]]),
    "more pixels than announced": (png(1, 1, 8, 2, b"\0\1\2\3" + bytes(1 << 26)), [[[1]], [[2]], [[3]]]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERTED)
@pytest.mark.filterwarnings("ignore")
def test_pixels(case: str) -> None:
    content, pixels = CONVERTED[case]
    assert decode(content, len(pixels)).tolist() == pixels


@pytest.mark.parametrize("name", ["photo.jpg", "photo.JPEG", "photo.tif", "photo", "photo.txt", "photo.png.bmp"])
def test_the_content_decides_not_the_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PIXEL)
    assert read_picture(tmp_path / name, Reading(3)).ravel().tolist() == [1, 2, 3]


BOMB = zlib.compress(bytes(1 << 26))
DAMAGED = "^damaged, or it violates its format "
REFUSED = {
    "no bytes": (b"", "empty file; get it again"),
    "no pixels": (png(0, 0, 8, 2, b""), "not a readable PNG"),
    "GIF": (encoded("P", 0, "GIF"), "a GIF; save it as PNG"),
    "animated GIF": (
        encoded("P", 0, "GIF", save_all=True, append_images=[Image.new("P", (1, 1), 1)]),
        "a GIF; save it as PNG",
    ),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG; save it as PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "PostScript; save it as PNG"),
    "PDF": (b"%PDF-1.7\n", "a PDF; save it as PNG"),
    "too few pixels": (png(10, 10, 8, 2, b"\0" * 50), DAMAGED),
    "one long line": (png(1, 89_478_485, 8, 0, b""), DAMAGED),
    "bomb": (png(1 << 31, 1 << 31, 8, 2, b""), "not a readable PNG|too many pixels"),
    "compressed text": (png(1, 1, 8, 2, b"\0\1\2\3", chunk(b"zTXt", b"a\0\0" + BOMB)), DAMAGED),
    "compressed words": (png(1, 1, 8, 2, b"\0\1\2\3", chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), DAMAGED),
    "compressed profile": (png(1, 1, 8, 2, b"\0\1\2\3", chunk(b"iCCP", b"a\0\0" + BOMB)), DAMAGED),
    "EXIF of no kind": (png(1, 1, 8, 2, b"\0\1\2\3", chunk(b"eXIf", b"garbage!")), DAMAGED),
    "32 bits": (encoded("I", 7), "signed numbers of 32 bits"),
    "floats": (encoded("F", 0.5), "floating-point numbers of 32 bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_odd_pictures_are_refused(case: str) -> None:
    content, message = REFUSED[case]
    tracemalloc.start()
    with pytest.raises(UnusableError, match=message) as reason:
        decode(content, 3, (4, 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24
    assert str(reason.value).isprintable()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore")
def test_truncated_pictures_are_refused(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    content = stream.getvalue()
    for tenth in range(10):
        with pytest.raises(UnusableError):
            decode(content[: len(content) * tenth // 10], 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBX", "I;16B"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_is_converted(mode: str, channels: int) -> None:
    assert from_pillow(Image.new(mode, (3, 2)), Reading(channels, (2, 2))).pixels.shape == (channels, 2, 2)


@pytest.mark.parametrize(("mode", "channels"), [("I", 1), ("F", 3), ("LAB", 1), ("La", 1), ("La", 3)])
def test_modes_that_cannot_become_grey_or_colour_are_refused(mode: str, channels: int) -> None:
    with pytest.raises(UnusableError):
        from_pillow(Image.new(mode, (3, 2)), Reading(channels))
