"""Numbers in the outputs that git tracks."""

import csv
import json
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from convae.history.lock import REPORTS, path_md5
from convae.names import flatten


class Fact(NamedTuple):
    """A named number; `step` is the row of the learning curves it belongs to."""

    name: str
    value: float
    step: int = 0


def files_in(folder: Path, hashes: Mapping[str, str]) -> list[Path]:
    """Return the files of reports/ that are in `folder` with exactly the content in `hashes`, relative to `folder`.

    Example:
        >>> Path("reports").mkdir()
        >>> _ = Path("reports/metrics.json").write_text("{}")
        >>> now = path_md5(Path("reports/metrics.json"))
        >>> [str(path) for path in files_in(Path(), {"reports/metrics.json": now})]
        ['reports/metrics.json']
        >>> files_in(Path(), {"reports/metrics.json": "of another version"})
        []
    """
    found = []
    for name, md5 in hashes.items():
        path = folder / name
        if name.startswith(REPORTS) and path.exists() and path_md5(path) == md5:
            found += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [file.relative_to(folder) for file in found]


def facts_in(folder: Path, files: list[Path]) -> list[Fact]:
    """Return every number in the JSON files, and in learning curves among the CSV files.

    Example:
        >>> _ = Path("metrics.json").write_text('{"test": {"accuracy": 0.5}, "converged": true}')
        >>> facts_in(Path(), [Path("metrics.json")])
        [Fact(name='test.accuracy', value=0.5, step=0)]
    """
    return [fact for name in files for fact in _read(folder / name)]


def _read(path: Path) -> Iterator[Fact]:
    if path.suffix == ".json":
        for name, value in flatten(json.loads(path.read_text("utf-8"))).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):  # in Python, True is an int
                yield Fact(name, float(value))
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                step = row.pop("point", None) or row.pop("epoch", None)  # older versions had a row per epoch
                if step is not None:
                    values = {name: float(text) for name, text in row.items() if text}
                    yield from (Fact(name, value, int(step)) for name, value in values.items() if isfinite(value))
