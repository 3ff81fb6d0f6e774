"""What each objective trains, on which target, and what stays unchanged."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import epochs
from layers import layer
from resumption import resumes_alike
from torch.nn import functional as F

from convae.errors import ConvaeError
from convae.models.autoencoder import Autoencoder
from convae.models.corruption import Corruption
from convae.training.batches import ImageBatches
from convae.training.module import TrainingModule
from convae.training.objectives import (
    Classification,
    LayerReconstruction,
    Reconstruction,
    SimultaneousReconstruction,
)
from convae.training.train import train_encoder

LAYER = layer(padding="full", batch_norm=True)
IMAGES = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _in_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def network(**changes):
    made = Autoencoder(1, {}, [LAYER, LAYER, LAYER], tied_weights=False, **changes)
    made.initialize(torch.Generator().manual_seed(0))
    return made


def moved(objective, batch, steps=3):
    """Names of the autoencoder's parameters and buffers that a few steps change."""
    before = {name: value.clone() for name, value in objective.autoencoder.state_dict().items()}
    optimizer = torch.optim.SGD(list(objective.trained()), lr=0.1)
    objective.start_training()
    for _ in range(steps):
        optimizer.zero_grad()
        objective(batch).backward()
        optimizer.step()
    after = objective.autoencoder.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_greedy_training_changes_only_one_layer():
    changed = moved(LayerReconstruction(network(), None, None, 1), (IMAGES, None))
    assert changed
    assert {name.rsplit(".", 1)[0].split(".")[1] for name in changed} == {"1"}
    assert any("running_mean" in name for name in changed)


def test_a_layer_reconstructs_the_maps_of_the_one_below():
    made = network().eval()
    objective = LayerReconstruction(made, None, None, 1).eval()
    below = made.layers[0](IMAGES.float() / 255)
    reconstruction = torch.tanh(made.decoder[1](made.layers[1](below), (10, 10)))  # as it would be decoded next
    torch.testing.assert_close(objective((IMAGES, None)), F.mse_loss(reconstruction, below))


def test_end_to_end_the_image_is_reconstructed_through_all_layers():
    made = network().eval()
    torch.testing.assert_close(
        Reconstruction(made, None, None).eval()((IMAGES, None)), F.mse_loss(made(IMAGES / 255), IMAGES / 255)
    )
    assert {name.split(".")[1] for name in moved(Reconstruction(made, None, None), (IMAGES, None))} == {"0", "1", "2"}


def test_only_masked_pixels_count():
    made = network().eval()
    objective = Reconstruction(made, Corruption("masking", 0.5, (4, 4), made.batch), None).eval()
    torch.manual_seed(3)
    loss = objective((IMAGES, None))
    torch.manual_seed(3)
    corrupted, hidden = objective.corruption(IMAGES / 255)
    errors = (made(corrupted) - IMAGES / 255).square()
    torch.testing.assert_close(loss, errors[hidden].mean())


def test_stacked_reconstructions_have_the_channels_of_the_image_and_no_gradient_between_them():
    made = network(stacked_on="reconstructions").eval()
    assert [layer.convolution.in_channels for layer in made.layers] == [1, 1, 1]
    image = IMAGES / 255
    first = made.decoder[0](made.layers[0](image), (8, 8))
    second = made.decoder[1](made.layers[1](first), (8, 8))
    third = made.decoder[2](made.layers[2](second), (8, 8))
    torch.testing.assert_close(made(image), third)
    torch.testing.assert_close(made.encode(image)[2], made.layers[2](second))
    expected = F.mse_loss(first, image) + F.mse_loss(second, first) + F.mse_loss(third, second)
    torch.testing.assert_close(SimultaneousReconstruction(made, None, None).eval()((IMAGES, None)), expected)

    (filters,) = torch.autograd.grad(
        SimultaneousReconstruction(made, None, None).eval()((IMAGES, None)), made.layers[0].convolution.weight
    )
    (alone,) = torch.autograd.grad(
        F.mse_loss(made.decoder[0](made.layers[0](image), (8, 8)), image), made.layers[0].convolution.weight
    )
    torch.testing.assert_close(filters, alone)


def test_denoising_stacked_reconstructions_all_target_the_clean_image():
    made = network(stacked_on="reconstructions").eval()
    objective = SimultaneousReconstruction(made, Corruption("uniform", 0.5, (1, 1), made.batch), None).eval()
    torch.manual_seed(3)
    loss = objective((IMAGES, None))
    torch.manual_seed(3)
    image, expected = IMAGES / 255, 0
    incoming, _ = objective.corruption(image)
    for index in range(3):
        incoming = made.reconstruct_layer(index, incoming, made.layers[index](incoming))
        expected = expected + F.mse_loss(incoming, image)
    torch.testing.assert_close(loss, expected)


def test_decoders_that_classification_reads_through_learn_too():
    network = Autoencoder(1, {}, [layer(), layer()], tied_weights=False, stacked_on="reconstructions")
    objective = Classification(network, None, (8, 8), 10, seed=0)
    learning = set(objective.trained())
    assert set(network.decoder[0].parameters()) <= learning
    assert not set(network.decoder[1].parameters()) & learning


def test_classification_trains_the_encoder_and_not_the_decoder():
    torch.manual_seed(0)
    labels = torch.arange(6) % 3
    objective = Classification(network(), None, (8, 8), 3, seed=0)
    before = objective.train()((IMAGES, labels)).item()
    changed = moved(objective, (IMAGES, labels), steps=20)
    assert {name.split(".")[0] for name in changed} == {"layers"}
    assert objective((IMAGES, labels)).item() < 0.5 * before


@pytest.mark.parametrize("order", ["greedy", "greedy_then_end_to_end", "simultaneous", "end_to_end"])
def test_phases_run_in_order_and_resume_with_the_same_bits(experiment, train_set, validation_set, order):
    layer = experiment().model.layers[0].model_dump() | {"activation": "relu"}
    pooled = layer | {"pool": {"kind": "max", "size": (2, 2)}}
    pooled |= {"dropout": 0.2, "batch_norm": True}
    params = experiment(train={"epochs": 2, "order": order}, model={"layers": [pooled, layer]})
    whole, history, _ = train_encoder(params, train_set, validation_set, lambda row: None)
    phases = {"greedy": 2, "greedy_then_end_to_end": 3}.get(order, 1)
    assert [row["phase"] for row in epochs(history)] == [phase for phase in range(phases) for _ in range(2)]
    assert [row["epoch"] for row in epochs(history)] == list(range(2 * phases))

    for death in range(2 * phases):  # at an even one, earlier phases are complete and this one has no checkpoint
        resumes_alike(params, train_set, validation_set, death, whole, history)


def test_classification_learns_from_labels_after_pretraining(experiment, train_set, validation_set):
    params = experiment(
        objective={"kind": "classify", "pretraining": 2},
        train={"epochs": 6, "learning_rate": 0.01, "augmentation": {"flip": False, "shift": 1}},
    )
    encoder, history, _ = train_encoder(params, train_set, validation_set, lambda row: None)
    ends = epochs(history)
    assert [row["phase"] for row in ends] == [0] * 2 + [1] * 6
    assert min(row["validation_loss"] for row in ends[2:]) < 1.0  # cross-entropy, 2.3 for a guess
    assert not encoder.has_decoder
    for death in (2, 3):
        resumes_alike(params, train_set, validation_set, death, encoder, history)


def test_frozen_layers_are_unfrozen_in_the_next_phase():
    made = network()
    LayerReconstruction(made, None, None, 1).start_training()
    assert [layer.training for layer in made.layers] == [False, True, False]
    Reconstruction(made, None, None).start_training()
    assert all(layer.training for layer in made.layers)


def test_layers_on_maps_learn_jointly_what_each_learns_alone():
    made = network().eval()
    total = SimultaneousReconstruction(made, None, None).eval()((IMAGES, None))
    alone = [LayerReconstruction(made, None, None, index).eval()((IMAGES, None)) for index in range(3)]
    torch.testing.assert_close(total, sum(alone))


def test_a_leftover_image_does_not_stop_classification(experiment, train_set, validation_set):
    params = experiment(objective={"kind": "classify"}, train={"epochs": 1, "batch_size": 57})  # 400 = 7 * 57 + 1
    _, history, _ = train_encoder(params, train_set, validation_set, lambda row: None)
    assert len(epochs(history)) == 1


def test_classification_without_labels_is_refused(experiment, digits, train_set, validation_set):
    with pytest.raises(ConvaeError, match="the training images have no labels"):
        train_encoder(
            experiment(objective={"kind": "classify"}),
            replace(train_set, labels=None),
            validation_set,
            lambda row: None,
        )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("make", [Reconstruction, SimultaneousReconstruction, Classification])
def test_frozen_layers_stay_bit_for_bit_with_their_statistics(make, tied):
    made = Autoencoder(
        1, {}, [LAYER, LAYER], tied_weights=tied, sparsity={"block": [4, 4], "lifetime": 0.5}, stacked_on="maps"
    )
    made.initialize(torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    if make is Classification:
        objective = Classification(made, None, (8, 8), 3, 0, frozen=1)
    else:
        objective = make(made, None, None, frozen=1)
    changed = moved(objective, (IMAGES, labels))
    assert any(name.startswith("layers.1.") for name in changed)
    assert not [name for name in changed if name.startswith(("layers.0.", "sparsity.0."))]
    assert ("decoder.0.weight" in changed) == (not tied and make is not Classification)


def test_with_all_layers_frozen_only_the_head_learns(experiment, train_set, validation_set):
    untouched, _, _ = train_encoder(experiment(objective={"kind": "none"}), train_set, validation_set, print)
    untouched.save(Path("models/initial"))
    params = experiment(
        objective={"kind": "classify"}, train={"freeze": "all", "head_learning_rate": 0.05, "epochs": 2}
    )
    encoder, history, _ = train_encoder(params, train_set, validation_set, print)
    for name, value in encoder.autoencoder.layers.state_dict().items():
        assert torch.equal(value, untouched.autoencoder.layers.state_dict()[name])
    first, second = epochs(history)
    assert second["validation_loss"] < first["validation_loss"] < 2.3  # chance level of ten classes


def test_the_head_has_its_own_learning_rate(experiment):
    params = experiment(train={"head_learning_rate": 0.5, "learning_rate": 0.25, "weight_decay": 0.1})
    objective = Classification(network(), None, (8, 8), 3, 0)
    images = ImageBatches(np.zeros((4, 1, 8, 8), np.uint8), 2)
    module = TrainingModule(
        objective, images, images, images, None, 1, params.train, Path("last.ckpt"), 0, 0, [], print
    )
    module.trainer = SimpleNamespace(estimated_stepping_batches=10)
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[parameter] for parameter in objective.head.parameters()} == {0.5}
    assert {rates[parameter] for parameter in objective.autoencoder.layers.parameters()} == {0.25}
    decays = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert all(decays[parameter] == (0.1 if parameter.ndim > 1 else 0.0) for parameter in objective.trained())


def test_greedy_training_skips_frozen_layers(experiment, train_set, validation_set):
    one = experiment().model.layers[0].model_dump()
    untouched, _, _ = train_encoder(
        experiment(model={"layers": [one, one]}, objective={"kind": "none"}), train_set, validation_set, print
    )
    untouched.save(Path("models/initial"))
    params = experiment(model={"layers": [one, one]}, train={"order": "greedy", "freeze": 1, "epochs": 1})
    encoder, history, _ = train_encoder(params, train_set, validation_set, print)
    first, second = (
        torch.equal(mine.convolution.weight, theirs.convolution.weight)
        for mine, theirs in zip(encoder.autoencoder.layers, untouched.autoencoder.layers, strict=True)
    )
    assert (first, second, len(epochs(history))) == (True, False, 1)


def test_layers_stacked_on_frozen_reconstructions_stay_frozen(experiment, train_set):
    layers = [LAYER | {"activation": "linear"}] * 2
    made = Autoencoder(1, {}, layers, tied_weights=False, stacked_on="reconstructions")
    made.initialize(torch.Generator().manual_seed(0))
    for make in (Reconstruction, SimultaneousReconstruction):
        changed = moved(make(made, None, None, frozen=1), (IMAGES, None))
        assert {name.split(".")[1] for name in changed} == {"1"}


@pytest.mark.parametrize("order", ["greedy", "end_to_end"])
def test_freezing_that_is_impossible_or_leaves_nothing_to_learn_is_refused(
    experiment, train_set, validation_set, order
):
    params = experiment(train={"freeze": "all", "order": order})
    with pytest.raises(ConvaeError, match=r"train\.freeze = all: models/initial holds no encoder"):
        train_encoder(params, train_set, validation_set, print)
    if order == "greedy":
        start, _, _ = train_encoder(experiment(objective={"kind": "none"}), train_set, validation_set, print)
        start.save(Path("models/initial"))
        with pytest.raises(ConvaeError, match=r"train\.freeze = all: no layer is left to learn"):
            train_encoder(params, train_set, validation_set, print)
