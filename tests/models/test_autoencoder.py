"""The networks, compared with their equations."""

import pytest
import torch
from layers import layer
from torch.nn import functional as F

from convae.models.autoencoder import Autoencoder
from convae.models.preprocessing import Preprocessing, normalize_local_contrast
from convae.models.shared_batch import SharedBatch
from convae.models.sparsity import WinnerTakeAll


def test_the_seed_cae_is_two_convolutions():
    network = Autoencoder(1, {}, [layer(filters=32, padding="full")], tied_weights=False)
    network.initialize(torch.Generator().manual_seed(0))
    images = torch.rand(5, 1, 28, 28)
    encoder, decoder = network.layers[0].convolution, network.decoder[0]

    maps = torch.tanh(F.conv2d(F.pad(images, (2, 2, 2, 2)), encoder.weight, encoder.bias))
    valid = F.conv2d(maps, decoder.weight.transpose(0, 1).flip(2, 3), decoder.bias)

    assert maps.shape == (5, 32, 30, 30)
    torch.testing.assert_close(network.encode(images)[0], maps)
    torch.testing.assert_close(network(images), valid)
    assert sum(p.numel() for p in network.layers.parameters()) == 320
    assert sum(p.numel() for p in network.decoder.parameters()) == 289


def test_filters_are_initialised_by_fan_in():
    network = Autoencoder(3, {}, [layer(filters=512, kernel=(5, 5))], tied_weights=False)
    network.initialize(torch.Generator().manual_seed(0))
    assert network.decoder[0].weight.std().item() == pytest.approx((512 * 25) ** -0.5, rel=0.02)
    assert network.layers[0].convolution.weight.std().item() == pytest.approx(75**-0.5, rel=0.02)
    assert not network.layers[0].convolution.bias.any()


def test_tied_weights_are_one_tensor():
    network = Autoencoder(1, {}, [layer(), layer(filters=6)], tied_weights=True)
    for encoder, decoder in zip(network.layers, network.decoder, strict=True):
        assert decoder.weight is encoder.convolution.weight


@pytest.mark.parametrize(
    "layers",
    [
        [layer(padding="full")],
        [layer(stride=(2, 3), activation="relu", batch_norm=True)],
        [
            layer(pool={"kind": "max", "size": (2, 2)}),
            layer(kernel=(3, 5), pool={"kind": "mean", "size": (2, 1)}),
        ],
        [layer(activation=a) for a in ("linear", "leaky_relu", "sigmoid")],
    ],
)
def test_every_parameter_gets_a_finite_gradient(layers):
    network = Autoencoder(2, {}, layers, tied_weights=False, sparsity={"block": (3, 3), "lifetime": 0.5})
    network.initialize(torch.Generator().manual_seed(0))
    images = torch.rand(8, 2, 13, 17)
    F.mse_loss(network.train()(images), images).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_one_winner_per_block_and_the_strongest_across_the_batch():
    maps = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    code = WinnerTakeAll(3, (4, 4), None, SharedBatch())(maps)
    blocks = F.unfold((code != 0).float().flatten(0, 1).unsqueeze(1), 4, stride=4)
    assert (blocks.sum(1) == 1).all()
    strongest = F.max_pool2d(maps.abs(), 4)
    assert torch.equal(F.max_pool2d(code.abs(), 4), strongest)

    kept = WinnerTakeAll(3, (4, 4), 0.25, SharedBatch())(maps)
    assert ((kept != 0).sum(dim=(0, 2, 3)) == 6).all()  # a quarter of 6 images × 4 blocks
    for channel in range(3):
        threshold = strongest[:, channel].flatten().topk(6).values[-1]
        assert torch.equal(kept[:, channel] != 0, (code[:, channel].abs() >= threshold))


def test_in_evaluation_mode_images_are_independent_of_their_batch():
    maps = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sparsity = WinnerTakeAll(3, (4, 4), 0.25, SharedBatch())
    trained = sparsity(maps)
    sparsity.eval()
    assert torch.equal(sparsity(maps), trained)  # a single batch fixes the thresholds
    assert torch.equal(torch.cat([sparsity(maps[:1]), sparsity(maps[1:])]), trained)


def test_winners_keep_their_values_and_losers_get_no_gradient():
    maps = torch.randn(2, 1, 4, 4, requires_grad=True)
    code = WinnerTakeAll(1, (4, 4), None, SharedBatch())(maps)
    code.sum().backward()
    assert torch.equal(maps.grad != 0, code != 0)
    assert torch.equal(code[code != 0], maps[code != 0])


def test_blocks_larger_than_the_map_or_not_dividing_it():
    maps = torch.randn(2, 3, 5, 7)
    assert ((WinnerTakeAll(3, (9, 9), None, SharedBatch())(maps) != 0).sum((2, 3)) == 1).all()
    assert ((WinnerTakeAll(3, (3, 3), None, SharedBatch())(maps) != 0).sum((2, 3)) == 6).all()


def test_local_contrast_equals_a_plain_loop():
    image = torch.rand(1, 2, 6, 5)
    result = normalize_local_contrast(image, window=3, floor=0.05)

    def window_mean(values, y, x):
        return values[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean()

    centred = torch.stack([image[0, :, y, x] - window_mean(image[0], y, x) for y in range(6) for x in range(5)], 1)
    centred = centred.view(2, 6, 5)
    for y in range(6):
        for x in range(5):
            deviation = window_mean(centred**2, y, x).sqrt().clamp(min=0.05)
            torch.testing.assert_close(result[0, :, y, x], centred[:, y, x] / deviation)


def test_whitening_decorrelates_neighbours():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(300, 3, 20, 20, generator=generator)
    images = F.avg_pool2d(noise + noise.mean(1, keepdim=True), 3, 1).mul(120).to(torch.uint8)
    preprocessing = Preprocessing(3, whitening={"kind": "zca", "window": 5, "epsilon": 1e-6})
    preprocessing.fit(images, generator)
    white = preprocessing(images)[:, :, 2:-2, 2:-2]  # the border sees zeros outside the image
    values = torch.stack(
        [white[..., :-1].transpose(0, 1).flatten(1), white[..., 1:].transpose(0, 1).flatten(1)]
    ).flatten(0, 1)
    before = images.float()
    before = torch.stack(
        [before[..., :-1].transpose(0, 1).flatten(1), before[..., 1:].transpose(0, 1).flatten(1)]
    ).flatten(0, 1)
    assert torch.corrcoef(before)[0, 3] > 0.5
    assert (torch.corrcoef(values) - torch.eye(6)).abs().max() < 0.15


def test_pca_whitening_gives_uncorrelated_components_of_unit_variance():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(200, 2, 12, 12, generator=generator)
    images = F.avg_pool2d(noise, 3, 1).mul(200).to(torch.uint8)
    preprocessing = Preprocessing(2, whitening={"kind": "pca", "window": 3, "epsilon": 1e-8})
    preprocessing.fit(images, generator)
    white = preprocessing(images)[:, :, 1:-1, 1:-1]
    assert preprocessing.channels == white.shape[1] == 18
    values = white.transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(18), atol=1e-3, rtol=0)
    torch.testing.assert_close(values @ values.T / values.shape[1], torch.eye(18), atol=1e-2, rtol=0)
    patches = F.unfold(images / 255, 3).transpose(1, 2).flatten(0, 1)
    largest = torch.linalg.eigh(torch.cov(patches.T)).eigenvalues[-1]
    direction = preprocessing.whitening_filters[0].flatten() * largest.sqrt()
    assert direction.norm().item() == pytest.approx(1, rel=1e-3)  # the first component is that of the largest variance


def test_without_layers_the_encoder_returns_the_preprocessed_image():
    network = Autoencoder(1, {}, [], tied_weights=False)
    images = torch.randint(0, 256, (3, 1, 5, 6), dtype=torch.uint8)
    (maps,) = network.encode(network.preprocessing(images))
    assert torch.equal(maps, images / 255)


def test_dropout_is_active_only_in_training():
    network = Autoencoder(1, {}, [layer(dropout=0.5, activation="linear")], tied_weights=False)
    network.initialize(torch.Generator().manual_seed(0))
    images = torch.rand(4, 1, 9, 9)
    assert 0.3 < (network.train().encode(images)[0] == 0).float().mean() < 0.7
    assert (network.eval().encode(images)[0] != 0).all()
