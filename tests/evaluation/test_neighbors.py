"""Nearest neighbours, and test images that nearly equal training images."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from convae.evaluation import neighbors
from convae.evaluation.neighbors import near_copies, nearest, vote


@pytest.mark.parametrize("offset", [0, 1000])  # far from zero, a matrix product alone would round the order away
def test_the_neighbors_of_digits_are_exact(offset):
    features = load_digits().data.astype(np.float32) + offset
    queries, others = features[:500], features[500:]
    distances, rows = nearest(queries, others, 7)
    expected = np.linalg.norm(queries[:, None].astype(np.float64) - others, axis=2)
    np.testing.assert_array_equal(rows, np.argsort(expected, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :7])


def test_many_queries_are_searched_in_batches(monkeypatch):
    features = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    whole = nearest(features[:50], features, 3)
    monkeypatch.setattr(neighbors, "BATCH_VALUES", 7 * 300)
    for one, other in zip(nearest(features[:50], features, 3), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    expected = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(features).kneighbors(features[:50])[1]
    np.testing.assert_array_equal(whole[1], expected)


@pytest.mark.parametrize("radius", [0, 1e-6, 1e-5, 1e-4, 1e-3])
def test_near_copies_are_in_their_exact_order(radius):
    random = np.random.default_rng(0)
    cluster = (random.normal(size=256) + radius * random.normal(size=(2000, 256))).astype(np.float32)
    cluster /= np.linalg.norm(cluster, axis=1, keepdims=True)
    expected = np.linalg.norm(cluster[:20, None].astype(np.float64) - cluster, axis=2)
    distances, rows = nearest(cluster[:20], cluster, 5)
    np.testing.assert_array_equal(rows, np.argsort(expected, axis=1, kind="stable")[:, :5])
    assert not distances[:, 0].any()


def test_votes_are_those_of_a_classifier():
    data, labels = load_digits(return_X_y=True)
    data = data.astype(np.float32)
    _, rows = nearest(data[:300], data[300:], 5)
    classifier = KNeighborsClassifier(5, algorithm="brute").fit(data[300:], labels[300:])
    np.testing.assert_array_equal(vote(labels[300:][rows], 10), classifier.predict(data[:300]))


def copies(features, others):
    return near_copies(features, others, nearest(features, others, 1)[1][:, 0])


def test_frames_of_one_film_are_found():
    random = np.random.default_rng(0)
    films = random.normal(size=(50, 1, 16))
    frames = (films + 0.02 * random.normal(size=(50, 10, 16))).astype(np.float32)
    assert copies(frames[:, 0], frames[:, 1:].reshape(-1, 16)) == 50
    assert copies(frames[:25].reshape(-1, 16), frames[25:].reshape(-1, 16)) == 0


@pytest.mark.parametrize("count", [1, 3])
def test_constant_features_are_no_copies(count):
    features = np.zeros((count, 4), np.float32)
    assert copies(features, features) == 0


def test_images_that_agree_in_the_number_that_varies_most_are_no_copies():
    features = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    features[:, 0] *= 100
    assert copies(features[:200], features[200:]) == 0


def test_a_number_that_varies_among_one_part_only_does_not_decide():
    random = np.random.default_rng(0)
    features, others = (random.normal(size=(count, 16)).astype(np.float32) for count in (1000, 5000))
    others[:, 0] = 0
    others[7, 0] = 1e-3
    assert copies(features, others) == 0
