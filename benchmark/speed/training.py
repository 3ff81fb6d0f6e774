"""Training: an epoch with validation, logging and checkpoints, against a bare loop and against plain Lightning."""

import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmark.speed.images import changed, default_params, fashion_mnist, some_images, untrained
from benchmark.speed.measuring import REPOSITORY, THREADS, Row, at_least, clone, in_new_process, rates
from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder
from convae.params import Params, load_params
from convae.stages.runner import keep_freed_memory, limit_threads
from convae.tracking.runs import start_run

IMAGES = 24_000
VALIDATION = 1000
REPETITIONS = 3
SAME = 1e-5  # allowed difference from the bare loop's filters, as a fraction of the largest weight


def rows() -> Iterator[Row]:
    """Training images per second."""
    fashion_mnist()
    for system in ("seed_cae", "default"):
        rate = rates(IMAGES, (ours, usual, limit), REPETITIONS, system, IMAGES)
        difference = in_new_process(largest_difference, system, IMAGES)
        # The ratio to the bare loop means something only if both learn the same filters.
        assert difference < SAME, f"{system}: the bare loop's filters differ by {difference}"
        name = f"training {system}, images/s"
        yield at_least(f"{name}, to the bare loop", 0.95, rate["ours"] / rate["limit"], **rate)
        yield at_least(f"{name}, to the usual", 1.5, rate["ours"] / rate["usual"], **rate)


def ours(system: str, count: int) -> float:
    """The work of the stage `train`, including its run in MLflow."""
    keep_freed_memory()  # as every stage does
    with TemporaryDirectory() as folder, limit_threads(THREADS):
        workspace = Path(folder) / "workspace"
        clone(workspace)
        (workspace / "data/prepared").symlink_to(fashion_mnist())
        (workspace / "models/autoencoder").symlink_to(untrained(default_params()))  # the run records its files
        params = changed(_params(system), tracking={"enabled": True, "uri": f"sqlite:///{folder}/mlflow.db"})
        with chdir(workspace), start_run("train", params) as run:
            return second_epoch(params, *_images(count), run.log_epoch)


def second_epoch(
    params: Params,
    training: ImageSet,
    validation: ImageSet,
    on_epoch: Callable[[dict[str, float]], None] = lambda row: None,
) -> float:
    """Train for two epochs as the pipeline does, and return the seconds of the second."""
    ends: list[float] = []

    def end(row: dict[str, float]) -> None:
        on_epoch(row)
        ends.append(time.perf_counter())

    _train(changed(params, train={"epochs": 2}), training, validation, end)
    return ends[1] - ends[0]  # the first epoch includes warm-up


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
    filters = torch.from_numpy(_train(params, *_images(count), lambda row: None).filters)
    return float((_bare_loop(params, count)[1] - filters).abs().max() / filters.abs().max())


def _params(system: str) -> Params:
    params = load_params(REPOSITORY / f"systems/{system}.yaml")
    return changed(params, data={"dataset": "fashion_mnist"}, train={"epochs": 2, "threads": THREADS})


def _images(count: int) -> tuple[ImageSet, ImageSet]:
    return some_images("train", count), some_images("validation", VALIDATION)


def _train(
    params: Params, training: ImageSet, validation: ImageSet, on_epoch: Callable[[dict[str, float]], None]
) -> Encoder:
    from convae.training.train import train_encoder

    with TemporaryDirectory() as folder:
        return train_encoder(params, training, validation, on_epoch, Path(folder), progress=True)[0]


def _untrained(params: Params, count: int) -> Encoder:
    """The encoder with which training starts."""
    return _train(changed(params, objective={"kind": "none"}), *_images(count), lambda row: None)


def _bare_loop(params: Params, count: int) -> tuple[float, Tensor]:
    """Train for two epochs in a bare loop; return the seconds of the second and the filters."""
    from convae.models.draws import random_seed

    network = _untrained(params, count).autoencoder.requires_grad_(True)
    images, validation = (torch.from_numpy(part.images) for part in _images(count))
    optimizer = torch.optim.Adam(network.parameters(), params.train.learning_rate)
    steps = -(-count // params.train.batch_size)
    schedule = CosineAnnealingLR(optimizer, 2 * steps) if params.train.schedule == "cosine" else None
    for epoch in range(2):
        start = time.perf_counter()
        network.train()
        generator = torch.Generator().manual_seed(random_seed(params.seed, epoch))
        for chosen in torch.randperm(count, generator=generator).split(params.train.batch_size):
            batch = network.preprocessing(images.index_select(0, chosen))
            optimizer.zero_grad()
            F.mse_loss(network(batch), batch).backward()
            optimizer.step()
            if schedule:
                schedule.step()
        network.eval()
        with torch.no_grad():
            for pictures in validation.split(max(params.train.batch_size, 256)):
                batch = network.preprocessing(pictures)
                F.mse_loss(network(batch), batch)
    return time.perf_counter() - start, network.layers[0].convolution.weight.detach()
