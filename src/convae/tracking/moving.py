"""Artifact addresses in a store that was moved or copied. MLflow keeps them absolute: they name the old place."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

FOLDER = "mlartifacts"
REPOSITORY = "convae.repository"  # tag: host and folder of the repository that an experiment's row is from
COLUMNS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
ADDRESS = re.compile(rf"(file:///.*/{FOLDER})(/(?:[0-9a-f]{{32}}|models/m-[0-9a-f]{{32}})/artifacts.*)")


def artifacts_beside(database: Path) -> Path:
    """Where figures and published models of a SQLite store lie."""
    return database.parent.resolve() / FOLDER


def follow(database: Path, experiments: tuple[str, ...] = ()) -> None:
    """Point addresses below another folder's `mlartifacts` to the one beside this database.

    An address changes if its figures are here; if the old repository is gone, unless its parent folder is missing too,
    as on a disk that is not mounted; or if the old repository has a database of its own: then this one is a copy, which
    must not write into the original.

    Args:
        database: a file of SQLite; without MLflow's tables there is nothing to do.
        experiments: names of those that will get new runs.
    """
    here = artifacts_beside(database)
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'logged_models'").fetchone():
            return
        left: set[Path] = set()  # folders
        for name in experiments:
            row = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (name,)).fetchone()
            if row and row[0].startswith("file:///") and row[0].endswith(f"/{FOLDER}") and row[0] != here.as_uri():
                left.add(_path(row[0]).parent)
                connection.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", (here.as_uri(), name))
        for table, column in COLUMNS:
            for folder, below in list(_elsewhere(connection, table, column, here)):
                if _belongs_here(database, _path(folder), unquote(below)):
                    left.add(_path(folder).parent)
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {column} = ?",
                        (here.as_uri() + below, folder + below),
                    )
        for root in left:
            connection.execute(
                "UPDATE tags SET value = substr(value, 1, length(value) - length(:old)) || :new "
                "WHERE key = :key AND substr(value, -length(:old)) = :old",
                {"key": REPOSITORY, "old": f" {root}", "new": f" {here.parent}"},
            )


def _elsewhere(connection: sqlite3.Connection, table: str, column: str, here: Path) -> Iterator[tuple[str, str]]:
    """Addresses that lead to another `mlartifacts`, in two: that folder, and what follows."""
    start = f"{here.as_uri()}/"
    found = connection.execute(
        f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE ? AND substr({column}, 1, ?) != ?",
        (f"file:///%/{FOLDER}/%", len(start), start),
    )
    for (address,) in found:
        match = ADDRESS.fullmatch(address)
        if match:
            yield match[1], match[2]


def _belongs_here(database: Path, folder: Path, below: str) -> bool:
    if _exists(Path(f"{artifacts_beside(database)}{below}")):
        return True
    root = folder.parent
    if not _exists(root):
        return _exists(root.parent)
    other = root / database.name
    return _exists(other) and not other.samefile(database)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # somebody else's, who has it
        return True
    except OSError:
        return False


def _path(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
