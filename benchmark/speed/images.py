"""Images for the measurements, made once and kept in .convae/benchmark/."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmark.speed.experiments import changed, params_of
from benchmark.speed.measuring import REPOSITORY
from convae.datasets.download import download
from convae.datasets.image_set import ImageSet
from convae.datasets.prepare import prepare
from convae.files import new_folder
from convae.params import Params

SCRATCH = REPOSITORY / ".convae/benchmark"
PHOTOS = 10_000
PHOTO_SIDE = 256


def fashion_mnist() -> Path:
    """The folder of prepared Fashion-MNIST: 55 000 training, 5000 validation and 10 000 test images."""
    prepared = SCRATCH / "data/prepared"
    if not prepared.exists():
        data = params_of("default", data={"validation_size": 5000}).data
        raw = SCRATCH / "raw"
        download(data, raw, REPOSITORY / "data/downloads")
        prepare(data, 0, raw, prepared)
    return prepared


def some_images(part: str, count: int, side: int = 28) -> ImageSet:
    """The first images of a part of Fashion-MNIST, enlarged by repeating pixels, without labels."""
    images = ImageSet.load(fashion_mnist() / part).images[:count]
    factor = side // images.shape[2]
    larger = np.ascontiguousarray(images.repeat(factor, 2).repeat(factor, 3))
    return ImageSet(larger, None, (), f"{part} {count} {side}")


def untrained(params: Params, side: int = 28) -> Path:
    """The folder of an untrained encoder, from which training with `params` on images of this size starts."""
    from convae.training.train import train_encoder

    # One folder per experiment, so that a change of the shipped parameters is not missed.
    digest = hashlib.sha256(params.model_dump_json().encode()).hexdigest()[:12]
    folder = SCRATCH / f"encoders/{digest}-{side}"
    if not folder.exists():
        untrained = changed(params, objective={"kind": "none"})
        training = some_images("train", 2000, side)
        train_encoder(untrained, training, training, lambda row: None, SCRATCH / "checkpoints")[0].save(folder)
    return folder


def photos() -> Path:
    """A folder of 10 000 JPEG files of 256×256 pixels, cut at random from scikit-learn's two photographs."""
    folder = SCRATCH / "photos"
    if not folder.exists():
        generator, originals = np.random.default_rng(0), load_sample_images().images
        with new_folder(folder) as scratch:
            (scratch / "train").mkdir()
            for index in range(PHOTOS):
                photo = originals[index % 2]
                top, left = (int(generator.integers(side - PHOTO_SIDE)) for side in photo.shape[:2])
                part = photo[top : top + PHOTO_SIDE, left : left + PHOTO_SIDE]
                Image.fromarray(part).save(scratch / "train" / f"{index:05}.jpg", quality=90)
    return folder
