"""MLflow models of the folder `models/`, and MLflow's server of one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import numpy as np
import uvicorn
from helpers import free_port, wait_for
from mlflow.pyfunc import load_model
from mlflow.pyfunc.scoring_server import init

from convae import load_image_classifier
from convae.tracking.fetch import MODEL
from convae.tracking.registry import ENCODER, _save, _signature


def save_served(folder: Path, name: str) -> None:
    """Save the encoder in `models/`, or encoder and classifier, as `convae publish` does."""
    classifier = load_image_classifier("models")
    classifier.description["dimension"] = classifier.encoder.features([]).shape[1]
    config = classifier.encoder.config
    example = np.zeros((2, config["channels"], *config["image_size"]), np.uint8)
    with TemporaryDirectory() as scratch:
        data = Path(scratch) / MODEL
        for part in ("encoder",) if name == ENCODER else ("encoder", "classifier"):
            shutil.copytree(Path("models") / part, data / part)
        _save(folder, data, example, _signature(classifier, name))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of MLflow's server of a saved model, in a thread of this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(init(load_model(str(folder))), port=port, log_level="warning"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, 60)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
