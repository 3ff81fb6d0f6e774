"""Check that time grows no faster than the arithmetic, and that memory does not grow with the number of images."""

import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from benchmark.speed.experiments import WHOLE_MAPS, params_of, with_filters
from benchmark.speed.images import SCRATCH, fashion_mnist, some_images, untrained
from benchmark.speed.measuring import REPOSITORY, THREADS, Row, alternate, at_most, in_new_process, timed
from benchmark.speed.memory import peak_memory
from benchmark.speed.training import second_epoch
from convae.datasets.download import download
from convae.datasets.image_set import write_image_set
from convae.datasets.prepare import prepare
from convae.features.extract import extract_features
from convae.files import new_folder, write_json
from convae.params import Params
from convae.stages.runner import keep_freed_memory, limit_threads

PLOT = REPOSITORY / "reports/benchmark.png"
REPETITIONS = 3


class Task(NamedTuple):
    """The size of a task."""

    images: int
    side: int = 28
    filters: int = 64

    def arithmetic(self, stage: str) -> int:
        """Pixels for `prepare`; multiplications and additions in all windows for the other stages."""
        # Contrast normalisation takes two means over 9×9 windows; whitening and each filter take one product over 7×7.
        per_pixel = 1 if stage == "prepare" else 2 * 9**2 + 7**2 + self.filters * 7**2
        return self.images * self.side**2 * per_pixel


SERIES = {
    "images": [Task(15_000), Task(30_000), Task(60_000)],
    "side": [Task(4000, 28), Task(4000, 56), Task(4000, 112)],
    "filters": [Task(15_000, filters=16), Task(15_000, filters=32), Task(15_000, filters=64)],
}


def rows() -> Iterator[Row]:
    """Time per operation of the worst task, relative to the smallest; memory for four times as many images."""
    fashion_mnist()
    measured = {}
    for stage, (time, series) in STAGES.items():
        for name in series:
            tasks = SERIES[name]
            seconds = alternate({str(task): partial(time, task) for task in tasks}, REPETITIONS)
            measured[stage, name] = points = [(task.arithmetic(stage), seconds[str(task)]) for task in tasks]
            first, *others = (seconds / arithmetic for arithmetic, seconds in points)
            yield at_most(f"growth of {stage} with {name}, s, to proportional", 1.1, max(others) / first, points[-1][1])
    for stage in ("prepare", "features"):
        smallest, *_, largest = SERIES["images"]
        few, many = (
            statistics.median(in_new_process(_memory, stage, task) for _ in range(REPETITIONS))
            for task in (smallest, largest)
        )
        yield at_most(f"memory of {stage}, MB, of 60 000 images to 15 000", 1.1, many / few, many)
    _plot(measured)


def prepare_time(task: Task) -> float:
    """Seconds that `download` and `prepare` take for a folder of PNG files."""
    data = _of_pictures(task).data
    with TemporaryDirectory(dir=SCRATCH) as folder:
        raw, prepared = Path(folder) / "raw", Path(folder) / "prepared"
        return timed(download, data, raw, Path(folder)) + timed(prepare, data, 0, raw, prepared)


def train_time(task: Task) -> float:
    """Seconds of one epoch of the stage `train`."""
    keep_freed_memory()
    training, validation = some_images("train", task.images, task.side), some_images("validation", 1000, task.side)
    with limit_threads(THREADS):
        return second_epoch(with_filters(task.filters), training, validation)


def features_time(task: Task) -> float:
    """Seconds of the stage `features`."""
    keep_freed_memory()
    params = with_filters(task.filters)
    encoder, prepared = untrained(params, task.side), _prepared(task)
    with TemporaryDirectory(dir=SCRATCH) as folder, limit_threads(THREADS):
        return timed(extract_features, params, encoder, prepared, Path(folder) / "features")


def _memory(stage: str, task: Task) -> float:
    """Peak memory of the stage in MB."""
    with TemporaryDirectory(dir=SCRATCH) as folder:
        workspace = Path(folder)
        if stage == "prepare":
            params = _of_pictures(task)
            download(params.data, workspace / "data/raw/image_folder", workspace)
        else:
            params = with_filters(task.filters)
            for name, target in {"data/prepared": _prepared(task), "models/autoencoder": untrained(params)}.items():
                (workspace / name).parent.mkdir()
                (workspace / name).symlink_to(target)
        write_json(workspace / "params.yaml", params.model_dump(mode="json"))
        # Without tracking, whose memory does not depend on the images.
        environment = os.environ | {"CONVAE_TRACKING": "off", "PYTHONPATH": str(REPOSITORY)}
        return peak_memory(["-m", f"pipeline.{stage}"], workspace, environment)


STAGES: dict[str, tuple[Callable[[Task], float], list[str]]] = {
    "prepare": (prepare_time, ["images", "side"]),
    "train": (train_time, ["images", "side", "filters"]),
    "features": (features_time, ["images", "side", "filters"]),
}


def _of_pictures(task: Task) -> Params:
    """An experiment on a folder of PNG files."""
    of_pictures = {"dataset": "image_folder", "root": str(_pictures(task)), "image_size": task.side, "color": "grey"}
    return params_of(WHOLE_MAPS, data=of_pictures)


def _pictures(task: Task) -> Path:
    folder = SCRATCH / f"pictures/{task.images}-{task.side}"
    if not folder.exists():
        with new_folder(folder) as scratch:
            (scratch / "train").mkdir()
            for index, pixels in enumerate(some_images("train", task.images, task.side).images[:, 0]):
                Image.fromarray(pixels).save(scratch / f"train/{index:05}.png")
    return folder


def _prepared(task: Task) -> Path:
    folder = SCRATCH / f"prepared/{task.images}-{task.side}"
    if not folder.exists():
        with new_folder(folder) as scratch:
            for part, count in (("train", task.images), ("validation", 100), ("test", 100)):
                images = some_images(part, count, task.side).images
                write_image_set(scratch / part, images.shape, [images], None, ())
    return folder


def _plot(measured: dict[tuple[str, str], list[tuple[int, float]]]) -> None:
    """Plot time against arithmetic, with lines on which the two are proportional."""
    figure, panels = plt.subplots(1, len(STAGES), figsize=(12, 4), layout="constrained")
    for panel, stage in zip(panels, STAGES, strict=True):
        for (found, name), points in measured.items():
            if found == stage:
                arithmetic, seconds = np.array(points).T
                (line,) = panel.loglog(arithmetic, seconds, "o", label=name)
                panel.loglog(arithmetic, seconds[0] / arithmetic[0] * arithmetic, color=line.get_color(), linewidth=1)
        unit = "pixels" if stage == "prepare" else "multiplications and additions"
        panel.set(title=stage, xlabel=unit, ylabel="seconds")
        panel.tick_params(which="minor", labelbottom=False)  # they would overlap
        panel.legend(title="growing")
    figure.savefig(PLOT, dpi=100, metadata={"Software": None})
    plt.close(figure)
