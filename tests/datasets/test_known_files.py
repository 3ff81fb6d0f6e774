"""MNIST's family as mirrors offer it: recognised by decoded content, however files are named and compressed."""

import bz2
import gzip
import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from convae.datasets import catalogue
from convae.datasets.catalogue import CATALOGUE, Dataset
from convae.datasets.download import download
from convae.errors import ConvaeError
from convae.params import DataParams

Params = Callable[..., DataParams]
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def spelled(folder: Path, tiny: Any, write: Callable[[Path, str, bytes], object]) -> None:
    """Each file, by `write(folder, name without .gz, unpacked content)`."""
    folder.mkdir(parents=True)
    for name, content in tiny.files.items():
        write(folder, name.removesuffix(".gz"), gzip.decompress(content))


def raw(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def raw_with_a_dot(folder: Path, name: str, content: bytes) -> None:
    raw(folder, name.replace("-idx", ".idx"), content)


def by_another_gzip(folder: Path, name: str, content: bytes) -> None:
    raw(folder, f"{name}.gz", gzip.compress(content, 1, mtime=9))


def by_another_gzip_with_a_dot(folder: Path, name: str, content: bytes) -> None:
    raw(folder, f"{name.replace('-idx', '.idx')}.gz", gzip.compress(content, 1, mtime=9))


def raw_named_gz(folder: Path, name: str, content: bytes) -> None:
    raw(folder, f"{name}.gz", content)


def in_folders_of_their_own(folder: Path, name: str, content: bytes) -> None:
    (folder / name).mkdir()
    raw(folder / name, name, content)


def both(folder: Path, name: str, content: bytes) -> None:
    raw(folder, name, content)
    by_another_gzip(folder, name, content)


SPELLINGS = [
    raw,
    raw_with_a_dot,
    by_another_gzip,
    by_another_gzip_with_a_dot,
    raw_named_gz,
    in_folders_of_their_own,
    both,
]
FOLDERS = ["", "mnist", "MNIST/raw", "raw", "mnist/raw", "mnist/MNIST/raw"]


@pytest.fixture
def known(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    """Stands in for MNIST, whose unpacked files have known hashes, or KMNIST, which has hashes of archives only."""

    def put(name: str, **changes: Any) -> Dataset:
        unpacked = {file: hashlib.md5(gzip.decompress(content)).hexdigest() for file, content in tiny.files.items()}
        dataset = replace(
            tiny.dataset,
            sha256={},
            system_folder=None,
            unpacked=unpacked if name == "mnist" else {},
            torchvision_folder=CATALOGUE[name].torchvision_folder,
            **changes,
        )
        monkeypatch.setitem(catalogue.CATALOGUE, name, dataset)  # type: ignore[arg-type]
        return dataset

    return put


def fetched(tmp_path: Path, data: DataParams) -> dict[str, list[int]]:
    download(data, tmp_path / "raw", tmp_path / "downloads")
    found = {path.stem: np.load(path, allow_pickle=False) for path in sorted((tmp_path / "raw").iterdir())}
    return {name: [*array.shape, int(array.sum())] for name, array in found.items()}


def refused(tmp_path: Path, data: DataParams) -> str:
    """The line about data.root."""
    with pytest.raises(ConvaeError) as refusal:
        download(data, tmp_path / "raw", tmp_path / "downloads")
    assert not (tmp_path / "raw").exists()
    (line,) = [line for line in str(refusal.value).splitlines() if line.startswith("  data.root = ")]
    return line


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("write", SPELLINGS, ids=lambda write: write.__name__)
def test_every_spelling_is_found_in_every_folder(
    tmp_path: Path, tiny: Any, known: Callable[..., Dataset], data_params: Params, write: Any, folder: str
) -> None:
    known("mnist")
    spelled(tmp_path / "local" / folder, tiny, write)
    images = np.frombuffer(gzip.decompress(tiny.files[IMAGES]), np.uint8, offset=16)
    found = fetched(tmp_path, data_params(dataset="mnist"))
    assert found["train_images"] == [40, 1, 6, 5, int(images.sum())]
    assert list(found) == ["test_images", "test_labels", "train_images", "train_labels"]


def test_a_complete_folder_is_preferred(
    tmp_path: Path, tiny: Any, known: Callable[..., Dataset], data_params: Params
) -> None:
    known("mnist")
    spelled(tmp_path / "local/MNIST/raw", tiny, raw)
    (tmp_path / "local" / IMAGES).write_bytes(b"of something else")
    assert fetched(tmp_path, data_params(dataset="mnist"))["train_images"][:2] == [40, 1]
    (tmp_path / "local/MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    shutil.rmtree(tmp_path / "raw")
    line = refused(tmp_path, data_params(dataset="mnist"))
    assert f"; {tmp_path / 'local/MNIST/raw'} lacks t10k-labels-idx1-ubyte.gz" in line


@pytest.mark.parametrize("trust", [False, True])
def test_trust_does_not_override_known_content(
    tmp_path: Path, tiny: Any, known: Callable[..., Dataset], data_params: Params, trust: bool
) -> None:
    dataset = known("mnist")
    spelled(tmp_path / "local", tiny, raw)
    path = tmp_path / "local/train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    found = hashlib.md5(content).hexdigest()
    assert (f"train-images-idx3-ubyte unpacks to MD5 {found}, expected {dataset.unpacked[IMAGES]}; get it") in refused(
        tmp_path, data_params(dataset="mnist", trust=trust)
    )


@pytest.mark.parametrize("write", SPELLINGS, ids=lambda write: write.__name__)
def test_archives_known_only_by_their_md5_can_be_trusted(
    tmp_path: Path, tiny: Any, known: Callable[..., Dataset], data_params: Params, write: Any
) -> None:
    dataset = known("kmnist")
    spelled(tmp_path / "local/KMNIST/raw", tiny, write)
    line = refused(tmp_path, data_params(dataset="kmnist"))
    assert f"expected {dataset.archives[IMAGES]}" in line
    assert line.endswith("; get it again, or set data.trust to true if you know where it comes from")
    assert fetched(tmp_path, data_params(dataset="kmnist", trust=True))["train_images"][:2] == [40, 1]


def test_the_published_archives_need_no_trust(
    tmp_path: Path, tiny: Any, known: Callable[..., Dataset], data_params: Params
) -> None:
    known("kmnist")
    tiny.write(tmp_path / "local")
    assert fetched(tmp_path, data_params(dataset="kmnist"))["train_images"][:2] == [40, 1]


def labels_beyond(content: bytes) -> bytes:
    return content[:-1] + b"\3"


UNTRUSTED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "labels beyond": (labels_beyond, "the train labels are 0 to 3, expected 0 to 2"),
    "truncated": (lambda content: content[:-1], "expected 40 bytes after the IDX header, found only 39"),
    "longer": (lambda content: content + b"x", "expected 40 bytes after the IDX header, found more"),
    "truncated archive": (lambda content: gzip.compress(content)[:-9], "damaged gzip file"),
    "fewer": (lambda content: content[:7] + b"\x27" + content[8:-1], "the IDX header says (39,), expected (40,)"),
    "HTML": (lambda content: b"<!DOCTYPE html><html>404", "an HTML page, maybe a server's answer instead of the"),
    "Git LFS": (lambda content: b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer, not the file"),
    "zeros": (lambda content: bytes(5000), "only zeros, at least at the start; get the file again"),
    "empty": (lambda content: b"", "an empty file; get it again"),
    "bzip2": (bz2.compress, "a bzip2 archive; unpack it"),
    "array": (lambda content: b"\x93NUMPY" + content, "a NumPy array"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNTRUSTED)
def test_trust_keeps_all_other_checks(
    tmp_path: Path, tiny: Any, known: Callable[..., Dataset], data_params: Params, case: str
) -> None:
    damage, message = UNTRUSTED[case]
    known("kmnist")
    spelled(tmp_path / "local", tiny, raw)
    path = tmp_path / "local/train-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    line = refused(tmp_path, data_params(dataset="kmnist", trust=True))
    assert message in line
    assert "labels" in line


def test_mirrors_are_not_trusted(
    tmp_path: Path, tiny: Any, known: Callable[..., Dataset], data_params: Params, server: Any
) -> None:
    known("kmnist", mirrors=(server.url,))
    server.files = {name: gzip.compress(gzip.decompress(content), 1) for name, content in tiny.files.items()}
    with pytest.raises(ConvaeError, match=rf"{server.url}: train-images-idx3-ubyte\.gz.* has MD5 .*, expected"):
        download(data_params(dataset="kmnist", trust=True), tmp_path / "raw", tmp_path / "downloads")
    server.files = dict.fromkeys(tiny.files, b"<!DOCTYPE html><html>moved</html>")
    with pytest.raises(ConvaeError, match=r"expected .{32}: an HTML page, maybe a server's answer"):
        download(data_params(dataset="kmnist", trust=True), tmp_path / "raw", tmp_path / "downloads")


def write_svhn(folder: Path, split: str, count: int, label: int) -> None:
    arrays = {"X": np.zeros((32, 32, 3, count), np.uint8), "y": np.full((count, 1), label, np.uint8)}
    scipy.io.savemat(folder / f"{split}_32x32.mat", arrays, do_compression=True)


def test_svhn_on_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_params: Params) -> None:
    dataset = replace(CATALOGUE["svhn"], images={"train": 3, "test": 2}, mirrors=())
    monkeypatch.setitem(catalogue.CATALOGUE, "svhn", dataset)  # type: ignore[arg-type]
    (tmp_path / "local").mkdir()
    write_svhn(tmp_path / "local", "train", 3, 10)
    write_svhn(tmp_path / "local", "test", 2, 9)
    assert "set data.trust to true" in refused(tmp_path, data_params(dataset="svhn"))
    found = fetched(tmp_path, data_params(dataset="svhn", trust=True))
    assert (found["train_labels"], found["test_labels"]) == ([3, 0], [2, 18])
    shutil.rmtree(tmp_path / "raw")
    write_svhn(tmp_path / "local", "train", 4, 10)
    assert "'X': (32, 32, 3, 4)" in refused(tmp_path, data_params(dataset="svhn", trust=True))


def write_stl10(path: Path, label: int, **sizes: int) -> None:
    contents = {"train_X": 27648, "train_y": 1, "test_X": 27648, "test_y": 1, "unlabeled_X": 27648} | sizes
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, size in contents.items():
            member = tarfile.TarInfo(f"stl10_binary/{name}.bin")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes([label]) * size))


def test_stl10_on_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_params: Params) -> None:
    dataset = replace(CATALOGUE["stl10"], images={"train": 1, "test": 1, "unlabelled": 1}, mirrors=())
    monkeypatch.setitem(catalogue.CATALOGUE, "stl10", dataset)  # type: ignore[arg-type]
    (tmp_path / "local").mkdir()
    path = tmp_path / "local/stl10_binary.tar.gz"
    write_stl10(path, 7)
    assert "set data.trust to true" in refused(tmp_path, data_params(dataset="stl10"))
    assert fetched(tmp_path, data_params(dataset="stl10", trust=True))["train_labels"] == [1, 6]
    shutil.rmtree(tmp_path / "raw")
    write_stl10(path, 11)
    assert "the train labels are 10 to 10" in refused(tmp_path, data_params(dataset="stl10", trust=True))
    write_stl10(path, 7, train_X=1 << 22)
    assert "'stl10_binary/train_X.bin' has 4194304 bytes, far too many" in refused(
        tmp_path, data_params(dataset="stl10", trust=True)
    )


def test_mnist_is_known_by_the_hashes_of_its_uncompressed_files() -> None:
    assert CATALOGUE["mnist"].unpacked == {
        "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
    }
