"""Figures of what an encoder has learned: filters, activation maps, reconstructions."""

import numpy as np
from matplotlib.figure import Figure

from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder
from convae.reporting.drawing import signed_to_rgb, tile, to_rgb

MOST_FILTERS = 256
MOST_IMAGES = 10
MAPS = 8


def example_images(image_set: ImageSet) -> tuple[np.ndarray, list[str]]:
    """The first image of each of the first ten classes, or the first ten images if there are no labels.

    Returns:
        Images `uint8 [n, C, H, W]`, and for each the name of its class, or its index if there are no labels.

    Example:
        >>> images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([1, 1, 0, 1])
        >>> chosen, names = example_images(ImageSet(images, labels, ("cat", "dog"), sha256=""))
        >>> chosen.shape, names
        ((2, 1, 8, 8), ['cat', 'dog'])
    """
    if image_set.labels is None:
        return image_set.images[:MOST_IMAGES], [str(index) for index in range(min(MOST_IMAGES, len(image_set)))]
    labels, first = np.unique(image_set.labels, return_index=True)
    chosen = first[:MOST_IMAGES]
    return image_set.images[chosen], [image_set.classes[label] for label in labels[:MOST_IMAGES]]


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


def activation_figures(encoder: Encoder, images: np.ndarray, names: list[str]) -> list[Figure]:
    """A figure for each layer with a sample of its activation maps; each column has its own colour scale.

    Args:
        encoder: the trained encoder.
        images: `uint8 [n, C, H, W]`.
        names: the name of each image.

    Example:
        >>> from convae.encoder import load_encoder
        >>> (figure,) = activation_figures(load_encoder("models/encoder"), np.zeros((1, 1, 8, 8), np.uint8), ["cat"])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['image', 'map 0', 'map 1', 'map 2', 'map 3']
    """
    originals = to_rgb(images / 255)
    figures = []
    for maps in encoder.activation_maps(images):
        chosen = np.unique(np.linspace(0, maps.shape[1] - 1, MAPS).round().astype(int))
        sample = maps[:, chosen]
        scaled = sample / np.maximum(np.abs(sample).max(axis=(0, 2, 3), keepdims=True), 1e-12)
        coloured = resize(signed_to_rgb(scaled), originals.shape[1:3])
        rows = [np.concatenate([originals[[i]], coloured[i]]) for i in range(len(images))]
        figures.append(tile(rows, names, ["image", *(f"map {index}" for index in chosen)]))
    return figures


def resize(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize pictures `[..., h, w, 3]` to `[..., H, W, 3]` by nearest pixels.

    Example:
        >>> resize(np.zeros((5, 7, 7, 3)), (28, 28)).shape
        (5, 28, 28, 3)
    """
    height, width = pictures.shape[-3:-1]
    rows, columns = np.arange(size[0]) * height // size[0], np.arange(size[1]) * width // size[1]
    return pictures[..., rows, :, :][..., columns, :]


def reconstructions_figure(encoder: Encoder, images: np.ndarray, names: list[str]) -> Figure:
    """Original images, preprocessed images and, if the encoder has a decoder, their reconstructions.

    Preprocessing gets no row if it only divides by 255. Otherwise preprocessed images and reconstructions share one
    scale: zero is grey, and white is the 99.5 % quantile of the preprocessed magnitudes.

    Example:
        >>> from convae.encoder import load_encoder
        >>> figure = reconstructions_figure(load_encoder("models/encoder"), np.zeros((1, 1, 8, 8), np.uint8), ["cat"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['original', 'preprocessed', 'reconstruction']
    """
    preprocessed = encoder.preprocess(images)
    # Whitening may change the number of channels.
    changed = preprocessed.shape != images.shape or not np.allclose(preprocessed, images / 255, atol=1e-6)
    rows = [to_rgb(images / 255)]
    labels = ["original"]
    if changed:
        limit = max(float(np.quantile(np.abs(preprocessed), 0.995)), 1e-12)
        rows.append(to_rgb((preprocessed / limit + 1) / 2))
        labels.append("preprocessed")
    if encoder.has_decoder:
        reconstructed = encoder.reconstruct(images)
        rows.append(to_rgb((reconstructed / limit + 1) / 2 if changed else reconstructed))
        labels.append("reconstruction")
    return tile(rows, labels, names)
