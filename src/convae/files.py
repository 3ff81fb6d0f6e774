"""Writing results so that nobody ever sees half of one."""

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

CHUNK_BYTES = 1 << 24


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty scratch folder that takes the place of `path` when the block ends without an error.

    Where `path` is a link, the folder that it leads to is replaced.
    """
    path = path.resolve()
    scratch = path.with_name(path.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(path)
    scratch.rename(path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a scratch name that takes the place of `path` when the block ends without an error."""
    scratch = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    scratch.rename(path)


def check_free(path: Path, force: bool) -> None:
    """Whether a file can be written without overwriting another one.

    Raises:
        ConvaeError: there is one, and `force` is not given; or a folder.
    """
    if path.is_dir():
        raise ConvaeError(f"{path}: a folder; name a file")
    for taken in (path, path.with_name(f"{path.name}.partial")):
        if os.path.lexists(taken) and not force:
            raise ConvaeError(f"{taken}: exists; name another file, or overwrite it with --force")


def check_folder(path: Path) -> None:
    """Whether files can be written into a folder of this name.

    Raises:
        ConvaeError: it is a file, or a link that leads nowhere.
    """
    if os.path.lexists(path) and not path.is_dir():
        kind = "a link that leads nowhere" if path.is_symlink() and not path.exists() else "a file"
        raise ConvaeError(f"{path}: {kind}; name a folder")


def write_json(path: Path, content: Any) -> None:
    """Write `content` the same way every time: keys in the order given, no NaN, a newline at the end."""
    with new_file(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text("utf-8"))


def read_file(path: Path, most: int | None = None) -> bytes:
    """The bytes of a file that somebody else may have made: no device or pipe, which might never end.

    Raises:
        OSError: it can't be read, or is no file.
        ValueError: it is larger than `most`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name}")
    if most is not None and path.stat().st_size > most:
        raise ValueError(f"{path.name} is larger than {most} bytes")
    return path.read_bytes()


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` file, mapped into memory.

    Its room on the disk is taken at once: where there is none, writing to the map would end the process by a signal.
    """
    array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return array


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a `.npy` file; unlike NumPy's own writing, a full disk is told as one."""
    new_array(path, array.dtype, array.shape)[...] = array


def row_chunks(array: np.ndarray, chunk_bytes: int = CHUNK_BYTES) -> Iterator[slice]:
    """Slices over the first axis of `array`, each of about `chunk_bytes`, so that memory stays flat in N."""
    row_bytes = max(1, array.nbytes // max(1, len(array)))
    rows = max(1, chunk_bytes // row_bytes)
    for start in range(0, len(array), rows):
        yield slice(start, min(start + rows, len(array)))


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 over dtype, shape and C-ordered bytes of `array`, read in pieces."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    for rows in row_chunks(array):
        digest.update(np.ascontiguousarray(array[rows]).data)
    return digest.hexdigest()


def content_sha256(description: Mapping[str, Any], content: bytes) -> str:
    """SHA-256 over a description, which goes into JSON, and the bytes that it describes."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode() + hashlib.sha256(content).digest()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
