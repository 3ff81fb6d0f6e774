"""Leading eigenvectors of large symmetric matrices."""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

EXACT = 2048  # up to this dimension, all eigenvectors take seconds
TOLERANCE = 1e-3  # largest residual, relative to the largest eigenvalue
ROUNDING = 1e-6  # residuals that single precision can't undercut, relative to the largest eigenvalue
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
        values, vectors = symmetric_eigenvectors(matrix)
        return values[-count:].flip(0), vectors[:, -count:].flip(1)
    return _lanczos(matrix.matmul, matrix, count, _relative)


def symmetric_eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues of a symmetric matrix `float32 [D, D]`, ascending, and vectors `[D, D]`.

    If many rows are zero, as those of dead maps are, single precision may fail or give NaN; then double precision.

    Example:
        >>> symmetric_eigenvectors(torch.diag(torch.tensor([3.0, 1.0])))[0].tolist()
        [1.0, 3.0]
    """
    with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        values, vectors = torch.linalg.eigh(matrix)
        if vectors.isfinite().all():
            return values, vectors
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.to(matrix.dtype), vectors.to(matrix.dtype)


def generalized_eigenvectors(matrix: Tensor, metric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest w for which B v = w T v, descending, and their v `[D, count]` with vᵀ T v = 1.

    For large matrices, block Lanczos iterates on B v = m (T - B) v, which has the same vectors and m = w / (1 - w): the
    w that crowd below 1 move apart, which takes fewer steps (Ericsson & Ruhe 1980, "The spectral transformation Lanczos
    method"). No product of D×D matrices is formed.

    Args:
        matrix: B, symmetric `float32 [D, D]`, with all w between -1 and 1.
        metric: T, symmetric and positive definite.
        count: number of eigenvectors, at most D.

    Raises:
        torch.linalg.LinAlgError: T is not positive definite in single precision.

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
    triangle, failed = torch.linalg.cholesky_ex(metric - matrix)
    if failed:  # some w are 1 but for rounding errors: iterate on B v = w T v itself
        triangle = torch.linalg.cholesky(metric)

    def product(block: Tensor) -> Tensor:
        inner = matrix @ torch.linalg.solve_triangular(triangle.T, block, upper=True)
        outer: Tensor = torch.linalg.solve_triangular(triangle, inner, upper=False)
        return outer

    values, vectors = _lanczos(product, matrix, count, _relative if failed else _transformed)
    if not failed:
        ratios = (1 + values).clamp(min=0.5)  # 1 + m = vᵀ T v; 0.5 for w = -1
        values, vectors = values / ratios, vectors / ratios.sqrt()
    return values, torch.linalg.solve_triangular(triangle.T, vectors, upper=True)


def _relative(values: Tensor) -> Tensor:
    return TOLERANCE * values[0].abs()


def _transformed(values: Tensor) -> Tensor:
    # With T - B = R Rᵀ and vᵀ T v = 1, a residual of r means |R⁻¹ (B v - w T v)| = r / (1 + m)^(3/2).
    return TOLERANCE * (1 + values.clamp(min=-0.5)) ** 1.5 + ROUNDING * values[0].abs()


def _is_small(matrix: Tensor, count: int) -> bool:
    return len(matrix) <= max(EXACT, 4 * count)


def _lanczos(
    product: Callable[[Tensor], Tensor], like: Tensor, count: int, allowed: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """`leading_eigenvectors` of `product`, a symmetric linear map of vectors `[D, n]` as long as those of `like`.

    Stops when residuals are at most `allowed(values)`, or when the basis is complete.
    """
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
            for _ in range(3):  # once leaves rounding errors that grow, and twice too, of a block within the basis
                block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        values, inner = symmetric_eigenvectors(basis.T @ products)
        values, inner = values[-count:].flip(0), inner[:, -count:].flip(1)
        vectors = basis @ inner
        residuals = (products @ inner - vectors * values).norm(dim=0)
        if (residuals <= allowed(values)).all() or basis.shape[1] + width > dimension:
            return values, vectors
