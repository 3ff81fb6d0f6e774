"""Publish a small model of the digits with the code of some commit; later code must load it.

`format3` was made by commit d028599, `format4` by 3f2daf1: in a clone of the repository at that commit, with its `src`
on PYTHONPATH, `python .../make.py .../tests/saved/format3`. Each folder holds the two models as `convae publish`
writes them, with encoder and classifier as the pipeline saves them in `data/model`, and what they compute.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from convae.classifier import load_image_classifier

EXPERIMENT = {
    "data.dataset": "digits",
    "preprocessing.whitening.window": 3,
    "model.layers": [
        {"filters": 4, "kernel": 3, "activation": "linear", "pool": {"kind": "max", "size": 2}},
        {"filters": 6, "kernel": 3, "activation": "relu", "batch_norm": True},
    ],
    "objective.sparsity.block": 4,
    "train.order": "greedy",
    "train.threads": 1,
    "features.layers": [0, 1],
    "features.grid": 2,
}
MODELS = ("convae-encoder", "convae-classifier")


def main(folder: Path) -> None:
    yaml, path = YAML(), Path("params.yaml")
    content = yaml.load(path)
    for key, value in EXPERIMENT.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    yaml.dump(content, path)
    subprocess.run([sys.executable, "-m", "dvc", "repro"], check=True)
    subprocess.run([sys.executable, "-m", "convae.cli", "publish"], check=True)

    folder.mkdir(parents=True)
    for name in MODELS:
        (published,) = Path("mlartifacts").rglob(name)
        shutil.copytree(published, folder / name)
    images = np.load("data/prepared/test/images.npy")[:8]
    classifier = load_image_classifier("models")
    np.savez_compressed(
        folder / "expected.npz",
        images=images,
        features=classifier.encoder.features(images),
        scores=classifier.scores(images),
        labels=classifier.predict(images),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
