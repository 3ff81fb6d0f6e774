import numpy as np
import pytest
from sklearn.linear_model import Ridge

from convae.datasets.shards import spread
from convae.evaluation.linear_decoder import (
    LinearDecoder,
    as_pixels,
    fit_linear_decoder,
    linear_reconstruction_mse,
)


@pytest.mark.parametrize(("images", "dimension"), [(40, 7), (7, 40), (20, 20)])
def test_the_decoder_is_the_ridge_regression_of_scikit_learn(images, dimension):
    generator = np.random.default_rng(0)
    features = generator.normal(3, 2, (images, dimension))
    pixels = generator.normal(size=(images, 5)) + features[:, :5]
    unseen = generator.normal(3, 2, (9, dimension))
    unit = np.square(features - features.mean(axis=0)).sum() / images
    for ridge, decoder in zip((0.01, 2.0), LinearDecoder.fit(features, pixels, (0.01, 2.0)), strict=True):
        usual = Ridge(alpha=ridge * unit, solver="cholesky").fit(features, pixels)
        np.testing.assert_allclose(decoder(unseen), usual.predict(unseen), rtol=1e-9, atol=1e-9)


def test_the_ridge_suits_the_noise():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (400, 1, 4, 4), np.uint8)
    noise = generator.normal(size=(400, 300)).astype(np.float32)
    decoder = fit_linear_decoder(noise[:300], as_pixels(images[:300]))  # nothing to learn: the mean image is the best
    assert decoder.error(noise[300:], images[300:]) == pytest.approx(np.var(images[300:] / 255), rel=0.15)
    exact = fit_linear_decoder(as_pixels(images[:300]), as_pixels(images[:300]))
    assert exact.error(as_pixels(images[300:]), images[300:]) < 1e-4


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_images_and_constant_features_have_an_error(count):
    images = np.arange(count * 4, dtype=np.uint8).reshape(count, 1, 2, 2)
    for features in (np.zeros((count, 3), np.float32), as_pixels(images)):
        decoder = fit_linear_decoder(features, as_pixels(images))
        assert 0 <= linear_reconstruction_mse(decoder, features, images) < 0.01


def test_samples_are_spread_and_the_error_ignores_the_order_of_batches():
    assert spread(10_000, 4)[[0, -1]].tolist() == [0, 9999]
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (1203, 1, 2, 2), np.uint8)
    features = generator.normal(size=(1203, 6)).astype(np.float32)
    decoder = fit_linear_decoder(features, as_pixels(images))
    expected = np.square(decoder(features) - as_pixels(images)).mean()
    assert linear_reconstruction_mse(decoder, features, images) == pytest.approx(expected, abs=1e-6)
