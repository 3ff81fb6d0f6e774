"""Measure how many altered copies `convae.datasets.near_duplicates` finds: the table in its docstring.

    python -m benchmark.near_duplicates data/raw/fashion_mnist/train_images.npy data/raw/fashion_mnist/test_images.npy

Without test images, a fifth of the training images is held out instead. Images are `uint8 [N, C, H, W]`.
"""

import argparse
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from convae.datasets.near_duplicates import Lookout, describe
from convae.files import row_chunks

COPIES = 2000  # per kind of alteration


def _jpeg(quality: int, image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def _halved(image: Image.Image) -> Image.Image:
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    return half.resize(image.size, Image.Resampling.BICUBIC)


def _cropped(fraction: float, image: Image.Image) -> Image.Image:
    x, y = fraction * image.width, fraction * image.height
    return image.resize(image.size, Image.Resampling.BICUBIC, (x, y, image.width - x, image.height - y))


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 90": partial(_jpeg, 90),
    "JPEG of quality 75": partial(_jpeg, 75),
    "JPEG of quality 50": partial(_jpeg, 50),
    "half the size and back": _halved,
    "Gaussian blur of 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "20 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "20 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "2 % cropped on each side": partial(_cropped, 0.02),
    "4 % cropped on each side": partial(_cropped, 0.04),
}


def _found(sought: np.ndarray, others: np.ndarray) -> dict[int, int]:
    """Map the row of each image with a near-duplicate among `others` to the row of that near-duplicate."""
    lookout = Lookout(len(sought), len(others))
    lookout.take(describe(sought), 0)
    for rows in row_chunks(others):
        lookout.compare(describe(others[rows]), "train", rows.start)
    return {row: there for row, _, there in lookout.found()}


def _copies(images: np.ndarray, alter: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    pictures = [Image.fromarray(image.transpose(1, 2, 0).squeeze()) for image in images]
    copies = np.stack([np.asarray(alter(picture)) for picture in pictures])
    return copies.reshape(len(images), *images.shape[2:], images.shape[1]).transpose(0, 3, 1, 2)


def main() -> None:
    """Print one line for each kind of copy, and one for unaltered test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    arguments = parser.parse_args()
    train = np.load(arguments.train)
    if arguments.test:
        test = np.load(arguments.test)
    else:
        order = np.random.default_rng(0).permutation(len(train))
        train, test = train[order[len(train) // 5 :]], train[order[: len(train) // 5]]
    source = np.linspace(0, len(train) - 1, min(COPIES, len(train))).round().astype(int)
    for name, alter in ALTERED.items():
        found = _found(_copies(train[source], alter), train)
        right = sum(found.get(row) == there for row, there in enumerate(source.tolist()))
        print(f"{name:26} {right / len(source):7.2%}", flush=True)
    print(f"{'none: test images':26} {len(_found(test, train)) / len(test):7.2%}")


if __name__ == "__main__":
    main()
