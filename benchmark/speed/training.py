"""Training: an epoch with validation, logging and checkpoints, against a bare loop and against plain Lightning."""

import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmark.speed import bare
from benchmark.speed.experiments import WHOLE_MAPS, changed, params_of
from benchmark.speed.images import fashion_mnist, some_images, untrained
from benchmark.speed.measuring import THREADS, Row, at_least, clone, in_new_process, rates
from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder
from convae.params import Params
from convae.stages.runner import keep_freed_memory, limit_threads
from convae.tracking.runs import start_run

IMAGES = 24_000
VALIDATION = 1000
REPETITIONS = 3
SAME = 1e-5  # allowed difference from the bare loop's filters, as a fraction of the largest weight


def rows() -> Iterator[Row]:
    """Training images per second."""
    fashion_mnist()
    for system in ("seed_cae", WHOLE_MAPS, "default"):
        contestants = (ours, limit) if system == "default" else (ours, limit, usual)
        rate = rates(IMAGES, contestants, REPETITIONS, system, IMAGES)
        difference = in_new_process(largest_difference, system, IMAGES)
        # The ratio to the bare loop means something only if both learn the same filters.
        assert difference < SAME, f"{system}: the bare loop's filters differ by {difference}"
        name = f"training {system}, images/s"
        own, bare, usually = rate["ours"], rate["limit"], rate.get("usual")
        yield at_least(f"{name}, to the bare loop", 0.95, own / bare, own, usually, bare)
        if usually:
            yield at_least(f"{name}, to the usual", 1.5, own / usually, own, usually, bare)


def ours(system: str, count: int) -> float:
    """The work of the stage `train`, including its run in MLflow."""
    keep_freed_memory()  # as every stage does
    with TemporaryDirectory() as folder, limit_threads(THREADS):
        workspace = Path(folder) / "workspace"
        clone(workspace)
        (workspace / "data/prepared").symlink_to(fashion_mnist())
        (workspace / "models/autoencoder").symlink_to(untrained(params_of("default")))  # the run records its files
        params = changed(_params(system), tracking={"enabled": True, "uri": f"sqlite:///{folder}/mlflow.db"})
        with chdir(workspace), start_run("train", params) as run:
            return second_epoch(params, *_images(count), run.log_row)


def second_epoch(
    params: Params,
    training: ImageSet,
    validation: ImageSet,
    on_row: Callable[[dict[str, float]], None] = lambda row: None,
) -> float:
    """Train for two epochs a phase as the pipeline does, and return the seconds of the second ones."""
    ends: list[float] = []

    def end(row: dict[str, float]) -> None:
        on_row(row)
        if "validation_loss" in row:  # the end of an epoch
            ends.append(time.perf_counter())

    _train(changed(params, train={"epochs": 2}), training, validation, end)
    return sum(second - first for first, second in zip(ends[::2], ends[1::2], strict=True))  # the first warms up


def usual(system: str, count: int) -> float:
    """A Lightning module that computes every activation, and a DataLoader over Pillow images."""
    from benchmark.speed import usual as way

    params = _params(system)
    layer, rate = params.model.layers[0], params.train.learning_rate
    if system == "seed_cae":
        module = way.seed_cae(layer.filters, rate)
    else:
        module = way.WinnerTakeAll(_untrained(params, count).autoencoder.requires_grad_(True), rate)
    images, validation = (part.images for part in _images(count))
    return way.train(module, images, validation, params.train.batch_size)


def limit(system: str, count: int) -> float:
    """The same arithmetic in a bare loop."""
    keep_freed_memory()
    return _bare_loop(_params(system), count)[0]


def largest_difference(system: str, count: int) -> float:
    """Difference between the filters of the stage and of the bare loop, as a fraction of the largest weight."""
    params = _params(system)
    filters = _train(params, *_images(count), lambda row: None).autoencoder.layers[-1].convolution.weight
    return float((_bare_loop(params, count)[1] - filters).abs().max() / filters.abs().max())


def _params(system: str) -> Params:
    return params_of(system, data={"dataset": "fashion_mnist"}, train={"epochs": 2, "threads": THREADS})


def _images(count: int) -> tuple[ImageSet, ImageSet]:
    return some_images("train", count), some_images("validation", VALIDATION)


def _train(
    params: Params, training: ImageSet, validation: ImageSet, on_row: Callable[[dict[str, float]], None]
) -> Encoder:
    from convae.training.train import train_encoder

    with TemporaryDirectory() as folder:
        return train_encoder(params, training, validation, on_row, Path(folder), progress=True)[0]


def _untrained(params: Params, count: int) -> Encoder:
    """The encoder with which training starts."""
    return _train(changed(params, objective={"kind": "none"}), *_images(count), lambda row: None)


def _bare_loop(params: Params, count: int) -> tuple[float, Tensor]:
    images, validation = (torch.from_numpy(part.images) for part in _images(count))
    return bare.train(params, _untrained(params, count), images, validation)
