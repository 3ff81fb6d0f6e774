"""Filters that need no gradient: designed by hand, cut from images, or clustered from image patches."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from convae.errors import ConvaeError
from convae.models.autoencoder import Autoencoder
from convae.models.draws import augment, random_seed
from convae.models.geometry import check_filter_bank, layer_sizes
from convae.models.preprocessing import image_patches
from convae.models.windows import Moments

SAMPLE_IMAGES = 2000
PATCHES = 50_000
FIT_IMAGES, WINDOWS = 6000, 150_000  # images and windows that a layer's whitening is fitted to
FIT_VALUES = 1 << 25  # values of maps or windows in memory at a time: 128 MiB
SWEEPS = 20  # of spherical k-means
ORIENTATIONS = 6


@torch.no_grad()
def set_filters(autoencoder: Autoencoder, kind: str, images: Tensor, generator: torch.Generator) -> None:
    """Replace the random filters of a network in place; its biases and the weights of an untied decoder stay.

    Args:
        autoencoder: a network with fitted preprocessing, whose layers have no `input`.
        kind: `filter_bank` sets the first layer; `patches` and `kmeans` set every layer from patches of its input.
        images: training images `[N, C, H, W]`.
        generator: source of all random draws.

    Raises:
        ConvaeError: the layer has more filters than the bank, or than there are patches.

    Example:
        >>> from convae.params import LayerParams
        >>> network = Autoencoder(1, {}, [LayerParams(filters=4).model_dump()], tied_weights=False)
        >>> set_filters(network, "filter_bank", torch.zeros(1, 1, 8, 8), torch.Generator())
        >>> network.layers[0].convolution.weight[0, 0].sign().tolist()  # Sobel
        [[-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]]
    """
    if kind == "filter_bank":
        filters = autoencoder.layers[0].convolution.weight
        filters.copy_(filter_bank(*filters.shape))
        return
    chosen = torch.randperm(len(images), generator=generator)[:SAMPLE_IMAGES].sort().values
    preprocessed = torch.cat([autoencoder.preprocessing(images[rows]) for rows in chosen.split(200)])
    for index, layer in enumerate(autoencoder.layers):
        incoming = torch.cat([autoencoder.input_of(index, batch) for batch in preprocessed.split(200)])
        patches = draw_patches(incoming, layer.geometry.kernel, generator)
        _take_filters(layer.convolution.weight, index, kind, patches)


def _take_filters(filters: Tensor, index: int, kind: str, patches: Tensor) -> None:
    """Set the filters of layer `index` to patches of unit length, `[patches, P]`, or to their clusters."""
    if len(patches) < len(filters):
        raise ConvaeError(
            f"model.initialization = {kind}: layer {index} has {len(filters)} filters, but there are only "
            f"{len(patches)} patches; use fewer filters or more images"
        )
    directions = patches[: len(filters)] if kind == "patches" else spherical_kmeans(patches, len(filters))
    filters.copy_(directions.view_as(filters))


@torch.no_grad()
def fit_layer(autoencoder: Autoencoder, index: int, kind: str, images: Tensor, seed: int) -> None:
    """Fit to training images what comes before the filters of layer `index`, in place; draw filters if asked to.

    The output of the layer below is standardised, then the layer's windows are whitened. Both see what the layers
    below really give, so these must have been trained.

    Args:
        autoencoder: a network with fitted preprocessing.
        index: the layer; those below it are fitted.
        kind: `patches` or `kmeans` draws the filters from whitened windows; otherwise they stay.
        images: training images `[N, C, H, W]`.
        seed: seeds all random draws.

    Raises:
        ConvaeError: the layer has more filters than there are windows, or all windows are flat.
    """
    layer, mode = autoencoder.layers[index], autoencoder.training
    autoencoder.eval()
    generator = torch.Generator().manual_seed(random_seed(seed, index))
    chosen = torch.randperm(len(images), generator=generator)[:FIT_IMAGES].sort().values
    chosen = chosen.split(_images_at_once(autoencoder, index, images))
    below = autoencoder.layers[index - 1] if index else None
    if below is not None and below.output:
        inputs = (autoencoder.input_of(index - 1, autoencoder.preprocessing(images[rows])) for rows in chosen)
        below.output.fit(map(below, inputs))
    if layer.input:
        moments, kept = Moments(), []
        for windows, copies in _windows(autoencoder, index, images, chosen, generator):
            moments.add(windows, copies)
            if kind in ("patches", "kmeans"):
                kept.append(windows[torch.randperm(len(windows), generator=generator)[: -(-PATCHES // len(chosen))]])
        if not moments.count:
            reason = "are the training images blank? Otherwise lower normalization.floor"
            if math.prod(layer.input.window) == 1:
                reason = "one value is, once it is centred; choose a larger kernel"
            raise ConvaeError(f"model.layers[{index}].input: all windows are flat; {reason}")
        layer.input.fit(moments)
        if kind in ("patches", "kmeans"):
            patches = layer.input.whiten(torch.cat(kept))
            patches = patches[torch.randperm(len(patches), generator=generator)]
            _take_filters(layer.convolution.weight, index, kind, F.normalize(patches))
    elif kind in ("patches", "kmeans"):
        incoming = torch.cat(
            [autoencoder.input_of(index, autoencoder.preprocessing(images[rows])) for rows in chosen[:10]]
        )
        _take_filters(layer.convolution.weight, index, kind, draw_patches(incoming, layer.geometry.kernel, generator))
    autoencoder.train(mode)


def _windows(
    autoencoder: Autoencoder, index: int, images: Tensor, chosen: Sequence[Tensor], generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield windows of a layer's input at random places, and those at the same places of the corrupted copies."""
    layer_input = autoencoder.layers[index].input
    corruption = layer_input.whitening and layer_input.whitening["corruption"]
    count = sum(map(len, chosen))
    for rows in chosen:
        batch = images[rows]
        incoming = autoencoder.input_of(index, autoencoder.preprocessing(batch))
        height, width = autoencoder.layers[index].geometry.convolved((incoming.shape[2], incoming.shape[3]))
        places = torch.rand(len(batch), height * width, generator=generator)
        places = places.topk(min(-(-WINDOWS // count), height * width)).indices  # each at most once
        windows, copies = layer_input.windows(incoming, places), None
        if corruption:
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
                corrupted = augment(batch, **corruption, batch=autoencoder.batch)
            incoming = autoencoder.input_of(index, autoencoder.preprocessing(corrupted))
            copies = layer_input.windows(incoming, places)
        if layer_input.normalization:
            # Normalisation would only magnify the noise of windows weaker than its floor.
            strong = windows.square().mean(1) > 1 / 2
            windows, copies = windows[strong], copies if copies is None else copies[strong]
        yield windows, copies


def _images_at_once(autoencoder: Autoencoder, index: int, images: Tensor) -> int:
    """Number of images whose maps up to layer `index`, and windows there, fit into memory."""
    count = min(len(images), FIT_IMAGES)
    size = (images.shape[2], images.shape[3])
    largest, channels = 1, autoencoder.preprocessing.channels
    sizes = layer_sizes(size, autoencoder.geometry, autoencoder.stacked_on)
    for layer, (incoming, _) in zip(autoencoder.layers[: index + 1], sizes, strict=False):
        maps, places = layer.convolution.out_channels, math.prod(layer.geometry.convolved(incoming))
        windows = min(-(-WINDOWS // count), places) * channels * math.prod(layer.geometry.kernel)
        largest = max(largest, channels * math.prod(incoming), maps * places, windows)
        channels = layer.channels
    return max(1, min(200, FIT_VALUES // largest))


def draw_patches(maps: Tensor, window: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw up to 50 000 patches of unit length from random places: `[patches, D * height * width]`.

    The flatter half of the patches is discarded: scaling a flat patch to unit length only magnifies its noise.

    Example:
        >>> maps = torch.arange(64.0).view(1, 1, 8, 8)
        >>> patches = draw_patches(maps, (5, 5), torch.Generator())
        >>> patches.shape[1], round(patches[0].norm().item(), 4)
        (25, 1.0)
    """
    # Twice as many as needed, since half of them are discarded.
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
    """Cluster patches by direction, up to sign; return unit vectors `[clusters, P]`.

    Coates & Ng (2012), "Learning feature representations with k-means", section 3: a patch belongs to the direction
    with which its inner product is largest in magnitude. Each direction moves to the sum of its patches, weighted by
    that product, plus itself.

    Args:
        patches: unit vectors `float32 [N, P]`; the first `clusters` of them are the initial directions.
        clusters: number of directions, at most N.

    Example:
        >>> spherical_kmeans(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), 2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    directions = patches[:clusters].clone()
    for _ in range(SWEEPS):
        sums = directions.clone()  # the paper's damping, which also keeps empty clusters alive
        for batch in patches.split(10_000):
            similarity = batch @ directions.T
            nearest = similarity.abs().argmax(1)
            weights = similarity.gather(1, nearest[:, None])
            code = torch.zeros_like(similarity).scatter_(1, nearest[:, None], weights)
            sums += code.T @ batch
        directions = F.normalize(sums)
    return directions


def filter_bank(filters: int, channels: int, height: int, width: int) -> Tensor:
    """Hand-designed filters of unit length, `[filters, channels, height, width]`, the same in all channels.

    Two Sobel filters, a Laplacian, a Gaussian, then even and odd Gabor filters in six orientations, with a wavelength
    of the kernel's side, half of it, and so on down to two pixels. All but the Gaussian have zero mean.

    Raises:
        GeometryError: see `check_filter_bank`.

    Example:
        >>> filter_bank(16, 3, 7, 7).shape
        torch.Size([16, 3, 7, 7])
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
        # An even Gabor filter would respond to plain brightness; subtracting a share of the envelope zeroes its mean.
        bank.append(wave - envelope * wave.sum() / envelope.sum())
    stacked = torch.stack(bank)[:, None].expand(filters, channels, height, width)
    return F.normalize(stacked.flatten(1)).view(filters, channels, height, width).float()
