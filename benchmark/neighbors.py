"""How `convae.evaluation.neighbors` compares features, and what counts as a near-copy.

    python -m benchmark.neighbors

Reads the features that `dvc repro` has written, and prints two tables.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

from convae.encoder import load_encoder
from convae.evaluation.evaluate import FeatureSet, load_part
from convae.evaluation.neighbors import NEIGHBORS, directions, near_copies, nearest, spread_rows, vote
from convae.params import PARAMS_FILE, load_params
from convae.stages.runner import limit_threads

IMAGES = 2000  # validation images that are looked at
AMONG = 20_000  # training images
COPIES = 500


def main() -> None:
    """Print how often the neighbours are right, and how many altered copies are found."""
    with limit_threads(load_params(PARAMS_FILE).train.threads):
        features, prepared = Path("data/features"), Path("data/prepared")
        train, validation = (load_part(part, features, prepared) for part in ("train", "validation"))
        some, rows = spread_rows(len(train.labels), AMONG), spread_rows(len(validation.labels), IMAGES)
        right = {}
        for name, known, asked in (
            ("compact code", train.compact, validation.compact),
            ("features", train.features, validation.features),
        ):
            for how, change in ((", lengths count", np.asarray), (", directions alone", directions)):
                nearby = nearest(change(asked[rows]), change(known[some]), NEIGHBORS)[1]
                said = vote(train.labels[some][nearby], len(train.image_set.classes))
                right[name + how] = np.mean(said == validation.labels[rows])
        print(pd.Series(right, name=f"right by the {NEIGHBORS} nearest").round(3).to_markdown(), end="\n\n")
        _print_copies(train, validation)


def _print_copies(train: FeatureSet, validation: FeatureSet) -> None:
    """Copies of training images, shifted by up to a pixel and up to 10 % brighter, and validation images."""
    encoder, generator = load_encoder("models/encoder"), np.random.default_rng(0)
    images = train.image_set.images[spread_rows(len(train.labels), COPIES)]
    altered = []
    for image in images:
        shifted = np.roll(image, generator.integers(-1, 2, 2), axis=(1, 2))
        brighter = ImageEnhance.Brightness(Image.fromarray(shifted.transpose(1, 2, 0).squeeze()))
        altered.append(np.asarray(brighter.enhance(generator.uniform(0.9, 1.1))))
    stacked = np.stack(altered).reshape(len(images), *images.shape[2:], images.shape[1]).transpose(0, 3, 1, 2)
    others = directions(train.compact)
    counts = {}
    for name, features in (
        ("altered copies", encoder.features(stacked, code=train.code is not None)),
        ("validation images", validation.compact[spread_rows(len(validation.labels), IMAGES)]),
    ):
        own = directions(features)
        counts[name] = near_copies(own, others, nearest(own, others, 1)[1][:, 0]) / len(features)
    print(pd.Series(counts, name="taken for near-copies").round(4).to_markdown())


if __name__ == "__main__":
    main()
