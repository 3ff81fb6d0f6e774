"""Artifact addresses in a store that was moved or copied. MLflow stores absolute ones, which name the old folder."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

FOLDER = "mlartifacts"
REPOSITORY = "convae.repository"  # tag: host and folder of the repository that a row comes from
COLUMNS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
ADDRESS = re.compile(rf"(file:///.*/{FOLDER})(/(?:[0-9a-f]{{32}}|models/m-[0-9a-f]{{32}})/artifacts.*)")


def artifacts_beside(database: Path) -> Path:
    """Return the folder next to a SQLite store that holds its figures and published models.

    Example:
        >>> str(artifacts_beside(Path("/srv/team/mlflow.db")))
        '/srv/team/mlartifacts'
    """
    return database.parent.resolve() / FOLDER


def follow(database: Path, experiments: tuple[str, ...] = ()) -> None:
    """Redirect addresses in another folder's `mlartifacts` to the `mlartifacts` next to this database.

    An address is changed in three cases:

    - its artifacts are here;
    - the old repository is gone (but not if its parent folder is missing too, as on an unmounted disk);
    - the old repository has its own database: then this one is a copy, and must not write into the original.

    Args:
        database: a SQLite file; nothing happens if it has no MLflow tables.
        experiments: names of experiments that will get new runs.
    """
    here = artifacts_beside(database)
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'logged_models'").fetchone():
            return
        left: set[Path] = set()  # old folders of the repository
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
        # The rows' repository moved along: without the new folder in its tag, `sync` would take them for another's.
        for root in left:
            connection.execute(
                "UPDATE tags SET value = substr(value, 1, length(value) - length(:old)) || :new "
                "WHERE key = :key AND substr(value, -length(:old)) = :old",
                {"key": REPOSITORY, "old": f" {root}", "new": f" {here.parent}"},
            )


def _elsewhere(connection: sqlite3.Connection, table: str, column: str, here: Path) -> Iterator[tuple[str, str]]:
    """Yield addresses in another `mlartifacts`, split into that folder and the rest."""
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
    except PermissionError:  # it exists, but belongs to another user
        return True
    except OSError:
        return False


def _path(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
