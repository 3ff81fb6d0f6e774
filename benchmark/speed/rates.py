"""What docs/scale.md reckons with: the shipped experiment on images of 64×64 RGB, and hashes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmark.speed.images import SCRATCH, changed, default_params, fashion_mnist, photos
from benchmark.speed.measuring import THREADS, Row, in_new_process, timed
from benchmark.speed.training import second_epoch
from convae.datasets.image_folder import list_images
from convae.datasets.image_set import ImageSet, write_image_set
from convae.features.extract import extract_features
from convae.stages.runner import keep_freed_memory, limit_threads

IMAGES, SIDE = 4000, 64
BYTES = 1 << 28


def rows() -> Iterator[Row]:
    """Rates, without targets."""
    fashion_mnist()
    photos()
    for name, function in (("training", train_rate), ("extraction", features_rate), ("list and hash files", list_rate)):
        yield Row(f"{name}, 64×64 RGB, images/s", in_new_process(function))
    for name in ("md5", "sha256"):
        yield Row(f"{name}, GB/s", in_new_process(hash_rate, name))


def train_rate() -> float:
    """Images a second of the second epoch."""
    keep_freed_memory()
    with limit_threads(THREADS):
        return IMAGES / second_epoch(changed(default_params(), data={"dataset": "cifar10"}), _images(), _images())


def features_rate() -> float:
    """Images a second of the stage, for an encoder that is not trained."""
    from convae.training.train import train_encoder

    keep_freed_memory()
    params = changed(default_params(), data={"dataset": "cifar10"}, objective={"kind": "none"})
    images = _images()
    with TemporaryDirectory(dir=SCRATCH) as scratch, limit_threads(THREADS):
        folder = Path(scratch)
        train_encoder(params, images, images, lambda row: None, folder)[0].save(folder / "encoder")
        for part in ("train", "validation", "test"):
            write_image_set(folder / "prepared" / part, images.images.shape, [images.images], None, ())
        seconds = timed(extract_features, params, folder / "encoder", folder / "prepared", folder / "features")
    return 3 * IMAGES / seconds


def list_rate() -> float:
    """Files a second, of 256×256 pixels."""
    files, _ = list_images(photos())
    return len(files) / timed(list_images, photos())


def hash_rate(name: str) -> float:
    """Of zeros in memory."""
    content = bytes(BYTES)
    return BYTES / 1e9 / timed(lambda: hashlib.new(name, content).digest())


def _images() -> ImageSet:
    """Random blocks of 4×4 pixels."""
    small = np.random.default_rng(0).integers(256, size=(IMAGES, 3, SIDE // 4, SIDE // 4), dtype=np.uint8)
    return ImageSet(np.ascontiguousarray(small.repeat(4, 2).repeat(4, 3)), None, (), "blocks")
