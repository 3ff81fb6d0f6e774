"""Decode a folder of 10 000 JPEG files of 256×256 pixels, and resize them to 64×64."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmark.speed.images import photos
from benchmark.speed.measuring import Row, at_least, rates, timed
from convae.datasets.decoding import decode_files
from convae.datasets.image_folder import list_images
from convae.datasets.reading import Reading

SIDE = 64
COUNT = 10_000


def rows() -> Iterator[Row]:
    """Images per second. The limit is one core's rate times the number of cores."""
    photos()
    rate = rates(COUNT, (ours, image_folder, decode_jpeg, one_core), 3)
    limit = rate["one_core"] * (os.cpu_count() or 1)
    ours_, name = rate["ours"], "image folder, JPEG files/s"
    yield at_least(f"{name}, to one core's times cores", 0.9, ours_ / limit, ours_, rate["image_folder"], limit)
    ratio = ours_ / rate["decode_jpeg"]
    yield at_least(f"{name}, to decode_jpeg in threads", 1.0, ratio, ours_, rate["decode_jpeg"], limit)


def ours() -> float:
    """Decode as the stage `prepare` does, hashes included."""
    files, _ = list_images(photos())
    images = np.empty((len(files), 3, SIDE, SIDE), np.uint8)
    return timed(decode_files, photos(), files, images, Reading(3, (SIDE, SIDE)))


def image_folder() -> float:
    """torchvision's ImageFolder and transforms, in a DataLoader's worker processes."""
    from benchmark.speed.usual import picture_batches

    def decode_all() -> None:
        for _ in picture_batches(photos(), SIDE):
            pass

    return timed(decode_all)


def decode_jpeg() -> float:
    """torchvision's decoder and resizing, in one thread per core."""
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms.functional import resize

    torch.set_num_threads(1)  # the pool keeps every core busy

    def decode(path: Path) -> torch.Tensor:
        small: torch.Tensor = resize(decode_jpeg(read_file(str(path))), [SIDE, SIDE], antialias=True)
        return small

    def decode_all() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, _paths()):
                pass

    return timed(decode_all)


def one_core() -> float:
    """Pillow in one thread."""

    def decode_all() -> None:
        for path in _paths():
            with Image.open(path) as image:
                np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    return timed(decode_all)


def _paths() -> list[Path]:
    return sorted(photos().glob("*/*.jpg"))
