"""Figures of what an encoder has learned: filters, activation maps, reconstructions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from convae.datasets.image_set import ImageSet
from convae.datasets.shards import spread
from convae.encoder import Encoder
from convae.models.geometry import ReceptiveField
from convae.reporting.drawing import Paint, signed_to_rgb, tile, to_rgb

MOST_FILTERS = 256
MAPS = 8
STRONGEST_MAPS, STRONGEST_COLUMNS = 24, 8
STRONGEST_SIDE = 3  # patches per map, in a square
SEARCHED_IMAGES, SEARCHED_ACTIVATIONS, SEARCHED_BATCH = 1000, 1 << 26, 64


def example_images(image_set: ImageSet) -> tuple[np.ndarray, list[str]]:
    """The first image of each of the first ten classes, or the first ten images if there are no labels.

    Returns:
        Images `[n, C, H, W]`, and for each the name of its class, or its index if there are no labels.

    Example:
        >>> images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([1, 1, 0, 1])
        >>> chosen, names = example_images(ImageSet(images, labels, ("cat", "dog"), sha256=""))
        >>> chosen.shape, names
        ((2, 1, 8, 8), ['cat', 'dog'])
    """
    rows, names = image_set.examples()
    return image_set.images[rows], names


def filters_figure(filters: np.ndarray) -> Figure:
    """The first layer's filters `float32 [n, C, k_h, k_w]`, each scaled by its largest weight.

    Example:
        >>> figure = filters_figure(np.zeros((64, 1, 7, 7), np.float32))
        >>> [round(inches, 1) for inches in figure.get_size_inches().tolist()]  # four rows of 16 filters
        [8.0, 2.0]
    """
    filters = filters[:MOST_FILTERS]
    scaled = filters / np.maximum(np.abs(filters).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    # Colour filters use colours for their channels, so zero is mid-grey; in others, colour shows the sign.
    pictures = to_rgb((scaled + 1) / 2) if filters.shape[1] == 3 else signed_to_rgb(scaled.mean(axis=1))
    columns = 8 if len(filters) <= 32 else 16
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return tile(rows, inches=0.8 if columns == 8 else 0.5)


def activation_figures(encoder: Encoder, images: np.ndarray, names: list[str], paint: Paint) -> list[Figure]:
    """A figure for each layer with a sample of its activation maps; each column has its own colour scale.

    Args:
        encoder: the trained encoder.
        images: `[n, C, H, W]`.
        names: the name of each image.
        paint: shows images.

    Example:
        >>> from convae.encoder import load_encoder
        >>> images = np.zeros((1, 1, 8, 8), np.uint8)
        >>> (figure,) = activation_figures(load_encoder("models/encoder"), images, ["cat"], Paint())
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['image', 'map 0', 'map 1', 'map 2', 'map 3']
    """
    originals = paint(images)
    figures = []
    for maps in encoder.activation_maps(images):
        chosen = np.unique(np.linspace(0, maps.shape[1] - 1, MAPS).round().astype(int))
        sample = maps[:, chosen]
        scaled = sample / np.maximum(np.abs(sample).max(axis=(0, 2, 3), keepdims=True), 1e-12)
        coloured = resize(signed_to_rgb(scaled), originals.shape[1:3])
        rows = [np.concatenate([originals[[i]], coloured[i]]) for i in range(len(images))]
        figures.append(tile(rows, names, ["image", *(f"map {index}" for index in chosen)]))
    return figures


def strongest_patches_figure(encoder: Encoder, images: np.ndarray, layer: int, paint: Paint) -> Figure:
    """For up to 24 maps of a layer, the nine parts of images to which the map responds most strongly.

    Each comes from another image, and is the receptive field of the map's strongest activation in that image. The sign
    is that of the map's strongest activation of all.

    Args:
        encoder: the trained encoder.
        images: `[N, C, H, W]`; up to 1000 of them are searched, fewer if activation maps are large.
        layer: the layer's index.
        paint: shows images.

    Example:
        >>> from convae.encoder import load_encoder
        >>> images = np.zeros((9, 1, 8, 8), np.uint8)
        >>> figure = strongest_patches_figure(load_encoder("models/encoder"), images, 0, Paint())
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['0', '1', '2', '3']
    """
    activations = sum(maps.size for maps in encoder.activation_maps(images[:1]))
    images = images[spread(len(images), min(SEARCHED_IMAGES, SEARCHED_ACTIVATIONS // activations))]
    count = encoder.config["layers"][layer]["filters"]
    chosen = np.unique(np.linspace(0, count - 1, STRONGEST_MAPS).round().astype(int))
    strengths, places = [], []
    for start in range(0, len(images), SEARCHED_BATCH):
        maps = encoder.activation_maps(images[start : start + SEARCHED_BATCH])[layer][:, chosen]
        both = np.stack([maps, -maps]).reshape(2, *maps.shape[:2], -1)
        places.append(both.argmax(axis=3))
        strengths.append(both.max(axis=3))
    width = maps.shape[3]
    strength, place = np.concatenate(strengths, axis=1), np.concatenate(places, axis=1)  # [2, images, maps]
    sign, columns = strength.max(axis=1).argmax(axis=0), np.arange(len(chosen))
    strength, place = strength[sign, :, columns].T, place[sign, :, columns].T  # [images, maps]
    strongest = np.argsort(-strength, axis=0, kind="stable")[: STRONGEST_SIDE**2]
    found = np.take_along_axis(place, strongest, axis=0)
    # A layer stacked on reconstructions reads an image itself.
    first = 0 if encoder.autoencoder.stacked_on == "maps" else layer
    field = ReceptiveField.of(encoder.autoencoder.geometry[first : layer + 1])
    squares = np.stack(
        [
            _square(
                [_patch(paint(images[row]), divmod(int(spot), width), field) for row, spot in zip(*pairs, strict=True)]
            )
            for pairs in zip(strongest.T, found.T, strict=True)
        ]
    )
    names = [str(index) for index in chosen] if len(chosen) <= STRONGEST_COLUMNS else []
    rows = [squares[start : start + STRONGEST_COLUMNS] for start in range(0, len(squares), STRONGEST_COLUMNS)]
    return tile(rows, column_labels=names, inches=1.0)


def _patch(picture: np.ndarray, place: tuple[int, int], field: ReceptiveField) -> np.ndarray:
    """The part of a picture `[H, W, 3]` that a place of a map sees, `[h, w, 3]`; black beyond the border."""
    patch = np.zeros((*field.size, 3))
    corner = [field.start[axis] + place[axis] * field.step[axis] for axis in (0, 1)]
    kept, into = [], []
    for axis in (0, 1):
        low, high = max(0, corner[axis]), min(picture.shape[axis], corner[axis] + field.size[axis])
        kept.append(slice(low, high))
        into.append(slice(low - corner[axis], high - corner[axis]))
    patch[into[0], into[1]] = picture[kept[0], kept[1]]
    return patch


def _square(patches: Sequence[np.ndarray]) -> np.ndarray:
    """Up to nine patches `[h, w, 3]` as one picture, three in a row, with white lines between them."""
    height, width, _ = patches[0].shape
    canvas = np.ones((STRONGEST_SIDE * (height + 1) - 1, STRONGEST_SIDE * (width + 1) - 1, 3))
    for index, patch in enumerate(patches):
        row, column = divmod(index, STRONGEST_SIDE)
        canvas[row * (height + 1) :, column * (width + 1) :][:height, :width] = patch
    return canvas


def resize(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize pictures `[..., h, w, 3]` to `[..., H, W, 3]` by nearest pixels.

    Example:
        >>> resize(np.zeros((5, 7, 7, 3)), (28, 28)).shape
        (5, 28, 28, 3)
    """
    height, width = pictures.shape[-3:-1]
    rows, columns = np.arange(size[0]) * height // size[0], np.arange(size[1]) * width // size[1]
    return pictures[..., rows, :, :][..., columns, :]


def linear_reconstructions_figure(
    images: np.ndarray, dimensions: Sequence[int], names: list[str], paint: Paint
) -> Figure:
    """Original images, and linear reconstructions from fewer or more numbers.

    Args:
        images: `[1 + len(dimensions), n, C, H, W]`, as in `reconstructions.npy`.
        dimensions: how many numbers each row of reconstructions comes from.
        names: the name of each image.
        paint: shows images.

    Example:
        >>> images = np.zeros((2, 1, 1, 8, 8), np.uint8)
        >>> figure = linear_reconstructions_figure(images, [16], ["cat"], Paint())
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['image', 'from 16 numbers']
    """
    labels = ["image", *(f"from {dimension} numbers" for dimension in dimensions)]
    return tile(list(paint.strip(images)), labels, names)


def reconstructions_figure(encoder: Encoder, images: np.ndarray, names: list[str], paint: Paint) -> Figure:
    """Original images, preprocessed images, and reconstructions by the encoder's decoder.

    Preprocessing gets no row if it only scales the images. Otherwise preprocessed images and reconstructions share one
    scale: zero is grey, and white is the 99.5 % quantile of the preprocessed magnitudes.

    Example:
        >>> from convae.encoder import load_encoder
        >>> images = np.zeros((1, 1, 8, 8), np.uint8)
        >>> figure = reconstructions_figure(load_encoder("models/encoder"), images, ["cat"], Paint())
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['original', 'preprocessed', 'reconstruction']
    """
    preprocessed, reconstructed = encoder.preprocess(images), encoder.reconstruct(images)
    settings = encoder.config["preprocessing"]
    if settings["local_contrast"] or settings["whitening"]:
        # Whitening may change the number of channels.
        limit = max(float(np.quantile(np.abs(preprocessed), 0.995)), 1e-12)
        rows = [to_rgb((one / limit + 1) / 2) for one in (preprocessed, reconstructed)]
        return tile([paint(images), *rows], ["original", "preprocessed", "reconstruction"], names)
    return tile([paint.strip(images), paint.strip(reconstructed, scaled=True)], ["original", "reconstruction"], names)
