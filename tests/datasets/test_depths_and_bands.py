"""Unusual bit depths, bands and frames: the right pixels, or one line that says why not."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from picture_files import chunk, pair, png, tiff
from PIL import Image

from convae.datasets.pictures import UnusableError, decode, from_pillow
from convae.datasets.reading import Reading

RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(0, 4096, (5, 7, 3)).astype(np.uint16)


def scaled(levels: np.ndarray, white: int) -> np.ndarray:
    return np.floor(levels / white * 255 + 0.5).astype(np.uint8).transpose(2, 0, 1)


def rows(levels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)


def interlaced(levels: np.ndarray) -> bytes:
    """The PNG's data in the seven passes of Adam7."""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    return b"".join(rows(part) for y, dy, x, dx in passes if (part := levels[y::dy, x::dx]).size)


COLOURS = {
    "PNG": png(7, 5, 16, 2, rows(DEEP)),
    "PNG, interlaced": png(7, 5, 16, 2, interlaced(DEEP)).replace(
        *(struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, way) for way in (0, 1))
    ),
    "TIFF": tiff(DEEP),
    "TIFF, the other order of bytes": tiff(DEEP, order=">"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLOURS)
@pytest.mark.parametrize("white", [None, 4095])
@pytest.mark.filterwarnings("ignore")
def test_sixteen_bit_colours_are_scaled_by_their_white_level(kind: str, white: int | None) -> None:
    content = COLOURS[kind]
    if "interlaced" in kind:  # the checksum of the header that was changed
        content = content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
    np.testing.assert_array_equal(decode(content, Reading(3, white_level=white)).pixels, scaled(DEEP, white or 65535))


@pytest.mark.parametrize("order", "<>")
def test_compressed_sixteen_bit_colours(order: str) -> None:
    raw = zlib.compress(DEEP.astype(f"{order}u2").tobytes())
    found = decode(tiff(DEEP, order=order, compression=8, raw=raw), Reading(3, white_level=4095)).pixels
    np.testing.assert_array_equal(found, scaled(DEEP, 4095))


def test_twelve_bit_grey_is_scaled_by_its_own_depth() -> None:
    levels = np.array([[[0], [2048]], [[4095], [1]]], np.uint16)
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x01])
    assert decode(tiff(levels, 1, bits=12, raw=packed), Reading(1)).pixels.tolist() == [[[0, 128], [255, 0]]]


def test_sixteen_bit_grey_that_uses_12_bits() -> None:
    content = png(2, 1, 16, 0, b"\0" + pair(4095, 2048))
    assert decode(content, Reading(1)).pixels.tolist() == [[[16, 8]]]
    assert decode(content, Reading(1, white_level=4095)).pixels.tolist() == [[[255, 128]]]
    with pytest.raises(UnusableError, match=r"a value of 4095, above data\.white_level = 4000"):
        decode(content, Reading(1, white_level=4000))


def test_the_white_level_does_not_affect_eight_bit_pictures() -> None:
    content = png(2, 1, 8, 0, b"\0" + bytes([7, 200]))
    assert decode(content, Reading(1, white_level=4095)).pixels.tolist() == [[[7, 200]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_with_white_as_zero_are_inverted(dtype: type) -> None:
    top = np.iinfo(dtype).max
    levels = np.array([[[0], [top], [top // 255 * 100]]], dtype)
    assert decode(tiff(levels, 0), Reading(1)).pixels.tolist() == [[[255, 0, 155]]]
    assert decode(tiff(levels, 1), Reading(1)).pixels.tolist() == [[[0, 255, 100]]]


def test_dark_deep_pictures_are_flagged() -> None:
    grey = png(2, 1, 16, 0, b"\0" + pair(4095, 7))
    for content in (grey, COLOURS["PNG"], COLOURS["TIFF"]):
        assert decode(content, Reading(3)).dim
        assert not decode(content, Reading(3, white_level=4095)).dim
    assert not decode(png(2, 1, 8, 0, b"\0\1\2"), Reading(3)).dim


def test_sixteen_bit_alpha_is_composited_on_white_at_any_white_level() -> None:
    """Alpha may have as many bits as the colours, or all 16."""
    for opaque in (4095, 65535):
        content = png(2, 1, 16, 6, b"\0" + pair(4095, 0, 0, opaque, 4095, 0, 0, 0))
        found = decode(content, Reading(3, white_level=4095)).pixels.tolist()
        assert found == [[[255, 255]], [[0, 255]], [[0, 255]]]


EIGHT = RANDOM.integers(0, 256, (5, 7, 6)).astype(np.uint8)
REFUSED = {
    "four bands": (tiff(EIGHT[..., :4]), "^4 bands; save one as grey or three as RGB, or set data.color: bands$"),
    "four bands of 16 bits": (tiff(EIGHT[..., :4].astype(np.uint16)), "^4 bands"),
    "four bands, the last of no meaning": (tiff(EIGHT[..., :4], extra=[0]), "^4 bands"),
    "five bands": (tiff(EIGHT[..., :5], extra=[0, 0]), "^5 bands"),
    "five bands, one of them transparency": (tiff(EIGHT[..., :5], extra=[2, 0]), "^5 bands"),
    "six bands": (tiff(EIGHT, extra=[0, 0, 0]), "^6 bands"),
    "seven bands": (tiff(np.repeat(EIGHT[..., :1], 7, 2), extra=[0] * 4), "^7 bands"),
    "two bands": (tiff(EIGHT[..., :2], 1, extra=[0]), "^2 bands"),
    "two bands that nothing is said of": (tiff(EIGHT[..., :2], 1), "^2 bands"),
    "three bands of grey": (tiff(EIGHT[..., :3], 1, extra=[0, 0]), "^3 bands"),
    "signed": (tiff(EIGHT[..., :1].astype(np.int8), 1), "^signed numbers of 8 bits"),
    "signed, 16 bits": (
        tiff(EIGHT[..., :1].astype(np.int16), 1),
        "^signed numbers of 16 bits; save unsigned integers of 8 or 16 bits, or set",
    ),
    "32 bits": (tiff(EIGHT[..., :1].astype("u4"), 1), "^32 bits per channel; 8 or 16 are allowed"),
    "10 bits": (tiff(EIGHT[..., :1], 1, bits=10), "^10 bits per channel; 8 or 16 are allowed"),
    "14 bits": (tiff(EIGHT[..., :1], 1, bits=14), "^14 bits per channel; 8 or 16 are allowed"),
    "a mask": (tiff(EIGHT[..., :1], 4), "^a TIFF of photometric interpretation 4; save it as grey or RGB$"),
    "CIELAB": (tiff(EIGHT[..., :3], 8), "^a TIFF of photometric interpretation 8"),
    "a filter over a sensor": (tiff(EIGHT[..., :1], 32803), "^a TIFF of photometric interpretation 32803"),
    "one band after the other": (tiff(DEEP, planar=2), "^16 bits per channel in separate planes"),
    "pictures inside": (tiff(EIGHT[..., :3], sub_ifds=True), "^a TIFF with more pictures inside"),
    "CMYK of 16 bits": (tiff(EIGHT[..., :4].astype(np.uint16), 5), "^CMYK with 16 bits per channel; save it as RGB"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.filterwarnings("ignore")
def test_unsupported_bands_and_number_types_are_refused(case: str, channels: int) -> None:
    content, message = REFUSED[case]
    with pytest.raises(UnusableError, match=message):
        decode(content, Reading(channels))


@pytest.mark.parametrize("case", ["four bands", "five bands", "signed, 16 bits", "32 bits"])
def test_unsupported_types_are_refused_from_pillow_too(case: str) -> None:
    content, message = REFUSED[case]
    with Image.open(io.BytesIO(content)) as image, pytest.raises(UnusableError, match=message):
        from_pillow(image, Reading(3))


def test_a_loaded_pillow_image_keeps_its_depth() -> None:
    levels = np.array([[[0], [2048]], [[4095], [1]]], np.uint16)
    with Image.open(io.BytesIO(tiff(levels, 1, bits=12, raw=bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x01])))) as image:
        image.load()
        assert from_pillow(image, Reading(1)).pixels.tolist() == [[[0, 128], [255, 0]]]
    with Image.open(io.BytesIO(COLOURS["TIFF"])) as image:
        image.load()
        with pytest.raises(UnusableError, match="pass the file instead"):
            from_pillow(image, Reading(3))


def test_pages_of_a_pillow_image_are_not_dropped() -> None:
    stream = io.BytesIO()
    Image.new("L", (2, 2)).save(stream, "TIFF", save_all=True, append_images=[Image.new("L", (2, 2), 255)])
    with Image.open(stream) as image:
        with pytest.raises(UnusableError, match="2 frames or pages"):
            from_pillow(image, Reading(1))
        image.seek(1)
        assert from_pillow(image.copy(), Reading(1)).pixels.min() == 255


def test_a_pillow_image_is_not_modified() -> None:
    with Image.open(io.BytesIO(png(4, 1, 2, 0, b"\0\x1b", chunk(b"tRNS", pair(1))))) as image:
        assert from_pillow(image, Reading(1)).pixels.tolist() == [[[0, 255, 170, 255]]]
        assert image.info["transparency"] == 1


@pytest.mark.parametrize("fourth", [0, 255, None])
def test_a_32_bit_bitmap_has_three_bands(fourth: int | None) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 3] = [[1, 2], [3, 4]] if fourth is None else fourth
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "BMP")
    if fourth is None:
        with pytest.raises(UnusableError, match="4 bands, and BMP does not define the fourth; save it as PNG"):
            decode(stream.getvalue(), Reading(3))
    else:
        assert decode(stream.getvalue(), Reading(3)).pixels.max() == 0


def test_a_pillow_image_that_pillow_would_truncate_is_refused() -> None:
    with Image.open(io.BytesIO(COLOURS["PNG"])) as image, pytest.raises(UnusableError, match="pass the file instead"):
        from_pillow(image, Reading(3))


@pytest.mark.parametrize("extra", [[1], [2]])
def test_a_band_declared_as_transparency_is_treated_as_such(extra: list[int]) -> None:
    pixels = np.array([[[10, 20, 30, 255], [0, 0, 0, 0]]], np.uint8)
    assert decode(tiff(pixels, extra=extra), Reading(3)).pixels.tolist() == [[[10, 255]], [[20, 255]], [[30, 255]]]


def test_planar_eight_bit_bands() -> None:
    found = decode(tiff(EIGHT[..., :3], planar=2), Reading(3)).pixels
    np.testing.assert_array_equal(found, EIGHT[..., :3].transpose(2, 0, 1))


WIDE = np.repeat(np.array([[10, 10, 10, 200, 200, 90, 90, 90]], np.uint8), 4, axis=0)
WIDE_PNG = png(8, 4, 8, 0, b"".join(b"\0" + row.tobytes() for row in WIDE))


@pytest.mark.parametrize(
    ("fit", "expected", "cropped"),
    [
        ("crop", [[10, 200, 200, 90]] * 4, 0.5),
        ("stretch", None, 0.0),
        ("pad", None, 0.0),
    ],
)
def test_pictures_are_fitted_as_requested(fit: Any, expected: list[list[int]] | None, cropped: float) -> None:
    pixels, lost, _ = decode(WIDE_PNG, Reading(1, (4, 4), fit))
    picture = Image.fromarray(WIDE)
    if fit == "stretch":
        expected = np.asarray(picture.resize((4, 4), Image.Resampling.BILINEAR)).tolist()
    elif fit == "pad":
        inner = np.asarray(picture.resize((4, 2), Image.Resampling.BILINEAR)).tolist()
        expected = [[0] * 4, *inner, [0] * 4]
    assert pixels.tolist() == [expected]
    assert lost == cropped


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000)])
def test_the_thinnest_picture_can_be_padded(size: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0]), 255, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    found = decode(stream.getvalue(), Reading(1, (4, 4), "pad")).pixels
    assert sorted(np.unique(found).tolist()) == [0, 255]
    assert (found == 255).sum() == 4


MORE = {
    "fewer strips than rows": (tiff(EIGHT[..., :1], 1, rows=2), "^truncated: 1 of 3 strips; get it again$"),
    "white is zero in the other order of bytes": (
        tiff(DEEP[..., :1], 0, order=">"),
        "^a TIFF with an unsupported layout of 16 bits; save it as PNG$",
    ),
    "other inks": (tiff(EIGHT[..., :4], 5, inks=2), "^inks other than CMYK; save it as RGB$"),
    "a palette that is black": (tiff(EIGHT[..., :1], 3, colors=[*range(256)] * 3), "^a palette of 8 bits where TIFF"),
    "nothing on black or white": (tiff(EIGHT[..., :1], None), "^a TIFF that does not say whether 0 is black or white"),
}


@pytest.mark.parametrize("case", MORE)
@pytest.mark.filterwarnings("ignore")
def test_ambiguous_tiffs_are_refused(case: str) -> None:
    content, message = MORE[case]
    with pytest.raises(UnusableError, match=message):
        decode(content, Reading(1))


def test_a_bitmap_with_16_bits_per_pixel_is_read() -> None:
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 70, 0, 0, 66, 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    content = header + masks + struct.pack("<HH", 0xF800, 0)
    assert decode(content, Reading(3)).pixels.ravel().tolist() == [255, 0, 0]
