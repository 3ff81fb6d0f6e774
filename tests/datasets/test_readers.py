import gzip
import hashlib
import io
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from torchvision import datasets

from convae.datasets.catalogue import CATALOGUE, Dataset
from convae.datasets.readers import read, read_idx
from convae.errors import ConvaeError
from convae.files import array_sha256

HEADER = bytes([0, 0, 8, 2, 0, 0, 0, 3, 0, 0, 0, 4])
PIXELS = bytes(range(12))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_is_read_as_an_array(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "file").write_bytes(pack(HEADER + PIXELS))
    array = read_idx(tmp_path / "file", (3, 4))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with 0x, expected 0x00000802"),
        (b"no IDX file, but some text", "begins with 0x6e6f2049"),
        (bytes([0, 0, 9, 2]) + HEADER[4:] + PIXELS, "begins with 0x00000902"),
        (bytes([0, 0, 8, 3]) + HEADER[4:] + PIXELS, "begins with 0x00000803"),
        (HEADER[:9], r"the IDX header says \(3,\), expected \(3, 4\)"),
        (HEADER[:6], r"the IDX header says \(\), expected \(3, 4\)"),
        (HEADER[:4] + b"\xff" * 8 + PIXELS, r"says \(4294967295, 4294967295\), expected \(3, 4\)"),
        (HEADER + PIXELS[:-1], "expected 12 bytes after the IDX header, found only 11"),
        (HEADER + PIXELS + b"x", "expected 12 bytes after the IDX header, found more"),
        (gzip.compress(HEADER + PIXELS, mtime=0)[:-9], "damaged gzip file"),
        (gzip.compress(HEADER + PIXELS, mtime=0)[:15], "damaged gzip file"),
        (gzip.compress(HEADER + PIXELS, mtime=0)[:-8] + bytes(8), "damaged gzip file"),
        (b"\x1f\x8b" + bytes(100), "damaged gzip file"),
    ],
)
def test_idx_damage_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConvaeError, match=message):
        read_idx(tmp_path / "file", (3, 4))


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb", "wb") as stream:
        stream.write(HEADER)
        for _ in range(64):
            stream.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ConvaeError, match="found more"):
        read_idx(tmp_path / "bomb", (3, 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_digits_match_the_catalogue(tmp_path: Path) -> None:
    ((split, images, labels),) = read(CATALOGUE["digits"], {}, tmp_path)
    assert (split, images.shape, images.max()) == ("train", (1797, 1, 8, 8), 255)
    assert labels is not None
    assert {"train_images": array_sha256(images), "train_labels": array_sha256(labels)} == CATALOGUE["digits"].sha256


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _known(dataset: Dataset, path: Path, **changes: Any) -> Dataset:
    return replace(dataset, archives={path.name: _md5(path.read_bytes())}, **changes)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, bytes], np.ndarray]:
    """Members of an archive of 4 training and 2 test images, and the images; torchvision knows their MD5."""
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
    rows = images.reshape(6, -1)
    members = {
        "data_batch_1": pickle.dumps({"data": rows[:2], "labels": [9, 1]}),
        "data_batch_2": pickle.dumps({"data": rows[2:4], "labels": [2, 3]}),
        "test_batch": pickle.dumps({"data": rows[4:], "labels": [4, 5]}),
        "batches.meta": pickle.dumps({"label_names": list(CATALOGUE["cifar10"].classes)}),
    }
    listed = [[name, _md5(content)] for name, content in members.items()]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", listed[:2])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", listed[2:3])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": listed[3][1]}
    )
    return {f"cifar-10-batches-py/{name}": content for name, content in members.items()}, images


def test_cifar(tmp_path: Path, cifar: tuple[dict[str, bytes], np.ndarray]) -> None:
    members, images = cifar
    path = _tar(tmp_path / "cifar.tar.gz", members)
    dataset = _known(CATALOGUE["cifar10"], path, images={"train": 4, "test": 2})
    (train, train_images, train_labels), (test, test_images, test_labels) = read(
        dataset, {path.name: path}, tmp_path / "scratch"
    )
    assert (train, test) == ("train", "test")
    np.testing.assert_array_equal(np.concatenate([train_images, test_images]), images)
    assert train_labels is not None
    assert test_labels is not None
    assert (train_labels.tolist(), test_labels.tolist()) == ([9, 1, 2, 3], [4, 5])


def test_nothing_is_unpickled_before_the_checksum_is_right(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "unpickled",)

    path = _tar(tmp_path / "cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": pickle.dumps(Evil())})
    with pytest.raises(ConvaeError, match=r"has MD5 .{32}, expected c58f30108f718f92721af3b95e74349a"):
        list(read(CATALOGUE["cifar10"], {path.name: path}, tmp_path / "scratch"))
    assert not (tmp_path / "unpickled").exists()
    assert not (tmp_path / "scratch").exists()


def test_only_known_members_are_unpacked(tmp_path: Path, cifar: tuple[dict[str, bytes], np.ndarray]) -> None:
    path = _tar(tmp_path / "cifar.tar.gz", {"../outside": b"x", "cifar-10-batches-py/extra": b"x"} | cifar[0])
    dataset = _known(CATALOGUE["cifar10"], path, images={"train": 4, "test": 2})
    assert len(list(read(dataset, {path.name: path}, tmp_path / "scratch"))) == 2
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "scratch/cifar-10-batches-py/extra").exists()


def test_links_in_an_archive_are_not_followed(tmp_path: Path, cifar: tuple[dict[str, bytes], np.ndarray]) -> None:
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
        tar.addfile(link)
    (tmp_path / "elsewhere").mkdir()
    dataset = _known(CATALOGUE["cifar10"], path)
    with pytest.raises(ConvaeError, match=r"lacks cifar-10-batches-py/batches\.meta, cifar-10-batches-py/data_batch_1"):
        list(read(dataset, {path.name: path}, tmp_path / "scratch"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_svhn(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
    archives, files = {}, {}
    for split, rows, labels in (("train", slice(0, 3), [10, 1, 9]), ("test", slice(3, 5), [10, 2])):
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images[rows].transpose(2, 3, 1, 0), "y": np.array(labels, np.uint8)[:, None]})
        archives[path.name], files[path.name] = _md5(path.read_bytes()), path
    dataset = replace(CATALOGUE["svhn"], archives=archives, images={"train": 3, "test": 2})
    found = {split: (images, labels) for split, images, labels in read(dataset, files, tmp_path)}
    np.testing.assert_array_equal(np.concatenate([found["train"][0], found["test"][0]]), images)
    np.testing.assert_array_equal(found["train"][1], [0, 1, 9])
    np.testing.assert_array_equal(found["test"][1], [0, 2])


def test_stl10_images_are_stored_column_by_column(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 96, 96), np.uint8)
    stored = images.transpose(0, 1, 3, 2)
    members = {
        "train_X.bin": stored[:2].tobytes(),
        "train_y.bin": bytes([1, 10]),
        "test_X.bin": stored[2:3].tobytes(),
        "test_y.bin": bytes([5]),
        "unlabeled_X.bin": stored[3:].tobytes(),
    }
    path = _tar(tmp_path / "stl10.tar.gz", {f"stl10_binary/{name}": content for name, content in members.items()})
    dataset = _known(CATALOGUE["stl10"], path, images={"train": 2, "test": 1, "unlabelled": 3})
    found = list(read(dataset, {path.name: path}, tmp_path / "scratch"))
    np.testing.assert_array_equal(np.concatenate([part for _, part, _ in found]), images)
    assert [None if labels is None else labels.tolist() for _, _, labels in found] == [[0, 9], [4], None]


def test_labels_outside_the_classes_are_refused(tmp_path: Path, tiny: Any) -> None:
    folder = tiny.write(tmp_path)
    dataset = replace(tiny.dataset, classes=("a", "b"))
    with pytest.raises(ConvaeError, match="the train labels are 0 to 2, expected 0 to 1"):
        list(read(dataset, {name: folder / name for name in tiny.files}, tmp_path))
