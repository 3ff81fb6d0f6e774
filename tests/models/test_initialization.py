import pytest
import torch
from layers import layer
from torch.nn import functional as F

from convae.errors import ConvaeError
from convae.models.autoencoder import Autoencoder
from convae.models.initialization import draw_patches, filter_bank, set_filters, spherical_kmeans

LAYER = layer(filters=6, activation="linear")


def generator():
    return torch.Generator().manual_seed(0)


def images(channels=1):
    return torch.randint(0, 256, (60, channels, 9, 10), dtype=torch.uint8, generator=generator())


def test_the_bank_has_the_textbook_filters():
    bank = filter_bank(16, 1, 7, 7)
    assert bank.shape == (16, 1, 7, 7)
    torch.testing.assert_close(bank.flatten(1).norm(dim=1), torch.ones(16))
    centre = bank[:, 0, 2:5, 2:5]
    torch.testing.assert_close(centre[0], torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 12**0.5)
    torch.testing.assert_close(centre[1], centre[0].T)
    torch.testing.assert_close(centre[2], torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]) / 20**0.5)
    zero_mean = [index for index in range(16) if index != 3]
    torch.testing.assert_close(bank[zero_mean].sum((1, 2, 3)), torch.zeros(15), atol=1e-5, rtol=0)
    assert bank[3].min() > 0
    even, odd = bank[4:16:2], bank[5:16:2]
    torch.testing.assert_close(even.flip(2, 3), even)
    torch.testing.assert_close(odd.flip(2, 3), -odd)
    assert (bank.flatten(1) @ bank.flatten(1).T - torch.eye(16)).max() < 0.95  # no filter twice


def test_a_gabor_filter_responds_most_to_its_own_orientation():
    bank = filter_bank(16, 1, 11, 11)
    x = torch.arange(11.0) - 5
    grating = torch.sin(2 * torch.pi * x / 11).expand(11, 11)  # varies from left to right
    odd = bank[5:16:2, 0]
    answers = (odd * grating).sum((1, 2)).abs()
    assert answers.argmax() == 0
    assert (odd * grating.T).sum((1, 2)).abs().argmax() == 3


def test_a_colour_filter_bank_is_equal_in_all_channels():
    bank = filter_bank(8, 3, 5, 7)
    assert torch.equal(bank[:, 0], bank[:, 2])
    torch.testing.assert_close(bank.flatten(1).norm(dim=1), torch.ones(8))


def test_a_filter_bank_with_too_small_kernels_is_refused():
    with pytest.raises(ConvaeError, match="3 filters of 7×7 pixels; 4 to 28 are possible"):
        filter_bank(3, 1, 7, 7)
    with pytest.raises(ConvaeError, match="17 filters of 3×3 pixels; 4 to 16 are possible"):
        filter_bank(17, 1, 3, 3)
    with pytest.raises(ConvaeError, match="8 filters of 2×5 pixels; at least 3×3 are needed"):
        filter_bank(8, 1, 2, 5)


@pytest.mark.parametrize("side", [3, 4, 7, 11])
def test_a_full_filter_bank_has_no_empty_or_duplicate_filters(side):
    bank = filter_bank(4 + 12 * {3: 1, 4: 2, 7: 2, 11: 3}[side], 1, side, side).flatten(1)
    similar = (bank @ bank.T).fill_diagonal_(0)
    assert similar.abs().max() < 0.999


def test_patch_filters_occur_in_the_images():
    network = Autoencoder(2, {}, [LAYER, LAYER | {"filters": 4}], tied_weights=True)
    network.initialize(generator())
    set_filters(network, "patches", images(2), generator())
    patches = F.normalize(F.unfold(network.preprocessing(images(2)), 3).transpose(1, 2).flatten(0, 1))
    filters = network.layers[0].convolution.weight.flatten(1)
    assert (filters @ patches.T).max(1).values.min() > 1 - 1e-5
    maps = network.layers[0](network.preprocessing(images(2)))
    patches = F.normalize(F.unfold(maps, 3).transpose(1, 2).flatten(0, 1))
    filters = network.layers[1].convolution.weight.flatten(1)
    assert (filters @ patches.T).max(1).values.min() > 1 - 1e-5
    assert not network.layers[0].convolution.bias.any()


def test_patches_without_contrast_are_skipped():
    maps = torch.zeros(50, 1, 8, 8)
    maps[:25] = torch.randn(25, 1, 8, 8, generator=generator())
    patches = draw_patches(maps, (3, 3), generator())
    torch.testing.assert_close(patches.norm(dim=1), torch.ones(len(patches)))


def test_kmeans_finds_the_directions_of_the_patches():
    axes = torch.eye(12)[:5]
    signs = torch.randint(0, 2, (3000, 1), generator=generator()) * 2 - 1
    chosen = axes[torch.randint(0, 5, (3000,), generator=generator())]
    patches = F.normalize(signs * chosen + 0.1 * torch.randn(3000, 12, generator=generator()))
    found = spherical_kmeans(patches, 5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    explained = (patches @ found.T).abs().max(1).values.mean()
    assert explained > (patches @ patches[:5].T).abs().max(1).values.mean()
    assert ((found @ axes.T).abs().max(1).values > 0.9).all()


def test_kmeans_and_patches_are_reproducible():
    for kind in ("kmeans", "patches"):
        networks = []
        for _ in range(2):
            network = Autoencoder(1, {}, [LAYER], tied_weights=True)
            network.initialize(generator())
            set_filters(network, kind, images(), generator())
            networks.append(network.layers[0].convolution.weight)
        assert torch.equal(*networks)


def test_more_filters_than_patches_are_refused():
    network = Autoencoder(1, {}, [LAYER | {"filters": 60, "kernel": (9, 9)}], tied_weights=True)
    with pytest.raises(ConvaeError, match=r"layer 0 has 60 filters, but there are only \d+ patches"):
        set_filters(network, "patches", images()[:20], generator())
