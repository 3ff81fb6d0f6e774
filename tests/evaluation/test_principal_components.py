"""Principal components, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from convae.evaluation.principal_components import principal_components

DIGITS = load_digits().data.astype(np.float32)


@pytest.mark.parametrize("rows", [50, 500])  # fewer than columns, and more
def test_they_are_those_of_scikit_learn(rows):
    found = principal_components(DIGITS[:rows], most=5)
    expected = PCA(5, svd_solver="full").fit_transform(DIGITS[:rows].astype(np.float64))
    strongest = np.take_along_axis(expected, np.abs(expected).argmax(axis=0)[None], axis=0)
    np.testing.assert_allclose(found, expected * np.sign(strongest), rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(principal_components(DIGITS[:rows], most=5), found)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_there_are_no_more_than_rows_or_columns(shape):
    assert principal_components(np.ones(shape, np.float32)).tolist() == np.zeros((shape[0], min(shape))).tolist()
