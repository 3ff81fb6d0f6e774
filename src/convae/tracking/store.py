"""The store that runs are recorded in: its address, and opening it without noise or long waits."""

import logging
import os
import re
import sqlite3
import ssl
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
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

# By default one call to a dead server blocks for 246 s. Two attempts of 5 s limit that, and a Retry-After of an hour is
# ignored.
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
    """Return the repository whose store has the runs: under `dvc exp run --temp` the main one, not the clone."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def store_uri(tracking: "TrackingParams") -> str | None:
    """Return the address of the MLflow store; None if tracking is off.

    `MLFLOW_TRACKING_URI` takes precedence over `tracking.uri`, and that over `mlflow.db` in the repository. Relative
    paths of SQLite files are relative to the repository.
    """
    if os.environ.get("CONVAE_TRACKING", "").lower() == "off" or not tracking.enabled:
        return None
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri or f"{SQLITE}mlflow.db"
    if uri.startswith(SQLITE):
        root = str(store_root()).replace("%", "%25").replace("?", "%3F")
        return f"{SQLITE}{Path(root) / uri.removeprefix(SQLITE)}"
    return uri


def database_of(uri: str) -> Path:
    """Return the file of a SQLite store.

    Example:
        >>> database_of("sqlite:////home/ada/mlflow.db?mode=ro").as_posix()
        '/home/ada/mlflow.db'
    """
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))


def known_store(tracking: "TrackingParams") -> str:
    """Return the address of the MLflow store.

    Raises:
        ConvaeError: tracking is off.
    """
    uri = store_uri(tracking)
    if uri is None:
        raise ConvaeError("tracking is switched off, by CONVAE_TRACKING or tracking.enabled")
    return uri


def ending(process: Mapping[str, str]) -> Path:
    """Return the file for the status of a stage that could not record it, named after the tags of its process."""
    return store_root() / ".convae/endings" / f"{process['process.pid']}-{process['process.started']}"


def import_mlflow() -> None:
    """Import MLflow so that it prints nothing, sends no telemetry and never waits long."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import_module("mlflow")
    # It logs a warning for each retry.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def open_store(uri: str, *experiments: str) -> tuple["MlflowClient", list[str]]:
    """Return a client of the store at `uri` and the ids of `experiments`, creating what is missing.

    Raises:
        Exception: any error of MLflow or its database.
    """
    import_mlflow()
    if not uri.startswith(SQLITE):
        with refused_name(uri):
            return _open(uri, experiments)
    database = database_of(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    # If several processes created the tables at once, all but one would crash.
    with FileLock(f"{database}.lock"):
        if not database.exists():  # SQLite would apply the leftover log of a deleted database to the new one
            for leftover in ("-wal", "-shm"):
                Path(f"{database}{leftover}").unlink(missing_ok=True)
        # Fails at once if the file is read-only or not a database, where MLflow would retry for 100 s.
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        follow(database, experiments)
        return _open(uri, experiments)


def check_answer(uri: str) -> None:
    """Check that a server answers, before the slow import of MLflow.

    Any answer will do, even an error; certificates are left to MLflow.

    Raises:
        ConvaeError: the server can't be reached, or does not answer in time.
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
    """Yield the runs of an experiment that meet a condition, oldest first."""
    token = None
    while True:
        page = client.search_runs([experiment], condition, order_by=["start_time"], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def one_at_a_time() -> AbstractContextManager[object]:
    """Lock the records of this repository, so that two processes don't add the same missing runs."""
    folder = store_root() / ".convae"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "records.lock")


@contextmanager
def refused_name(uri: str) -> Iterator[None]:
    """Explain what to do if a server refuses the host name in its address.

    Since MLflow 3 a server accepts only localhost and private addresses unless told otherwise.

    Raises:
        ConvaeError: the server answered "Invalid Host header".
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
def store_errors(what: str = "the MLflow store can't be used") -> Iterator[None]:
    """Turn any error of MLflow, SQLAlchemy or a driver into one line."""
    try:
        yield
    except ConvaeError:
        raise
    except Exception as error:
        raise ConvaeError(f"{what}: {presentable(error)}") from None


def presentable(error: Exception) -> str:
    """Return an error as one line, without the password that an address may contain.

    Example:
        >>> presentable(OSError("https://ada:secret@example.org does not answer"))
        'OSError: https://example.org does not answer'
    """
    if isinstance(error, ConvaeError):
        return str(error)
    text = public(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return text if len(text) <= 200 else text[:197] + "..."


def public(text: str) -> str:
    """Remove user name and password from an address, or from text that contains one.

    Example:
        >>> public("http://ada:secret@example.org:5000 is down")
        'http://example.org:5000 is down'
    """
    return re.sub(r"//\S*@", "//", text)


def _open(uri: str, experiments: tuple[str, ...]) -> tuple["MlflowClient", list[str]]:
    from mlflow import MlflowClient

    # Not mlflow.set_tracking_uri, which also sets an environment variable that child processes inherit.
    client = MlflowClient(uri)
    return client, [_experiment(client, uri, name) for name in experiments]


def _experiment(client: "MlflowClient", uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.db_types import DATABASE_ENGINES

    found = client.get_experiment_by_name(name)
    if found is None:
        # Without a location, MLflow would store artifacts below the current folder. A server decides for itself.
        is_database = uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES
        database = database_of(uri) if uri.startswith(SQLITE) else store_root() / "mlflow.db"
        location = artifacts_beside(database).as_uri() if is_database else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process may have created it in the meantime
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
