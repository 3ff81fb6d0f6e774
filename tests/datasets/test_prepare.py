import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convae.datasets import catalogue
from convae.datasets.download import download
from convae.datasets.image_set import ImageSet
from convae.datasets.prepare import prepare
from convae.errors import ConvaeError
from convae.files import file_sha256, read_json
from convae.params import DataParams

Params = Callable[..., DataParams]
FOLDER = {"dataset": "image_folder", "image_size": (6, 4), "test_size": 6, "validation_size": 4}
PARTS = ["train", "validation", "test", "unlabelled"]


def hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*.*"))}


def run(data: DataParams, tmp_path: Path, seed: int = 0, name: str = "prepared") -> dict[str, Any]:
    download(data, tmp_path / "raw", tmp_path / "downloads")
    prepare(data, seed, tmp_path / "raw", tmp_path / name)
    return read_json(tmp_path / name / "description.json")


def test_digits_are_split_in_three(tmp_path: Path, data_params: Params) -> None:
    summary = run(data_params(dataset="digits"), tmp_path)
    assert summary == read_json(tmp_path / "prepared/description.json")
    assert summary["shape"] == [1, 8, 8]
    parts = summary["parts"]
    assert list(parts) == PARTS
    assert [parts[name]["images"] for name in PARTS] == [1294, 144, 359, 0]
    assert [parts[name]["origin"] for name in PARTS] == ["given", "held out", "held out", "none"]
    raw = np.load(tmp_path / "raw/train_images.npy")
    together = []
    for name in PARTS[:3]:
        images = ImageSet.load(tmp_path / "prepared" / name)
        assert images.sha256 == parts[name]["sha256"]
        assert images.labels is not None
        assert parts[name]["images_per_class"] == {str(i): n for i, n in enumerate(np.bincount(images.labels))}
        together += [(image.tobytes(), label) for image, label in zip(images.images, images.labels, strict=True)]
    labels = np.load(tmp_path / "raw/train_labels.npy")
    assert sorted(together) == sorted((image.tobytes(), label) for image, label in zip(raw, labels, strict=True))
    nothing = ImageSet.load(tmp_path / "prepared/unlabelled")
    assert (nothing.images.shape, nothing.labels, nothing.classes) == ((0, 1, 8, 8), None, ())


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, data_params: Params) -> None:
    data = data_params(dataset="digits")
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run(data, tmp_path, seed, name)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert hashes(tmp_path / "one")["test/images.npy"] != hashes(tmp_path / "three")["test/images.npy"]


def test_given_test_images_stay_as_they_are(tmp_path: Path, tiny: Any, data_params: Params) -> None:
    tiny.write(tmp_path / "local")
    summary = run(data_params(validation_size=7), tmp_path)
    assert [summary["parts"][name]["images"] for name in PARTS] == [33, 7, 10, 0]
    test = ImageSet.load(tmp_path / "prepared/test")
    np.testing.assert_array_equal(test.images, np.load(tmp_path / "raw/test_images.npy"))
    np.testing.assert_array_equal(test.labels, np.load(tmp_path / "raw/test_labels.npy"))


def test_unlabelled_images_stay_separate(tmp_path: Path, data_params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    known = catalogue.CATALOGUE["stl10"]
    dataset = replace(known, shape=(3, 4, 4), images={"train": 40, "test": 10, "unlabelled": 25})
    monkeypatch.setitem(catalogue.CATALOGUE, "stl10", dataset)  # type: ignore[arg-type]
    (tmp_path / "raw").mkdir()
    for split, count in dataset.images.items():
        images = np.random.default_rng(count).integers(0, 256, (count, 3, 4, 4), np.uint8)
        np.save(tmp_path / f"raw/{split}_images.npy", images)
        if split != "unlabelled":
            np.save(tmp_path / f"raw/{split}_labels.npy", np.arange(count) % 10)
    prepare(data_params(dataset="stl10", validation_size=0.25), 0, tmp_path / "raw", tmp_path / "out")
    summary = read_json(tmp_path / "out/description.json")
    assert [summary["parts"][name]["images"] for name in PARTS] == [30, 10, 10, 25]
    unlabelled = ImageSet.load(tmp_path / "out/unlabelled")
    np.testing.assert_array_equal(unlabelled.images, np.load(tmp_path / "raw/unlabelled_images.npy"))
    assert (unlabelled.labels, unlabelled.classes) == (None, ())


def test_missing_raw_images_are_an_error(tmp_path: Path, data_params: Params) -> None:
    for dataset, size in (("digits", None), ("image_folder", (4, 4))):
        with pytest.raises(ConvaeError, match="rerun `dvc repro"):
            prepare(data_params(dataset=dataset, image_size=size), 0, tmp_path / "raw", tmp_path / "prepared")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_size": 40}, "data.validation_size = 40: would hold out 40 of 40 images"),
        ({"validation_size": 0.01}, "data.validation_size = 0.01: would hold out 0 of 40 images"),
        ({"validation_size": 2}, "data.validation_size = 2: 2 and 38 images cannot each hold 3 classes"),
    ],
)
def test_an_impossible_split_leaves_earlier_results_alone(
    tmp_path: Path, tiny: Any, data_params: Params, change: dict[str, Any], message: str
) -> None:
    tiny.write(tmp_path / "local")
    run(data_params(), tmp_path)
    before = hashes(tmp_path / "prepared")
    with pytest.raises(ConvaeError, match=message):
        run(data_params(**change), tmp_path)
    assert hashes(tmp_path / "prepared") == before
    assert not (tmp_path / "prepared.partial").exists()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """30 pictures of 3 classes, distinguishable by their grey value, of various sizes."""
    root = tmp_path / "local"
    for row in range(30):
        path = root / f"train/{'abc'[row % 3]}/{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (5 + row, 40 - row), row * 8).save(path)
    return root


@pytest.fixture
def folder_params(data_params: Params) -> Params:
    return lambda **changes: data_params(**(FOLDER | changes))


def test_an_image_folder_becomes_image_sets(tmp_path: Path, pictures: Path, folder_params: Params) -> None:
    summary = run(folder_params(), tmp_path)
    assert summary["shape"] == [3, 6, 4]
    assert summary["classes"] == ["a", "b", "c"]
    assert [summary["parts"][name]["images"] for name in PARTS] == [20, 4, 6, 0]
    rows = []
    for name in PARTS[:3]:
        part = ImageSet.load(tmp_path / "prepared" / name)
        paths = (tmp_path / "prepared" / name / "paths.txt").read_text("utf-8").splitlines()
        assert part.labels is not None
        assert paths == sorted(paths)
        for image, label, path in zip(part.images, part.labels, paths, strict=True):
            row = int(Path(path).stem)
            assert (np.unique(image).tolist(), label) == ([row * 8], row % 3)
            rows.append(row)
    assert sorted(rows) == list(range(30))
    assert not (tmp_path / "prepared/decoded").exists()
    run(folder_params(), tmp_path, name="again")
    assert hashes(tmp_path / "prepared") == hashes(tmp_path / "again")


def test_cropping_and_clipping_are_recorded(tmp_path: Path, folder_params: Params) -> None:
    """12-bit strips are dark and cropped by default; parameters keep them whole and in full range."""
    for index in range(30):
        path = tmp_path / f"local/train/{'ab'[index % 2]}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.linspace(0, 4095, 6 * 16).reshape(6, 16).astype(np.uint16)).save(path)
    lost = run(folder_params(color="grey"), tmp_path)
    assert (lost["cropped"], lost["dim"], lost["parts"]["train"]["levels"]) == (0.75, 30, [1, 15])
    whole = run(folder_params(color="grey", fit="stretch", white_level=4095), tmp_path, name="whole")
    darkest, brightest = whole["parts"]["train"]["levels"]
    assert (whole["cropped"], whole["dim"]) == (0, 0)
    assert darkest < 16
    assert brightest > 239


def test_given_parts_of_an_image_folder_are_kept(tmp_path: Path, pictures: Path, folder_params: Params) -> None:
    shutil.copytree(pictures / "train/a", pictures / "validation/a")
    shutil.copytree(pictures / "train/b", pictures / "test/b")
    summary = run(folder_params(color="grey"), tmp_path)
    assert [summary["parts"][name]["images"] for name in PARTS] == [30, 10, 10, 0]
    assert summary["parts"]["test"]["images_per_class"] == {"a": 0, "b": 10, "c": 0}
    assert ImageSet.load(tmp_path / "prepared/test").images.shape == (10, 1, 6, 4)
    copies = summary["duplicates"]
    assert copies["test"]["parts"] == {"validation": 0, "train": 10, "unlabelled": 0}
    assert copies["test"]["examples"][0] == [0, "train", 10]
    assert copies["validation"]["parts"] == {"train": 10, "unlabelled": 0}


def test_a_flat_folder_has_no_labels_anywhere(tmp_path: Path, pictures: Path, folder_params: Params) -> None:
    for path in pictures.glob("train/*/*"):
        path.rename(pictures / "train" / path.name)
    for folder in "abc":
        (pictures / "train" / folder).rmdir()
    summary = run(folder_params(), tmp_path)
    assert [summary["parts"][name]["images"] for name in PARTS] == [20, 4, 6, 0]
    assert summary["classes"] == []
    for name in PARTS:
        part = ImageSet.load(tmp_path / "prepared" / name)
        assert (part.labels, part.classes) == (None, ())


def _damage(pictures: Path) -> None:
    truncated = pictures / "train/a/03.png"
    truncated.write_bytes(truncated.read_bytes()[:50])
    (pictures / "train/b/01.png").write_text("text")


def test_unreadable_files_are_an_error_that_names_them(tmp_path: Path, pictures: Path, folder_params: Params) -> None:
    _damage(pictures)
    with pytest.raises(ConvaeError) as caught:
        run(folder_params(max_rejected=1), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"data.max_rejected = 1: 2 files in {pictures} cannot be used: train/b/01.png (not a PNG")
    assert "train/a/03.png (" in message
    assert "\n" not in message


def test_unreadable_files_that_are_allowed_are_listed(tmp_path: Path, pictures: Path, folder_params: Params) -> None:
    _damage(pictures)
    summary = run(folder_params(max_rejected=2), tmp_path)
    assert sum(summary["parts"][name]["images"] for name in PARTS) == 28
    assert [file["path"] for file in summary["rejected"]] == ["train/b/01.png", "train/a/03.png"]
    assert all(file["reason"] for file in summary["rejected"])


def test_a_class_must_not_be_lost(tmp_path: Path, pictures: Path, folder_params: Params) -> None:
    for path in (pictures / "train/b").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ConvaeError, match="no image of class 'b' in the train part can be read"):
        run(folder_params(max_rejected=100), tmp_path)


@pytest.mark.parametrize("change", ["size", "bytes", "removed"])
def test_a_file_that_changed_since_download_is_an_error(
    tmp_path: Path, pictures: Path, folder_params: Params, change: str
) -> None:
    download(folder_params(), tmp_path / "raw", tmp_path / "downloads")
    path = pictures / "train/a/00.png"
    content = path.read_bytes()
    path.unlink()
    if change != "removed":
        path.write_bytes(content + b"x" if change == "size" else content[:-1] + b"x")
    with pytest.raises(ConvaeError, match=r"train/a/00.png: .*; rerun `dvc repro --force download`"):
        prepare(folder_params(), 0, tmp_path / "raw", tmp_path / "prepared")


def test_memory_does_not_grow_with_the_number_of_images(
    tmp_path: Path, data_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = []
    for count in (12_000, 24_000):
        dataset = replace(catalogue.CATALOGUE["svhn"], images={"train": count, "test": 100})
        monkeypatch.setitem(catalogue.CATALOGUE, "svhn", dataset)  # type: ignore[arg-type]
        raw = tmp_path / f"raw{count}"
        raw.mkdir()
        for split, n in dataset.images.items():
            np.lib.format.open_memmap(raw / f"{split}_images.npy", "w+", np.uint8, (n, 3, 32, 32)).flush()
            np.save(raw / f"{split}_labels.npy", np.arange(n) % 10)
        tracemalloc.start()
        prepare(data_params(dataset="svhn"), 0, raw, tmp_path / "prepared")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    images = (24_000 - 12_000) * 3 * 32 * 32
    assert peaks[1] - peaks[0] < images / 10
