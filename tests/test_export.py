"""ONNX: the features of every kind of encoder, for any number of images."""

import numpy as np
import onnxruntime
import pytest
import torch
from layers import layer
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from convae import load_encoder
from convae.encoder import Encoder, build_autoencoder
from convae.errors import ConvaeError
from convae.export import export_onnx
from convae.features.extract import attach_readout, fit_compact_code, fit_readout
from convae.models.readout import Readout
from convae.training.train import train_encoder

READOUT = {
    "layers": [-1],
    "divisive_normalization": 0.1,
    "rectification": "both",
    "threshold": 0.0,
    "pooling": "mean",
    "grid": [3, 2],
    "power": 0.5,
    "standardize": True,
}
CONFIG = {
    "channels": 3,
    "image_size": [12, 14],
    "preprocessing": {
        "local_contrast": {"window": 5, "floor": 0.1},
        "whitening": {"kind": "zca", "window": 3, "epsilon": 0.1},
    },
    "layers": [layer(filters=6, activation="linear")],
    "tied_weights": True,
    "stacked_on": "maps",
    "sparsity": None,
    "decoder": True,
}
POOLED = layer(filters=6, activation="relu", batch_norm=True, pool={"kind": "max", "size": [2, 2]})
KINDS = {
    "several layers, pooled": ({"layers": [POOLED, layer(filters=4, stride=[2, 1])]}, {"layers": [0, 1]}),
    "on reconstructions": ({"layers": [layer(filters=4)] * 2, "stacked_on": "reconstructions"}, {}),
    "principal components": ({}, {}),  # of formats 3 and 4
    "maxima": ({}, {"pooling": "max"}),
    "maxima of unequal cells": ({}, {"pooling": "max", "grid": [5, 4]}),
    "pixels": (
        {"layers": [], "preprocessing": {"local_contrast": None, "whitening": None}, "decoder": False},
        {"divisive_normalization": None, "rectification": "none", "power": 1.0},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_gives_the_features(kind, tmp_path):
    changes, of_readout = KINDS[kind]
    config = CONFIG | changes | {"readout": READOUT | of_readout}
    autoencoder, generator = build_autoencoder(config), torch.Generator().manual_seed(0)
    autoencoder.initialize(generator)
    pictures = torch.randint(0, 256, (20, 3, 12, 14), dtype=torch.uint8, generator=generator)
    autoencoder.preprocessing.fit(pictures, generator)
    readout = Readout(**config["readout"])
    encoder = Encoder(autoencoder, readout, config)
    dimension = encoder.features(pictures).shape[1]
    readout.mean = torch.rand(dimension)
    if kind == "principal components":
        readout.components, dimension = torch.randn(5, dimension), 5
    readout.scale = torch.rand(dimension) + 0.5
    encoder.save(tmp_path / "encoder")

    loaded = load_encoder(tmp_path / "encoder")
    for any_size in (False, True):
        sizes = [(12, 14), (9, 31)] if any_size else [(12, 14)]
        if any_size and readout.pooling == "max":
            with pytest.raises(ConvaeError, match="--any-size: the cells over which maxima are taken are fixed"):
                export_onnx(str(tmp_path / "encoder"), tmp_path / "e.onnx", any_size, force=True)
            return
        export_onnx(str(tmp_path / "encoder"), tmp_path / "e.onnx", any_size, force=True)
        session = onnxruntime.InferenceSession(tmp_path / "e.onnx")
        for number, (height, width) in enumerate(sizes, start=1):
            images = np.random.default_rng(number).integers(0, 256, (number, 3, height, width), np.uint8)
            expected = loaded.features(images, resize=False)
            (found,) = session.run(None, {"images": images})
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
        if not any_size:
            with pytest.raises(InvalidArgument):
                session.run(None, {"images": np.zeros((1, 3, 9, 31), np.uint8)})


@pytest.mark.parametrize("mirror", [None, "average"])
@pytest.mark.parametrize("any_size", [False, True])
def test_the_shipped_encoder_gives_the_same_features(
    shipped, train_set, validation_set, tmp_path, monkeypatch, mirror, any_size
):
    monkeypatch.chdir(tmp_path)
    params = shipped(features={"mirror": mirror, "layers": [0, 1]}, train={"epochs": 1})
    encoder, *_ = train_encoder(params, train_set, validation_set, lambda row: None)
    fit_readout(attach_readout(encoder, params.features), encoder.features(train_set.images))
    features, code = encoder.features(train_set.images), params.features.code.model_dump()
    fit_compact_code(encoder, code, train_set, features, seed=0, progress=False)
    encoder.save(tmp_path / "encoder")
    export_onnx(str(tmp_path / "encoder"), tmp_path / "e.onnx", any_size, force=True)
    session = onnxruntime.InferenceSession(tmp_path / "e.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 9, 15) if any_size else (5, 1, 8, 8), np.uint8)
    for name, code in (("features", False), ("code", True)):
        expected = encoder.features(images, resize=False, code=code)
        (found,) = session.run([name], {"images": images})
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
