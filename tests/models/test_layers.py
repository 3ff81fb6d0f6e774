"""What a layer passes on to the layer above, and which maps win at a place."""

import numpy as np
import pytest
import torch
from layers import layer

from convae.models.autoencoder import Autoencoder
from convae.models.layers import LayerOutput, signed_power
from convae.models.sparsity import StrongestMaps

MAPS = torch.randn(7, 5, 6, 9, generator=torch.Generator().manual_seed(0))


def output(**changes):
    settings = {"rectification": "both", "threshold": 0.5, "pool": None, "power": 1.0, "standardize": False}
    return LayerOutput(5, **(settings | changes))


def pooled(values, kind):
    cells = values[:, :, :6, :8].reshape(7, -1, 3, 2, 4, 2)  # an odd column is left out
    return cells.mean((3, 5)) if kind == "mean" else cells.max((3, 5))


@pytest.mark.parametrize("kind", ["mean", "max"])
@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("rectification", ["none", "positive", "both"])
def test_the_output_computed_by_hand(kind, power, rectification):
    maps = MAPS.double().numpy()
    parts = {
        "none": [maps],
        "positive": [np.maximum(maps - 0.5, 0)],
        "both": [np.maximum(maps - 0.5, 0), np.maximum(-maps - 0.5, 0)],
    }[rectification]
    expected = pooled(np.concatenate(parts, 1), kind)
    expected = np.sign(expected) * np.abs(expected) ** power
    made = output(rectification=rectification, pool={"kind": kind, "size": (2, 2)}, power=power, standardize=True)
    before = MAPS.clone()
    np.testing.assert_allclose(made(MAPS), expected, atol=1e-5)  # not fitted
    made.fit([MAPS[:3], MAPS[3:]])
    found = made(MAPS)
    mean, deviation = expected.mean((0, 2, 3)), expected.std((0, 2, 3))
    np.testing.assert_allclose(made.mean, mean, atol=1e-5)
    np.testing.assert_allclose(made.scale, deviation, atol=1e-5)
    np.testing.assert_allclose(found, (expected - mean[:, None, None]) / deviation[:, None, None], atol=1e-4)
    np.testing.assert_allclose(found.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std((0, 2, 3), correction=0), 1, atol=1e-4)
    assert made.channels == found.shape[1]
    assert torch.equal(MAPS, before)


def test_maps_passed_on_as_they_are_stay_unchanged():
    before = MAPS.clone()
    made = output(rectification="none", threshold=0.0, standardize=True)
    made.fit([MAPS])
    made(MAPS)
    assert torch.equal(MAPS, before)


def test_a_constant_map_is_not_magnified():
    made = output(standardize=True)
    made.fit([torch.zeros(3, 5, 4, 4)])
    assert made(torch.zeros(3, 5, 4, 4)).abs().max() == 0


def test_powers_have_finite_gradients_and_the_same_values():
    for rectification in ("none", "both"):
        values = torch.tensor([0.0, 4.0, 0.25] + [-9.0] * (rectification == "none"), requires_grad=True)
        power = signed_power(values, 0.5, rectification)
        power.sum().backward()
        assert torch.equal(power.detach(), signed_power(values.detach(), 0.5, rectification))
        assert values.grad.tolist()[:3] == [0.0, 0.25, 1.0]


def test_the_strongest_maps_of_each_place_are_kept():
    sparsity = StrongestMaps(5, count=2)
    with torch.no_grad():
        sparsity.gain.copy_(torch.arange(1.0, 6))
    maps = MAPS.clone().requires_grad_(True)
    kept = sparsity(maps)
    assert ((kept != 0).sum(1) == 2).all()
    places = MAPS.abs().argsort(1, descending=True)[:, :2]
    mask = torch.zeros_like(MAPS, dtype=torch.bool).scatter(1, places, True)
    gains = torch.arange(1.0, 6)[:, None, None]
    torch.testing.assert_close(kept, MAPS * mask * gains)
    kept.sum().backward()
    torch.testing.assert_close(maps.grad, mask * gains.expand_as(maps))
    torch.testing.assert_close(sparsity.gain.grad, (MAPS * mask).sum((0, 2, 3)))
    flat = sparsity(MAPS.permute(0, 2, 3, 1).flatten(0, 2))  # places in a list
    torch.testing.assert_close(flat.view(7, 6, 9, 5).permute(0, 3, 1, 2), kept.detach())


def test_a_reflected_border_reconstructs_the_same_with_few_winners_and_with_whole_maps():
    made = Autoencoder(
        1, {}, [layer(border="reflect")], tied_weights=True, sparsity={"block": (4, 4), "lifetime": None}
    ).eval()
    made.initialize(torch.Generator().manual_seed(0))
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = made.decoder[0](made.sparsity[0](made.layers[0](images)), (8, 8))
    torch.testing.assert_close(made(images), whole)
