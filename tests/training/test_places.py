"""Layers that learn place by place: what they minimise, what is fitted between the phases, and resumption."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import epochs
from layers import layer
from resumption import resumes_alike

from convae.encoder import load_encoder
from convae.errors import ConvaeError
from convae.models.autoencoder import Autoencoder
from convae.models.initialization import filter_bank
from convae.training import train
from convae.training.objectives import PlaceReconstruction
from convae.training.train import train_encoder


@pytest.fixture(autouse=True)
def _in_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ignore(row):
    pass


def test_the_loss_computed_by_hand():
    pixels = layer(filters=2, kernel=(1, 1), activation="linear", input={"normalization": None, "whitening": None})
    sparsity = {"block": None, "lifetime": None, "per_place": 1}
    network = Autoencoder(2, {}, [pixels], tied_weights=True, sparsity=sparsity)
    filters = network.layers[0].convolution.weight
    with torch.no_grad():
        filters.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]).view(2, 2, 1, 1))  # of unit length when they are used
        network.sparsity[0].gain.copy_(torch.tensor([9.0, 0.5]))
    image = torch.tensor([0.3, 0.4]).view(1, 2, 1, 1).expand(5, 2, 4, 4)  # the second map wins, and gives 0.2
    objective = PlaceReconstruction(network, None, 0, places=7)
    loss = objective((image, None))
    assert loss.item() == pytest.approx((0.3**2 + 0.2**2) / 2)
    loss.backward()
    gain = network.sparsity[0].gain.grad
    np.testing.assert_allclose(gain, [0, -0.2 * 0.4], rtol=1e-5)
    assert filters.grad[0].abs().max() == 0
    assert {id(parameter) for parameter in objective.trained()} == {id(filters), id(network.sparsity[0].gain)}


def test_every_place_is_drawn_and_no_other():
    pixels = layer(filters=1, kernel=(1, 1), activation="linear", input={"normalization": None, "whitening": None})
    network = Autoencoder(1, {}, [pixels], tied_weights=True)
    seen = []
    windows = network.layers[0].input.windows
    network.layers[0].input.windows = lambda incoming, places: (seen.append(places), windows(incoming, places))[1]
    PlaceReconstruction(network, None, 0, places=500)((torch.zeros(2, 1, 3, 4), None))
    assert set(seen[0].flatten().tolist()) == set(range(12))
    assert seen[0].shape == (2, 500)


def test_the_loss_falls_and_filters_have_unit_length(shipped, train_set, validation_set):
    encoder, history, _ = train_encoder(shipped(train={"epochs": 6}), train_set, validation_set, ignore)
    ends = epochs(history)
    assert [row["phase"] for row in ends] == [0] * 6 + [1] * 6
    for phase in (ends[:6], ends[6:]):
        assert phase[-1]["train_loss"] < 0.95 * phase[0]["train_loss"]
        assert phase[-1]["validation_loss"] < phase[0]["validation_loss"]
    images = validation_set.images
    before = encoder.activation_maps(images)
    for one in encoder.autoencoder.layers:
        np.testing.assert_allclose(one.unit_filters.norm(dim=1), 1, rtol=1e-6)
        one.convolution.weight.mul_(7)
    for maps, expected in zip(encoder.activation_maps(images), before, strict=True):
        np.testing.assert_allclose(maps, expected, atol=1e-4)
    assert not encoder.has_decoder


def test_each_fit_sees_the_trained_layers_below(shipped, train_set, validation_set, monkeypatch):
    fits, fit = [], train.fit_layer

    def watch(network, index, kind, images, seed):
        fits.append((index, network.layers[0].convolution.weight.detach().clone()))
        fit(network, index, kind, images, seed)

    monkeypatch.setattr(train, "fit_layer", watch)
    encoder, _, _ = train_encoder(shipped(), train_set, validation_set, ignore)
    network = encoder.autoencoder
    (first, random), (second, trained) = fits
    assert (first, second) == (0, 1)
    assert not torch.equal(random, trained)
    assert torch.equal(trained, network.layers[0].convolution.weight)
    images = network.preprocessing(torch.from_numpy(np.array(train_set.images)))
    passed_on = network.input_of(1, images)
    np.testing.assert_allclose(passed_on.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(passed_on.std((0, 2, 3), correction=0), 1, atol=1e-3)
    for index, incoming in enumerate((images, passed_on)):
        reading, size = network.layers[index].input, network.geometry[index].convolved(tuple(incoming.shape[2:]))
        windows = reading.windows(incoming, torch.arange(size[0] * size[1]).expand(len(incoming), -1))
        whitened = reading.whiten(windows[windows.square().mean(1) > 1 / 2])
        np.testing.assert_allclose(whitened.mean(0), 0, atol=0.1)  # it was fitted to other places
        assert 0.5 < whitened.square().mean() < 1.1


def test_resumed_in_any_phase_it_ends_with_the_same_bits(shipped, train_set, validation_set):
    params = shipped()
    whole, history, _ = train_encoder(params, train_set, validation_set, ignore)
    for death in range(4):
        resumes_alike(params, train_set, validation_set, death, whole, history)


@pytest.mark.parametrize("index", [0, 1])
def test_killed_after_a_fit_it_ends_with_the_same_bits(shipped, train_set, validation_set, monkeypatch, index):
    params = shipped()
    whole, history, _ = train_encoder(params, train_set, validation_set, ignore)
    fit = train.fit_layer

    def die(network, layer, *arguments):
        fit(network, layer, *arguments)
        if layer == index:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "fit_layer", die)
        with pytest.raises(KeyboardInterrupt):
            train_encoder(params, train_set, validation_set, ignore)
    resumed, again, _ = train_encoder(params, train_set, validation_set, ignore)
    assert again == history
    state = resumed.autoencoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.autoencoder.state_dict().items())


def test_gains_learn_on_whole_maps_too(shipped, train_set, validation_set):
    plain = [one | {"input": None, "output": None} for one in shipped().model.model_dump()["layers"]]
    for order, moved in (("greedy", [True, True]), ("end_to_end", [False, True]), ("simultaneous", [True, True])):
        params = shipped(model={"layers": plain}, train={"places": None, "order": order, "epochs": 1})
        encoder, _, _ = train_encoder(params, train_set, validation_set, ignore)
        gains = [one.gain for one in encoder.autoencoder.sparsity]
        assert [not torch.equal(gain, torch.ones_like(gain)) for gain in gains] == moved


@pytest.mark.parametrize("kernel", [(3, 3), "image"])
def test_patches_differ_even_where_places_are_few(shipped, train_set, validation_set, kernel):
    first, _ = shipped().model.model_dump()["layers"]
    one = first | {"output": None, "kernel": kernel, "padding": "valid", "filters": 30}
    few = replace(train_set, images=train_set.images[:40], labels=train_set.labels[:40])
    params = shipped(model={"layers": [one], "initialization": "patches"}, objective={"kind": "none"})
    encoder, _, _ = train_encoder(params, few, validation_set, ignore)
    filters = encoder.autoencoder.layers[0].unit_filters
    assert (filters @ filters.T - 2 * torch.eye(30)).max() < 0.9999


def test_patches_come_from_all_images(shipped, train_set, validation_set):
    """Of images sorted by kind, horizontal stripes and then vertical ones, both give filters."""
    stripes = np.zeros((100, 1, 8, 8), np.uint8)
    stripes[:50, :, ::2], stripes[50:, :, :, ::2] = 255, 255
    sorted_by_kind = replace(train_set, images=stripes, labels=train_set.labels[:100])
    first, _ = shipped().model.model_dump()["layers"]
    one = first | {"output": None, "padding": "valid", "input": {"normalization": None, "whitening": None}}
    params = shipped(model={"layers": [one], "initialization": "patches"}, objective={"kind": "none"})
    encoder, _, _ = train_encoder(params, sorted_by_kind, validation_set, ignore)
    filters = encoder.autoencoder.layers[0].unit_filters.view(-1, 3, 3)
    horizontal = (filters.std(2) < 1e-6).all(1)
    assert 0 < horizontal.sum() < len(filters)


@pytest.mark.parametrize("kind", ["patches", "kmeans"])
def test_filters_can_be_whitened_windows(shipped, train_set, validation_set, kind):
    params = shipped(model={"initialization": kind}, objective={"kind": "none"})
    encoder, history, _ = train_encoder(params, train_set, validation_set, ignore)
    assert history == []
    for one in encoder.autoencoder.layers:
        np.testing.assert_allclose(one.convolution.weight.flatten(1).norm(dim=1), 1, rtol=1e-5)
    assert np.isfinite(encoder.activation_maps(validation_set.images)[1]).all()


def test_too_few_windows_for_the_filters_are_named(shipped, train_set, validation_set):
    layers = shipped().model.model_dump()["layers"]
    few = replace(train_set, images=train_set.images[:1], labels=train_set.labels[:1])
    params = shipped(
        model={"layers": [layers[0] | {"filters": 60_000}, layers[1]], "initialization": "patches"},
        objective={"kind": "none"},
    )
    with pytest.raises(ConvaeError, match=r"layer 0 has 60000 filters, but there are only \d+ patches"):
        train_encoder(params, few, validation_set, ignore)


def test_a_first_layer_of_designed_filters_keeps_them(shipped, train_set, validation_set):
    first, second = shipped().model.model_dump()["layers"]
    params = shipped(
        model={"layers": [first | {"input": None}, second], "initialization": "filter_bank"},
        objective={"kind": "none"},
    )
    encoder, _, _ = train_encoder(params, train_set, validation_set, ignore)
    np.testing.assert_array_equal(encoder.filters, filter_bank(6, 1, 3, 3))


def test_labels_can_train_them_too(shipped, train_set, validation_set):
    params = shipped(objective={"kind": "classify", "sparsity": None}, train={"epochs": 4, "learning_rate": 0.01})
    encoder, history, _ = train_encoder(params, train_set, validation_set, ignore)
    assert history[-1]["validation_loss"] < 1.5
    untrained, *_ = train_encoder(shipped(objective={"kind": "none"}), train_set, validation_set, ignore)
    for mine, theirs in zip(encoder.autoencoder.layers, untrained.autoencoder.layers, strict=True):
        assert not torch.equal(mine.convolution.weight, theirs.convolution.weight)


def test_pretraining_comes_first(shipped, train_set, validation_set):
    params = shipped(objective={"kind": "classify", "pretraining": 1}, train={"epochs": 1})
    _, history, _ = train_encoder(params, train_set, validation_set, ignore)
    assert [row["phase"] for row in epochs(history)] == [0, 1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in history)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("images", [1, 5])
def test_few_images_and_half_precision(shipped, train_set, validation_set, tmp_path, precision, images):
    few = replace(train_set, images=train_set.images[:images], labels=train_set.labels[:images])
    encoder, history, _ = train_encoder(shipped(train={"precision": precision}), few, validation_set, ignore)
    assert len(history) == 4
    assert all(np.isfinite(list(row.values())).all() for row in history)
    encoder.save(tmp_path / "encoder")
    assert load_encoder(tmp_path / "encoder").filters.dtype == "float32"


@pytest.mark.parametrize("value", [0, 255])
def test_blank_images_are_refused_in_one_line(shipped, train_set, validation_set, value):
    blank = replace(train_set, images=np.full_like(train_set.images, value))
    params = shipped()
    if value:  # white has an edge at the border of zeros
        layers = params.model.model_dump()["layers"]
        params = shipped(model={"layers": [one | {"border": "reflect"} for one in layers]})
    with pytest.raises(ConvaeError, match=r"^model\.layers\[0\]\.input: all windows are flat; are the .* blank"):
        train_encoder(params, blank, validation_set, ignore)


def test_validation_images_may_be_blank(shipped, train_set, validation_set):
    blank = replace(validation_set, images=np.zeros_like(validation_set.images))
    encoder, history, _ = train_encoder(shipped(), train_set, blank, ignore)
    assert all(np.isfinite(list(row.values())).all() for row in history)
    assert all(np.isfinite(maps).all() for maps in encoder.activation_maps(blank.images))


def test_arrays_of_floats_give_the_same_maps(shipped, train_set, validation_set):
    encoder, _, _ = train_encoder(shipped(), train_set, validation_set, ignore)
    images = validation_set.images
    for maps, same in zip(encoder.activation_maps(images), encoder.activation_maps(images / 255), strict=True):
        np.testing.assert_allclose(maps, same, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_the_same_up_to_its_draws(shipped, train_set, validation_set):
    (_, cpu, _), (encoder, gpu, device) = (
        train_encoder(shipped(train={"accelerator": kind, "epochs": 4}), train_set, validation_set, ignore)
        for kind in ("cpu", "gpu")
    )
    assert device.startswith("cuda")
    assert encoder.device.type == "cpu"
    for mine, theirs in zip(epochs(gpu), epochs(cpu), strict=True):
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=0.1)
