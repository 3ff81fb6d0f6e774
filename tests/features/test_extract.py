"""Extraction: the encoder stays frozen, only training images standardise, and rows keep the images' order."""

import numpy as np
import pytest
import torch

from convae.encoder import load_encoder
from convae.features.extract import extract_features
from convae.training.train import train_encoder


@pytest.fixture
def trained(experiment, train_set, validation_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = experiment().model.layers[0].model_dump() | {"batch_norm": True}
    params = experiment(train={"epochs": 1}, model={"layers": [layer]})
    encoder, _, _ = train_encoder(params, train_set, validation_set, lambda row: None)
    encoder.save(tmp_path / "autoencoder")
    return params


def test_extraction_changes_no_parameter_and_no_buffer(trained, digits, tmp_path):
    before = load_encoder(tmp_path / "autoencoder").autoencoder.state_dict()
    encoder = extract_features(trained, tmp_path / "autoencoder", digits, tmp_path / "features")
    after = encoder.autoencoder.state_dict()
    assert any("running_mean" in name for name in before)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_saved_encoder_standardises_as_in_training(trained, digits, tmp_path, train_set):
    encoder = extract_features(trained, tmp_path / "autoencoder", digits, tmp_path / "features")
    encoder.save(tmp_path / "encoder")
    features = {part: np.load(tmp_path / f"features/{part}.npy") for part in ("train", "validation", "test")}

    assert features["train"].shape == (400, 4 * 2 * 2 * 2)
    assert features["train"].dtype == np.float32
    np.testing.assert_allclose(features["train"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(features["train"].std(0), 1, atol=1e-4)
    assert np.abs(features["test"].mean(0)).max() > 0.01

    loaded = load_encoder(tmp_path / "encoder")
    np.testing.assert_allclose(loaded.features(train_set.images), features["train"], rtol=1e-5, atol=1e-5)
    one_by_one = np.concatenate([loaded.features(train_set.images[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(one_by_one, features["train"][:20], rtol=1e-4, atol=1e-4)
    assert np.array_equal(np.load(tmp_path / "features/train_labels.npy"), train_set.labels)


def test_without_standardisation_features_are_unscaled(trained, digits, tmp_path):
    params = trained.model_copy(update={"features": trained.features.model_copy(update={"standardize": False})})
    extract_features(params, tmp_path / "autoencoder", digits, tmp_path / "features")
    assert (np.load(tmp_path / "features/train.npy") >= 0).all()


def test_extraction_is_reproducible(trained, digits, tmp_path):
    for name in ("first", "second"):
        extract_features(trained, tmp_path / "autoencoder", digits, tmp_path / name).save(tmp_path / f"{name}_encoder")
    for left, right in (("first", "second"), ("first_encoder", "second_encoder")):
        files = sorted(path.name for path in (tmp_path / left).iterdir())
        assert files == sorted(path.name for path in (tmp_path / right).iterdir())
        assert all((tmp_path / left / f).read_bytes() == (tmp_path / right / f).read_bytes() for f in files)
