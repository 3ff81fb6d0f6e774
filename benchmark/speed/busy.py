"""Training on a machine whose cores are busy with other work, against a fair share of the idle machine."""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmark.speed.experiments import params_of
from benchmark.speed.images import fashion_mnist, some_images
from benchmark.speed.measuring import THREADS, Row, at_least, clone, command
from convae.datasets.image_set import write_image_set
from convae.files import write_json

IMAGES, VALIDATION = 10_000, 1000
REPETITIONS = 3
SPIN = "while True: pass"


def rows() -> Iterator[Row]:
    """Images per second of the whole stage, with as many busy processes as threads."""
    fashion_mnist()
    with TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        clone(workspace)
        for part, count in (("train", IMAGES), ("validation", VALIDATION), ("unlabelled", 0)):
            images = some_images("train" if part == "unlabelled" else part, count).images
            write_image_set(workspace / "data/prepared" / part, images.shape, [images], None, ())
        params = params_of("default", train={"threads": THREADS})
        write_json(workspace / "params.yaml", params.model_dump(mode="json"))
        idle, busy = [], []
        for _ in range(REPETITIONS):
            idle.append(_seconds(workspace))
            with ExitStack() as stack:
                for _ in range(THREADS):
                    stack.callback(subprocess.Popen([sys.executable, "-c", SPIN]).kill)
                busy.append(_seconds(workspace))
        alone, beside = (IMAGES / statistics.median(seconds) for seconds in (idle, busy))
    cores = psutil.cpu_count(logical=True) or 1
    fair = alone * min(1, cores / (2 * THREADS))
    name = f"training default beside {THREADS} busy processes, images/s, to a fair share"
    yield at_least(name, 0.5, beside / fair, ours=beside, usual=None, limit=fair)


def _seconds(workspace: Path) -> float:
    path = os.pathsep.join((str(workspace / "src"), str(workspace)))
    return command([sys.executable, "-m", "pipeline.train"], workspace, CONVAE_TRACKING="off", PYTHONPATH=path)
