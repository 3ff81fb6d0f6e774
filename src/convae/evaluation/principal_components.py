"""Principal components (Pearson 1901, "On lines and planes of closest fit to systems of points in space")."""

import numpy as np
from scipy.linalg import eigh

MOST = 50


def principal_components(features: np.ndarray, most: int = MOST) -> np.ndarray:
    """The coordinates of centred features in the directions of their largest variance, largest first.

    Args:
        features: `float32 [N, D]`.
        most: number of components, at most N and D.

    Returns:
        `float32 [N, c]`. The largest magnitude of each column is positive, so that the same features have one result.

    Example:
        >>> principal_components(np.float32([[2, 4, 4], [1, 2, 2], [0, 0, 0]]), most=1).tolist()
        [[3.0], [0.0], [-3.0]]
    """
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    # The smaller of the two matrices of products has the same components.
    few = len(centred) < centred.shape[1]
    products = (centred @ centred.T if few else centred.T @ centred).astype(np.float64)
    size = len(products)
    values, vectors = eigh(products, subset_by_index=[max(0, size - most), size - 1])
    found = (vectors * np.sqrt(np.maximum(values, 0)) if few else centred @ vectors)[:, ::-1]
    strongest = np.take_along_axis(found, np.abs(found).argmax(axis=0)[None], axis=0)
    components: np.ndarray = (found * np.where(strongest < 0, -1, 1) + 0.0).astype(np.float32)
    return components
