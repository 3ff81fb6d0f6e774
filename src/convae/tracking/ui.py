"""What the commands `sync`, `lineage` and `ui` do."""

import os
import socket
import sys
from pathlib import Path

from convae.errors import ConvaeError
from convae.history.lineage import describe, find_producer
from convae.history.lock import Execution, chain
from convae.params import load_params
from convae.tracking.ladder import ladder_cells, record
from convae.tracking.records import KEY, Records
from convae.tracking.store import SERVERS, known_store, public, store_errors
from convae.tracking.sync import sync
from convae.tracking.view import set_view

LOOPBACK = "127.0.0.1"


def synchronise() -> str:
    """Create the runs that MLflow lacks, and the view of them; gives the view's address on a server.

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
    print(f"Added {runs} runs of stages and {rows} experiments; what MLflow had already stays.")
    if cells:
        print(f"Added {cells} cells of the ladder to the experiment {tracking.experiment}-ladder.")
    return view


def open_ui(port: int) -> None:
    """Synchronise, then become MLflow's server, on loopback alone; where a server has the runs, say where it is.

    Raises:
        ConvaeError: tracking is off, the port is taken, or the store can't be used.
    """
    uri = known_store(load_params().tracking)
    if uri.startswith(SERVERS):
        print(f"Compare experiments at {public(uri)}{synchronise()}")
        return
    _check_free(port)
    print(f"Compare experiments at http://{LOOPBACK}:{port}{synchronise()} (Ctrl-C ends it).", flush=True)
    # By the environment: arguments are for everybody to read, and an address may hold a password.
    os.environ |= {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that nothing here needs
        "PYTHONWARNINGS": "ignore",
    }
    options = f"--host {LOOPBACK} --port {port} --workers 1 --uvicorn-opts --log-level=warning"
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *options.split()])


def print_lineage(path: Path) -> None:
    """Say of something that a stage wrote which data, code, parameters and runs it is from.

    Raises:
        ConvaeError: nothing is there, or no dvc.lock knows it.
    """
    place, execution = find_producer(path)
    try:
        runs = _find_runs([execution, *chain(place.executions, execution)])
    except ConvaeError as error:  # all but the runs is known without MLflow
        print(f"convae: {error}", file=sys.stderr)
        runs = {}
    for line in describe(path, place, execution, runs):
        print(line)


def _find_runs(executions: list[Execution]) -> dict[str, str]:
    """Addresses of the runs of executions on a server, or else their ids, by key."""
    tracking = load_params().tracking
    uri = known_store(tracking)
    runs = {}
    with store_errors():
        records = Records(uri, tracking.experiment)
        for one in executions:
            run = records.find(records.stages, KEY, one.key)
            if run is not None:
                page = f"#/experiments/{records.stages}/runs/{run.info.run_id}"
                runs[one.key] = f"{public(uri)}/{page}" if uri.startswith(SERVERS) else str(run.info.run_id)
    return runs


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise ConvaeError(f"port {port} can't be used ({error}); name another with --port") from None
