import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convae.datasets import pictures
from convae.datasets.pictures import UnusableError
from convae.datasets.reading import Reading

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (12, 8, 3), np.uint8)
SHAPE = (3, 12, 8)


def decode(content: bytes, *shape: Any, **reading: Any) -> np.ndarray:
    return pictures.decode(content, Reading(*shape, **reading)).pixels


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_pixels_of_the_right_size_are_kept(kind: str, options: dict[str, Any]) -> None:
    pixels = decode(encoded(RGB, kind, **options), 3, (12, 8))
    assert (pixels.dtype, pixels.shape) == (np.uint8, SHAPE)
    np.testing.assert_array_equal(pixels, RGB.transpose(2, 0, 1))


def test_jpeg() -> None:
    smooth = np.linspace(0, 255, 12 * 8 * 3).reshape(12, 8, 3).astype(np.uint8)
    pixels = decode(encoded(smooth, "JPEG", quality=100, subsampling=0), 3, (12, 8))
    np.testing.assert_allclose(pixels.transpose(1, 2, 0).astype(int), smooth, atol=4)


def test_grey_and_colour_convert_into_each_other() -> None:
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(decode(encoded(RGB), 1, (12, 8))[0], luma, atol=1)
    grey = decode(encoded(RGB[..., 0]), 3, (12, 8))
    np.testing.assert_array_equal(grey, np.repeat(RGB[None, ..., 0], 3, axis=0))


TURNS: dict[int, Any] = {  # how the stored pixels come from the upright ones
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


DEEP = RGB[..., 0].astype(np.uint16) * 257
STORED = [
    *[(pixels, kind, {}) for kind in ("PNG", "TIFF") for pixels in (RGB, RGB[..., 0], DEEP)],
    *[(pixels, "TIFF", {"compression": "tiff_lzw"}) for pixels in (RGB, RGB[..., 0], DEEP)],
    *[(pixels, "WEBP", {"lossless": True}) for pixels in (RGB, RGB[..., 0])],  # which only has 8 bits
]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(("pixels", "kind", "options"), STORED)
def test_exif_orientation_is_undone(orientation: int, pixels: np.ndarray, kind: str, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(np.ascontiguousarray(TURNS[orientation](pixels)), kind, exif=exif, **options)
    upright = RGB.transpose(2, 0, 1) if pixels.ndim == 3 else RGB[None, ..., 0]
    np.testing.assert_array_equal(decode(content, len(upright)), upright)
    for loaded in (False, True):
        with Image.open(io.BytesIO(content)) as image:
            if loaded:
                image.load()
            found = pictures.from_pillow(image, Reading(len(upright))).pixels
        np.testing.assert_array_equal(found, upright)


def test_palettes_are_resolved() -> None:
    indexed = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(indexed.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(encoded(indexed), 3, (12, 8)), expected)


@pytest.mark.parametrize("color", ["RGBA", "LA", "P", "tRNS"])
def test_transparency_is_composited_on_white(color: str) -> None:
    options: dict[str, Any] = {}
    if color == "P":
        image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        options["transparency"] = bytes([255, 0])
    elif color == "tRNS":
        image = Image.fromarray(np.array([[0, 1]], np.uint8))
        options["transparency"] = 1
    else:
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
        image.putpixel((0, 0), (0, 0, 0, 255))
        image = image.convert(color)
    assert decode(encoded(image, **options), 1, (1, 2)).tolist() == [[[0, 255]]]


def test_half_transparent_black_on_white_is_grey() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert np.unique(decode(encoded(image), 3, (2, 2))).tolist() == [127]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red: no cyan, full magenta and yellow
    red, green, blue = decode(encoded(image, kind), 3, (4, 4)).mean(axis=(1, 2))
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    values = np.array([[0, 128, 129], [257 * 77, 65406, 65535]], np.uint16)
    assert decode(encoded(values, kind), 1).tolist() == [[[0, 0, 1], [77, 254, 255]]]


@pytest.mark.parametrize(("dtype", "numbers"), [(np.int32, "signed"), (np.float32, "floating-point")])
def test_thirty_two_bits_are_refused(dtype: type, numbers: str) -> None:
    with pytest.raises(UnusableError, match=f"{numbers} numbers of 32 bits; save unsigned integers of 8 or 16 bits"):
        decode(encoded(np.zeros((2, 2), dtype), "TIFF"), 1, (2, 2))


def test_one_bit() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert decode(encoded(image), 1, (1, 2)).tolist() == [[[255, 0]]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(UnusableError, match="2 frames or pages; save each as a separate file"):
        decode(content, 3)


def test_the_photo_of_a_phones_jpeg_with_previews_is_read() -> None:
    photo, preview = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    red, green, blue = decode(encoded(photo, "MPO", save_all=True, append_images=[preview]), 3).mean(axis=(1, 2))
    assert red > 250
    assert max(green, blue) < 5


def test_the_largest_centred_crop_is_taken() -> None:
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200  # the middle square of three
    assert np.unique(decode(encoded(wide), 1, (4, 4))).tolist() == [200]
    assert np.unique(decode(encoded(wide.T.copy()), 1, (4, 4))).tolist() == [200]


def test_scaling_is_antialiased() -> None:
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode(encoded(checks), 1, (8, 8))
    assert np.abs(small[0, 1:-1, 1:-1].astype(int) - 127).max() <= 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_any_size_can_be_resized_to_any_size(height: int, width: int, rows: int, columns: int) -> None:
    pixels = decode(encoded(np.full((height, width), 77, np.uint8)), 1, (rows, columns))
    assert pixels.shape == (1, rows, columns)
    assert np.unique(pixels).tolist() == [77]


def _bomb(side: int) -> bytes:
    """A PNG header that claims this many pixels on each side."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 100) + b"IDAT"


def test_a_picture_with_too_many_pixels_is_refused() -> None:
    with pytest.raises(UnusableError, match="too many pixels: "):
        decode(_bomb(30_000), 3, (12, 8))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(UnusableError, match="10000×10000 pixels; at most 89478485 are allowed"),
    ):
        decode(_bomb(10_000), 3, (12, 8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"just some text", "not a readable PNG"),
        (b"\x89PNG\r\n\x1a\n", "not a readable PNG|damaged, or not as"),
        (encoded(RGB)[:-40], "damaged, or it violates its format"),
        (encoded(RGB, "JPEG")[:-40], "damaged, or it violates its format"),
        (encoded(RGB, "GIF"), "a GIF; save it as PNG"),
        (encoded(RGB, "PPM"), "a PNM image; save it as PNG"),
    ],
)
def test_damaged_files_and_other_formats_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason) as caught:
        decode(content, 3, (12, 8))
    assert "0x" not in str(caught.value)


SAMPLES = [encoded(RGB, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")]


@given(st.sampled_from(SAMPLES), st.integers(0, 400), st.binary(min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_pixels_or_a_reason(sample: bytes, position: int, damage: bytes) -> None:
    content = sample[:position] + damage + sample[position + len(damage) :]
    with suppress(UnusableError):  # no other exception may get through
        assert decode(content, 3, (12, 8)).shape == SHAPE
