"""The compact code and features of mirror images, against their definitions."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.decomposition import PCA

from convae.datasets.image_set import ImageSet
from convae.encoder import load_encoder
from convae.errors import ConvaeError
from convae.features import extract
from convae.features.extract import extract_features, fit_compact_code, fit_readout
from convae.models.code import fit_code
from convae.models.draws import augment, random_seed
from convae.models.shared_batch import SharedBatch
from convae.models.windows import Moments
from convae.training.train import train_encoder

PCA_CODE = {"kind": "pca", "components": 5, "corruption": None, "ridge": 1e-6, "scale": "equal", "images": None}
DENOISING = {
    "kind": "denoising", "components": 6, "corruption": {"flip": True, "shift": 1}, "ridge": 0.3, "scale": "equal",
    "images": None,
}  # fmt: skip


@pytest.fixture
def trained(shipped, train_set, validation_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = shipped(train={"epochs": 1})
    train_encoder(params, train_set, validation_set, lambda row: None)[0].save(tmp_path / "autoencoder")
    return params


@pytest.fixture
def extracted(trained, digits, tmp_path):
    """The encoder and the arrays that the stage writes, for a code and other changed keys."""

    def run(code, folder="features", **changes):
        content = trained.model_dump()
        content["features"] |= {"code": code, **changes}
        params = type(trained).model_validate(content)
        encoder = extract_features(params, tmp_path / "autoencoder", digits, tmp_path / folder)
        return encoder, {path.stem: np.load(path) for path in (tmp_path / folder).glob("*.npy")}

    return run


def copies_of(encoder, images, seed=0):
    torch.manual_seed(random_seed(seed, 0))
    return encoder.features(augment(torch.from_numpy(images), **DENOISING["corruption"], batch=SharedBatch()))


def moments(features, copies):
    """T and B in units of the mean variance, the mean and that unit, all in double precision."""
    both = np.concatenate([features, copies]).astype(float)
    mean = both.mean(0)
    left, right = both[: len(features)] - mean, both[len(features) :] - mean
    total, between = np.cov(both.T, bias=True), (left.T @ right + right.T @ left) / (2 * len(features))
    unit = total.trace() / len(total)
    return total / unit, between / unit, mean, unit


def test_a_shrunk_code_has_no_directions_that_do_not_survive():
    random = torch.Generator().manual_seed(0)
    signal, noise = (torch.randn(2000, count, generator=random) for count in (3, 5))
    moments = Moments()
    # The copies of five features are mirrored, so their correlation with the originals is negative.
    moments.add(torch.cat([signal, noise], 1), torch.cat([signal, -noise], 1))
    assert fit_code(moments, 6, 0.1, "equal").out_features == 6
    code = fit_code(moments, 6, 0.1, "shrunk")
    assert code.out_features == 3
    assert code(torch.cat([signal, noise], 1)).std(0).min() > 0.5


@pytest.mark.parametrize("ridge", [1e-2, 1e-6, 1e-9])
def test_shrunk_principal_components_keep_their_deviations_whatever_the_ridge(ridge):
    random = np.random.default_rng(0)
    features = (random.normal(size=(500, 4)) * [8, 4, 2, 1]).astype(np.float32)
    moments = Moments()
    moments.add(torch.from_numpy(features))
    found = fit_code(moments, 3, ridge, "shrunk")(torch.from_numpy(features)).numpy().std(0)
    expected = PCA(3).fit_transform(features).std(0)
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=0.05)


@pytest.mark.parametrize("scale", ["equal", "shrunk"])
def test_the_code_is_the_closed_form_from_all_features_at_once(extracted, train_set, scale):
    encoder, arrays = extracted(DENOISING | {"scale": scale})
    images = np.array(train_set.images)
    total, between, mean, unit = moments(arrays["train"], copies_of(encoder, images))
    right = total + 0.3 * np.eye(len(total))
    kept, vectors = scipy.linalg.eigh(between, right)
    kept, vectors = kept[::-1][:6], vectors[:, ::-1][:, :6]
    if scale == "shrunk":
        vectors = vectors * np.sqrt(kept / (1 - kept))
    vectors *= np.sqrt(unit * total.trace() / np.trace(vectors.T @ total @ vectors * unit))
    found = encoder.code.weight.double().numpy().T
    np.testing.assert_allclose(np.abs(found), np.abs(vectors), atol=2e-3 * np.abs(vectors).max())
    code = (arrays["train"] - mean) @ found
    np.testing.assert_allclose(arrays["train_code"], code, atol=1e-3)
    # Overall, the code is as long as the features.
    both = np.concatenate([arrays["train_code"], encoder.features(images, code=True)])
    assert both.var(0).sum() > 0
    assert np.trace(found.T @ total @ found) * unit == pytest.approx(total.trace() * unit, rel=1e-3)


def test_principal_components_span_those_of_scikit_learn(extracted, monkeypatch):
    _, whole = extracted(PCA_CODE)
    monkeypatch.setattr(extract, "CODE_IMAGES", 90)
    encoder, arrays = extracted(PCA_CODE)
    np.testing.assert_allclose(np.abs(arrays["test_code"]), np.abs(whole["test_code"]), atol=1e-2)
    expected = PCA(5, svd_solver="full").fit(arrays["train"].astype(float)).components_
    angles = scipy.linalg.subspace_angles(encoder.code.weight.double().numpy().T, expected.T)
    assert angles.max() < 1e-3
    covariance = np.cov(arrays["train_code"].T)
    np.testing.assert_allclose(covariance, np.eye(5) * covariance[0, 0], atol=1e-2 * covariance[0, 0])


def test_the_code_is_saved_loaded_described_and_the_same_bits_twice(extracted, digits, tmp_path):
    for name in ("first", "second"):
        extracted(DENOISING, name)[0].save(tmp_path / f"{name}_encoder")
    for left, right in (("first", "second"), ("first_encoder", "second_encoder")):
        names = sorted(path.name for path in (tmp_path / left).iterdir())
        assert names == sorted(path.name for path in (tmp_path / right).iterdir())
        assert all((tmp_path / left / one).read_bytes() == (tmp_path / right / one).read_bytes() for one in names)
    loaded = load_encoder(tmp_path / "first_encoder")
    assert loaded.config["code"] == DENOISING
    assert repr(loaded).endswith("64 features, code of 6, on cpu)")
    images = np.load(digits / "test/images.npy")
    for name, code in (("test", False), ("test_code", True)):
        expected = np.load(tmp_path / f"first/{name}.npy")
        assert expected.dtype == np.float32
        np.testing.assert_allclose(loaded.features(images, code=code), expected, atol=1e-4)
        np.testing.assert_allclose(loaded.features(images[:3] / 255, code=code), expected[:3], atol=1e-3)
    assert loaded.features([], code=True).shape == (0, 6)
    assert loaded.features(images[0], code=True).shape == (1, 6)


def test_without_a_code_there_is_none(extracted, tmp_path, digits):
    encoder, arrays = extracted(None)
    assert not [name for name in arrays if name.endswith("_code")]
    encoder.save(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    with pytest.raises(ConvaeError, match="made without a compact code"):
        loaded.features(np.load(digits / "test/images.npy"), code=True)


def test_a_part_of_the_images_is_enough(extracted):
    _, whole = extracted(DENOISING)
    _, part = extracted(DENOISING | {"images": 150})
    np.testing.assert_array_equal(whole["train"], part["train"])
    assert not np.allclose(whole["train_code"], part["train_code"], atol=1e-3)
    _, more = extracted(DENOISING | {"images": 10**6})
    np.testing.assert_array_equal(more["train_code"], whole["train_code"])


@pytest.mark.parametrize(
    ("changes", "dimension"),
    [({"components": 65}, 64), ({"components": 401}, 64), ({"components": 60, "images": 50}, 49)],
)
def test_a_code_has_at_most_as_many_numbers_as_features_and_fewer_than_images(extracted, tmp_path, changes, dimension):
    encoder, arrays = extracted(DENOISING | changes)
    assert arrays["test_code"].shape[1] == encoder.config["code"]["components"] == dimension
    encoder.save(tmp_path / "encoder")
    assert load_encoder(tmp_path / "encoder").code.out_features == dimension


@pytest.mark.parametrize("code", [PCA_CODE, DENOISING], ids=["pca", "denoising"])
def test_features_that_never_vary_have_a_finite_code(extracted, code):
    encoder, _ = extracted(None, standardize=False)
    images = np.zeros((20, 1, 8, 8), np.uint8)
    encoder.readout.standardize = True
    fit_readout(encoder.readout, encoder.features(images))
    fit_compact_code(encoder, code, ImageSet(images, None, (), ""), encoder.features(images), seed=0, progress=False)
    assert np.isfinite(encoder.features(images, code=True)).all()
    assert np.isfinite(encoder.code.weight).all()


def test_features_of_an_image_and_its_mirror_image_are_averaged_before_standardisation(extracted, train_set, tmp_path):
    images = np.array(train_set.images)
    plain, _ = extracted(None, standardize=False)
    averaged = (plain.features(images) + plain.features(images[..., ::-1])) / 2
    encoder, arrays = extracted(DENOISING, standardize=True, mirror="average")
    mean, deviation = averaged.mean(0), averaged.std(0)
    constant = deviation < 1e-6
    deviation[constant] = 1
    np.testing.assert_allclose(arrays["train"], (averaged - mean) / deviation, atol=2e-3)
    encoder.save(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    for code in (False, True):
        there, back = (loaded.features(one, code=code) for one in (images[:50], images[:50, ..., ::-1]))
        np.testing.assert_allclose(there, back, atol=1e-4)
    assert arrays["train"].shape == (400, 64)


def test_a_grid_with_more_cells_than_pixels_shrinks_to_the_smallest_map(extracted):
    encoder, arrays = extracted(None, grid=(9, 5), layers=[0, 1])
    assert encoder.config["readout"]["grid"] == [4, 4]  # the second layer reads maps pooled by two
    assert arrays["train"].shape == (400, (6 + 8) * 2 * 16)
    assert encoder.map_sizes == [(8, 8), (4, 4)]
