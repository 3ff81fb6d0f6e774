"""Training that starts from a saved encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import epochs

from convae.encoder import load_encoder
from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.training.train import train_encoder, training_key


@pytest.fixture(autouse=True)
def _in_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def saved(experiment, train_set, validation_set):
    """An encoder with one layer, trained on the digits and saved in the folder `saved`."""
    encoder, _, _ = train_encoder(experiment(train={"epochs": 1}), train_set, validation_set, print)
    encoder.save(Path("saved"))
    return load_encoder("saved")


def weights(encoder):
    return encoder.autoencoder.state_dict()


def test_a_saved_encoder_works_unchanged_on_images_of_another_size(experiment, saved, train_set, validation_set):
    larger = np.pad(train_set.images, ((0, 0), (0, 0), (3, 5), (2, 2)))
    other = type(train_set)(larger, train_set.labels, ("other", "classes"), "hash")
    params = experiment(model={"initialize_from": "saved"}, objective={"kind": "none"})
    encoder, history, _ = train_encoder(params, other, validation_set, print)
    assert history == []
    assert all(torch.equal(value, weights(saved)[name]) for name, value in weights(encoder).items())
    assert encoder.config["image_size"] == [16, 12]
    assert encoder.config["initialized_from"] == {"sha256": saved.sha256, "trained_on": saved.config["trained_on"]}
    np.testing.assert_array_equal(encoder.reconstruct(larger), saved.reconstruct(larger))


def test_initial_filters_are_the_saved_ones_and_new_layers_are_random(experiment, saved, train_set, validation_set):
    one = experiment().model.layers[0].model_dump()
    changes = {"model": {"layers": [one, one], "initialize_from": "saved"}, "objective": {"kind": "none"}}
    encoder, _, _ = train_encoder(experiment(**changes), train_set, validation_set, print)
    first, second = (layer.convolution.weight for layer in encoder.autoencoder.layers)
    assert torch.equal(first, saved.autoencoder.layers[0].convolution.weight)
    assert second.std() > 0.1
    assert torch.equal(encoder.autoencoder.decoder[0].bias, saved.autoencoder.decoder[0].bias)


def test_fine_tuning_keeps_frozen_filters(experiment, saved, train_set, validation_set):
    params = experiment(
        model={"initialize_from": "saved"}, objective={"kind": "classify"}, train={"freeze": 1, "epochs": 1}
    )
    encoder, _, _ = train_encoder(params, train_set, validation_set, print)
    kept = saved.autoencoder.layers.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in encoder.autoencoder.layers.state_dict().items())


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_frozen_batch_norm_keeps_its_statistics_on_other_images(experiment, train_set, validation_set, freeze):
    layer = experiment().model.layers[0].model_dump() | {"batch_norm": True}
    with_norm = experiment(model={"layers": [layer]}, train={"epochs": 1})
    trained, _, _ = train_encoder(with_norm, train_set, validation_set, print)
    trained.save(Path("normalized"))

    def other(image_set):
        larger = np.pad(image_set.images, ((0, 0), (0, 0), (3, 5), (2, 2)))
        return type(image_set)(larger, image_set.labels % 3, ("a", "b", "c"), "hash")

    params = experiment(
        model={"layers": [layer], "initialize_from": "normalized"},
        objective={"kind": "classify"},
        train={"freeze": freeze, "epochs": 1},
    )
    encoder, history, _ = train_encoder(params, other(train_set), other(validation_set), print)
    before, after = trained.autoencoder.layers.state_dict(), encoder.autoencoder.layers.state_dict()
    assert any("running_mean" in name for name in before)
    same = {name: torch.equal(value, after[name]) for name, value in before.items()}
    assert all(same.values()) if freeze == "all" else not any(same.values())
    assert encoder.config["trained_on"]["classes"] == ["a", "b", "c"]
    assert len(epochs(history)) == 1


def test_the_initial_encoder_is_part_of_the_training_key(experiment, saved, train_set, validation_set):
    params = experiment(model={"initialize_from": "saved"}, train={"epochs": 1})
    first, _, _ = train_encoder(params, train_set, validation_set, print)
    first.sha256 = "of another encoder"
    again, _, _ = train_encoder(params, train_set, validation_set, print)
    keys = {training_key(params, train_set, validation_set, start) for start in (None, saved, first)}
    assert len(keys) == 3
    at_random, _, _ = train_encoder(experiment(train={"epochs": 1}), train_set, validation_set, print)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(first).items())
    assert not torch.equal(
        weights(first)["layers.0.convolution.weight"], weights(at_random)["layers.0.convolution.weight"]
    )


MISFITS = [
    (
        {"data": {"dataset": "cifar10"}},
        r"that encoder needs images of 1 channel\(s\), but these have 3",
    ),
    (
        {"preprocessing": {"whitening": None}},
        "preprocessing.whitening is .* in that encoder, but None here",
    ),
    (
        {"model": {"layers": []}, "objective": {"kind": "none"}, "features": {"layers": [-1]}},
        "that encoder has 1 layers",
    ),
    (
        {"model": {"stacked_on": "reconstructions"}},
        "model.stacked_on is maps in that encoder, but reconstructions here",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISFITS)
def test_an_incompatible_encoder_is_refused_before_anything_runs(experiment, saved, tmp_path, changes, message):
    model = changes.get("model", {}) | {"initialize_from": "saved"}
    params = experiment(**changes | {"model": model})
    Path("params.yaml").write_text(json.dumps(params.model_dump(mode="json")))
    with pytest.raises(ConvaeError, match=f"params.yaml: model.initialize_from: {message}") as refusal:
        load_experiment()
    assert "\n" not in str(refusal.value)


def test_reconstructions_need_the_saved_decoder(experiment, train_set, validation_set):
    stacked = {"stacked_on": "reconstructions"}
    untrained = experiment(model=stacked, objective={"kind": "none"})
    train_encoder(untrained, train_set, validation_set, print)[0].save(Path("untrained"))
    params = experiment(model=stacked | {"initialize_from": "untrained"})
    Path("params.yaml").write_text(json.dumps(params.model_dump(mode="json")))
    with pytest.raises(ConvaeError, match=r"model.initialize_from: that encoder has no trained decoder"):
        load_experiment()


def test_a_different_kernel_is_named(experiment, saved, train_set, validation_set):
    layer = experiment().model.layers[0].model_dump() | {"kernel": (5, 5)}
    params = experiment(model={"layers": [layer], "initialize_from": "saved"})
    with pytest.raises(ConvaeError, match=r"model.layers\[0\].kernel is \[3, 3\] in that encoder, but \[5, 5\] here"):
        train_encoder(params, train_set, validation_set, print)


def test_a_folder_without_an_encoder_is_ignored_and_a_damaged_encoder_is_refused(
    experiment, saved, train_set, validation_set
):
    params = experiment(model={"initialize_from": "saved"}, train={"epochs": 1})
    (Path("saved") / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConvaeError, match="damaged"):
        train_encoder(params, train_set, validation_set, print)
    (Path("saved") / "config.json").unlink()
    train_encoder(params, train_set, validation_set, print)


def one_layer(shipped):
    first, _ = shipped().model.model_dump()["layers"]
    return shipped(model={"layers": [first | {"output": None}]}, train={"epochs": 1})


@pytest.mark.parametrize("freeze", [1, "none"])
def test_one_trained_layer_can_start_two(shipped, train_set, validation_set, freeze):
    start, _, _ = train_encoder(one_layer(shipped), train_set, validation_set, print)
    start.save(Path("saved"))
    kept = load_encoder("saved").autoencoder.layers[0].state_dict()
    params = shipped(model={"initialize_from": "saved"}, train={"freeze": freeze, "epochs": 1})
    encoder, history, _ = train_encoder(params, train_set, validation_set, print)
    assert [row["phase"] for row in epochs(history)] == ([0] if freeze == 1 else [0, 1])
    first, second = encoder.autoencoder.layers
    for name, value in kept.items():
        learned = name == "convolution.weight" and freeze == "none"
        assert torch.equal(first.state_dict()[name], value) != learned
    assert first.output.mean.abs().min() > 0  # fitted to the maps of the layer that is kept
    assert second.input.matrix.abs().sum() > 0
    encoder.save(Path("both"))
    np.testing.assert_array_equal(
        load_encoder("both").activation_maps(validation_set.images)[1],
        encoder.activation_maps(validation_set.images)[1],
    )


@pytest.mark.parametrize("order", ["greedy", "end_to_end"])
def test_layers_that_will_be_frozen_are_pretrained_first(experiment, train_set, validation_set, order):
    one = experiment().model_dump()["model"]["layers"][0]
    model = {"layers": [one, one], "initialize_from": "none"}
    objective = {"kind": "classify", "pretraining": 1}
    params = experiment(model=model, objective=objective, train={"order": order, "freeze": "all", "epochs": 1})
    untrained = experiment(model=model, objective={"kind": "none"})
    trained, start = (train_encoder(one, train_set, validation_set, print)[0] for one in (params, untrained))
    for layer, begun in zip(trained.autoencoder.layers, start.autoencoder.layers, strict=True):
        assert not torch.equal(layer.convolution.weight, begun.convolution.weight)


def test_no_more_layers_are_frozen_than_the_saved_encoder_has(experiment, train_set, validation_set):
    train_encoder(experiment(train={"epochs": 1}), train_set, validation_set, print)[0].save("saved")
    one = experiment().model_dump()["model"]["layers"][0]
    model = {"layers": [one, one, one], "initialize_from": "saved"}
    params = experiment(model=model, train={"order": "greedy", "freeze": 2})
    with pytest.raises(ConvaeError, match=r"freeze = 2: saved holds an encoder with only 1 layer$"):
        train_encoder(params, train_set, validation_set, print)


@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_layer_without_a_trained_decoder_leaves_no_decoder(experiment, train_set, validation_set, tied):
    classify = experiment(model={"tied_weights": tied}, objective={"kind": "classify"}, train={"epochs": 1})
    train_encoder(classify, train_set, validation_set, print)[0].save("saved")
    one = experiment().model_dump()["model"]["layers"][0]
    model = {"layers": [one, one], "initialize_from": "saved", "tied_weights": tied}
    params = experiment(model=model, train={"order": "greedy", "freeze": 1, "epochs": 1})
    assert not train_encoder(params, train_set, validation_set, print)[0].has_decoder


def test_a_layer_below_one_that_was_fitted_to_it_must_not_learn(shipped, train_set, validation_set):
    start, _, _ = train_encoder(shipped(train={"epochs": 1}), train_set, validation_set, print)
    start.save(Path("saved"))

    def load(freeze):
        params = shipped(model={"initialize_from": "saved"}, train={"freeze": freeze})
        return load_experiment(text=params.model_dump_json())

    with pytest.raises(ConvaeError, match=r"train.freeze = none: in saved, model.layers\[1\] was fitted to the layers"):
        load("none")
    _, history, _ = train_encoder(load(1), train_set, validation_set, print)
    assert {row["phase"] for row in history} == {0}


def test_the_thresholds_of_an_encoder_older_than_the_key_per_place_are_kept(experiment, train_set, validation_set):
    start, _, _ = train_encoder(experiment(), train_set, validation_set, print)
    del start.config["sparsity"]["per_place"]
    start.save(Path("saved"))
    params = experiment(model={"initialize_from": "saved"}, objective={"kind": "none"})
    again, _, _ = train_encoder(params, train_set, validation_set, print)
    images = validation_set.images
    np.testing.assert_array_equal(again.reconstruct(images), start.reconstruct(images))
    assert again.autoencoder.sparsity[0].weakest_winner.min() > 0


def test_other_windows_are_named(shipped, train_set, validation_set):
    start, _, _ = train_encoder(one_layer(shipped), train_set, validation_set, print)
    start.save(Path("saved"))
    first, second = shipped().model.model_dump()["layers"]
    reading = first["input"] | {"normalization": {"centered": True, "floor": 0.5}}
    params = shipped(model={"layers": [first | {"input": reading}, second], "initialize_from": "saved"})
    with pytest.raises(
        ConvaeError, match=r"layers\[0\]\.input\.normalization\.floor is 0\.0124 in that encoder, but 0\.5"
    ):
        train_encoder(params, train_set, validation_set, print)
