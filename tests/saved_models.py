"""A folder with a matching encoder and classifier, and functions that damage or forge it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layers import layer
from PIL import Image
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator

from convae.cli import main
from convae.encoder import Encoder, build_autoencoder
from convae.evaluation.classifiers import make_classifier
from convae.evaluation.saving import save_classifier
from convae.files import content_sha256
from convae.models.readout import Readout

READOUT: dict[str, Any] = {
    "layers": [-1],
    "divisive_normalization": 0.2,
    "rectification": "positive",
    "threshold": 0.1,
    "pooling": "mean",
    "grid": [2, 2],
    "power": 0.5,
    "standardize": True,
}
FEATURES = 4 * 2 * 2
CONFIG: dict[str, Any] = {
    "channels": 1,
    "image_size": [8, 8],
    "preprocessing": {"local_contrast": None, "whitening": {"kind": "zca", "window": 3, "epsilon": 0.1}},
    "layers": [layer(filters=4, kernel=[3, 3])],
    "tied_weights": True,
    "stacked_on": "maps",
    "sparsity": {"block": [2, 2], "lifetime": 0.5},
    "decoder": True,
    "readout": READOUT,
    "trained_on": {"images": 9, "dataset": "digits", "sha256": "0" * 64, "classes": ["a", "b", "c"]},
    "versions": {"torch": "2"},
}
ABOUT: dict[str, Any] = {
    "kind": "ridge",
    "classes": ["a", "b", "c"],
    "test": {
        "accuracy": 0.5,
        "accuracy_low": 0.4,
        "accuracy_high": 0.6,
        "majority_accuracy": 0.25,
        "balanced_accuracy": 0.45,
        "worst_recall": 0.125,
        "worst_class": "b",
    },
    "validation": {"accuracy": 0.5},
}


def fitted(dimension: int = FEATURES, kind: str = "ridge") -> BaseEstimator:
    random = np.random.default_rng(0)
    return make_classifier(kind, 0).fit(random.normal(size=(30, dimension)).astype(np.float32), np.arange(30) % 3)


def save_models() -> None:
    """Write `models/` and `picture.png` into the current folder."""
    autoencoder = build_autoencoder(CONFIG)
    generator = torch.Generator().manual_seed(0)
    autoencoder.initialize(generator)
    pictures = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    autoencoder.preprocessing.fit(pictures, generator)
    readout = Readout(**READOUT)
    readout.mean, readout.scale = torch.zeros(FEATURES), torch.ones(FEATURES)
    Encoder(autoencoder, readout, CONFIG).save(Path("models/encoder"))
    save_classifier(Path("models/classifier"), fitted(), ABOUT | {"encoder": sha256()})
    Image.fromarray(pictures[0, 0].numpy()).save("picture.png")


def sha256() -> str:
    return str(json.loads(Path("models/encoder/config.json").read_text())["sha256"])


def ending(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run `convae` in this process and return the one line that it ends with, or nothing."""
    monkeypatch.setattr(sys, "argv", ["convae", *arguments])
    try:
        main()
    except SystemExit as end:  # no other exception may get through
        said = str(end.code)
    else:
        return ""
    assert said.startswith("convae: ")
    assert said.isprintable()
    return said


def change(value: Any, *keys: Any) -> Callable[[], None]:
    """Forge config.json: change one value and update the hash."""

    def damage() -> None:
        path = Path("models/encoder/config.json")
        config = json.loads(path.read_text())
        del config["sha256"]
        place = config
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        weights = Path("models/encoder/model.safetensors").read_bytes()
        path.write_text(json.dumps(config | {"sha256": content_sha256(config, weights)}))

    return damage


def write(name: str, content: bytes) -> Callable[[], None]:
    def damage() -> None:
        Path("models", name).write_bytes(content)

    return damage


def weights(damage: Callable[[dict[str, np.ndarray]], object]) -> Callable[[], None]:
    """Forge the weights and update the hash."""

    def forge() -> None:
        tensors = load_file("models/encoder/model.safetensors")
        damage(tensors)
        save_file(tensors, "models/encoder/model.safetensors")
        change(3, "format")()

    return forge
