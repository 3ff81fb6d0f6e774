"""Computing with only the winners equals full convolutions."""

from itertools import product

import pytest
import torch
from layers import layer

from convae.models import autoencoder as module
from convae.models.autoencoder import Autoencoder
from convae.models.winners import can_find_winners

SPARSITY = {"block": (5, 6), "lifetime": 0.3}
LAYERS = [
    {},
    {"padding": "full", "activation": "linear"},
    {"padding": "valid", "stride": (2, 3)},
    {"padding": "full", "stride": (2, 2), "filters": 7},
    {"kernel": (5, 3), "activation": "relu"},
]


def results(channels, tied, training, sparsity, **changes):
    """Reconstruction, gradients and the winners' threshold, in double precision."""
    network = Autoencoder(channels, {}, [layer(**changes)], tied_weights=tied, sparsity=sparsity).double()
    generator = torch.Generator().manual_seed(0)
    network.initialize(generator)
    network.layers[0].convolution.bias.data.normal_(generator=generator)
    network.decoder[0].bias.data.fill_(0.3)
    network.sparsity[0].weakest_winner.fill_(0 if training else 0.1)
    images = torch.rand(6, channels, 13, 17, generator=generator, dtype=torch.float64)
    reconstruction = network.train(training)(images)
    (reconstruction - images).square().mean().backward()
    return reconstruction, [one.grad for one in network.parameters()], network.sparsity[0].weakest_winner


@pytest.mark.parametrize("changes", LAYERS, ids=[" ".join(changes) or "same" for changes in LAYERS])
def test_reconstruction_and_gradients_equal_full_convolutions(monkeypatch, changes):
    for channels, tied, training, lifetime in product((1, 3), (True, False), (True, False), (0.3, None)):
        sparsity = SPARSITY | {"lifetime": lifetime}
        alone, whole = (
            monkeypatch.setattr(module, "can_find_winners", lambda *_, answer=answer: answer)
            or results(channels, tied, training, sparsity, **changes)
            for answer in (True, False)
        )
        torch.testing.assert_close(alone, whole)


@pytest.mark.parametrize(
    ("changes", "sparsity", "found"),
    [
        ({}, SPARSITY, True),
        ({}, None, False),
        ({}, SPARSITY | {"block": None}, False),
        ({}, SPARSITY | {"block": (2, 2)}, True),  # 9 numbers under 0.3 winners for every 4 activations
        ({}, SPARSITY | {"block": (1, 2)}, False),
        ({"batch_norm": True}, SPARSITY, False),
        ({"dropout": 0.5}, SPARSITY, False),
        ({"pool": {"kind": "max", "size": (2, 2)}}, SPARSITY, False),
    ],
)
def test_all_maps_are_computed_if_others_count_or_winners_are_many(changes, sparsity, found):
    network = Autoencoder(1, {}, [layer(**changes)], tied_weights=True, sparsity=sparsity)
    images = torch.rand(2, 1, 8, 8)
    assert can_find_winners(network.layers[0], network.sparsity[0], images) == found
    assert not can_find_winners(network.layers[0], network.sparsity[0], images.requires_grad_())
