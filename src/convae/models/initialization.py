"""Filters without any training by gradient: made by hand, cut from images, or clustered from them."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from convae.errors import ConvaeError
from convae.models.autoencoder import Autoencoder
from convae.models.geometry import check_filter_bank
from convae.models.preprocessing import image_patches

SAMPLE_IMAGES = 2000
PATCHES = 50_000
SWEEPS = 20  # of spherical k-means
ORIENTATIONS = 6


@torch.no_grad()
def set_filters(autoencoder: Autoencoder, kind: str, images: Tensor, generator: torch.Generator) -> None:
    """Replace the random filters of a network whose preprocessing is fitted; biases and an untied decoder stay.

    Args:
        autoencoder: the network.
        kind: `filter_bank`, in the first layer; `patches` or `kmeans`, layer by layer from what comes into each.
        images: training images `uint8 [N, C, H, W]`.
        generator: of whatever is drawn.

    Raises:
        ConvaeError: the bank has not as many filters as the layer, or the images too few patches.
    """
    if kind == "filter_bank":
        filters = autoencoder.layers[0].convolution.weight
        filters.copy_(filter_bank(*filters.shape))
        return
    chosen = torch.randperm(len(images), generator=generator)[:SAMPLE_IMAGES].sort().values
    preprocessed = torch.cat([autoencoder.preprocessing(images[rows]) for rows in chosen.split(200)])
    for index, layer in enumerate(autoencoder.layers):
        filters = layer.convolution.weight
        incoming = torch.cat([autoencoder.input_of(index, batch) for batch in preprocessed.split(200)])
        patches = draw_patches(incoming, (filters.shape[2], filters.shape[3]), generator)
        if len(patches) < len(filters):
            raise ConvaeError(
                f"model.initialization = {kind}: layer {index} has {len(filters)} filters, and there are only "
                f"{len(patches)} patches; fewer filters or more images are needed"
            )
        directions = patches[: len(filters)] if kind == "patches" else spherical_kmeans(patches, len(filters))
        filters.copy_(directions.view_as(filters))


def draw_patches(maps: Tensor, window: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Up to 50 000 patches of unit length from random places, `[patches, D * height * width]`.

    The flatter half of the patches is left out: where nothing is to be seen, unit length magnifies what is noise.
    """
    per_image = -(-2 * PATCHES // len(maps))
    patches = []
    for batch in maps.split(50):
        found = image_patches(batch, window)
        places = torch.randperm(len(found), generator=generator)[: per_image * len(batch)]
        patches.append(found[places])
    drawn = torch.cat(patches)
    lengths = drawn.norm(dim=1)
    drawn = drawn[(lengths >= lengths.median()) & (lengths > 0)]
    drawn = drawn[torch.randperm(len(drawn), generator=generator)[:PATCHES]]
    return F.normalize(drawn)


def spherical_kmeans(patches: Tensor, clusters: int) -> Tensor:
    """Directions of unit length to which patches are most similar, up to sign: `[clusters, P]`.

    Coates & Ng (2012), "Learning feature representations with k-means", section 3: each patch belongs to the
    direction with the largest magnitude of the inner product; a direction moves to the sum of its patches, each times
    that product, plus itself.

    Args:
        patches: of unit length, `float32 [N, P]`; the first ones are the start.
        clusters: how many, at most N.
    """
    directions = patches[:clusters].clone()
    for _ in range(SWEEPS):
        sums = directions.clone()
        for batch in patches.split(10_000):
            similarity = batch @ directions.T
            nearest = similarity.abs().argmax(1)
            weights = similarity.gather(1, nearest[:, None])
            code = torch.zeros_like(similarity).scatter_(1, nearest[:, None], weights)
            sums += code.T @ batch
        directions = F.normalize(sums)
    return directions


def filter_bank(filters: int, channels: int, height: int, width: int) -> Tensor:
    """Hand-engineered filters of unit length, `[filters, channels, height, width]`, alike in all channels.

    Two Sobel filters, a Laplacian, a Gaussian, then Gabor filters in six orientations: even and odd ones, their wave
    as long as the kernel, then half as long, and so on down to two pixels. All but the Gaussian have zero mean.

    Raises:
        GeometryError: the bank has not so many filters of this size.
    """
    check_filter_bank(filters, (height, width))
    y = torch.arange(height, dtype=torch.float64).sub((height - 1) / 2)[:, None].expand(height, width)
    x = torch.arange(width, dtype=torch.float64).sub((width - 1) / 2)[None].expand(height, width)
    side = min(height, width)
    envelope = torch.exp(-(x**2 + y**2) / (2 * (side / 4) ** 2))
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    top, left = (height - 3) // 2, (width - 3) // 2
    margins = (left, width - 3 - left, top, height - 3 - top)
    bank = [F.pad(small, margins) for small in (sobel, sobel.T, laplacian)] + [envelope]
    for index in range(filters - len(bank)):
        octave, place = divmod(index, 2 * ORIENTATIONS)
        angle = math.pi * (place // 2) / ORIENTATIONS
        phase = 2 * math.pi * 2**octave / side * (x * math.cos(angle) + y * math.sin(angle))
        wave = envelope * (torch.cos(phase) if place % 2 == 0 else torch.sin(phase))
        bank.append(wave - envelope * wave.sum() / envelope.sum())
    stacked = torch.stack(bank)[:, None].expand(filters, channels, height, width)
    return F.normalize(stacked.flatten(1)).view(filters, channels, height, width).float()
