"""Where runs are recorded, and how that place is opened without getting in anybody's way."""

import logging
import os
import re
import sqlite3
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from filelock import FileLock

from convae.errors import ConvaeError
from convae.tracking.moving import artifacts_beside, follow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Recorded

    from convae.params import TrackingParams

SQLITE = "sqlite:///"
SERVERS = ("http://", "https://")
WARNING = "{}: no longer recorded in MLflow ({}); results are unaffected"

# Two attempts of 5 s bound what a server costs that is dead or hangs; a Retry-After of an hour is not obeyed.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def store_root() -> Path:
    """The repository that keeps the runs: under `dvc exp run --temp` the main one, not the copy."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def store_uri(tracking: "TrackingParams") -> str | None:
    """Address of the MLflow store; None where tracking is switched off.

    `MLFLOW_TRACKING_URI` comes before `tracking.uri`, and that before `mlflow.db` in the repository, where
    relative paths of SQLite files start too.
    """
    if os.environ.get("CONVAE_TRACKING", "").lower() == "off" or not tracking.enabled:
        return None
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        root = str(store_root()).replace("%", "%25").replace("?", "%3F")
        return f"{SQLITE}{Path(root) / uri.removeprefix(SQLITE)}"
    return uri


def database_of(uri: str) -> Path:
    """The file of a SQLite store."""
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def known_store(tracking: "TrackingParams") -> str:
    """Address of the MLflow store.

    Raises:
        ConvaeError: tracking is switched off.
    """
    uri = store_uri(tracking)
    if uri is None:
        raise ConvaeError("tracking is switched off, by CONVAE_TRACKING or tracking.enabled")
    return uri


def ending(process: Mapping[str, str]) -> Path:
    """Where a stage leaves its status when that could not be recorded; it is known by the tags of its process."""
    return store_root() / ".convae/endings" / f"{process['process.pid']}-{process['process.started']}"


def import_mlflow() -> None:
    """Import MLflow so that it keeps off the terminal, calls nobody and never waits for long."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import_module("mlflow")
    # It says of each retry that there is one.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def open_store(uri: str, *experiments: str) -> tuple["MlflowClient", list[str]]:
    """A client of the store at `uri` and the ids of `experiments`, all made where they are missing.

    Raises:
        Exception: whatever MLflow and what lies under it come up with.
    """
    import_mlflow()
    if not uri.startswith(SQLITE):
        with refused_name(uri):
            return _open(uri, experiments)
    database = database_of(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    # Of several processes that create the tables at once all but one would crash.
    with FileLock(f"{database}.lock"):
        if not database.exists():  # deleted, perhaps, without its log, which belongs to no other database
            for leftover in ("-wal", "-shm"):
                Path(f"{database}{leftover}").unlink(missing_ok=True)
        # Finds in an instant what MLflow would retry for 100 s: a file that is no database or is read-only.
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        follow(database, experiments)
        return _open(uri, experiments)


def check_answer(uri: str) -> None:
    """Ask whether anybody is at the address of a server, which without MLflow costs next to nothing.

    Raises:
        ConvaeError: nobody is, or does not answer in time. Any answer will do, and certificates are left to MLflow.
    """
    parts = urlsplit(uri)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"{parts.path.rstrip('/')}/health").geturl()
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    try:
        urlopen(address, timeout=float(os.environ.get(name) or SETTINGS[name])).close()
    except HTTPError:
        return
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):
            raise ConvaeError(f"{public(uri)}: {reason}") from None


def every_run(client: "MlflowClient", experiment: str, condition: str = "") -> Iterator["Recorded"]:
    """The runs of an experiment that fulfil a condition, oldest first."""
    token = None
    while True:
        page = client.search_runs([experiment], condition, order_by=["start_time"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keep other processes of this repository from looking for the same missing runs."""
    folder = store_root() / ".convae"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "records.lock"):
        yield


@contextmanager
def refused_name(uri: str) -> Iterator[None]:
    """Say what to do about a server that does not answer to the name that it was called by.

    Raises:
        ConvaeError: its answer was "Invalid Host header".
    """
    try:
        yield
    except Exception as error:
        if "Invalid Host header" not in str(error):
            raise
        name = urlsplit(uri).netloc.rpartition("@")[2]
        raise ConvaeError(
            f"the server does not answer to the name {name} (403, Invalid Host header); start it with "
            f"`mlflow server --allowed-hosts {name}`, see docs/team.md"
        ) from None


@contextmanager
def store_errors(what: str = "the store of the runs can't be used") -> Iterator[None]:
    """Whatever MLflow, SQLAlchemy or a driver come up with becomes one line."""
    try:
        yield
    except ConvaeError:
        raise
    except Exception as error:
        raise ConvaeError(f"{what}: {presentable(error)}") from None


def presentable(error: Exception) -> str:
    """An error in one line, without the password that an address may hold."""
    if isinstance(error, ConvaeError):
        return str(error)
    text = public(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return text if len(text) <= 200 else text[:197] + "..."


def public(text: str) -> str:
    """An address, or words with one in them, without user name and password."""
    return re.sub(r"//\S*@", "//", text)


def _open(uri: str, experiments: tuple[str, ...]) -> tuple["MlflowClient", list[str]]:
    from mlflow import MlflowClient

    # Not mlflow.set_tracking_uri, which sets the environment of child processes too.
    client = MlflowClient(uri)
    return client, [_experiment(client, uri, name) for name in experiments]


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.db_types import DATABASE_ENGINES

    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    if found is None:
        # Without a location MLflow would take the current folder. A server has its own.
        is_database = uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES
        database = database_of(uri) if uri.startswith(SQLITE) else store_root() / "mlflow.db"
        location = artifacts_beside(database).as_uri() if is_database else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process may have been faster
            if found is None:
                raise
    return str(found.experiment_id)
