"""`data.dataset: arrays`: images of any number of channels, as they are measured."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import zarr

from convae.checking import survey
from convae.datasets.arrays import copy_arrays, open_arrays
from convae.datasets.download import download
from convae.datasets.image_set import ImageSet
from convae.datasets.prepare import prepare
from convae.errors import ConvaeError
from convae.files import read_json
from convae.names import PARTS
from convae.params import DataParams

N, C, H, W = 60, 5, 6, 4
UNITS = np.array([1, 10, 100, 0.1, 1000], np.float32)[:, None, None]
Arrays = dict[str, np.ndarray]


def stack(**more: Any) -> Arrays:
    """Five channels in very different units, and three classes."""
    images = np.random.default_rng(0).normal(3, 1, (N, C, H, W)).astype(np.float32) * UNITS
    return {"images": images, "labels": np.arange(N) % 3} | more


@pytest.fixture
def prepared(tmp_path: Path, data_params: Callable[..., DataParams]) -> Callable[..., Path]:
    """`prepared(arrays, kind="npz", scale="range")` runs download and prepare, and returns the folder."""

    def run(arrays: Arrays, kind: str = "npz", **changes: Any) -> Path:
        root = tmp_path / f"stack.{kind}"
        if kind == "npz":
            np.savez(root, **arrays)
        elif kind == "zarr":
            group = zarr.open_group(str(root), mode="w")
            for name, array in arrays.items():
                group.create_array(name, data=array)
        else:
            root.mkdir()
            for name, array in arrays.items():
                np.save(root / f"{name}.npy", array)
        data = data_params(
            **{"dataset": "arrays", "root": str(root), "image_size": [H, W], "channels": C, "scale": "range"} | changes
        )
        download(data, tmp_path / "raw", tmp_path / "downloads")
        prepare(data, 0, tmp_path / "raw", tmp_path / "prepared")
        return tmp_path / "prepared"

    return run


def everything(prepared: Path) -> np.ndarray:
    return np.concatenate([np.asarray(ImageSet.load(prepared / part).images) for part in PARTS])


def in_order(images: np.ndarray) -> np.ndarray:
    return images[np.lexsort(images.reshape(len(images), -1).T)]


@pytest.mark.parametrize("kind", ["npz", "npy", "zarr"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_numbers_arrive_as_they_are(prepared: Callable[..., Path], kind: str, layout: str) -> None:
    arrays = stack()
    given = arrays["images"]
    if layout == "channels_last":
        arrays["images"] = given.transpose(0, 2, 3, 1)
    folder = prepared(arrays, kind, layout=layout)
    np.testing.assert_array_equal(in_order(everything(folder)), in_order(given))
    train = ImageSet.load(folder / "train")
    assert train.images.dtype == np.float32
    assert train.classes == ("0", "1", "2")
    assert isinstance(train.images, np.memmap)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_whole_numbers_keep_their_depth(prepared: Callable[..., Path], dtype: str, order: str) -> None:
    info = np.iinfo(dtype)
    images = np.random.default_rng(0).integers(info.min, info.max, (N, C, H, W), endpoint=True, dtype=dtype)
    folder = prepared({"images": images.astype(np.dtype(dtype).newbyteorder(order))})
    np.testing.assert_array_equal(in_order(everything(folder)), in_order(images.astype(np.float32)))


def test_uint8_without_a_scale_stays_uint8(prepared: Callable[..., Path]) -> None:
    images = np.random.default_rng(0).integers(256, size=(N, C, H, W), dtype=np.uint8)
    train = ImageSet.load(prepared({"images": images}, scale=None) / "train")
    assert train.images.dtype == np.uint8
    assert train.scale is None


@pytest.mark.parametrize("rule", ["range", "percentile", "standard", [-5.0, 20.0]])
def test_the_scale_is_fitted_to_the_training_part(prepared: Callable[..., Path], rule: Any) -> None:
    folder = prepared(stack(), scale=rule)
    train, test = (ImageSet.load(folder / part) for part in ("train", "test"))
    assert train.scale
    assert train.scale == test.scale
    scaled = train.scale.apply(train.images)
    over = {"axis": (0, 2, 3)}
    if rule == "range":
        np.testing.assert_allclose(scaled.min(**over), 0, atol=1e-6)
        np.testing.assert_allclose(scaled.max(**over), 1, atol=1e-6)
    elif rule == "percentile":
        np.testing.assert_allclose(np.percentile(scaled, [0.1, 99.9], **over), [[0] * C, [1] * C], atol=1e-5)
    elif rule == "standard":
        np.testing.assert_allclose(scaled.mean(**over), 0, atol=1e-5)
        np.testing.assert_allclose(scaled.std(**over), 1, atol=1e-5)
    else:
        np.testing.assert_allclose(scaled, (train.images + 5) / 25, rtol=1e-6)
    np.testing.assert_allclose(train.scale.undo(scaled), train.images, rtol=1e-4, atol=1e-3)
    assert read_json(folder / "description.json")["scale"]["offset"] == list(train.scale.offset)


def test_a_constant_channel_is_no_division_by_zero(prepared: Callable[..., Path]) -> None:
    arrays = stack()
    arrays["images"][:, 2] = 7
    train = ImageSet.load(prepared(arrays) / "train")
    assert train.scale
    assert not train.scale.apply(train.images)[:, 2].any()


def test_a_split_and_groups_are_respected(prepared: Callable[..., Path]) -> None:
    split = np.repeat(["train", "test"], N // 2)
    arrays = stack(split=split, groups=np.arange(N) // 4 + 100 * (np.arange(N) >= N // 2))
    folder = prepared(arrays)
    np.testing.assert_array_equal(ImageSet.load(folder / "test").images, arrays["images"][N // 2 :])
    parts = read_json(folder / "description.json")["parts"]
    assert parts["test"]["origin"] == "given"
    train, validation = (
        {int((arrays["images"] == image).all((1, 2, 3)).argmax()) // 4 for image in ImageSet.load(folder / part).images}
        for part in ("train", "validation")
    )
    assert not train & validation


def test_parts_may_be_apart_and_labels_text(prepared: Callable[..., Path]) -> None:
    whole = stack()["images"]
    arrays = {"train_images": whole[:40], "train_labels": np.array(["b", "a"] * 20)}
    arrays |= {"test_images": whole[40:], "test_labels": np.array(["a", "b"] * 10)}
    test = ImageSet.load(prepared(arrays, "npy") / "test")
    assert test.classes == ("a", "b")
    assert test.labels is not None
    assert test.labels.tolist() == [0, 1] * 10


def test_text_of_zarr_is_text(prepared: Callable[..., Path]) -> None:
    train = ImageSet.load(prepared(stack(labels=np.array(["b", "ä"] * 30)), "zarr") / "train")
    assert train.classes == ("b", "ä")


@pytest.mark.parametrize("order", ["<", ">"])
def test_fractions_in_either_order_of_bytes_need_no_scale(prepared: Callable[..., Path], order: str) -> None:
    images = np.random.default_rng(0).random((N, C, H, W)).astype(f"{order}f4")
    train = ImageSet.load(prepared({"images": images}, scale=None) / "train")
    assert train.scale is None
    assert train.images.dtype == np.float32


def test_near_duplicates_are_sought_in_scaled_images(prepared: Callable[..., Path]) -> None:
    images = np.random.default_rng(0).normal(size=(N, 2, 12, 12)).astype(np.float32)
    images[:, 1] = 1e6 + images[:1, 1]  # the same in all, and much larger
    folder = prepared({"images": images}, channels=2, image_size=[12, 12])
    assert read_json(folder / "description.json")["near_duplicates"]["test"]["images"] == 0


def test_members_of_an_archive_stay_in_it(tmp_path: Path, data_params: Callable[..., DataParams]) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8), np.uint8))
    for name in ("../images.npy", "x/images.npy"):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.write(tmp_path / "images.npy", name)
        with pytest.raises(ConvaeError, match="is in a folder, or there twice"), TemporaryDirectory() as raw:
            copy_arrays(
                data_params(dataset="arrays", root=str(tmp_path / "a.npz"), image_size=8, channels=1), Path(raw)
            )


def test_one_file_of_grey_images_is_enough(tmp_path: Path, data_params: Callable[..., DataParams]) -> None:
    np.save(tmp_path / "stack.npy", np.random.default_rng(0).random((N, H, W)).astype(np.float32))
    data = data_params(dataset="arrays", root=str(tmp_path / "stack.npy"), image_size=[H, W], channels=1)
    (tmp_path / "raw").mkdir()
    copy_arrays(data, tmp_path / "raw")
    assert np.load(tmp_path / "raw/train_images.npy").shape == (N, 1, H, W)


@pytest.mark.parametrize(
    ("change", "parameters", "message"),
    [
        ({"images": np.zeros((N, H, W, C), np.float32)}, {}, r"images are \[60, 6, 4, 5\], expected \[N, C, H"),
        ({"images": np.zeros((N, C), np.float32)}, {}, r"images are \[60, 5\], expected"),
        ({"images": np.zeros((N, C, H, W))}, {}, "images are float64; uint8, uint16, int16, float32 are allowed"),
        ({"images": np.zeros((N, C, H, W), np.uint16)}, {"scale": None}, "images are uint16; set data.scale to range"),
        ({"images": np.full((N, C, H, W), 7, np.float32)}, {"scale": None}, "values from 7 to 7; set data.scale"),
        ({"labels": np.arange(N - 1)}, {}, r"labels are \[59\], but there are 60 images"),
        ({"labels": np.arange(N) / 2}, {}, "labels are float64; whole numbers or text are needed"),
        ({"labels": np.zeros(N, int)}, {}, "0 is the only label; at least two are needed"),
        ({"split": np.full(N, "val")}, {}, "split has 'val'; train, validation, test are allowed"),
        ({"split": np.full(N, "test")}, {}, "no image of the training part"),
        ({"groups": np.arange(N)}, {}, "each of the 60 images is a group by itself"),
        ({"groups": np.arange(N) // 3, "split": np.repeat(["train", "test"], [31, N - 31])}, {}, "group 10 lies"),
        ({"labels": np.arange(N) // 12, "split": np.repeat(["train", "test"], [48, 12])}, {}, "has the label 4, which"),
        ({"label": np.arange(N)}, {}, "it also holds label; only images, labels, groups, split are allowed"),
        ({"labels": np.array([b"\xff", b"a"] * 30)}, {}, "labels are not UTF-8"),
        ({"train_images": np.zeros((N, C, H, W), np.float32)}, {}, "either images or train_images is needed"),
        ({"labels": np.array([{}] * N)}, {}, r"labels.npy: Python objects; save it with .astype\(str\)"),
        ({"labels": np.array(["a", "b", ""] * 20)}, {}, "labels are empty for 20 images, such as 2; leave these out"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_that_are_not_what_was_said_are_one_line(
    prepared: Callable[..., Path], change: Arrays, parameters: dict[str, Any], message: str, kind: str
) -> None:
    with pytest.raises(ConvaeError, match=message) as error:
        prepared(stack(**change), kind, **parameters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_name_their_image(prepared: Callable[..., Path], bad: float) -> None:
    arrays = stack()
    arrays["images"][17, 3, 2, 1] = bad
    with pytest.raises(ConvaeError, match="image 17 of the train part holds NaN or infinity"):
        prepared(arrays)


def test_litter_beside_arrays_is_ignored(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", stack()["images"])
    (tmp_path / "._images.npy").write_bytes(b"Mac OS X")
    assert list(open_arrays(tmp_path, tmp_path)) == ["images"]


@pytest.mark.parametrize("damaged", ["images", "labels"])
def test_a_damaged_chunk_is_one_line(
    tmp_path: Path, data_params: Callable[..., DataParams], damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "stack.zarr"
    group = zarr.open_group(str(root), mode="w")
    for name, array in stack().items():
        group.create_array(name, data=array, chunks=(10, *array.shape[1:]))
    chunk = root / f"{damaged}/c/1" / ("0/0/0" if damaged == "images" else "")
    data = data_params(dataset="arrays", root=str(root), image_size=[H, W], channels=C, scale="range")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConvaeError, match=f"{damaged}.* not readable"):
        download(data, tmp_path / "raw", tmp_path)
    assert damaged == "labels" or "images are not readable" in survey(root)["refused"]
    chunk.unlink()
    download(data, tmp_path / "raw", tmp_path)
    said = "1 of 6 chunks are missing and read as 0"
    assert f"{damaged}: {said}" in capsys.readouterr().err
    assert any(concern.startswith(f"{damaged}: {said}") for concern in survey(root)["concerns"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file or folder"), (b"no zip", "File is not a zip file"), (b"", "File is not a zip file")],
)
def test_no_archive_is_one_line(
    tmp_path: Path, data_params: Callable[..., DataParams], content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    (tmp_path / "raw").mkdir()
    data = data_params(dataset="arrays", root=str(tmp_path / "a.npz"), image_size=8, channels=1)
    with pytest.raises(ConvaeError, match=message):
        copy_arrays(data, tmp_path / "raw")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 8}, "channels is needed: the number"),
        ({"channels": 5}, "image_size is needed for arrays"),
        ({"image_size": 8, "channels": 1025}, "less than or equal to 1024"),
        ({"image_size": 8, "channels": 5, "scale": [2.0, 1.0]}, "the first smaller than the second"),
        ({"image_size": 8, "channels": 5, "scale": [None, 1]}, "needs two numbers"),
        ({"image_size": 8, "channels": 5, "scale": [0, 1e300]}, "a magnitude from 1e-12 to 1e\\+12 is allowed"),
        ({"dataset": "image_folder", "image_size": 8, "layout": "channels_last"}, "layout must be channels_first"),
        ({"image_size": 8, "channels": 5, "scale": "max"}, "range, percentile, standard"),
        ({"image_size": 8, "channels": 5, "shards": "s"}, "shards must be null for arrays"),
        ({"dataset": "digits", "channels": 1}, "channels must be null; it describes arrays"),
        ({"dataset": "digits", "scale": "range"}, "scale must be null; it describes arrays"),
        (
            {"image_size": 8, "channels": 5, "white_level": 4095},
            "white_level must be null; it describes an image_folder",
        ),
        ({"dataset": "digits", "white_level": 4095}, "white_level must be null; it describes an image_folder"),
    ],
)
def test_impossible_parameters(data_params: Callable[..., DataParams], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_params(**{"dataset": "arrays", "root": "a.npz"} | changes)
