"""Leading eigenvectors of matrices that are too large for all of them."""

import numpy as np
import pytest
import scipy.linalg
import torch

from convae.models.eigen import EXACT, generalized_eigenvectors, leading_eigenvectors

DIMENSION = EXACT + 200


def with_spectrum(values, shift, seed=0):
    """A matrix whose eigenvalues are these plus a shift, the others the shift alone."""
    generator = torch.Generator().manual_seed(seed)
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


def test_all_directions_of_the_identity_are_alike():
    found, vectors = leading_eigenvectors(torch.eye(DIMENSION), 64)
    np.testing.assert_allclose(found, 1, atol=1e-5)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(64), atol=1e-5)


def test_a_matrix_of_zeros_has_no_direction():
    found, vectors = leading_eigenvectors(torch.zeros(DIMENSION, DIMENSION), 40)
    assert not found.any()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(40), atol=1e-3)


@pytest.mark.parametrize(("rank", "ridge"), [(1000, 0.3), (100, 0.3), (10, 1e-3)], ids=str)
def test_generalized_eigenvectors_are_those_of_scipy(rank, ridge):
    signal = with_spectrum(torch.linspace(3, 0.5, rank) ** 4, 0.0)
    noise = with_spectrum(torch.linspace(0.01, 2, max(rank, 100)), ridge, seed=1)
    found, vectors = generalized_eigenvectors(signal, signal + noise, 64)
    left, right = signal.double().numpy(), (signal + noise).double().numpy()
    expected = scipy.linalg.eigh(left, right, eigvals_only=True)[::-1][:64]
    np.testing.assert_allclose(found[:rank], expected[:rank], atol=1e-5)
    vectors = vectors.double().numpy()
    residuals = np.linalg.norm(left @ vectors - right @ vectors * found.double().numpy(), axis=0)
    assert residuals[:rank].max() <= 1e-4
    products = vectors.T @ right @ vectors
    np.testing.assert_allclose(products[:rank, :rank], np.eye(min(64, rank)), atol=1e-4)
    # The others lie in the null space of B. Rounding errors of the largest w / (1 - w), here 80 000, drown them.
    np.testing.assert_allclose(found, expected, atol=0.1)
    np.testing.assert_allclose(products, np.eye(64), atol=0.1)


@pytest.mark.parametrize("ridge", [0.3, 1e-8])  # with the latter, T - B is nothing but rounding errors
def test_directions_that_the_corruption_does_not_change_are_found(ridge):
    signal = with_spectrum(torch.linspace(1, 0.5, DIMENSION), 0.0)
    metric = signal.clone()
    metric.diagonal().add_(ridge)
    found, vectors = generalized_eigenvectors(signal, metric, 64)
    values = torch.linspace(1, 0.5, DIMENSION)[:64]
    np.testing.assert_allclose(found, values / (values + ridge), atol=2e-3)
    np.testing.assert_allclose(vectors.T @ metric @ vectors, np.eye(64), atol=0.01)


def test_without_signal_nothing_survives():
    found, vectors = generalized_eigenvectors(torch.zeros(DIMENSION, DIMENSION), torch.eye(DIMENSION), 2)
    assert not found.any()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(2), atol=1e-5)


@pytest.mark.parametrize("dimension", [6, DIMENSION])
def test_a_singular_metric_is_an_error(dimension):
    with pytest.raises(RuntimeError, match="not positive-definite"):
        generalized_eigenvectors(torch.zeros(dimension, dimension), torch.zeros(dimension, dimension), 2)
