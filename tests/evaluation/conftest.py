from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convae.encoder import Encoder, build_autoencoder
from convae.features.extract import extract_features
from convae.params import Params


@pytest.fixture
def params(experiment: Callable[..., Params]) -> Params:
    return experiment(preprocessing={"local_contrast": None, "whitening": None})


@pytest.fixture
def encoder(params: Params, digits: Path, tmp_path: Path) -> Encoder:
    """An encoder with fixed filters, as training would leave it; its features are in `tmp_path`."""
    config: dict[str, Any] = {
        "channels": 1,
        "image_size": [8, 8],
        "preprocessing": params.preprocessing.model_dump(mode="json"),
        "layers": [layer.model_dump(mode="json") for layer in params.model.layers],
        "tied_weights": params.model.tied_weights,
        "stacked_on": "maps",
        "sparsity": None,
        "decoder": True,
        "readout": None,
    }
    autoencoder = build_autoencoder(config)
    generator = np.random.default_rng(0)
    for parameter in autoencoder.parameters():
        parameter.data.copy_(parameter.new_tensor(generator.normal(scale=0.2, size=tuple(parameter.shape))))
    Encoder(autoencoder, None, config).save(tmp_path / "trained")
    return extract_features(params, tmp_path / "trained", digits, tmp_path / "features")


@pytest.fixture
def unlabelled(digits: Path, tmp_path: Path) -> Path:
    """`digits` without its labels."""
    for labels in digits.glob("*/labels.npy"):
        labels.unlink()
    return digits
