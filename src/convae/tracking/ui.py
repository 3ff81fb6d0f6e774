"""The commands `convae sync`, `lineage` and `ui`."""

import os
import socket
import sys
from pathlib import Path

from convae.errors import ConvaeError
from convae.history.lineage import describe, find_producer
from convae.history.lock import Execution, chain
from convae.params import load_params
from convae.tracking.ladder import ladder_cells, record
from convae.tracking.records import Records
from convae.tracking.store import SERVERS, known_store, public, store_errors
from convae.tracking.sync import sync
from convae.tracking.view import set_view

LOOPBACK = "127.0.0.1"


def synchronise() -> str:
    """`convae sync`: add the runs that MLflow lacks, save a view of them, and return its path on an MLflow server.

    Raises:
        ConvaeError: tracking is off, or the store can't be used.
    """
    tracking = load_params().tracking
    uri = known_store(tracking)
    with store_errors():
        records = Records(uri, tracking.experiment)
        runs, rows = sync(records)
        view = set_view(records)
        cells = record(uri, tracking.experiment, ladder_cells())
    print(f"Added {runs} stage runs and {rows} experiments; existing ones are unchanged.")
    if cells:
        print(f"Added {cells} ladder cells to the experiment {tracking.experiment}-ladder.")
    return view


def open_ui(port: int) -> None:
    """`convae ui`: sync, then become an MLflow server on the loopback address; if a server has the runs, print its URL.

    Raises:
        ConvaeError: tracking is off, the port is taken, or the store can't be used.
    """
    uri = known_store(load_params().tracking)
    if uri.startswith(SERVERS):
        print(f"Compare experiments at {public(uri)}{synchronise()}")
        return
    _check_free(port)
    print(f"Compare experiments at http://{LOOPBACK}:{port}{synchronise()} (Ctrl-C to stop).", flush=True)
    # In the environment, not as arguments, which every user can read: the address may contain a password.
    os.environ |= {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves seven processes that nothing here needs
        "PYTHONWARNINGS": "ignore",
    }
    options = f"--host {LOOPBACK} --port {port} --workers 1 --uvicorn-opts --log-level=warning"
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *options.split()])


def print_lineage(path: Path) -> None:
    """`convae lineage`: print the data, code, parameters and runs behind a stage's output.

    Raises:
        ConvaeError: `path` does not exist, or no dvc.lock has its hash.
    """
    place, execution = find_producer(path)
    try:
        runs = _find_runs([execution, *chain(place.executions, execution)])
    except ConvaeError as error:  # everything but the runs is known without MLflow
        print(f"convae: {error}", file=sys.stderr)
        runs = {}
    for line in describe(path, place, execution, runs):
        print(line)


def _find_runs(executions: list[Execution]) -> dict[str, str]:
    """Return the runs of executions by key: their URLs on a server, or their ids in a database."""
    tracking = load_params().tracking
    uri = known_store(tracking)
    runs = {}
    with store_errors():
        records = Records(uri, tracking.experiment)
        for one in executions:
            run = records.find(records.stages, one.key)
            if run is not None:
                page = f"#/experiments/{records.stages}/runs/{run.info.run_id}"
                runs[one.key] = f"{public(uri)}/{page}" if uri.startswith(SERVERS) else str(run.info.run_id)
    return runs


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like the server: a port just closed is free
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise ConvaeError(f"port {port} can't be used ({error}); choose another with --port") from None
