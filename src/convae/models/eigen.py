"""Leading eigenvectors of large symmetric matrices."""

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
    dimension = len(matrix)
    width = max(32, count // 4)
    if dimension <= max(EXACT, 4 * count):
        values, vectors = torch.linalg.eigh(matrix)
        return values[-count:].flip(0), vectors[:, -count:].flip(1)
    generator = torch.Generator().manual_seed(0)
    block = torch.linalg.qr(torch.randn(dimension, width, generator=generator).to(matrix.device)).Q
    basis = products = block.new_empty(dimension, 0)
    while True:
        for _ in range(min(BLOCKS, (dimension - basis.shape[1]) // width)):
            basis = torch.cat([basis, block], 1)
            block = matrix @ block
            products = torch.cat([products, block], 1)
            # New directions, if the rank of the matrix is used up and the block holds only rounding errors.
            noise = torch.randn(block.shape, generator=generator).to(block.device)
            block = block + noise * (NOISE * block.abs().max() + LEAST)
            for _ in range(2):  # once leaves rounding errors that grow
                block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        values, inner = torch.linalg.eigh(basis.T @ products)
        values, inner = values[-count:].flip(0), inner[:, -count:].flip(1)
        vectors = basis @ inner
        residual = (products @ inner - vectors * values).norm(dim=0).max()
        if residual <= TOLERANCE * values[0].abs() or basis.shape[1] + width > dimension:
            return values, vectors
