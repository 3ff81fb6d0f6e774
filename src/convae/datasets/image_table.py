"""A table of pictures, CSV or Parquet: the part, class and group of each, instead of a layout of folders.

Columns: `path`, relative to the table's folder, and optionally `label`, `split` (train, validation or test) and
`group`. Without a split, all pictures are for training. If some training pictures have a label, those without one
become the unlabelled part.
"""

import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from convae.datasets.image_folder import ImageFile, Rejected, classes_of, image_file, is_clean
from convae.datasets.pictures import UnusableError
from convae.errors import ConvaeError
from convae.names import PARTS, printable
from convae.params import TableParams

OPTIONAL = ("label", "split", "group")
SEPARATORS = (",", ";", "\t")


def list_table(root: Path, table: TableParams) -> tuple[list[ImageFile], list[Rejected]]:
    """List the pictures that a table names, in its order, and its rows that can't be used.

    Args:
        root: `data.root`, which holds the table and all pictures.
        table: the file, relative to `root`, and the names of its columns.

    Raises:
        ConvaeError: the table can't be read or lacks a column, a row is ambiguous or leads out of `root`, or the labels
            can't be used.

    Example:
        >>> Path("scans/day1").mkdir(parents=True)
        >>> _ = Path("scans/day1/1.png").write_bytes(Path("picture.png").read_bytes())
        >>> _ = Path("scans/labels.csv").write_text("path,group\\nday1/1.png,patient 7\\n")
        >>> files, rejected = list_table(Path("scans"), TableParams(file="labels.csv"))
        >>> [(file.part, file.path, file.group) for file in files]
        [('train', 'day1/1.png', 'patient 7')]
    """
    path = root / table.file
    files: list[ImageFile] = []
    rejected: list[Rejected] = []
    rows: dict[str, int] = {}
    for number, row in tqdm(_read(root, table), desc="hash", unit="file"):
        where = f"{path}, row {number}"
        relative = _relative(root, path.parent, row["path"], where)
        if relative in rows:
            raise ConvaeError(f"{where}: the same picture as in row {rows[relative]}: {printable(relative)}")
        rows[relative] = number
        place = row.get("split") or "train", row.get("label", "")
        if place[0] not in PARTS:
            raise ConvaeError(f"{where}: split '{printable(place[0])}'; {', '.join(PARTS)} or nothing is allowed")
        if not (is_clean(place[1]) and is_clean(row.get("group", ""))):
            raise ConvaeError(f"{where}: labels and groups must be UTF-8 without control characters")
        try:
            files.append(replace(image_file(root, place, relative), group=row.get("group", "")))
        except UnusableError as error:
            rejected.append(Rejected(printable(relative), f"row {number}: {error}"))
    files = _with_unlabelled(files)
    if mistake := next(_mistakes(files, rejected), ""):
        raise ConvaeError(f"{path}: {mistake}")
    return files, rejected


def _read(root: Path, table: TableParams) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each row, as spreadsheets count, and its values by the usual names of their columns."""
    path = root / table.file
    try:
        if not path.resolve(strict=True).is_relative_to(root.resolve()):
            raise ConvaeError(f"data.table.file = {table.file}: it leads out of data.root = {root}; put it there")
        rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
        header = [name.strip() for name in next(rows, [])]
        if not header:
            raise ConvaeError(f"{path}: it has no header")
        places = _columns(path, header, table)
        empty = True
        for number, row in enumerate(rows, 2):
            if not row:
                continue
            if len(row) != len(header):
                raise ConvaeError(f"{path}, row {number}: {len(row)} values for {len(header)} columns")
            yield number, {name: row[place].strip() if name != "path" else row[place] for name, place in places.items()}
            empty = False
    except OSError as error:
        raise ConvaeError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConvaeError(f"{path}: not UTF-8 ({error.reason}); save it as CSV in UTF-8") from None
    except (ValueError, csv.Error) as error:
        raise ConvaeError(f"{path}: not a readable table ({' '.join(str(error).split())})") from None
    if empty:
        raise ConvaeError(f"{path}: it has no rows")


def _csv(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets write a byte order mark
        header = stream.readline()
        stream.seek(0)
        # Strict, or a quote that is never closed would swallow the rows that follow.
        yield from csv.reader(stream, delimiter=max(SEPARATORS, key=header.count), strict=True)


def _parquet(path: Path) -> Iterator[list[str]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path, dtype_backend="numpy_nullable")  # with missing values, integers stay integers
    except OSError:
        raise
    except Exception as error:  # a damaged file can make pandas raise nearly anything
        raise ValueError(str(error)) from None
    if frame.index.name is not None:
        frame = frame.reset_index()
    yield [str(column) for column in frame.columns]
    yield from frame.astype("string").fillna("").to_numpy().tolist()


def _columns(path: Path, header: Sequence[str], table: TableParams) -> dict[str, int]:
    """The place of each column that is used."""
    places = {}
    for name in ("path", *OPTIONAL):
        column = getattr(table, name) or name
        if column in header:
            if header.count(column) > 1:
                raise ConvaeError(f"{path}: two columns are called '{printable(column)}'")
            places[name] = header.index(column)
        elif name == "path" or getattr(table, name):
            found = f"no column '{printable(column)}', only {', '.join(map(printable, header))}"
            raise ConvaeError(f"{path}: {found}; set data.table.{name} to one of these")
    if unused := [printable(column) for place, column in enumerate(header) if place not in places.values()]:
        roles = " and ".join(f"data.table.{name}" for name in ("label", "group") if name not in places)
        remedy = f"; {roles} can name one" if roles else ""
        print(f"{path}: columns that are not used: {', '.join(unused)}{remedy}", file=sys.stderr)
    return places


def _relative(root: Path, folder: Path, path: str, where: str) -> str:
    """The path relative to `root`, in one spelling."""
    if not path:
        raise ConvaeError(f"{where}: it names no picture")
    try:
        home = root.resolve()
        relative = os.path.relpath(folder / path, root)
        if Path(path).is_absolute() and relative.startswith(os.pardir):  # root may be a link, or lie below one
            relative = os.path.relpath(path, home)
        is_inside = (root / relative).resolve().is_relative_to(home)
    except (OSError, RuntimeError, ValueError) as error:  # a link in a circle, or a zero byte
        raise ConvaeError(f"{where}: {printable(path)}: {error}") from None
    if Path(relative).parts[:1] in ((), (os.pardir,)) or not is_inside:
        raise ConvaeError(f"{where}: {printable(path)} leads out of data.root = {root}, on which runs depend")
    return Path(relative).as_posix()


def _with_unlabelled(files: Sequence[ImageFile]) -> list[ImageFile]:
    if not any(file.label for file in files if file.part == "train"):
        return list(files)
    return [file if file.label or file.part != "train" else replace(file, part="unlabelled") for file in files]


def _mistakes(files: Sequence[ImageFile], rejected: Sequence[Rejected]) -> Iterator[str]:
    """Yield what keeps the table from being usable."""
    parts: Mapping[str, set[str]] = {part: {file.label for file in files if file.part == part} for part in PARTS}
    if not parts["train"]:
        why = f": {rejected[0].path} ({rejected[0].reason})" if rejected else ""
        yield f"no training picture can be read{why}"
    known = classes_of(files)
    for part, labels in parts.items():
        if unknown := sorted(labels - {*known} - (set() if known else {""})):
            what = f"class '{printable(unknown[0])}'" if unknown[0] else "pictures without a label"
            others = ", ".join(map(printable, known)) or "no labels"
            yield f"the {part} part has {what}, but the training part has {others}"
    if len(known) == 1:
        yield f"'{printable(known[0])}' is the only class; at least two are needed, or no labels at all"
