"""An epoch of training on whole maps: two processes with one thread each against one process with two threads."""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark.speed.experiments import WHOLE_MAPS, params_of
from benchmark.speed.images import fashion_mnist, some_images
from benchmark.speed.measuring import REPOSITORY, Row, alternate
from convae.processes import connect
from convae.stages.runner import keep_freed_memory

IMAGES, VALIDATION = 20_000, 1000


def rows() -> Iterator[Row]:
    """Training images per second."""
    fashion_mnist()
    seconds = alternate({"two": partial(epoch, 2, 1), "one": partial(epoch, 1, 2)}, 3)
    two, one = (IMAGES / seconds[name] for name in ("two", "one"))
    yield Row("training by two processes, images/s, to one with two threads", two, usual=one, ratio=two / one)


def epoch(count: int, threads: int) -> float:
    """Seconds of the second epoch, when everything is warm."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    with TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, "-m", "benchmark.speed.processes", folder, str(threads)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def train(checkpoints: Path, threads: int) -> None:
    """Train in one of the processes, and print the seconds of its second epoch."""
    from convae.training.train import train_encoder

    keep_freed_memory()
    processes = connect()
    params = params_of(WHOLE_MAPS, train={"epochs": 2, "threads": threads, "accelerator": "cpu"})
    training, validation = some_images("train", IMAGES), some_images("validation", VALIDATION)
    ends: list[float] = []
    train_encoder(
        params, training, validation, lambda row: ends.append(time.perf_counter()), checkpoints, processes=processes
    )
    print(ends[1] - ends[0])


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
