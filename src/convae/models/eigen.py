"""Leading eigenvectors of large symmetric matrices."""

from collections.abc import Callable

import torch
from torch import Tensor

EXACT = 2048  # up to this dimension, all eigenvectors take seconds
TOLERANCE = 1e-3  # largest residual, relative to the largest eigenvalue
NOISE, LEAST = 1e-7, 1e-12  # relative to a block, and absolute
BLOCKS = 8  # between two looks at the residuals


def leading_eigenvectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues of a symmetric matrix `float32 [D, D]`, descending, and vectors `[D, count]`.

    Large matrices are solved by the block Lanczos method with complete reorthogonalisation: Golub & Underwood (1977),
    "The block Lanczos method for computing eigenvalues". Its start is random but always the same, so the same matrix
    gives the same bits.

    Example:
        >>> values, vectors = leading_eigenvectors(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
        >>> values.tolist(), vectors.abs().tolist()
        ([3.0, 2.0], [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    """
    if _is_small(matrix, count):
        values, vectors = torch.linalg.eigh(matrix)
        return values[-count:].flip(0), vectors[:, -count:].flip(1)
    return _lanczos(matrix.__matmul__, matrix, count, lambda values: TOLERANCE * values[0].abs())


def generalized_eigenvectors(matrix: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest w for which B v = w T v, descending, and their v `[D, count]` with vᵀ T v = 1.

    For large matrices, block Lanczos iterates on T v = m (T - B) v, which has the same vectors and m = 1 / (1 - w): the
    w that crowd below 1 move apart, so that it needs a third of the steps (Ericsson & Ruhe 1980, "The spectral
    transformation Lanczos method"). No product of D×D matrices is formed.

    Args:
        matrix: B, symmetric `float32 [D, D]`.
        metric: T; T and T - B are symmetric and positive definite.
        count: number of eigenvectors, at most D.

    Raises:
        torch.linalg.LinAlgError: T or, if it is large, T - B is singular in single precision.

    Example:
        >>> values, vectors = generalized_eigenvectors(torch.diag(torch.tensor([1.0, 3.0])), 4 * torch.eye(2), 1)
        >>> values.tolist(), vectors.abs().tolist()
        ([0.75], [[0.0], [0.5]])
    """
    if _is_small(matrix, count):
        triangle = torch.linalg.cholesky(metric)
        halved = torch.linalg.solve_triangular(triangle, matrix, upper=False)
        symmetric = torch.linalg.solve_triangular(triangle, halved.T, upper=False)
        values, vectors = leading_eigenvectors((symmetric + symmetric.T) / 2, count)
        return values, torch.linalg.solve_triangular(triangle.T, vectors, upper=True)
    triangle = torch.linalg.cholesky(metric - matrix)

    def product(block: Tensor) -> Tensor:
        whole: Tensor = torch.linalg.solve_triangular(triangle.T, block, upper=True)
        whole = torch.linalg.solve_triangular(triangle, metric @ whole, upper=False)
        return whole

    # A residual of r leaves B v - w T v with less than r / m^(3/2).
    values, vectors = _lanczos(product, matrix, count, lambda values: TOLERANCE * values**1.5)
    return 1 - 1 / values, torch.linalg.solve_triangular(triangle.T, vectors, upper=True) / values.sqrt()


def _is_small(matrix: Tensor, count: int) -> bool:
    return len(matrix) <= max(EXACT, 4 * count)


def _lanczos(
    product: Callable[[Tensor], Tensor], like: Tensor, count: int, allowed: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """`leading_eigenvectors` of the linear map `product`, with residuals of at most `allowed(values)`."""
    dimension, width = len(like), max(32, count // 4)
    generator = torch.Generator().manual_seed(0)
    block = torch.linalg.qr(torch.randn(dimension, width, generator=generator).to(like.device)).Q
    basis = products = block.new_empty(dimension, 0)
    while True:
        for _ in range(min(BLOCKS, (dimension - basis.shape[1]) // width)):
            basis = torch.cat([basis, block], 1)
            block = product(block)
            products = torch.cat([products, block], 1)
            # New directions, if the rank of the matrix is used up and the block holds only rounding errors.
            noise = torch.randn(block.shape, generator=generator).to(block.device)
            block = block + noise * (NOISE * block.abs().max() + LEAST)
            for _ in range(2):  # once leaves rounding errors that grow
                block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        values, inner = torch.linalg.eigh(basis.T @ products)
        values, inner = values[-count:].flip(0), inner[:, -count:].flip(1)
        vectors = basis @ inner
        residuals = (products @ inner - vectors * values).norm(dim=0)
        if (residuals <= allowed(values)).all() or basis.shape[1] + width > dimension:
            return values, vectors
