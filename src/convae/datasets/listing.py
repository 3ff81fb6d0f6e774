"""The listing of an image folder as two CSV files, which `download` writes and `prepare` reads."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from sys import intern

from convae.datasets.image_folder import ImageFile, Rejected
from convae.errors import ConvaeError

FILES = "files.csv"
_FILES = (FILES, ["part", "class", "path", "bytes", "sha256"])
_REJECTED = ("rejected.csv", ["path", "reason"])


def write_listing(folder: Path, files: Sequence[ImageFile], rejected: Sequence[Rejected]) -> None:
    """Write `files.csv` and `rejected.csv` into `folder`."""
    _write(folder, *_FILES, map(astuple, files))
    _write(folder, *_REJECTED, map(astuple, rejected))


def read_listing(folder: Path) -> tuple[list[ImageFile], list[Rejected]]:
    """Read what `write_listing` wrote.

    Raises:
        ConvaeError: it is not there, or not whole.
    """
    try:
        files = [
            ImageFile(intern(part), intern(label), path, int(size), sha256)
            for part, label, path, size, sha256 in _read(folder, *_FILES)
        ]
        return files, [Rejected(path, reason) for path, reason in _read(folder, *_REJECTED)]
    except (OSError, ValueError, csv.Error) as error:
        raise ConvaeError(f"{folder}: not a readable listing ({error}); rerun `dvc repro --force download`") from None


def _write(folder: Path, name: str, header: list[str], rows: Iterable[tuple[object, ...]]) -> None:
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _read(folder: Path, name: str, header: list[str]) -> Iterator[list[str]]:
    with (folder / name).open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream)
        if (found := next(rows, [])) != header:
            raise ValueError(f"{name} has the columns {found}, expected {header}")
        yield from rows
