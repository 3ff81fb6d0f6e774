"""The windows that a layer reads: normalised each by itself, then whitened by a fitted linear map.

For a window P of the layer's input, its k_h·k_w places times D channels flattened to one vector,

    u = (P - mean P) / sqrt(var P + c²)   if centred, otherwise   u = P / sqrt(mean P² + c²)
    v = S (u - m)

with a floor c, and with a map S and a mean m that `WindowInput.fit` computes. Coates, Lee & Ng (2011), "An analysis of
single-layer networks in unsupervised feature learning", section 3.1, normalise and whiten patches in this way. Filters
W on v are one convolution of the input with W S, so that the number of whitened channels costs nothing in inference.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.errors import ConvaeError
from convae.models.eigen import generalized_eigenvectors, leading_eigenvectors, symmetric_eigenvectors
from convae.models.geometry import LayerGeometry

OUTLIER = 4.0  # magnitude beyond which a pixel does not decide what is subtracted; images are about 0 to 1
LEAST_VARIANCE = 1e-12


class WindowInput(nn.Module):
    """Normalises and whitens the windows of a layer's input.

    Args:
        channels: channels D of the input.
        geometry: the layer's geometry.
        normalization: `centered` and `floor`, c in units of the input, or None.
        whitening: `kind`, `components`, `epsilon` and `corruption`, or None. `pca` and `zca` use the covariance of the
            windows; `denoising` is the map in `denoising_directions`.

    Attributes:
        channels: q, the number of values that remain of each window.

    Example:
        >>> normalization = {"centered": True, "floor": 0.01}
        >>> reading = WindowInput(1, LayerGeometry((3, 3)), normalization, whitening=None)
        >>> reading.whiten(reading.windows(torch.ones(1, 1, 8, 8), torch.tensor([[9, 10]]))).shape
        torch.Size([2, 9])
    """

    matrix: Tensor
    mean: Tensor
    geometry: LayerGeometry

    def __init__(
        self,
        channels: int,
        geometry: LayerGeometry,
        normalization: dict[str, Any] | None,
        whitening: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.normalization = normalization
        self.whitening = whitening
        self.window = (channels, *geometry.kernel)
        values = channels * geometry.kernel[0] * geometry.kernel[1]
        self.channels = (whitening["components"] or values) if whitening else values
        if whitening:
            self.register_buffer("matrix", torch.zeros(self.channels, values))
            self.register_buffer("mean", torch.zeros(values))

    def pad(self, incoming: Tensor) -> Tensor:
        """Pad the input `[N, D, H, W]` as the layer's geometry says."""
        top, left = self.geometry.zeros
        return F.pad(incoming, (left, left, top, top), "reflect" if self.geometry.reflect else "constant")

    def convolve(self, incoming: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply folded filters, see `fold`, to every window of `[N, D, H, W]`; returns `[N, n, H', W']`."""
        padded = self.pad(incoming)
        if self.normalization and self.normalization["centered"]:
            # Changes no centred window, but the variance of a bright one would drown in rounding errors. Unlike a mean,
            # the middle of the range does not depend on the order of summation.
            values = incoming.flatten(1).clamp(-OUTLIER, OUTLIER)  # one hot pixel must not move it
            padded = padded - ((values.amin(1) + values.amax(1)) / 2)[:, None, None, None]
        maps = F.conv2d(padded, weight, stride=self.geometry.stride)
        if self.normalization:
            maps = maps * self._strengths(padded).rsqrt()
        return maps if bias is None else maps + bias[:, None, None]

    def fold(self, filters: Tensor) -> tuple[Tensor, Tensor | None]:
        """Filters `[n, q]` of whitened windows as filters `[n, D, k_h, k_w]` of the input, and their biases `[n]`."""
        bias = None
        if self.whitening:
            filters = filters @ self.matrix
            bias = -filters @ self.mean
        if self.normalization and self.normalization["centered"]:
            filters = filters - filters.mean(1, keepdim=True)
        channels, height, width = self.window
        return filters.view(-1, height, width, channels).permute(0, 3, 1, 2), bias

    def windows(self, incoming: Tensor, places: Tensor) -> Tensor:
        """Cut the windows at `places`, `int64 [N, p]`, of the input `[N, D, H, W]`, and normalise each.

        Places count the windows of an image row by row.

        Returns:
            `[N·p, k_h·k_w·D]`.
        """
        (height, width), (down, right) = self.geometry.kernel, self.geometry.stride
        padded = self.pad(incoming)
        count, depth, rows, columns = padded.shape
        across = (columns - width) // right + 1
        corners = places // across * down * columns + places % across * right
        corners = (torch.arange(count, device=places.device)[:, None] * rows * columns + corners).flatten()
        inside = torch.arange(height, device=places.device)[:, None] * columns
        inside = (inside + torch.arange(width, device=places.device)).flatten()
        # Whole pixels are copied, whose channels lie side by side in memory.
        pixels = padded.permute(0, 2, 3, 1).reshape(-1, depth)
        windows: Tensor = pixels.index_select(0, (corners[:, None] + inside).flatten()).view(
            len(corners), prod(self.window)
        )
        if not self.normalization:
            return windows
        if self.normalization["centered"]:
            windows = windows - windows.mean(1, keepdim=True)
        strengths: Tensor = windows.square().mean(1, keepdim=True) + self.normalization["floor"] ** 2
        return windows * strengths.rsqrt()

    def whiten(self, windows: Tensor) -> Tensor:
        """Turn normalised windows `[M, k_h·k_w·D]` into whitened ones, `[M, q]`."""
        if not self.whitening:
            return windows
        whitened: Tensor = F.linear(windows - self.mean, self.matrix)
        return whitened

    def _strengths(self, padded: Tensor) -> Tensor:
        """The squared divisor of each window, `[N, 1, H', W']`."""
        assert self.normalization
        strengths = self._box(padded.square())
        if self.normalization["centered"]:
            strengths = (strengths - self._box(padded).square()).clamp(min=0)  # rounding can leave it below zero
        divisors: Tensor = strengths + self.normalization["floor"] ** 2
        return divisors

    def _box(self, padded: Tensor) -> Tensor:
        """Mean over each window and all channels: over rows first, then over columns, which is fewer additions."""
        (height, width), (down, right) = self.geometry.kernel, self.geometry.stride
        means = F.avg_pool2d(padded.mean(1, keepdim=True), (height, 1), (down, 1))
        return F.avg_pool2d(means, (1, width), (1, right))

    @torch.no_grad()
    def fit(self, moments: "Moments") -> None:
        """Fit the whitening, if there is any, to the moments of normalised windows and those of corrupted copies."""
        if not self.whitening:
            return
        covariance, between = moments.second()
        count, epsilon = self.channels, self.whitening["epsilon"]
        if self.whitening["kind"] == "denoising":
            directions, _ = denoising_directions(covariance, between, count, epsilon)
            # Overall, the whitened values get a deviation of one.
            variance = ((directions @ covariance) * directions).sum(1).mean()
            directions = directions / variance.clamp(min=LEAST_VARIANCE).sqrt()
        else:
            variances, vectors = symmetric_eigenvectors(covariance)
            scales = (variances.clamp(min=0) + epsilon).rsqrt()
            whole = (vectors * scales).T.flip(0)  # the largest variance first
            directions = vectors * scales @ vectors.T if self.whitening["kind"] == "zca" else whole[:count]
        self.matrix.copy_(directions)
        self.mean.copy_(moments.mean)


class Moments:
    """Running first and second moments of vectors and of their corrupted copies.

    With s = x + x' and d = x - x', both symmetric moments come out of two products: the sums of s sᵀ and of d dᵀ.

    Attributes:
        count: number of vectors.
        paired: whether there are copies.

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]]))
        >>> covariance, between = moments.second()
        >>> moments.mean.tolist(), covariance.tolist(), between.tolist()
        ([1.75], [[0.6875]], [[0.4375]])
    """

    def __init__(self) -> None:
        self.count = 0
        self.paired = False
        self.origin = self.total = self.sums = self.differences = torch.zeros(())

    def add(self, vectors: Tensor, copies: Tensor | None = None) -> None:
        """Add vectors `float32 [M, D]` and their copies of the same shape; without copies, they are equal."""
        if not self.count:
            dimension = vectors.shape[1]
            self.origin = vectors.mean(0)  # near the mean, or single precision would lose small variances
            self.total = torch.zeros(dimension, dtype=torch.float64, device=vectors.device)
            self.sums, self.differences = (self.origin.new_zeros(dimension, dimension) for _ in range(2))
        self.count += len(vectors)
        both = vectors + (vectors if copies is None else copies) - 2 * self.origin
        self.total += both.sum(0, dtype=torch.float64) / 2
        _add_products(self.sums, both)
        if copies is not None:
            self.paired = True
            _add_products(self.differences, vectors - copies)

    @property
    def mean(self) -> Tensor:
        """Mean of vectors and copies, `float32 [D]`."""
        return self._offset + self.origin

    @property
    def _offset(self) -> Tensor:
        return (self.total / self.count).float()

    def second(self) -> tuple[Tensor, Tensor]:
        """The mean covariance of vectors and of copies, and the covariance between them, both `float32 [D, D]`."""
        mean = self._offset.outer(self._offset)
        sums, differences = self.sums / (4 * self.count), self.differences / (4 * self.count)
        return sums + differences - mean, sums - differences - mean


def _add_products(total: Tensor, vectors: Tensor) -> None:
    if vectors.device.type == "cpu":
        rows = vectors.numpy(force=True)
        total += torch.from_numpy(rows.T @ rows)  # NumPy computes only one half of a symmetric product
    else:
        total += vectors.T @ vectors


def principal_directions(covariance: Tensor, count: int, ridge: float) -> tuple[Tensor, Tensor]:
    """What `denoising_directions` would find without corruption: the principal components.

    Solving for them directly keeps apart directions that survive nearly alike.

    Example:
        >>> directions, kept = principal_directions(torch.diag(torch.tensor([1.0, 3.0])), 1, ridge=0.5)
        >>> directions.abs().tolist(), kept.tolist()
        ([[0.0, 0.7071067690849304]], [0.75])
    """
    unit = covariance.diagonal().mean().clamp(min=LEAST_VARIANCE)
    variances, vectors = leading_eigenvectors(covariance / unit, count)
    variances = variances.clamp(min=0)
    return (vectors / (variances + ridge).sqrt()).T, variances / (variances + ridge)


def denoising_directions(covariance: Tensor, between: Tensor, count: int, ridge: float) -> tuple[Tensor, Tensor]:
    """The directions that best survive a corruption: the linear denoising autoencoder in closed form.

    They solve B v = w (T + ridge I) v, where T is the mean covariance of clean and corrupted vectors, B the one between
    them, both divided by the mean variance. They are the canonical variates of the two views (Hotelling 1936), and
    span what a marginalised denoising autoencoder with as many hidden units keeps (Chen et al. 2012, "Marginalized
    denoising autoencoders for domain adaptation").

    Args:
        covariance, between: T and B, `float32 [D, D]`.
        count: number of directions, at most D.
        ridge: in units of the mean variance.

    Returns:
        The directions `[count, D]` with vᵀ (T + ridge I) v = 1, in descending order of w, and their w.

    Raises:
        ConvaeError: T + ridge I is singular in single precision.

    Example:
        >>> directions, kept = denoising_directions(torch.eye(2), torch.diag(torch.tensor([0.0, 0.9])), 1, ridge=0.0)
        >>> directions.abs().tolist(), kept.tolist()
        ([[0.0, 1.0]], [0.8999999761581421])
    """
    unit = covariance.diagonal().mean().clamp(min=LEAST_VARIANCE)
    regularized = covariance / unit
    regularized.diagonal().add_(ridge)
    try:
        kept, vectors = generalized_eigenvectors(between / unit, regularized, count)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ConvaeError(
            f"denoising: the covariance of {len(covariance)} values is singular in single precision; increase "
            "model.layers[].input.whitening.epsilon or features.code.ridge"
        ) from error
    return vectors.T, kept
