"""Windows against their definition: cut one by one, normalised, whitened and multiplied by filters of unit length."""

import numpy as np
import pytest
import scipy.linalg
import torch
from layers import layer

from convae.errors import ConvaeError
from convae.models.geometry import LayerGeometry
from convae.models.layers import EncoderLayer
from convae.models.shared_batch import SharedBatch
from convae.models.windows import Moments, WindowInput, denoising_directions

RANDOM = torch.Generator().manual_seed(0)
FLOOR = 0.1


def whitening(kind, components=None, epsilon=0.1):
    corruption = {"flip": False, "shift": 1} if kind == "denoising" else None
    return {"kind": kind, "components": components, "epsilon": epsilon, "corruption": corruption}


def moments_of(*pairs):
    moments = Moments()
    for windows, copies in pairs:
        moments.add(windows, copies)
    return moments


def cut(image, geometry):
    """Every window of `[D, H, W]`, row by row, each with its channels last: `float64 [places, k_h·k_w·D]`."""
    (top, left), (height, width), (down, right) = geometry.zeros, geometry.kernel, geometry.stride
    padded = np.pad(image, ((0, 0), (top, top), (left, left)), "reflect" if geometry.reflect else "constant")
    return np.stack(
        [
            padded[:, row : row + height, column : column + width].transpose(1, 2, 0).ravel()
            for row in range(0, padded.shape[1] - height + 1, down)
            for column in range(0, padded.shape[2] - width + 1, right)
        ]
    )


def normalize(windows, normalization):
    if normalization is None:
        return windows
    if normalization["centered"]:
        windows = windows - windows.mean(1, keepdims=True)
    return windows / np.sqrt((windows**2).mean(1, keepdims=True) + normalization["floor"] ** 2)


NORMALIZATIONS = {
    "plain": None,
    "centered": {"centered": True, "floor": FLOOR},
    "scaled": {"centered": False, "floor": FLOOR},
}
GEOMETRIES = {
    "same": {"kernel": (3, 5)},
    "reflected": {"kernel": (5, 3), "border": "reflect"},
    "full, stride 2": {"kernel": (4, 3), "padding": "full", "stride": (2, 2)},
    "reflected, full, strides": {"kernel": (3, 4), "padding": "full", "stride": (2, 3), "border": "reflect"},
    "valid": {"kernel": (3, 3), "padding": "valid"},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [None, "pca", "zca", "denoising"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shape", GEOMETRIES)
def test_one_convolution_equals_windows_cut_one_by_one(channels, kind, normalization, shape):
    settings = NORMALIZATIONS[normalization]
    reading = {"normalization": settings, "whitening": kind and whitening(kind, None if kind == "zca" else 7)}
    made = EncoderLayer(channels, layer(**GEOMETRIES[shape], activation="linear", input=reading), SharedBatch())
    geometry = LayerGeometry.of(layer(**GEOMETRIES[shape]))
    images = torch.rand(3, channels, 9, 11, generator=RANDOM)
    images[0, :, :5] = 0.5  # flat windows
    height, width = geometry.convolved((9, 11))
    places = torch.arange(height * width).expand(3, -1)
    windows = made.input.windows(images, places)
    expected = np.concatenate([normalize(cut(image, geometry), settings) for image in images.double().numpy()])
    np.testing.assert_allclose(windows, expected, atol=1e-5)

    made.input.fit(moments_of((windows, windows + 0.3 * torch.randn(windows.shape, generator=RANDOM))))
    torch.nn.init.normal_(made.convolution.weight, generator=RANDOM)
    if kind:
        expected = (expected - made.input.mean.double().numpy()) @ made.input.matrix.double().numpy().T
    np.testing.assert_allclose(made.input.whiten(windows), expected, atol=1e-5)
    filters = made.convolution.weight.detach().double().flatten(1).numpy()
    maps = expected @ (filters / np.linalg.norm(filters, axis=1, keepdims=True)).T
    found = made(images).detach().permute(0, 2, 3, 1).reshape(len(maps), -1)
    np.testing.assert_allclose(found, maps, atol=1e-5)
    assert found.shape[1] == 4
    np.testing.assert_allclose(made.unit_filters.detach().norm(dim=1), 1, rtol=1e-6)


def correlated(count, dimension):
    mixing = torch.randn(dimension, dimension, generator=RANDOM) / dimension**0.5
    return torch.randn(count, dimension, generator=RANDOM) @ mixing + 1


def fitted(kind, components=None, epsilon=0.1, *pairs):
    reading = WindowInput(2, LayerGeometry((3, 3)), None, whitening(kind, components, epsilon))
    reading.fit(moments_of(*pairs))
    return reading


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitening_gives_uncorrelated_values_of_unit_variance(kind):
    windows = correlated(5000, 18)
    whitened = fitted(kind, None, 1e-6, (windows[:2000], None), (windows[2000:], None)).whiten(windows)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(whitened.numpy().T), np.eye(18), atol=0.01)


def test_zca_keeps_the_axes_and_pca_the_largest_components():
    windows = correlated(3000, 18)
    variances = np.linalg.eigvalsh(np.cov(windows.double().numpy().T, bias=True))[::-1]
    zca, some = fitted("zca", None, 0.1, (windows, None)), fitted("pca", 5, 0.1, (windows, None))
    np.testing.assert_allclose(zca.matrix, zca.matrix.T, atol=1e-4)
    assert some.whiten(windows).shape == (3000, 5)
    np.testing.assert_allclose(some.whiten(windows).var(0), variances[:5] / (variances[:5] + 0.1), rtol=1e-3)


def test_denoising_directions_solve_the_generalised_eigenproblem():
    windows = correlated(4000, 18)
    copies = windows + 0.7 * torch.randn(windows.shape, generator=RANDOM) * torch.rand(18, generator=RANDOM)
    clean, noisy = windows.double().numpy(), copies.double().numpy()
    mean = (clean.mean(0) + noisy.mean(0)) / 2
    total = ((clean - mean).T @ (clean - mean) + (noisy - mean).T @ (noisy - mean)) / 8000
    between = ((clean - mean).T @ (noisy - mean) + (noisy - mean).T @ (clean - mean)) / 8000
    unit = total.trace() / 18
    left, right = between / unit, total / unit + 0.2 * np.eye(18)
    kept = scipy.linalg.eigh(left, right, eigvals_only=True)[::-1][:6]

    directions, found = denoising_directions(torch.tensor(total).float(), torch.tensor(between).float(), 6, 0.2)
    np.testing.assert_allclose(found, kept, atol=1e-4)
    vectors = directions.double().numpy().T
    np.testing.assert_allclose(left @ vectors, right @ vectors * kept, atol=1e-4)
    np.testing.assert_allclose(vectors.T @ right @ vectors, np.eye(6), atol=1e-4)

    reading = fitted("denoising", 6, 0.2, (windows, copies))
    ratio = reading.matrix / directions
    np.testing.assert_allclose(ratio.abs(), ratio.abs()[0, 0], rtol=0.01)  # equally weighted
    both = torch.cat([reading.whiten(windows), reading.whiten(copies)])
    assert float(both.square().mean()) == pytest.approx(1, abs=1e-3)


def test_moments_are_numpys():
    windows, copies = correlated(900, 6), correlated(900, 6)
    moments = Moments()
    for rows in (slice(0, 1), slice(1, 400), slice(400, 900)):
        moments.add(windows[rows], copies[rows])
    both = np.concatenate([windows, copies]).astype(float)
    total, between = moments.second()
    np.testing.assert_allclose(moments.mean, both.mean(0), atol=1e-5)
    np.testing.assert_allclose(total, np.cov(both.T, bias=True), atol=1e-4)
    left, right = both[:900] - both.mean(0), both[900:] - both.mean(0)
    np.testing.assert_allclose(between, (left.T @ right + right.T @ left) / 1800, atol=1e-4)
    alone = Moments()
    alone.add(windows)
    total, between = alone.second()
    np.testing.assert_allclose(total, np.cov(windows.double().numpy().T, bias=True), atol=1e-4)
    assert torch.equal(total, between)


@pytest.mark.parametrize("kind", ["pca", "zca", "denoising"])
def test_windows_that_are_all_equal_are_whitened_to_zero(kind):
    windows = torch.ones(50, 18)
    reading = fitted(kind, None, 0.1, (windows, windows))
    assert reading.matrix.isfinite().all()
    np.testing.assert_allclose(reading.whiten(windows), 0, atol=1e-3)


def test_fewer_windows_than_values_are_enough():
    windows = correlated(3, 18)
    for kind in ("pca", "denoising"):
        assert fitted(kind, None, 0.1, (windows, windows + 0.1)).matrix.isfinite().all()


def test_a_singular_covariance_is_refused():
    ones = torch.ones(4, 4)
    with pytest.raises(ConvaeError, match="the covariance of 4 values is singular"):
        denoising_directions(ones, ones, 2, ridge=1e-12)


def test_flat_windows_are_zero_and_not_noise():
    reading = WindowInput(1, LayerGeometry((5, 5)), {"centered": True, "floor": 0.01}, None)
    filters = torch.randn(4, 25, generator=RANDOM)
    maps = reading.convolve(torch.full((1, 1, 9, 9), 0.9), *reading.fold(filters))
    np.testing.assert_allclose(maps[0, :, 3:6, 3:6], 0, atol=1e-3)


@pytest.mark.parametrize("brightness", [0.0, 0.5, 0.99])
def test_bright_windows_of_little_contrast_are_as_exact_as_dark_ones(brightness):
    reading = WindowInput(1, LayerGeometry((7, 7)), {"centered": True, "floor": 0.001}, None)
    filters = torch.randn(4, 49, generator=RANDOM)
    image = brightness + 0.001 * torch.rand(1, 1, 15, 15, generator=RANDOM)
    windows = normalize(cut(image[0].double().numpy(), LayerGeometry((7, 7))), {"centered": True, "floor": 0.001})
    found = reading.convolve(image, *reading.fold(filters))[0].flatten(1).T
    np.testing.assert_allclose(found, windows @ filters.double().numpy().T, atol=1e-3)


def test_a_hot_pixel_spoils_no_other_window():
    reading = {"normalization": {"centered": True, "floor": FLOOR}, "whitening": None}
    made = EncoderLayer(1, layer(kernel=(3, 3), activation="linear", input=reading), SharedBatch())
    torch.nn.init.normal_(made.convolution.weight, generator=RANDOM)
    images = torch.rand(1, 1, 20, 20, generator=RANDOM)
    hot = images.clone()
    hot[0, 0, 0, 0] = 1000
    maps, others = (made(one).detach()[..., 5:-5, 5:-5] for one in (images, hot))
    np.testing.assert_allclose(others, maps, atol=1e-4)


@pytest.mark.parametrize("kind", ["pca", "zca", "denoising"])
def test_channels_that_are_always_zero_are_no_obstacle(kind):
    for seed in range(12):
        random = torch.Generator().manual_seed(seed)
        windows = torch.randn(2000, 200, generator=random)
        windows[:, torch.randperm(200, generator=random)[:160]] = 0
        reading = WindowInput(200, LayerGeometry((1, 1)), None, whitening(kind, None if kind == "zca" else 10))
        reading.fit(moments_of((windows, windows + 0.1 * windows.roll(1, 0))))
        assert reading.whiten(windows).isfinite().all()


def test_moments_far_from_zero_keep_small_variances():
    windows = (correlated(900, 6) * 1e-3 + 500).float()
    covariance, _ = moments_of((windows, None)).second()
    np.testing.assert_allclose(covariance, np.cov(windows.double().numpy().T, bias=True), rtol=1e-3)
