"""A GPU: training and extraction of the default, against a bare loop, the usual way, and the chip's own rates."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmark.speed import bare
from benchmark.speed.experiments import params_of
from benchmark.speed.measuring import Row, at_least, in_new_process
from convae.datasets.image_set import ImageSet, write_image_set
from convae.devices import exact_arithmetic
from convae.encoder import Encoder
from convae.features.extract import attach_readout, extract_features
from convae.models.geometry import layer_sizes
from convae.params import Params
from convae.training.train import train_encoder

BATCH, IMAGES = 1024, 60_000
PRODUCT = 8192  # rows and columns of the matrices whose product is timed
COPIED = 1 << 30  # bytes


def rows() -> Iterator[Row]:
    """Images per second on the GPU, and its utilisation."""
    device, images = torch.device("cuda"), textures(IMAGES)
    params, seed = params_for(device, BATCH), params_for(device, BATCH, "seed_cae")
    own, loop = in_new_process(trained, params, images), in_new_process(bare_loop, params, images, device)
    yield at_least("gpu: training, images/s, to the bare loop", 0.9, own / loop, own, None, loop)
    own, usually = in_new_process(trained, seed, images), in_new_process(usual, seed, images)
    yield at_least("gpu: training seed_cae, images/s, to the usual", 1.5, own / usually, own, usually, None)
    if shares := in_new_process(busy, params, images):
        yield Row("gpu: utilisation while the stage `train` runs, %", float(np.mean(shares)))
    forward, to_disk, best = in_new_process(extraction, params, images, device)
    name = "gpu: extraction, images/s"
    yield at_least(f"{name}, to the roofline", 0.5, forward / best, forward, None, best)
    yield at_least(f"{name}, to disk, to the forward passes", 0.9, to_disk / forward, to_disk, None, forward)


def busy(params: Params, images: np.ndarray) -> list[float]:
    """The GPU's utilisation in percent while an encoder is trained, its layers' fitting included."""
    with utilisation() as shares:
        trained(params, images)
    return shares


def usual(params: Params, images: np.ndarray) -> float:
    """Images per second of plain Lightning with a DataLoader over Pillow images."""
    from benchmark.speed import usual as way

    module = way.seed_cae(params.model.layers[0].filters, params.train.learning_rate)
    training, validation = (part.images for part in image_sets(images))
    return len(training) / way.train(module, training, validation, params.train.batch_size)


def extraction(params: Params, images: np.ndarray, device: torch.device) -> tuple[float, float, float]:
    """Images per second of the forward passes, of the stage `features`, and of the roofline."""
    found = extracted(params, images, device)
    return found.rate, found.to_disk, roof(found.encoder, chip(device))


def textures(count: int, channels: int = 1, side: int = 28) -> np.ndarray:
    """Random images of coarse patches and noise, `uint8 [count, channels, side, side]`."""
    random = np.random.default_rng(0)
    coarse = random.integers(200, size=(count, channels, side // 4, side // 4), dtype=np.uint8)
    noise = random.integers(56, size=(count, channels, side, side), dtype=np.uint8)
    whole: np.ndarray = coarse.repeat(4, 2).repeat(4, 3) + noise
    return whole


def params_for(device: torch.device, batch_size: int, system: str = "default", **train: object) -> Params:
    """A system's experiment of two epochs on a device, without compact code."""
    train |= {"epochs": 2, "batch_size": batch_size, "accelerator": {"cuda": "gpu"}.get(device.type, device.type)}
    return params_of(system, train=train, features={"code": None})


def image_sets(images: np.ndarray) -> tuple[ImageSet, ImageSet]:
    """Images to learn from, and a tenth for validation."""
    held_out = len(images) // 10
    training, validation = images[held_out:], images[:held_out]
    return (
        ImageSet(training, None, (), f"training {len(training)}"),
        ImageSet(validation, None, (), f"validation {held_out}"),
    )


def trained(params: Params, images: np.ndarray) -> float:
    """Images per second in the second epochs of the stage `train`, validation included."""
    ends: list[float] = []
    with TemporaryDirectory() as folder:
        train_encoder(
            params, *image_sets(images), lambda row: ends.append(time.perf_counter()), Path(folder), progress=False
        )
    seconds = sum(second - first for first, second in zip(ends[::2], ends[1::2], strict=True))
    return len(ends) // 2 * len(image_sets(images)[0]) / seconds


def bare_loop(params: Params, images: np.ndarray, device: torch.device) -> float:
    """Images per second of the same arithmetic in a bare loop."""
    training, validation = (torch.from_numpy(part.images).to(device) for part in image_sets(images))
    seconds, _ = bare.train(params, untrained(params, images), training, validation)
    return (len(params.model.layers) if params.train.places else 1) * len(training) / seconds


def untrained(params: Params, images: np.ndarray) -> Encoder:
    """The encoder with which training starts."""
    content = params.model_dump(mode="json")
    content["objective"] |= {"kind": "none"}
    with TemporaryDirectory() as folder:
        start = Params.model_validate(content)
        return train_encoder(start, *image_sets(images), lambda row: None, Path(folder), progress=False)[0]


@dataclass(frozen=True)
class Extraction:
    """Images per second of the forward passes alone, and of the stage `features`, which writes them to disk."""

    encoder: Encoder
    rate: float
    to_disk: float


def extracted(params: Params, images: np.ndarray, device: torch.device) -> Extraction:
    """Extract the features of images with an untrained encoder."""
    encoder = untrained(params, images)
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        encoder.save(scratch / "trained")
        for part, some in {"train": images, "validation": images[:8], "test": images[:8]}.items():
            write_image_set(scratch / "prepared" / part, some.shape, [some], None, [])
        start = time.perf_counter()
        encoder = extract_features(params, scratch / "trained", scratch / "prepared", scratch / "features")
        seconds = time.perf_counter() - start
    attach_readout(encoder.to(device), params.features)
    bare.forward(encoder, torch.from_numpy(images[:BATCH]))  # warms up
    return Extraction(encoder, len(images) / bare.forward(encoder, torch.from_numpy(images)), len(images) / seconds)


def chip(device: torch.device) -> Mapping[str, float]:
    """Bytes per second that a copy within the memory moves, and operations per second of a `float32` product."""
    source = torch.empty(COPIED // 4, device=device)
    target, matrix = torch.empty_like(source), torch.randn(PRODUCT, PRODUCT, device=device)
    with exact_arithmetic():
        return {
            "bytes": 2 * COPIED / seconds_of(lambda: target.copy_(source), device),
            "operations": 2 * PRODUCT**3 / seconds_of(lambda: matrix @ matrix, device),
        }


def seconds_of(work: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """Mean seconds of a call that a GPU may not have finished when it returns; one call warms up."""
    work()
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - start) / times


def roof(encoder: Encoder, rates: Mapping[str, float]) -> float:
    """Images per second if memory or arithmetic were the only limit, whichever is slower (Williams et al. 2009).

    Each layer reads its input and writes its maps once, the readout reads the maps and writes the features.
    """
    network, size = encoder.autoencoder, tuple(encoder.config["image_size"])
    operations, values = 0.0, 0.0
    for layer, (incoming, maps) in zip(
        network.layers, layer_sizes(size, network.geometry, network.stacked_on), strict=True
    ):
        filters = layer.folded()[0]
        height, width = layer.geometry.convolved(incoming)
        operations += 2 * filters.numel() * height * width
        values += filters.shape[1] * incoming[0] * incoming[1] + 2 * filters.shape[0] * maps[0] * maps[1]
    values += encoder.features([]).shape[1]
    images: float = 1 / max(operations / rates["operations"], 4 * values / rates["bytes"])
    return images


@contextmanager
def utilisation() -> Iterator[list[float]]:
    """Collect the GPU's utilisation in percent, five times a second; empty without `nvidia-smi`."""
    shares: list[float] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200"]
    if torch.cuda.is_available():
        command.append(f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}")
    if not shutil.which(command[0]):
        yield shares
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield shares
        finally:
            process.terminate()
            assert process.stdout
            shares += [float(line) for line in process.stdout.read().split() if line.isdigit()]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
