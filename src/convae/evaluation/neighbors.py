"""Nearest neighbours among features."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

LOOKED_AT, PAIRS = 2000, 1000
AMONG_VALUES = 1 << 25  # 128 MiB of features, which takes seconds
# Of the usual distance between two images. In Fashion-MNIST, 0.05 % of the test images have a training image that near,
# and of copies shifted by up to a pixel and brightened by up to 10 %, 56 % (measured with the default's code).
NEAR = 0.15


def near_copies(features: np.ndarray, others: np.ndarray) -> dict[str, int]:
    """Count images whose features nearly equal those of one of the others.

    Args:
        features, others: `float32 [N, D]` and `[M, D]`; of many rows, an evenly spread sample is looked at.

    Returns:
        - `looked_at`: number of rows of `features` in the sample.
        - `images`: how many of them are nearer to one of the others than 0.15 times the median distance between rows of
          both.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
        >>> near_copies(np.concatenate([features[:2], -features[:6]]), features)
        {'looked_at': 8, 'images': 2}
    """
    some, looked_at = _spread(others, AMONG_VALUES // others.shape[1]), _spread(features, LOOKED_AT)
    generator = np.random.default_rng(0)
    one, other = (generator.integers(len(rows), size=PAIRS) for rows in (looked_at, some))
    usual = np.median(np.linalg.norm(looked_at[one] - some[other], axis=1))
    nearest, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(some).kneighbors(looked_at)
    return {"looked_at": len(looked_at), "images": int((nearest < NEAR * usual).sum())}


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    some: np.ndarray = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
    return some
