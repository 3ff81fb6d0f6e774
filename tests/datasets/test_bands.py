"""`data.color: bands`: TIFF files with any number of bands or pages."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from convae.checking import survey
from convae.datasets.download import download
from convae.datasets.image_set import ImageSet
from convae.datasets.pictures import UnusableError, decode, from_pillow
from convae.datasets.prepare import prepare
from convae.datasets.reading import Reading
from convae.names import PARTS
from convae.params import DataParams

SHAPE = (5, 9, 7)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, photometric="minisblack", **options)
    return stream.getvalue()


def numbers(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    random = np.random.default_rng(0)
    if dtype == "float32":
        return random.normal(0, 1e4, shape).astype(dtype)
    info = np.iinfo(dtype)
    return random.integers(info.min, info.max, shape, endpoint=True, dtype=dtype)


def reading(**changes: Any) -> Reading:
    return Reading(**{"channels": 5, "own_units": True, "bands": True} | changes)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("layout", ["pages", "planar", "contiguous", "imagej"])
def test_the_numbers_are_kept(dtype: str, layout: str) -> None:
    values = numbers(dtype)
    if layout == "pages":
        content = tiff(values)
    elif layout == "planar":
        content = tiff(values, planarconfig="separate", metadata={"axes": "SYX"})
    elif layout == "contiguous":
        content = tiff(values.transpose(1, 2, 0), planarconfig="contig")
    elif dtype == "int16":
        pytest.skip("ImageJ has no signed numbers")
    else:
        content = tiff(values, imagej=True, metadata={"axes": "CYX"})
    found = decode(content, reading()).pixels
    assert found.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_resizing_keeps_the_depth(fit: Any) -> None:
    values = np.full(SHAPE, 30_000, np.uint16)
    found = decode(tiff(values), reading(size=(4, 6), fit=fit)).pixels
    assert found.shape == (5, 4, 6)
    assert (found == 30_000).all()  # padding has the smallest number


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (numbers("uint16", (4, 9, 7)), {}, "^number of bands or pages: 4, or a truncated file; data.channels = 5$"),
        (numbers("uint16"), {"own_units": False}, "^uint16; set data.scale to range"),
        (numbers("float32").astype(np.float64), {}, "^float64; save it as uint8, uint16, int16 or float32$"),
        (np.full(SHAPE, np.nan, np.float32), {}, "^NaN or infinity$"),
        (numbers("uint16", (2, 5, 9, 7)), {}, "^axes .* one axis of bands or pages is allowed$"),
    ],
)
def test_other_bands_are_refused(values: np.ndarray, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableError, match=message):
        decode(tiff(values), reading(**changes))


def test_missing_bands_are_no_zeros(tmp_path: Path) -> None:
    axes = {"axes": "CYX", "Channel": {"Name": list("abcde")}}
    tifffile.imwrite(tmp_path / "whole.ome.tif", numbers("uint16"), photometric="minisblack", metadata=axes)
    with tifffile.TiffFile(tmp_path / "whole.ome.tif") as file:
        described, first = file.ome_metadata, file.pages[0].asarray()
    content = tiff(first, description=described, metadata=None)
    with pytest.raises(UnusableError, match=r"4 of 5 bands or pages are missing, or in other files; save all"):
        decode(content, reading())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extratags": [(42113, "s", 0, "-32768", True)]}, r"-32768, which stands for missing pixels \(GDAL_NODATA\)"),
        ({"extratags": [(274, "H", 1, 6, True)]}, "turned by its orientation tag; save it upright"),
    ],
)
def test_tags_that_change_what_numbers_mean_are_not_ignored(options: dict[str, Any], message: str) -> None:
    values = numbers("int16")
    values[0, 0, 0] = -32768
    with pytest.raises(UnusableError, match=message):
        decode(tiff(values, **options), reading())
    fine = {"extratags": [(42113, "s", 0, "0", True), (274, "H", 1, 1, True)]}
    np.testing.assert_array_equal(decode(tiff(values, **fine), reading()).pixels, values)


def test_white_that_is_zero_is_refused() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, numbers("uint8"), photometric="miniswhite")
    with pytest.raises(UnusableError, match="0 is white; save the intensities themselves"):
        decode(stream.getvalue(), reading())


def test_a_file_that_unpacks_to_too_much_is_refused() -> None:
    content = tiff(np.zeros((5, 9000, 9000), np.uint8), compression="zlib", tile=(4496, 4496))
    assert len(content) < 2**20
    with pytest.raises(UnusableError, match="405000000 numbers; at most 268435455 are allowed"):
        decode(content, reading())


def test_pillow_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.tif").write_bytes(tiff(numbers("uint16", (9, 7))))
    with (
        Image.open(tmp_path / "one.tif") as image,
        pytest.raises(UnusableError, match="the TIFF file itself, is needed"),
    ):
        from_pillow(image, reading(channels=1))


def test_other_files_are_refused() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    with pytest.raises(UnusableError, match=r"^not a TIFF, which data.color: bands needs$"):
        decode(stream.getvalue(), reading())


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_a_truncated_file_is_never_read_as_something_else(options: dict[str, Any]) -> None:
    values = numbers("uint16")
    whole = tiff(values, **options)
    for length in range(1, len(whole), 7):
        try:
            found = decode(whole[:length], reading()).pixels
        except UnusableError as error:
            assert "\n" not in str(error)  # noqa: PT017 - not all lengths are refused
        else:
            np.testing.assert_array_equal(found, values)  # only a description at the end is missing


def test_a_folder_of_bands_is_prepared_as_check_suggests(
    tmp_path: Path, data_params: Callable[..., DataParams]
) -> None:
    root, values = tmp_path / "scans", numbers("uint16", (30, *SHAPE))
    for index, image in enumerate(values):
        path = root / "ab"[index % 2] / f"{index:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff(image))
    found = survey(root)
    assert found["refused"] == ""
    params = {tuple(name.split(".")): value for name, value in found["params"].items()}
    suggested = {key: value for (section, key), value in params.items() if section == "data"}
    assert (suggested["color"], suggested["channels"], suggested["scale"]) == ("bands", 5, "percentile")
    data = data_params(**suggested)
    download(data, tmp_path / "raw", tmp_path / "downloads")
    prepare(data, 0, tmp_path / "raw", tmp_path / "prepared")
    for part in PARTS:
        names = (tmp_path / "prepared" / part / "paths.txt").read_text().splitlines()
        expected = values[[int(Path(name).stem) for name in names]]
        np.testing.assert_array_equal(ImageSet.load(tmp_path / "prepared" / part).images, expected)
    assert ImageSet.load(tmp_path / "prepared/train").scale
