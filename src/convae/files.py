"""Read and write files; a result appears whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike

from convae.errors import ConvaeError

CHUNK_BYTES = 1 << 24  # bytes of an array in memory at a time


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty scratch folder that replaces `path` when the block ends without an error.

    If `path` is a link, the folder to which it leads is replaced.

    Example:
        >>> with new_folder(Path("results")) as scratch:
        ...     _ = (scratch / "accuracy.txt").write_text("0.9")
        >>> [file.name for file in Path("results").iterdir()]
        ['accuracy.txt']
    """
    path = path.resolve()
    scratch = path.with_name(path.name + ".partial")  # on the same file system, so that renaming is atomic
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(path)  # a folder can't be renamed onto one that is not empty
    scratch.rename(path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the path of a scratch file that replaces `path` when the block ends without an error.

    Example:
        >>> with new_file(Path("accuracy.txt")) as scratch:
        ...     _ = scratch.write_text("0.9")
        >>> Path("accuracy.txt").read_text()
        '0.9'
    """
    scratch = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    scratch.rename(path)


def check_free(path: Path, force: bool) -> None:
    """Check that a file can be written without overwriting another one.

    Raises:
        ConvaeError: `path` is a folder, or a file that exists although `force` is not set.

    Example:
        >>> check_free(Path("new.png"), force=False)
        >>> check_free(Path("picture.png"), force=False)
        Traceback (most recent call last):
        convae.errors.ConvaeError: picture.png: exists; name another file, or overwrite it with --force
    """
    if path.is_dir():
        raise ConvaeError(f"{path}: a folder; name a file")
    for taken in (path, path.with_name(f"{path.name}.partial")):
        if os.path.lexists(taken) and not force:
            raise ConvaeError(f"{taken}: exists; name another file, or overwrite it with --force")


def check_folder(path: Path) -> None:
    """Check that `path` is a folder or free to become one.

    Raises:
        ConvaeError: it is a file, or a link that leads nowhere.

    Example:
        >>> check_folder(Path("picture.png"))
        Traceback (most recent call last):
        convae.errors.ConvaeError: picture.png: a file; name a folder
    """
    if os.path.lexists(path) and not path.is_dir():
        kind = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "a file"
        raise ConvaeError(f"{path}: {kind}; name a folder")


def write_json(path: Path, content: Any) -> None:
    """Write `content` with the same bytes every time: keys in their given order, no NaN, a newline at the end.

    Example:
        >>> write_json(Path("metrics.json"), {"test": {"accuracy": 0.9}})
        >>> read_json(Path("metrics.json"))
        {'test': {'accuracy': 0.9}}
    """
    with new_file(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote.

    Example:
        >>> read_json(Path("models/classifier/classifier.json"))["classes"]
        ['a', 'b', 'c']
    """
    return json.loads(path.read_text("utf-8"))


def read_file(path: Path, most: int | None = None) -> bytes:
    """Read a file of unknown origin. Devices and pipes are rejected, since reading them might never end.

    Raises:
        OSError: `path` is not a regular file or can't be read.
        ValueError: the file is larger than `most` bytes.

    Example:
        >>> read_file(Path("picture.png"), most=10)
        Traceback (most recent call last):
        ValueError: picture.png is larger than 10 bytes
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name}")
    if most is not None and path.stat().st_size > most:
        raise ValueError(f"{path.name} is larger than {most} bytes")
    return path.read_bytes()


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Create a `.npy` file and map it into memory.

    Raises:
        OSError: the disk is full, among other causes.

    Example:
        >>> array = new_array(Path("counts.npy"), np.int64, (2, 3))
        >>> array[:] = 1
        >>> np.load("counts.npy").sum()
        np.int64(6)
    """
    array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # The map's file is sparse. If the disk filled up later, writing to the map would kill the process with SIGBUS.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file. Unlike `np.save`, this reports a full disk as such.

    Example:
        >>> save_array(Path("labels.npy"), np.array([1, 0, 2]))
        >>> np.load("labels.npy").tolist()
        [1, 0, 2]
    """
    new_array(path, array.dtype, array.shape)[...] = array


def row_chunks(array: np.ndarray, chunk_bytes: int = CHUNK_BYTES) -> Iterator[slice]:
    """Yield slices over the first axis of `array`, each of about `chunk_bytes`, to keep memory independent of N.

    Example:
        >>> list(row_chunks(np.zeros((5, 4), np.uint8), chunk_bytes=8))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    row_bytes = max(1, array.nbytes // max(1, len(array)))
    rows = max(1, chunk_bytes // row_bytes)
    for start in range(0, len(array), rows):
        yield slice(start, min(start + rows, len(array)))


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 over the dtype, shape and C-ordered bytes of `array`, read in chunks.

    Example:
        >>> array_sha256(np.zeros((2, 3))) == array_sha256(np.zeros((3, 2)))  # the shape counts too
        False
    """
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for rows in row_chunks(array):
        digest.update(np.ascontiguousarray(array[rows]).data)
    return digest.hexdigest()


def content_sha256(description: Mapping[str, Any], content: bytes) -> str:
    """SHA-256 over a JSON-serialisable description and the bytes that it describes.

    Example:
        >>> content_sha256({"a": 1, "b": 2}, b"weights") == content_sha256({"b": 2, "a": 1}, b"weights")
        True
    """
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode() + hashlib.sha256(content).digest()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Example:
        >>> Path("empty").touch()
        >>> file_sha256(Path("empty"))[:16]
        'e3b0c44298fc1c14'
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
