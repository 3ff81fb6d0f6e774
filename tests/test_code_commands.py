"""The compact code on the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from saved_models import FEATURES
from torch import nn

from convae.encoder import load_encoder


def test_the_code_is_written_like_the_features(convae: Callable[..., str]) -> None:
    encoder = load_encoder("models/encoder")
    encoder.code = nn.Linear(FEATURES, 3).requires_grad_(False)
    encoder.config["code"] = {"kind": "pca"}
    encoder.save("coded")
    assert convae("features", "picture.png", "--encoder", "coded", "--code", "-o", "code.npy") == ""
    code = np.load("code.npy")
    assert code.shape == (1, 3)
    np.testing.assert_allclose(code, encoder.features("picture.png", code=True))
    assert convae("info", "coded") == ""


def test_without_a_code_nothing_is_written(convae: Callable[..., str]) -> None:
    said = convae("features", "picture.png", "--code", "-o", "code.npy")
    assert "this encoder was made without a compact code" in said
    assert not Path("code.npy").exists()
