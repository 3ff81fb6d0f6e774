"""Test images that nearly equal training images."""

import numpy as np
import pytest

from convae.evaluation import neighbors
from convae.evaluation.neighbors import near_copies


def test_frames_of_one_film_are_found():
    random = np.random.default_rng(0)
    films = random.normal(size=(50, 1, 16))
    frames = (films + 0.02 * random.normal(size=(50, 10, 16))).astype(np.float32)
    assert near_copies(frames[:, 0], frames[:, 1:].reshape(-1, 16)) == {"looked_at": 50, "images": 50}
    assert near_copies(frames[:25].reshape(-1, 16), frames[25:].reshape(-1, 16)) == {"looked_at": 250, "images": 0}


@pytest.mark.parametrize("count", [1, 3])
def test_constant_features_are_no_copies(count):
    features = np.zeros((count, 4), np.float32)
    assert near_copies(features, features) == {"looked_at": count, "images": 0}


def test_of_many_images_a_sample_is_looked_at(monkeypatch):
    monkeypatch.setattr(neighbors, "LOOKED_AT", 7)
    features = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    assert near_copies(features, features) == {"looked_at": 7, "images": 7}
    monkeypatch.setattr(neighbors, "AMONG_VALUES", 4 * 2)  # the first and the last
    assert near_copies(features, features) == {"looked_at": 7, "images": 2}
