"""Decode archives to arrays, split by split: images `uint8 [N, C, H, W]` and labels `int64 [N]`."""

import gzip
import hashlib
import math
import shutil
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from convae.datasets.catalogue import CATALOGUE, Dataset
from convae.datasets.foreign import HEAD_BYTES, what_it_is
from convae.errors import ConvaeError

Split = tuple[str, np.ndarray, np.ndarray | None]
_UINT8 = 0x08  # IDX type code
_IDX_PREFIX = {"train": "train", "test": "t10k"}


def read(dataset: Dataset, files: Mapping[str, Path], scratch: Path, trust: bool = False) -> Iterator[Split]:
    """Decode the archives of a data set.

    Args:
        dataset: the expected data set.
        files: path of each archive by its name; IDX files may be compressed or not.
        scratch: an empty folder for unpacking; the arrays may be memory-mapped from there.
        trust: whether to accept an archive with another MD5 than published if nothing else is known about it; never for
            archives of pickles.

    Yields:
        Name of the split, images and labels (None for unlabelled images).

    Raises:
        ConvaeError: an archive is damaged, or is not the one that the catalogue describes.
    """
    if dataset.reader != "idx":  # IDX files are checked once unpacked
        for name, path in files.items():
            _check_archive(dataset, name, path, trust)
    for split, images, labels in _decode(dataset, files, scratch, trust):
        expected = (dataset.images[split], *dataset.shape)
        if images.dtype != np.uint8 or images.shape != expected:
            raise ConvaeError(f"the {split} images are {images.dtype} {images.shape}, expected uint8 {expected}")
        if labels is not None:
            _check_labels(split, labels, expected[0], len(dataset.classes))
        yield split, images, labels


def check_md5(path: Path, expected: str) -> None:
    """Check a file against its published MD5.

    Raises:
        ConvaeError: the MD5 differs.

    Example:
        >>> Path("empty.gz").touch()
        >>> check_md5(Path("empty.gz"), "d41d8cd98f00b204e9800998ecf8427e")
        >>> check_md5(Path("empty.gz"), "0" * 32)
        Traceback (most recent call last):
        convae.errors.ConvaeError: empty.gz has MD5 d41d8cd98f00b204e9800998ecf8427e, expected 000...: an empty ...
    """
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != expected:
        raise ConvaeError(f"{path.name} has MD5 {found}, expected {expected}{_instead(head)}")


def _instead(head: bytes) -> str:
    """Name the kind of a file for an error message, if its first bytes show that it is not one of our archives."""
    kind = what_it_is(head) if head else "an empty file; get it again"
    return f": {kind}" if kind and not head.startswith((b"\x1f\x8b", b"MATLAB")) else ""


def _check_archive(dataset: Dataset, name: str, path: Path, trust: bool) -> None:
    try:
        check_md5(path, dataset.archives[name])
    except ConvaeError as error:
        mistake = f"{error}" if path.name == name else f"{error} for {name}"
        if dataset.reader.startswith("cifar"):  # never unpickle an unknown file
            why = "it holds pickles, which can run code, so data.trust does not apply"
            raise ConvaeError(f"{mistake}; {why}; get it again from {' or '.join(dataset.mirrors)}") from None
        if not trust:
            how = "get it again, or set data.trust to true if you know where it comes from"
            raise ConvaeError(f"{mistake}; {how}") from None


def _check_idx(dataset: Dataset, name: str, path: Path, content: np.ndarray, trust: bool) -> None:
    """Check that a file decodes to known content or, if none is known, is the published archive.

    Raises:
        ConvaeError: it does not.
    """
    digest = hashlib.md5(_idx_header(content.shape))
    digest.update(content.data)
    found, known = digest.hexdigest(), dataset.unpacked.get(name)
    for other, about in CATALOGUE.items():
        if about is not dataset and about.unpacked.get(name) == found:
            raise ConvaeError(f"{path.name}: the file of {other}, which has the same name; get the right one")
    if known and found != known:
        raise ConvaeError(f"{path.name} unpacks to MD5 {found}, expected {known}; get it again")
    if not known and not dataset.sha256:
        _check_archive(dataset, name, path, trust)


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file, gzipped or not, that must hold `uint8` of `shape`.

    Format: http://yann.lecun.com/exdb/mnist/. Never decompresses more than the expected size.

    Raises:
        ConvaeError: the file is damaged, is not IDX, or has another type, shape or length.

    Example:
        >>> header = bytes([0, 0, _UINT8, 1, 0, 0, 0, 2])  # one dimension of size 2
        >>> _ = Path("labels-idx1-ubyte").write_bytes(header + bytes([5, 7]))
        >>> read_idx(Path("labels-idx1-ubyte"), (2,)).tolist()
        [5, 7]
    """
    with path.open("rb") as plain:
        head = plain.read(HEAD_BYTES)
        compressed = head.startswith(b"\x1f\x8b")
        plain.seek(0)
        try:
            with gzip.open(plain) if compressed else plain as stream:
                found = stream.read(4 + 4 * len(shape))
                _check_idx_header(path, found, shape, "" if compressed else _instead(head))
                content = stream.read(math.prod(shape) + 1)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ConvaeError(f"{path.name}: damaged gzip file ({error})") from None
    if len(content) != math.prod(shape):
        size = "more" if len(content) > math.prod(shape) else f"only {len(content)}"
        raise ConvaeError(f"{path.name}: expected {math.prod(shape)} bytes after the IDX header, found {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _check_idx_header(path: Path, header: bytes, shape: tuple[int, ...], instead: str) -> None:
    magic = _idx_header(shape)[:4]
    if header[:4] != magic:
        expected = f"0x{magic.hex()} for this IDX file{instead}"
        raise ConvaeError(f"{path.name}: begins with 0x{header[:4].hex()}, expected {expected}")
    if header != _idx_header(shape):
        sizes = struct.unpack(f">{len(header[4:]) // 4}I", header[4 : len(header) // 4 * 4])
        raise ConvaeError(f"{path.name}: the IDX header says {sizes}, expected {shape}")


def _idx_header(shape: tuple[int, ...]) -> bytes:
    return bytes([0, 0, _UINT8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def _check_labels(split: str, labels: np.ndarray, count: int, classes: int) -> None:
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise ConvaeError(f"the {split} labels are {labels.dtype} {labels.shape}, expected int64 ({count},)")
    if labels.min() < 0 or labels.max() >= classes:
        raise ConvaeError(f"the {split} labels are {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")


def _decode(dataset: Dataset, files: Mapping[str, Path], scratch: Path, trust: bool) -> Iterator[Split]:
    try:
        match dataset.reader:
            case "idx":
                yield from _idx(dataset, files, trust)
            case "cifar10" | "cifar100":
                yield from _cifar(dataset, files, scratch)
            case "svhn":
                yield from _svhn(dataset, files)
            case "stl10":
                yield from _stl10(dataset, files, scratch)
            case "digits":
                yield from _digits()
    except (ConvaeError, OSError, MemoryError):
        raise
    except Exception as error:  # torchvision and SciPy raise nearly anything on unexpected content
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConvaeError(f"{', '.join(files)}: not a valid {dataset.reader} archive ({reason})") from None


def _idx(dataset: Dataset, files: Mapping[str, Path], trust: bool) -> Iterator[Split]:
    for split, count in dataset.images.items():
        arrays = []
        for kind, shape in (("images-idx3", (count, *dataset.shape[1:])), ("labels-idx1", (count,))):
            name = f"{_IDX_PREFIX[split]}-{kind}-ubyte.gz"
            arrays.append(read_idx(files[name], shape))
            _check_idx(dataset, name, files[name], arrays[-1], trust)
        yield split, arrays[0][:, None], arrays[1].astype(np.int64)


def _cifar(dataset: Dataset, files: Mapping[str, Path], scratch: Path) -> Iterator[Split]:
    from torchvision import datasets

    kind = datasets.CIFAR10 if dataset.reader == "cifar10" else datasets.CIFAR100
    names = [name for name, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    (archive,) = files.values()
    _unpack(archive, (f"{kind.base_folder}/{name}" for name in names), scratch, dataset.most_bytes)
    for split in dataset.images:
        content = kind(scratch, train=split == "train", download=False)
        if tuple(content.classes) != dataset.classes:
            raise ConvaeError(f"the archive's classes are {content.classes}, expected {list(dataset.classes)}")
        yield split, content.data.transpose(0, 3, 1, 2), np.asarray(content.targets, np.int64)


def _svhn(dataset: Dataset, files: Mapping[str, Path]) -> Iterator[Split]:
    """Decode without torchvision, which accepts no archives but the published ones."""
    from scipy.io import loadmat, whosmat

    for name, path in files.items():
        split = name.partition("_")[0]
        channels, height, width = dataset.shape
        expected = {"X": (height, width, channels, dataset.images[split]), "y": (dataset.images[split], 1)}
        # Only the headers: nothing of an unexpected size is allocated.
        found = {variable: shape for variable, shape, _ in whosmat(path)}
        if expected != {variable: found.get(variable) for variable in expected}:
            raise ConvaeError(f"{path.name}: holds {found}, expected {expected}")
        content = loadmat(path, variable_names=list(expected))
        labels = content["y"][:, 0].astype(np.int64)
        yield split, content["X"].transpose(3, 2, 0, 1), np.where(labels == 10, 0, labels)  # digit 0 has label 10


def _stl10(dataset: Dataset, files: Mapping[str, Path], scratch: Path) -> Iterator[Split]:
    """Decode without torchvision, which reads all 2.8 GB into memory."""
    prefixes = {"train": "train", "test": "test", "unlabelled": "unlabeled"}
    members = {
        split: [f"stl10_binary/{prefixes[split]}_{kind}.bin" for kind in ("Xy" if split != "unlabelled" else "X")]
        for split in dataset.images
    }
    (archive,) = files.values()
    _unpack(archive, (name for names in members.values() for name in names), scratch, dataset.most_bytes)
    for split, names in members.items():
        columns_first = np.memmap(scratch / names[0], np.uint8, mode="r").reshape(-1, *dataset.shape)
        # Labels in the file start at 1.
        labels = np.fromfile(scratch / names[1], np.uint8).astype(np.int64) - 1 if names[1:] else None
        yield split, columns_first.transpose(0, 1, 3, 2), labels


def _digits() -> Iterator[Split]:
    from sklearn.datasets import load_digits

    content = load_digits()
    images = np.rint(content.images * 255 / 16).astype(np.uint8)  # originally 0 to 16
    yield "train", images[:, None], content.target.astype(np.int64)


def _unpack(archive: Path, members: Iterable[str], folder: Path, most_bytes: int) -> None:
    """Unpack the named regular files of a tar archive, and nothing else.

    Raises:
        ConvaeError: the archive is damaged, lacks a file, or holds one of more than `most_bytes`.
    """
    wanted = set(members)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.size > most_bytes:
                    raise ConvaeError(f"{archive.name}: {member.name[:80]!r} has {member.size} bytes, far too many")
                content = tar.extractfile(member) if member.isreg() and member.name in wanted else None
                if content is not None:
                    target = folder / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as stream:
                        shutil.copyfileobj(content, stream)
                    wanted.discard(member.name)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ConvaeError(f"{archive.name}: damaged archive ({error})") from None
    if wanted:
        raise ConvaeError(f"{archive.name}: lacks {', '.join(sorted(wanted))}")
