"""Everything between an image and the first learned filter: scaling, local contrast normalisation and whitening."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae.datasets.reading import Scale

FIT_IMAGES = 2000
FIT_VALUES = 1 << 23  # patch values in memory at a time: 64 MiB in double precision


class Preprocessing(nn.Module):
    """Scale images `[N, C, H, W]` to `float32`, about 0 to 1; optionally normalise local contrast and whiten.

    Without `scale`, `uint8` is divided by 255, and other numbers stay as they are.

    Whitening decorrelates patches and scales them to unit variance, as a convolution that `fit` computes. `zca` keeps
    the channels: each pixel becomes the centre of its whitened patch. `pca` returns the C·window² principal components
    of the patch around each pixel.

    Args:
        channels: channels C of the images.
        local_contrast: `window` (pixels, odd) and `floor` (smallest divisor), or None.
        whitening: `kind`, `window` (pixels, odd) and `epsilon` (added to the variances), or None.
        scale: for each channel, `offset` to subtract and `divisor` to divide by, or None.

    Attributes:
        channels: channels of the preprocessed images.

    Example:
        >>> Preprocessing(1)(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist()
        [[[[0.0, 1.0]]]]
        >>> Preprocessing(3, whitening={"kind": "pca", "window": 5, "epsilon": 0.1}).channels
        75
    """

    whitening_filters: Tensor
    whitening_bias: Tensor
    offset: Tensor
    divisor: Tensor

    def __init__(
        self,
        channels: int,
        local_contrast: dict[str, Any] | None = None,
        whitening: dict[str, Any] | None = None,
        scale: dict[str, list[float]] | None = None,
    ) -> None:
        super().__init__()
        self.scale: dict[str, list[float]] | None = None
        if scale:  # the numbers are in config.json, so the weights need not hold them
            self.set_scale(scale)
        self.local_contrast = local_contrast
        self.whitening = whitening
        self.channels = channels
        if whitening:
            window = whitening["window"]
            if whitening["kind"] == "pca":
                self.channels = channels * window**2
            self.register_buffer("whitening_filters", torch.zeros(self.channels, channels, window, window))
            self.register_buffer("whitening_bias", torch.zeros(self.channels))

    def set_scale(self, scale: dict[str, list[float]]) -> None:
        """Scale by these numbers from now on.

        Raises:
            ValueError: see `Scale`.
        """
        self.scale = scale
        for name, values in asdict(Scale(**{name: tuple(of_each) for name, of_each in scale.items()})).items():
            tensor = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the preprocessed images `float32 [N, channels, H, W]`."""
        images = self._normalize(images)
        if self.whitening:
            images = F.conv2d(images, self.whitening_filters, self.whitening_bias, padding="same")
        return images

    def _normalize(self, images: Tensor) -> Tensor:
        if self.scale:
            images = (images.float() - self.offset) / self.divisor
        elif images.dtype == torch.uint8:
            images = images / 255
        if self.local_contrast:
            images = normalize_local_contrast(images, **self.local_contrast)
        return images

    @torch.no_grad()
    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Fit the whitening on patches of up to 2000 training images, `uint8 [N, C, H, W]`, drawn by `generator`."""
        if not self.whitening:
            return
        window = self.whitening["window"]
        chosen = torch.randperm(len(images), generator=generator)[:FIT_IMAGES].sort().values
        # Sums in double precision, because the covariance is a small difference of large numbers.
        count, total, products = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        values_per_image = images[0].numel() * window**2
        for batch in chosen.split(max(1, FIT_VALUES // values_per_image)):
            patches = image_patches(self._normalize(images[batch]), window).double()
            count += len(patches)
            total = total + patches.sum(0)
            products = products + patches.T @ patches
        mean = total / count
        covariance = products / count - mean.outer(mean)
        variances, directions = torch.linalg.eigh(covariance)
        # Rounding can leave a variance slightly below zero.
        scales = (variances.clamp(min=0) + self.whitening["epsilon"]).rsqrt()
        if self.whitening["kind"] == "pca":
            rows = (directions * scales).T.flip(0)  # the largest variance first
        else:
            center = torch.arange(images.shape[1]) * window**2 + window**2 // 2
            rows = (directions * scales @ directions.T)[center]
        self.whitening_filters.copy_(rows.view_as(self.whitening_filters))
        self.whitening_bias.copy_(-rows @ mean)


def normalize_local_contrast(images: Tensor, window: int, floor: float) -> Tensor:
    """Subtract the local mean and divide by the local standard deviation, or by `floor` where that is larger.

    Mean and deviation are taken over all channels and a square window that is clipped at the image's border, as in
    Jarrett et al. (2009), "What is the best multi-stage architecture for object recognition?", section 2.2, but with a
    uniform window.

    Args:
        images: `float32 [N, C, H, W]`.
        window: side in pixels, odd.
        floor: smallest divisor, in units of the pixels.

    Example:
        >>> normalize_local_contrast(torch.full((1, 1, 4, 4), 0.5), window=3, floor=0.1).abs().max().item()
        0.0
    """

    def local_mean(values: Tensor) -> Tensor:
        values = values.mean(1, keepdim=True)
        return F.avg_pool2d(values, window, stride=1, padding=window // 2, count_include_pad=False)

    centered = images - local_mean(images)
    return centered / local_mean(centered.square()).sqrt().clamp(min=floor)


def image_patches(images: Tensor, window: int | tuple[int, int]) -> Tensor:
    """Cut all windows out of images `[N, C, H, W]`, flattened to patches `[patches, C * height * width]`.

    An image smaller than the window is padded with zeros, as in the convolution that applies the whitening.

    Example:
        >>> image_patches(torch.arange(6.0).view(1, 1, 2, 3), 2).tolist()
        [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]
    """
    height, width = (window, window) if isinstance(window, int) else window
    padding = (max(0, height - images.shape[2] + 1) // 2, max(0, width - images.shape[3] + 1) // 2)
    return F.unfold(images, (height, width), padding=padding).transpose(1, 2).flatten(0, 1)
