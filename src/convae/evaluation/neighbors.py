"""Nearest neighbours among features.

Features are compared by their directions, as vectors of unit length. On Fashion-MNIST, the five nearest compact codes
then classify 90 % of the validation images correctly, but only 80 % if lengths count (`python -m benchmark.neighbors`).
"""

import numpy as np

LOOKED_AT, PAIRS = 2000, 1000
NEIGHBORS = 5
AMONG_VALUES = 1 << 25  # 128 MiB of features, which takes seconds
# Of the usual distance between two images. In Fashion-MNIST, 0.15 % of the validation images have a training image that
# near, and of copies shifted by up to a pixel and up to 10 % brighter, 17 % (`python -m benchmark.neighbors`).
NEAR = 0.25
TELLING = 64  # numbers; among vectors of fewer, such as the codes of digits, unlike images are that near, too
BATCH_VALUES = 1 << 24  # 64 MiB


def directions(features: np.ndarray) -> np.ndarray:
    """Rows `float32 [N, d]` of unit length; rows of zeros stay.

    Example:
        >>> directions(np.float32([[3, 4], [0, 0]])).round(1).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    result: np.ndarray = features / np.where(lengths > 0, lengths, 1)
    return result


def nearest(features: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest of the others to each row, by Euclidean distance.

    One matrix product gives rounded distances. Rows that may be among the nearest, given the bound on their rounding
    error (Higham 2002, section 3.1), are then compared exactly. Without scikit-learn, whose import would take longer
    than a search among 100 000 images.

    Args:
        features, others: `float32 [N, d]` and `[M, d]`.
        k: from 1 to M.

    Returns:
        Distances `float64 [N, k]`, ascending, and rows of `others`, `int64 [N, k]`. Of equal distances, the lower row
        comes first.

    Example:
        >>> distances, rows = nearest(np.float32([[0, 0]]), np.float32([[3, 4], [0, 1], [9, 9]]), k=2)
        >>> distances.tolist(), rows.tolist()
        ([[1.0, 5.0]], [[1, 0]])
    """
    others = np.asarray(others)
    halves = np.square(others).sum(axis=1) / 2
    longest = np.sqrt(2 * halves.max(initial=0))
    distances, rows = np.empty((len(features), k)), np.empty((len(features), k), np.int64)
    step = max(1, BATCH_VALUES // len(others))
    for start in range(0, len(features), step):
        batch = np.asarray(features[start : start + step])
        # Of half the squared distance, without the part that is the same for all others.
        error = others.shape[1] * np.finfo(np.float32).eps * longest * (longest + np.linalg.norm(batch, axis=1))
        for row, (one, rounded) in enumerate(zip(batch, halves - batch @ others.T, strict=True), start):
            limit = np.partition(rounded, k - 1)[k - 1] + 2 * error[row - start]
            found = np.flatnonzero(rounded <= limit)
            parts = np.array_split(found, -(-found.size * others.shape[1] // BATCH_VALUES))  # bounds memory
            exact = np.concatenate([_distances(one, others[part]) for part in parts])
            order = np.argsort(exact, kind="stable")[:k]
            distances[row], rows[row] = exact[order], found[order]
    return distances, rows


def _distances(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    distances: np.ndarray = np.linalg.norm(others - one.astype(np.float64), axis=1)
    return distances


def vote(labels: np.ndarray, classes: int) -> np.ndarray:
    """The commonest of the labels `int64 [N, k]` in each row; of equally common ones, the lowest.

    Example:
        >>> vote(np.array([[2, 1, 1], [2, 0, 1]]), classes=3).tolist()
        [1, 0]
    """
    votes: np.ndarray = (labels[:, :, None] == np.arange(classes)).sum(axis=1).argmax(axis=1)
    return votes


def near_copies(features: np.ndarray, others: np.ndarray, rows: np.ndarray) -> int:
    """Count images whose features nearly equal those of one of the others.

    All features weigh alike. In a code whose first numbers vary most, an image would otherwise be taken for a copy of
    one with the same outline.

    Args:
        features, others: `float32 [N, d]` and `[M, d]`.
        rows: the row of the nearest of the others for each image, `int64 [N]`.

    Returns:
        How many distances are less than 0.25 times the median distance between rows of both.
    """
    deviations = np.maximum(features.std(axis=0), others.std(axis=0))
    deviations[deviations == 0] = 1
    distances = np.linalg.norm((features - others[rows]) / deviations, axis=1)
    generator = np.random.default_rng(0)
    one, other = (generator.integers(len(images), size=PAIRS) for images in (features, others))
    usual = np.median(np.linalg.norm((features[one] - others[other]) / deviations, axis=1))
    return int((distances < NEAR * usual).sum())


def spread_rows(rows: int, most: int) -> np.ndarray:
    """Up to `most` row numbers below `rows`, evenly spread."""
    return np.linspace(0, rows - 1, min(most, rows)).astype(int)
