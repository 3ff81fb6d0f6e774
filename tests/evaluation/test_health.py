"""Encoder health, checked on hand-made encoders."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder, build_autoencoder
from convae.errors import ConvaeError
from convae.evaluation.health import copying, effective_rank, encoder_health, layers_health, untrained_twin


@pytest.fixture
def make(encoder: Encoder) -> Callable[..., Encoder]:
    """`make([filters], padding="valid")`: layers with these filters `[n, D, k_h, k_w]`, without biases, linear."""

    def make(filters: list[np.ndarray], decoder: bool = True, **changes: Any) -> Encoder:
        layers = [
            encoder.config["layers"][0] | {"filters": len(one), "kernel": list(one.shape[2:])} | changes
            for one in filters
        ]
        config = encoder.config | {"layers": layers, "decoder": decoder, "readout": None}
        autoencoder = build_autoencoder(config)
        autoencoder.initialize(torch.Generator().manual_seed(0))
        for layer, one in zip(autoencoder.layers, filters, strict=True):
            layer.convolution.weight.data.copy_(torch.from_numpy(one))
        return Encoder(autoencoder, None, config)

    return make


def random_filters(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def delta(side: int = 3) -> np.ndarray:
    filters = np.zeros((1, 1, side, side), np.float32)
    filters[..., side // 2, side // 2] = 1
    return filters


def test_dead_and_duplicate_filters_are_counted_in_every_layer(make, validation_set):
    first, second = random_filters(6, 1, 3, 3), random_filters(4, 6, 3, 3)
    first[1] = 0
    first[3] = -2 * first[0]
    first[4] = 1e-5 * first[2]
    second[2:] = second[1]
    found = layers_health(make([first, second]), validation_set.images)
    assert [(layer["filters"], layer["dead"], layer["duplicates"]) for layer in found] == [(6, 2, 1), (4, 0, 2)]


def test_a_filter_with_constant_output_is_dead(make, validation_set):
    encoder = make([random_filters(3, 1, 3, 3)], activation="relu")
    encoder.autoencoder.layers[0].convolution.weight[:2] = 0
    encoder.autoencoder.layers[0].convolution.bias[0] = 5
    assert layers_health(encoder, validation_set.images)[0]["dead"] == 2


def test_in_a_constant_layer_all_filters_are_dead(make, validation_set):
    filters = np.zeros((3, 1, 3, 3), np.float32)
    (found,) = layers_health(make([filters]), validation_set.images)
    assert found == {"filters": 3, "dead": 3, "duplicates": 0, "hoyer_sparsity": None, "border_ratio": None}


def test_sparsity_is_one_for_a_single_activation_and_zero_for_equal_ones(make):
    point = np.zeros((4, 1, 8, 8), np.uint8)
    point[:, :, 4, 4] = 200
    flat = np.full((4, 1, 8, 8), 100, np.uint8)
    half = flat.copy()
    half[:, :, :4] = 0
    sparsity = [layers_health(make([delta()]), images)[0]["hoyer_sparsity"] for images in (point, flat, half)]
    assert sparsity == [1, 0, round((8 - 32**0.5) / 7, 6)]
    blank_too = np.concatenate([point, np.zeros_like(point)])
    assert layers_health(make([delta()]), blank_too)[0]["hoyer_sparsity"] == 1


def test_zeros_around_a_constant_image_weaken_the_border(make):
    images = np.full((3, 1, 8, 8), 255, np.uint8)
    box = np.ones((1, 1, 3, 3), np.float32)
    (found,) = layers_health(make([box]), images)
    # Of the 28 pixels of the ring the four in the corners see 4 of 9 pixels, the others 6; all inside see 9.
    assert found["border_ratio"] == pytest.approx(((4 * 4**2 + 24 * 6**2) / 28 / 9**2) ** 0.5, abs=1e-6)
    assert layers_health(make([box], padding="valid"), images)[0]["border_ratio"] == 1


def test_maps_of_one_pixel_have_no_border(make, validation_set):
    (found,) = layers_health(make([random_filters(5, 1, 8, 8)], padding="valid"), validation_set.images)
    assert (found["filters"], found["dead"], found["border_ratio"]) == (5, 0, None)
    assert 0 < found["hoyer_sparsity"] < 1
    (single,) = layers_health(make([random_filters(1, 1, 8, 8)], padding="valid"), validation_set.images)
    assert single["hoyer_sparsity"] is None


def test_health_is_the_same_for_images_in_pieces(make, validation_set, monkeypatch):
    encoder = make([random_filters(4, 1, 3, 3), random_filters(3, 4, 3, 3)])
    whole = layers_health(encoder, validation_set.images)
    monkeypatch.setattr("convae.evaluation.health.CHUNK_ACTIVATIONS", 1000)
    assert [list(layer.values()) for layer in layers_health(encoder, validation_set.images)] == [
        pytest.approx(list(layer.values()), abs=2e-6) for layer in whole
    ]


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
def test_the_effective_rank_counts_equal_directions(shape):
    generator = np.random.default_rng(0)
    centred = generator.normal(size=(shape[0], 6))
    directions = np.linalg.qr(centred - centred.mean(0))[0]
    axes = np.linalg.qr(generator.normal(size=(shape[1], 6)))[0]
    features = (100 + directions @ axes.T).astype(np.float64)
    assert effective_rank(features) == pytest.approx(6)
    weights = np.array([4, 2, 1, 1, 0, 0])  # p = 1/2, 1/4, 1/8, 1/8
    assert effective_rank((directions * weights) @ axes.T) == pytest.approx(2**1.75)


def test_equal_features_have_no_rank():
    assert effective_rank(np.full((10, 4), 3, np.float32)) == 0
    assert effective_rank(np.zeros((1, 4), np.float32)) == 0


def test_a_duplicate_filter_is_recognised(make, train_set, validation_set):
    filters = np.concatenate([delta(), np.zeros((15, 1, 3, 3), np.float32)])
    found = copying(make([filters]), train_set.images, validation_set.images, 0)
    train, validation = train_set.images / 255, validation_set.images / 255
    assert found["reconstruction_mse"] == 0
    assert found["baseline_mse"] == pytest.approx(np.square(validation - train.mean(0)).mean(), abs=1e-6)
    assert found["twin_reconstruction_mse"] < found["baseline_mse"] / 10  # random filters copy nearly as well


def test_the_untrained_twin_has_frozen_random_filters_and_a_trained_decoder(make, train_set, validation_set):
    encoder = make([random_filters(16, 1, 3, 3)], batch_norm=True)
    twin = untrained_twin(encoder, train_set.images, 3)
    drawn = build_autoencoder(twin.config)
    drawn.initialize(torch.Generator().manual_seed(3))
    (layer,), (expected,) = twin.autoencoder.layers, drawn.layers
    assert torch.equal(layer.convolution.weight, expected.convolution.weight)
    assert not torch.equal(twin.autoencoder.decoder[0].weight, layer.convolution.weight)
    assert layer.norm.running_mean.any()
    errors = [
        np.square(one.reconstruct(validation_set.images) - validation_set.images / 255).mean()
        for one in (Encoder(drawn, None, twin.config), twin)
    ]
    assert errors[1] < errors[0] / 10


def test_health_is_reproducible_and_leaves_encoder_and_generators_alone(encoder, train_set, validation_set, tmp_path):
    encoder.config["sparsity"] = {"block": [4, 4], "lifetime": 0.5}
    encoder = Encoder(build_autoencoder(encoder.config), encoder.readout, encoder.config)
    encoder.autoencoder.initialize(torch.Generator().manual_seed(0))
    config = json.dumps(encoder.config)
    before = {name: value.clone() for name, value in encoder.autoencoder.state_dict().items()}
    state = torch.get_rng_state()
    features = np.load(tmp_path / "features/validation.npy", mmap_mode="r")
    arguments = (encoder, train_set.images, validation_set.images, features, 0)
    first = encoder_health(*arguments)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert encoder_health(*arguments) == first == json.loads(json.dumps(first))
    assert json.dumps(encoder.config) == config
    assert not encoder.autoencoder.training
    for name, value in encoder.autoencoder.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert not value.requires_grad
    assert (first["images"], first["effective_rank_limit"]) == (100, 32)


def test_health_without_a_decoder_or_layers(make, encoder, train_set, validation_set):
    features = validation_set.images.reshape(100, -1).astype(np.float32)
    arguments = (train_set.images, validation_set.images, features, 0)
    assert encoder_health(make([random_filters(2, 1, 3, 3)], decoder=False), *arguments)["copying"] is None
    found = encoder_health(make([], decoder=False), *arguments)
    assert (found["filters"], found["copying"]) == ([], None)
    assert 1 < found["effective_rank"] < 64


def test_large_encoders_are_measured_on_a_smaller_sample(make, train_set, validation_set, monkeypatch):
    monkeypatch.setattr("convae.evaluation.health.ACTIVATIONS", 8 * 8 * 2 * 30)
    monkeypatch.setattr("convae.evaluation.health.FEATURE_VALUES", 64 * 20)
    features = validation_set.images.reshape(100, -1).astype(np.float32)
    encoder = make([random_filters(2, 1, 3, 3)], decoder=False)
    found = encoder_health(encoder, train_set.images, validation_set.images, features, 0)
    assert (found["images"], found["effective_rank_limit"]) == (30, 19)


def test_non_finite_features_are_refused(make, validation_set: ImageSet):
    features = np.zeros((100, 3), np.float32)
    features[7] = np.inf
    images = validation_set.images
    with pytest.raises(ConvaeError, match="validation image 7"):
        encoder_health(make([delta()]), images, images, features, 0)
