"""Leading eigenvectors of matrices that are too large for all of them."""

import numpy as np
import pytest
import torch

from convae.models.eigen import EXACT, leading_eigenvectors

DIMENSION = EXACT + 200


def with_spectrum(values, shift):
    """A matrix whose eigenvalues are these plus a shift, the others the shift alone."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(DIMENSION, len(values), generator=generator)).Q
    matrix = basis * values @ basis.T
    matrix.diagonal().add_(shift)
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize(("rank", "shift"), [(1000, 0.1), (300, 0.0), (100, 0.0), (50, 0.0), (3, 0.0)], ids=str)
def test_they_are_those_of_the_whole_decomposition_even_if_the_rank_is_low(rank, shift):
    values = torch.linspace(1, 0.2, rank) ** 2
    matrix = with_spectrum(values, shift)
    found, vectors = leading_eigenvectors(matrix, 64)
    expected = torch.cat([values, torch.zeros(64)])[:64] + shift
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(64), atol=1e-3)
    assert (matrix @ vectors - vectors * found).norm(dim=0).max() <= 2e-3
    again = leading_eigenvectors(matrix, 64)
    assert torch.equal(found, again[0])
    assert torch.equal(vectors, again[1])


def test_small_matrices_are_exact():
    matrix = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    matrix = matrix @ matrix.T
    found, vectors = leading_eigenvectors(matrix, 60)
    expected = np.linalg.eigvalsh(matrix.double().numpy())[::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(vectors * found @ vectors.T, matrix, atol=1e-2)


def test_a_matrix_of_zeros_has_no_direction():
    found, vectors = leading_eigenvectors(torch.zeros(DIMENSION, DIMENSION), 40)
    assert not found.any()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(40), atol=1e-3)
