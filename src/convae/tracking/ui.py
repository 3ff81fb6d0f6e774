"""MLflow's user interface over the recorded runs."""

import os
import sys
from pathlib import Path

from convae.errors import ConvaeError
from convae.params import load_params
from convae.tracking.background import presentable
from convae.tracking.store import SQLITE, import_mlflow, open_store, store_uri


def open_ui(port: int) -> None:
    """Become MLflow's server, on loopback alone, over the store that params.yaml and the environment name.

    Where a server keeps the runs already, its address is printed instead.

    Raises:
        ConvaeError: tracking is off, nothing is recorded yet, or the store can't be opened.
    """
    tracking = load_params().tracking
    uri = store_uri(tracking)
    if uri is None:
        raise ConvaeError("tracking is switched off, by CONVAE_TRACKING or tracking.enabled")
    if uri.startswith(("http://", "https://")):
        print(f"The runs are recorded by the server at {uri}: open it in a browser.")
        return
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        raise ConvaeError(f"{uri.removeprefix(SQLITE)} is not there yet: `dvc repro` records the first runs")
    import_mlflow()
    try:
        _, experiment = open_store(uri, f"{tracking.experiment}-stages")
    except Exception as error:  # of MLflow, SQLAlchemy or a driver
        raise ConvaeError(f"the store of the runs can't be opened: {presentable(error)}") from None
    # MLflow's own landing page shows no runs.
    address = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs"
    print(f"Compare runs at {address} (Ctrl-C ends it).", flush=True)
    server = ["mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *server])
