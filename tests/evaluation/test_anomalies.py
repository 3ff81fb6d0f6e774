"""How unusual an image is, compared with training images."""

import json
import struct

import numpy as np
import pytest

from convae.errors import ConvaeError
from convae.evaluation import anomalies
from convae.evaluation.anomalies import Reference, load_reference


@pytest.fixture
def features(encoder, tmp_path):
    return np.load(tmp_path / "features/train.npy")


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.fixture
def reference(encoder, features):
    return Reference.fit(features, encoder.sha256, code=False)


def test_training_images_are_usual(reference, features, tmp_path):
    distances = np.linalg.norm(unit(features)[:, None].astype(np.float64) - unit(features), axis=2)
    np.fill_diagonal(distances, np.inf)
    expected = np.sort(distances, axis=1)[:, :5].mean(axis=1)
    assert reference.mean == pytest.approx(expected.mean())
    assert reference.deviation == pytest.approx(expected.std())
    others = np.load(tmp_path / "features/test.npy")
    assert abs(reference.scores(others).mean()) < 1  # other writers
    assert reference.scores(-others).mean() > reference.scores(others).mean() + 0.5
    np.testing.assert_allclose(reference.scores(7 * others), reference.scores(others), atol=1e-3)


def test_of_many_images_a_sample_is_kept(features, monkeypatch):
    monkeypatch.setattr(anomalies, "VALUES", 50 * features.shape[1])
    assert Reference.fit(features, "", code=False).features.shape == (50, features.shape[1])
    monkeypatch.setattr(anomalies, "MOST_IMAGES", 30)
    assert Reference.fit(features, "", code=False).features.shape == (30, features.shape[1])
    monkeypatch.setattr(anomalies, "VALUES", 1)
    assert Reference.fit(features, "", code=False).features.shape == (1, features.shape[1])


@pytest.mark.parametrize("count", [1, 2])
def test_few_or_equal_images_have_finite_scores(count):
    reference = Reference.fit(np.ones((count, 3), np.float32), "", code=False)
    assert reference.scores(np.ones((1, 3), np.float32)).tolist() == [0.0]
    assert np.isfinite(reference.scores(np.zeros((1, 3), np.float32))).all()


def test_it_is_loaded_as_it_was_saved(reference, encoder, tmp_path):
    for name in ("one", "two"):
        reference.save(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    loaded = load_reference(tmp_path / "one", encoder)
    assert (loaded.mean, loaded.deviation, loaded.code) == (reference.mean, reference.deviation, False)
    np.testing.assert_array_equal(loaded.features, reference.features)


def damage_weights(folder):
    content = bytearray((folder / "features.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "features.safetensors").write_bytes(bytes(content))


def claim_much(folder):
    header = json.dumps({"features": {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 1 << 44]}}).encode()
    (folder / "features.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def rewrite(**keys):
    def change(folder):
        about = json.loads((folder / "reference.json").read_text())
        (folder / "reference.json").write_text(json.dumps(about | keys))

    return change


@pytest.mark.parametrize(
    "change",
    [
        damage_weights,
        claim_much,
        rewrite(mean=0.0),
        rewrite(format=2),
        rewrite(more=1),
        lambda folder: (folder / "reference.json").write_text("[]"),
        lambda folder: (folder / "reference.json").write_text("{"),
        lambda folder: (folder / "features.safetensors").unlink(),
        lambda folder: (folder / "reference.json").unlink(),
    ],
)
def test_a_damaged_one_is_refused_in_one_line(reference, encoder, tmp_path, change):
    reference.save(tmp_path / "reference")
    change(tmp_path / "reference")
    with pytest.raises(ConvaeError, match="not a reference for anomalies") as refusal:
        load_reference(tmp_path / "reference", encoder)
    assert "\n" not in str(refusal.value)


def test_that_of_another_encoder_is_refused(features, encoder, tmp_path):
    Reference.fit(features, "another", code=False).save(tmp_path / "reference")
    with pytest.raises(ConvaeError, match="of another encoder"):
        load_reference(tmp_path / "reference", encoder)
    Reference.fit(features[:, :3], encoder.sha256, code=False).save(tmp_path / "reference")
    with pytest.raises(ConvaeError, match="of another encoder"):
        load_reference(tmp_path / "reference", encoder)
