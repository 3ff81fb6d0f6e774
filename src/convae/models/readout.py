"""The readout turns activation maps into one feature vector. Nothing in it is trained by gradients."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from convae.models.layers import pool_over_grid, rectified, signed_power


class Readout(nn.Module):
    """Normalise and rectify the maps, pool them over a grid, raise to a power, join the layers, standardise.

    `mean` and `scale` are fitted on training images; until then they are empty and do nothing. `components` stays so
    except in encoders of formats 3 and 4, whose features could be principal components.

    Args:
        layers: the layers to read; -1 is the last.
        divisive_normalization: s in a / sqrt(s² + mean(a²)), where the mean is over all maps at the same place, in
            units of the maps; None skips it. Heeger (1992), "Normalization of cell responses in cat striate cortex".
        rectification: `none`, `positive`: max(a - t, 0), or `both`: also max(-a - t, 0), as in Coates & Ng (2011),
            "The importance of encoding versus training with sparse coding and vector quantization", section 3.2.
        threshold: t, in units of the maps.
        pooling: `mean` or `max` over each cell.
        grid: rows and columns of cells. The number of features does not depend on the size of the image.
        power: exponent applied to the magnitudes of the pooled values; 0.5 is the signed square root.
        standardize: whether features get zero mean and unit variance.

    Raises:
        ValueError: `rectification` or `pooling` is unknown.

    Example:
        >>> readout = Readout([-1], None, "both", 0, "mean", (2, 2), 0.5, False)
        >>> readout([torch.ones(5, 8, 12, 12)]).shape
        torch.Size([5, 64])
        >>> Readout([-1], None, "none", 0, "max", (1, 1), 0.5, False)([torch.tensor([[[[-9.0, -4.0]]]])]).tolist()
        [[-2.0]]
    """

    mean: Tensor
    components: Tensor
    scale: Tensor

    def __init__(
        self,
        layers: Sequence[int],
        divisive_normalization: float | None,
        rectification: str,
        threshold: float,
        pooling: str,
        grid: tuple[int, int],
        power: float,
        standardize: bool,
    ) -> None:
        super().__init__()
        if rectification not in ("none", "positive", "both") or pooling not in ("mean", "max"):
            raise ValueError(f"no such readout: rectification {rectification}, pooling {pooling}")
        self.layers = tuple(layers)
        self.divisive_normalization = divisive_normalization
        self.rectification = rectification
        self.threshold = threshold
        self.pooling = pooling
        self.grid = (grid[0], grid[1])
        self.power = power
        self.standardize = standardize
        for name in ("mean", "components", "scale"):
            self.register_buffer(name, torch.empty(0))

    def load_fitted(self, state: Mapping[str, Tensor]) -> None:
        """Set the fitted buffers. Unlike `load_state_dict`, this accepts buffers of another size."""
        for name in self.state_dict():
            setattr(self, name, state[name].to(self.mean.device))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Turn the activation maps of every layer, `[N, n, H, W]` each, into features `float32 [N, D]`."""
        return self.apply_fitted(self.pool(maps))

    def pool(self, maps: Sequence[Tensor]) -> Tensor:
        """All steps but the fitted ones: features `float32 [N, D]` before standardisation."""
        pooled = [
            self._pool(part).flatten(1)
            for layer in self.layers
            for part in rectified(self._normalize(maps[layer]), self.rectification, self.threshold)
        ]
        return signed_power(torch.cat(pooled, 1), self.power, self.rectification).float()

    def apply_fitted(self, features: Tensor) -> Tensor:
        """Apply the fitted mean, components and scale, whichever exist, to pooled features `float32 [N, D]`."""
        if len(self.mean):
            features = features - self.mean
        if len(self.components):
            features = features @ self.components.T
        if len(self.scale):
            features = features / self.scale
        return features

    def _normalize(self, maps: Tensor) -> Tensor:
        if self.divisive_normalization is None:
            return maps
        return maps * maps.square().mean(1, keepdim=True).add_(self.divisive_normalization**2).rsqrt_()

    def _pool(self, maps: Tensor) -> Tensor:
        return pool_over_grid(maps, self.grid, self.pooling)
