"""The listing of an image folder: two CSV files that `download` writes and `prepare` reads."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from convae.datasets.image_folder import ImageFile, Rejected
from convae.errors import ConvaeError

FILES = "files.csv"
_FILES = (FILES, ["part", "class", "path", "bytes", "sha256", "group"])
_REJECTED = ("rejected.csv", ["path", "reason"])


def write_listing(folder: Path, files: Sequence[ImageFile], rejected: Sequence[Rejected]) -> None:
    """Write `files.csv` and `rejected.csv` into `folder`.

    Example:
        >>> write_listing(Path(), [ImageFile("train", "cat", "cat/1.png", 68, "ab")], [])
        >>> print(Path("files.csv").read_text(), end="")
        part,class,path,bytes,sha256,group
        train,cat,cat/1.png,68,ab,
    """
    _write(folder, *_FILES, map(astuple, files))
    _write(folder, *_REJECTED, map(astuple, rejected))


@dataclass(frozen=True)
class ListedFiles:
    """The pictures of one part in a listing. Each iteration reads the file again, since there may be millions.

    Raises:
        ConvaeError: during iteration, if the listing is missing or damaged.

    Example:
        >>> write_listing(Path(), [ImageFile("train", "cat", "cat/1.png", 68, "ab")], [])
        >>> [file.path for file in ListedFiles(Path(), "train")], [file.path for file in ListedFiles(Path(), "test")]
        (['cat/1.png'], [])
    """

    folder: Path
    part: str

    def __iter__(self) -> Iterator[ImageFile]:
        with _one_line_errors(self.folder):
            for part, label, path, size, sha256, group in _read(self.folder, *_FILES):
                if part == self.part:
                    yield ImageFile(part, label, path, int(size), sha256, group)


def read_rejected(folder: Path) -> list[Rejected]:
    """The rejected files in a listing.

    Raises:
        ConvaeError: the listing is missing or damaged.

    Example:
        >>> write_listing(Path(), [], [Rejected("cat/notes.txt", "not a picture")])
        >>> read_rejected(Path())
        [Rejected(path='cat/notes.txt', reason='not a picture')]
    """
    with _one_line_errors(folder):
        return [Rejected(path, reason) for path, reason in _read(folder, *_REJECTED)]


def _write(folder: Path, name: str, header: list[str], rows: Iterable[tuple[object, ...]]) -> None:
    # The same line endings on every system, so that the same files give the same bytes.
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _read(folder: Path, name: str, header: list[str]) -> Iterator[list[str]]:
    with (folder / name).open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream)
        if (found := next(rows, [])) != header:
            raise ValueError(f"{name} has the columns {found}, expected {header}")
        yield from rows


@contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, csv.Error) as error:
        raise ConvaeError(f"{folder}: not a readable listing ({error}); rerun `dvc repro --force download`") from None
