"""Leading eigenvectors of matrices that are too large for all of them."""

import numpy as np
import pytest
import scipy.linalg
import torch

from convae.models.eigen import EXACT, generalized_eigenvectors, leading_eigenvectors

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


@pytest.mark.parametrize("rank", [1000, 100, 3])
def test_generalized_eigenvectors_are_those_of_scipy(rank):
    signal = with_spectrum(torch.linspace(3, 0.5, rank) ** 4, 0.0)
    noise = with_spectrum(torch.linspace(0.01, 2, rank), 0.3)
    count = min(64, rank)  # the rest is a null space, in which SciPy's choice is as arbitrary as ours
    found, vectors = generalized_eigenvectors(signal, signal + noise, count)
    left, right = signal.double().numpy(), (signal + noise).double().numpy()
    expected = scipy.linalg.eigh(left, right, eigvals_only=True)[::-1][:count]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    vectors = vectors.double().numpy()
    np.testing.assert_allclose(vectors.T @ right @ vectors, np.eye(count), atol=1e-3)
    np.testing.assert_allclose(left @ vectors, right @ vectors * found.double().numpy(), atol=5e-3)


def test_directions_without_any_noise_are_found():
    signal = with_spectrum(torch.linspace(1, 0.5, 200), 0.0)
    metric = signal.clone()
    metric.diagonal().add_(0.3)  # T - B is the ridge alone
    found, _ = generalized_eigenvectors(signal, metric, 64)
    values = torch.linspace(1, 0.5, 200)[:64]
    np.testing.assert_allclose(found, values / (values + 0.3), atol=1e-4)


@pytest.mark.parametrize("dimension", [6, DIMENSION])
def test_a_singular_metric_is_an_error(dimension):
    with pytest.raises(RuntimeError, match="not positive-definite"):
        generalized_eigenvectors(torch.zeros(dimension, dimension), torch.zeros(dimension, dimension), 2)
