"""Downloading models from MLflow: from its registry or from a run's artifacts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from convae.errors import ConvaeError
from convae.params import PARAMS_FILE, TrackingParams, load_params
from convae.tracking.moving import follow
from convae.tracking.store import SQLITE, database_of, import_mlflow, known_store, refused_name, store_errors

MODEL = "model"  # the folder of a published model that contains encoder/ and classifier/


@contextmanager
def downloaded(address: str) -> Iterator[Path]:
    """Download a published model to a temporary folder with `encoder/` and perhaps `classifier/`.

    Raises:
        ConvaeError: there is no model at this address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or known_store(_tracking())
    if uri.startswith(SQLITE) and not database_of(uri).exists():
        raise ConvaeError(f"{address}: there is no {database_of(uri)}; set MLFLOW_TRACKING_URI to use another store")
    import_mlflow()
    from mlflow.artifacts import download_artifacts

    with TemporaryDirectory() as scratch:
        with store_errors(address), refused_name(uri):
            if uri.startswith(SQLITE):
                follow(database_of(uri))
            folder = download_artifacts(address, dst_path=scratch, tracking_uri=uri, registry_uri=uri)
        yield Path(folder) / "data" / MODEL


def _tracking() -> TrackingParams:
    """Return the settings of the repository in the current folder; outside a repository, the defaults."""
    if Path("dvc.yaml").exists() and PARAMS_FILE.exists():
        return load_params().tracking
    return TrackingParams(enabled=True, uri=None, experiment="convae")
