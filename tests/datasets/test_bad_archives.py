"""Archives with unexpected content: refused in one line, never unpacked elsewhere or further than needed."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import pickle
import struct
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

from convae.datasets.catalogue import CATALOGUE
from convae.datasets.download import download
from convae.datasets.readers import read
from convae.errors import ConvaeError
from convae.params import DataParams

IMAGES = "train-images-idx3-ubyte.gz"
PIXELS = bytes(40 * 6 * 5)


def idx(*sizes: int, kind: int = 8, content: bytes = PIXELS) -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content


def archive(*sizes: int, **changes: Any) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(gzip.compress(idx(*sizes, **changes)))


def plain(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def bomb(path: Path) -> None:
    """A valid header and a gibibyte of zeros, compressed to about a megabyte."""
    zeros = gzip.compress(bytes(1 << 26), 1)
    path.write_bytes(gzip.compress(idx(40, 6, 5, content=b"")) + 16 * zeros)


IDX: dict[str, tuple[Callable[[Path], object], str]] = {
    "too many images": (archive(4_294_967_295, 6, 5), "the IDX header says (4294967295, 6, 5), expected (40, 6, 5)"),
    "product overflows": (archive(*[2**32 - 1] * 3), "says (4294967295, 4294967295, 4294967295), expected (40, 6, 5)"),
    "no images": (archive(0, 6, 5, content=b""), "the IDX header says (0, 6, 5), expected (40, 6, 5)"),
    "sides exchanged": (archive(40, 5, 6), "the IDX header says (40, 5, 6), expected (40, 6, 5)"),
    "two dimensions": (archive(40, 30), "begins with 0x00000802, expected 0x00000803"),
    "255 dimensions": (archive(*[1] * 255), "begins with 0x000008ff"),
    "floats": (archive(40, 6, 5, kind=13), "begins with 0x00000d03"),
    "signed bytes": (archive(40, 6, 5, kind=9), "begins with 0x00000903"),
    "promises more": (archive(40, 6, 5, content=PIXELS[1:]), "expected 1200 bytes after the IDX header, found only"),
    "holds more": (archive(40, 6, 5, content=PIXELS + b"x"), "expected 1200 bytes after the IDX header, found more"),
    "bomb": (bomb, "expected 1200 bytes after the IDX header, found more"),
    "text after gzip": (plain(gzip.compress(idx(40, 6, 5)) + b"garbage"), "damaged gzip file ("),
    "truncated": (plain(gzip.compress(idx(40, 6, 5))[:-12]), "damaged gzip file"),
    "wrong checksum": (plain(gzip.compress(idx(40, 6, 5))[:-8] + bytes(8)), "damaged gzip file ("),
    "bzip2": (plain(bz2.compress(idx(40, 6, 5))), "begins with 0x425a6839"),
    "xz": (plain(lzma.compress(idx(40, 6, 5))), "begins with 0xfd377a58"),
    "gzip in gzip": (plain(gzip.compress(gzip.compress(idx(40, 6, 5)))), "begins with 0x1f8b08"),
    "other pixels": (archive(40, 6, 5), "train images differ from the catalogue's: SHA-256"),
    "folder": (Path.mkdir, f"lacks {IMAGES}"),
    "pipe": (os.mkfifo, f"lacks {IMAGES}"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), f"lacks {IMAGES}"),
    "link in a circle": (lambda path: path.symlink_to(path), f"lacks {IMAGES}"),
}


@pytest.mark.parametrize("case", IDX)
def test_damaged_idx_files_are_refused(
    tmp_path: Path, tiny: Any, data_params: Callable[..., DataParams], case: str
) -> None:
    damage, message = IDX[case]
    local = tiny.write(tmp_path / "local")
    (local / IMAGES).unlink()
    damage(local / IMAGES)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/earlier.npy").write_bytes(b"result")
    tracemalloc.start()
    with pytest.raises(ConvaeError) as refusal:
        download(data_params(), tmp_path / "raw", tmp_path / "downloads")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24
    (line,) = [line for line in str(refusal.value).splitlines() if "data.root = " in line]
    assert message in line
    assert [path.name for path in tmp_path.rglob("raw*/*")] == ["earlier.npy"]


def test_an_unreadable_root_is_reported(tmp_path: Path, tiny: Any, data_params: Callable[..., DataParams]) -> None:
    with pytest.raises(ConvaeError, match=f"{'a' * 300}: "):
        download(data_params(root="a" * 300), tmp_path / "raw", tmp_path / "downloads")


NAMES = [f"stl10_binary/{name}.bin" for name in ("train_X", "train_y", "test_X", "test_y", "unlabeled_X")]
CONTENTS = [bytes(2 * 27648), b"\1\2", bytes(27648), b"\3", bytes(27648)]


def tar(path: Path, *added: tuple[str, bytes, str], leave_out: int = 0) -> None:
    """Write members with the given name, type and link target, then the archive's own from `leave_out` on."""
    with tarfile.open(path, "w:gz") as stream:
        for name, kind, target in added:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            stream.addfile(member)
        for name, content in list(zip(NAMES, CONTENTS, strict=True))[leave_out:]:
            add(stream, name, content)


def add(stream: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    stream.addfile(member, io.BytesIO(content))


def in_place_of_the_first(kind: bytes, target: str = "") -> Callable[[Path], None]:
    return lambda path: tar(path, (NAMES[0], kind, target), leave_out=1)


def cut(start: int | None, end: int | None) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        tar(path)
        path.write_bytes(path.read_bytes()[start:end])

    return damage


LACKS, DAMAGED = f"lacks {NAMES[0]}", "stl10_binary.tar.gz: damaged archive ("
TARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "link out": (in_place_of_the_first(tarfile.SYMTYPE, "/etc/passwd"), LACKS),
    "hard link out": (in_place_of_the_first(tarfile.LNKTYPE, "/etc/passwd"), LACKS),
    "device": (in_place_of_the_first(tarfile.CHRTYPE), LACKS),
    "block device": (in_place_of_the_first(tarfile.BLKTYPE), LACKS),
    "pipe": (in_place_of_the_first(tarfile.FIFOTYPE), LACKS),
    "folder": (in_place_of_the_first(tarfile.DIRTYPE), LACKS),
    "above": (lambda path: tar(path, (f"../{NAMES[0]}", tarfile.REGTYPE, ""), leave_out=1), LACKS),
    "absolute": (lambda path: tar(path, (f"/tmp/{NAMES[0]}", tarfile.REGTYPE, ""), leave_out=1), LACKS),
    "detour": (lambda path: tar(path, (f"x/../{NAMES[0]}", tarfile.REGTYPE, ""), leave_out=1), LACKS),
    "member left out": (lambda path: tar(path, leave_out=1), LACKS),
    "truncated": (cut(0, -50), DAMAGED),
    "start left out": (cut(1, None), DAMAGED),
    "empty": (plain(b""), DAMAGED),
    "text": (plain(b"hello"), DAMAGED),
    "text in gzip": (plain(gzip.compress(b"hello" * 200)), DAMAGED),
    "zeros in gzip": (plain(gzip.compress(bytes(10240))), "lacks stl10_binary/test_X.bin"),
    "bzip2": (plain(bz2.compress(b"hello")), DAMAGED),
}  # fmt: skip


@pytest.mark.parametrize("case", TARS)
def test_damaged_tar_archives_are_refused(tmp_path: Path, case: str) -> None:
    damage, message = TARS[case]
    path = tmp_path / "stl10_binary.tar.gz"
    damage(path)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()  # with a wrong one, nothing would be unpacked
    images = {"train": 2, "test": 1, "unlabelled": 1}
    dataset = replace(CATALOGUE["stl10"], archives={path.name: md5}, images=images)
    (tmp_path / "in/scratch").mkdir(parents=True)
    with pytest.raises(ConvaeError) as refusal:
        list(read(dataset, {path.name: path}, tmp_path / "in/scratch"))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert {file.name for file in tmp_path.rglob("*.bin")} <= {Path(name).name for name in NAMES}
    assert not any(file.is_symlink() for file in tmp_path.rglob("*"))


def test_a_link_cannot_redirect_later_members_outside_the_folder(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "stl10_binary.tar.gz", tmp_path / "elsewhere"
    elsewhere.mkdir()
    tar(path, ("stl10_binary", tarfile.SYMTYPE, str(elsewhere)))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    images = {"train": 2, "test": 1, "unlabelled": 1}
    dataset = replace(CATALOGUE["stl10"], archives={path.name: md5}, images=images)
    found = {split: pixels.shape[0] for split, pixels, _ in read(dataset, {path.name: path}, tmp_path / "scratch")}
    assert found == images
    assert list(elsewhere.iterdir()) == []
    assert np.all([not file.is_symlink() for file in (tmp_path / "scratch").rglob("*")])


def mat(path: Path, **arrays: np.ndarray) -> None:
    scipy.io.savemat(path, arrays)


def stl10(path: Path, name: str, content: bytes) -> None:
    with tarfile.open(path, "w:gz") as stream:
        for member, ours in zip(NAMES, CONTENTS, strict=True):
            add(stream, member, content if member.endswith(f"/{name}.bin") else ours)


def cifar(path: Path, content: Any) -> None:
    with tarfile.open(path, "w:gz") as stream:
        for member in ("data_batch_1", "batches.meta"):
            add(stream, f"cifar-10-batches-py/{member}", pickle.dumps(content))


TWO = np.zeros((32, 32, 3, 2), np.uint8)
CONTENT: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no matrix": ("svhn", plain(b"hello" * 100), "not a valid svhn archive ("),
    "empty matrix": ("svhn", plain(b""), "not a valid svhn archive ("),
    "no images": ("svhn", lambda path: mat(path, y=np.ones(2)), "holds {'y': (1, 2)}, expected {'X': (32, 32,"),
    "a vector": ("svhn", lambda path: mat(path, X=np.ones(2), y=np.ones(2)), "holds {'X': (1, 2), 'y': (1, 2)}, exp"),
    "labels in words": ("svhn", lambda path: mat(path, X=TWO, y=np.array([["a"], ["b"]], object)), "not a valid svhn"),
    "floats": ("svhn", lambda path: mat(path, X=TWO / 255, y=np.ones((2, 1))), "the train images are float64 (2, 3"),
    "no label": ("svhn", lambda path: mat(path, X=TWO, y=np.ones((0, 1))), "'y': (0, 1)}, expected {'X'"),
    "label beyond": ("svhn", lambda path: mat(path, X=TWO, y=np.array([[1], [77]])), "the train labels are 1 to 77,"),
    "no bytes": ("stl10", lambda path: stl10(path, "train_X", b""), "not a valid stl10 archive ("),
    "a third of an image": ("stl10", lambda path: stl10(path, "train_X", bytes(9216)), "not a valid stl10"),
    "label 0": ("stl10", lambda path: stl10(path, "train_y", bytes(2)), "the train labels are -1 to -1, expected 0 to"),
    "another image": ("stl10", lambda path: stl10(path, "test_X", bytes(55296)), "the test images are uint8 (2, 3, 96"),
    "pickled list": ("cifar10", lambda path: cifar(path, []), "not a valid cifar10 archive ("),
    "pickled nothing": ("cifar10", lambda path: cifar(path, {}), "not a valid cifar10 archive ("),
    "another pickle": ("cifar100", lambda path: cifar(path, {}), "lacks cifar-100-python/meta, cifar-100-python/test"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTENT)
def test_wrong_content_with_the_right_md5_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, write, message = CONTENT[case]
    path = tmp_path / ("train_32x32.mat" if name == "svhn" else "archive.tar.gz")
    write(path)
    # torchvision checks each file's MD5 too, unless it is None.
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [])
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": None})
    images = {"train": 2} | ({"test": 1, "unlabelled": 1} if name == "stl10" else {})
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    dataset = replace(CATALOGUE[name], archives={path.name: md5}, images=images)
    with pytest.raises(ConvaeError) as refusal:
        list(read(dataset, {path.name: path}, tmp_path))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
