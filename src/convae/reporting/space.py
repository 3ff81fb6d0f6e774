"""Figures of where images lie in feature space: a map, neighbours, and the most unusual images."""

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from threadpoolctl import threadpool_limits

from convae.encoder import Encoder
from convae.reporting.drawing import BLUE, Paint, gallery, short, tile

FEW_CLASSES = 20  # that have a colour of their own
LEAST_FOR_TSNE = 4  # images
CELLS = (26, 40)  # rows and columns of the map with pictures
MAP_PIXELS = 1200  # width of that map
STRANGEST, STRANGEST_COLUMNS = 20, 10
FRAME = np.array([0.84, 0.38, 0.30])  # around neighbours of another class
INSIDE = (2.0, 98.0)  # percentiles of positions that the maps contain


def embed_in_plane(components: np.ndarray, kind: Literal["pca", "tsne"]) -> np.ndarray:
    """Place images in the plane: `float32 [N, 2]`; the same features give the same bits.

    Args:
        components: principal components of their features, `float32 [N, c]`.
        kind: `pca`, the first two, or `tsne`, which keeps neighbours together (van der Maaten & Hinton 2008,
            "Visualizing data using t-SNE").

    Example:
        >>> embed_in_plane(np.float32([[1, 2, 3], [4, 5, 6]]), "pca").tolist()
        [[1.0, 2.0], [4.0, 5.0]]
    """
    plane = np.pad(components, [(0, 0), (0, max(0, 2 - components.shape[1]))])[:, :2]
    if kind == "pca" or len(components) < LEAST_FOR_TSNE:
        return plane
    from sklearn.manifold import TSNE

    start = plane / max(float(plane[:, 0].std()), 1e-12) * 1e-4
    perplexity = min(30.0, (len(plane) - 1) / 3)
    # In one thread, the order of sums is fixed.
    with threadpool_limits(1):
        model = TSNE(init=start, perplexity=perplexity, random_state=0, n_jobs=1)
        embedded: np.ndarray = model.fit_transform(components)
    return embedded


def embedding_figure(positions: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]) -> Figure:
    """A point for each image, coloured by its class if there are labels.

    Args:
        positions: `[N, 2]`.
        labels: `int64 [N]`, or None.
        classes: the name of each label; up to 20 are in the legend.

    Example:
        >>> figure = embedding_figure(np.zeros((2, 2)), np.array([0, 1]), ["cat", "dog"])
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['cat', 'dog']
    """
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    few = labels is not None and len(classes) <= FEW_CLASSES
    colours: Any = BLUE
    if labels is not None:
        # In the palettes' own order, neighbours differ most.
        name, shades = ("tab10", 10) if len(classes) <= 10 else ("tab20", 20) if few else ("hsv", len(classes))
        palette = matplotlib.colormaps[name](np.arange(len(classes)) / shades + (1e-6 if few else 0))
        colours = palette[labels]
    size = float(np.clip(20_000 / max(len(positions), 1), 3, 20))
    axes.scatter(positions[:, 0], positions[:, 1], size, colours, linewidths=0, alpha=0.75)
    axes.set(xlim=_limits(positions[:, 0]), ylim=_limits(positions[:, 1]))
    if few:
        points = [axes.scatter([], [], 30, palette[[index]]) for index in range(len(classes))]
        figure.legend(points, list(map(short, classes)), loc="outside right upper")
    return figure


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The range to show: a few far points would squeeze all others together."""
    low, high = np.percentile(values, INSIDE)
    margin = 0.25 * (high - low) or 1.0
    return max(low - margin, values.min() - 0.02 * margin), min(high + margin, values.max() + 0.02 * margin)


def picture_map_figure(positions: np.ndarray, images: np.ndarray, paint: Paint) -> Figure:
    """Pictures in place of points: in each cell of a grid, the image nearest to its centre.

    Args:
        positions: `[N, 2]`.
        images: `[N, C, H, W]`.
        paint: shows images.

    Example:
        >>> figure = picture_map_figure(np.eye(2), np.zeros((2, 1, 8, 8), np.uint8), Paint())
        >>> figure.axes[0].images[0].get_array().shape
        (780, 1200, 3)
    """
    side = MAP_PIXELS // CELLS[1]
    chosen = _nearest_to_centres(positions)
    canvas = np.ones((CELLS[0] * side, CELLS[1] * side, 3))
    for (row, column), index in chosen.items():
        picture = _fitted(paint(images[index]), side - 1)
        canvas[row * side :, column * side :][: picture.shape[0], : picture.shape[1]] = picture
    figure = Figure(figsize=(canvas.shape[1] / 150, canvas.shape[0] / 150))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="nearest")
    axes.axis("off")
    return figure


def _nearest_to_centres(positions: np.ndarray) -> dict[tuple[int, int], int]:
    """For each cell with images, the row of the one nearest to its centre; the first row is at the top."""
    (left, right), (bottom, top) = (_limits(positions[:, axis]) for axis in (0, 1))
    x = (positions[:, 0] - left) / max(right - left, 1e-12) * CELLS[1]
    y = (top - positions[:, 1]) / max(top - bottom, 1e-12) * CELLS[0]
    chosen: dict[tuple[int, int], tuple[float, int]] = {}
    for index, (across, down) in enumerate(zip(x, y, strict=True)):
        if 0 <= across <= CELLS[1] and 0 <= down <= CELLS[0]:
            cell = (min(int(down), CELLS[0] - 1), min(int(across), CELLS[1] - 1))
            distance = (across - cell[1] - 0.5) ** 2 + (down - cell[0] - 0.5) ** 2
            chosen[cell] = min(chosen.get(cell, (np.inf, -1)), (distance, index))
    return {cell: index for cell, (_, index) in chosen.items()}


def _fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture `[H, W, 3]`, resized so that its longer side has this length."""
    height, width = (max(1, round(length * side / max(picture.shape[:2]))) for length in picture.shape[:2])
    whole = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
    return np.asarray(whole.resize((width, height), Image.Resampling.BOX)) / 255


def neighbors_figure(
    images: np.ndarray, names: Sequence[str], neighbors: np.ndarray, other_class: np.ndarray, paint: Paint
) -> Figure:
    """Test images, and below each its nearest training images; those of another class have a red frame.

    Args:
        images: `[n, C, H, W]`.
        names: the name of each image.
        neighbors: `[k, n, C, H, W]`, the nearest first.
        other_class: `bool [k, n]`.
        paint: shows images.

    Example:
        >>> images = np.zeros((1, 1, 8, 8), np.uint8)
        >>> figure = neighbors_figure(images, ["cat"], images[None], np.array([[True]]), Paint())
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['test image', 'nearest']
    """
    rows = [paint(images)]
    for number, row in enumerate(neighbors):
        rows.append(paint(row))
        for place in np.flatnonzero(other_class[number]):
            _frame(rows[-1][place])
    labels = ["test image", "nearest", *(f"{number}." for number in range(2, len(neighbors) + 1))]
    return tile(rows, labels, names)


def _frame(picture: np.ndarray) -> None:
    """Draw a frame over the border of a picture `[H, W, 3]`, in place."""
    width = max(1, max(picture.shape[:2]) // 20)
    picture[:width] = picture[-width:] = picture[:, :width] = picture[:, -width:] = FRAME


def strangest_figure(
    images: np.ndarray, scores: np.ndarray, names: Sequence[str] | None, encoder: Encoder, paint: Paint
) -> Figure:
    """The twenty most unusual images; if the encoder has a decoder, with maps of its error.

    Args:
        images: `[N, C, H, W]`.
        scores: `[N]`, see `Reference.scores`.
        names: the class of each image, or None.
        encoder: the encoder.
        paint: shows images.
    """
    strangest = np.argsort(-scores, kind="stable")[:STRANGEST]
    some = images[strangest]
    pictures = beside_error_maps(encoder, some, paint) if encoder.has_decoder else list(paint(some))
    above = [f"{scores[index]:.1f}" for index in strangest]
    below = [names[index] if names else str(index) for index in strangest]
    return gallery(pictures, above, below, STRANGEST_COLUMNS // (2 if encoder.has_decoder else 1))


def beside_error_maps(encoder: Encoder, images: np.ndarray, paint: Paint) -> list[np.ndarray]:
    """Each picture with a map of the decoder's error to its right: `[H, 2 W, 3]`.

    The error is white where it is zero, and red where it is large, on a common scale.
    """
    errors = np.square(encoder.reconstruct(images) - encoder.preprocess(images)).mean(axis=1)
    heat = matplotlib.colormaps["Reds"](errors / max(float(np.quantile(errors, 0.99)), 1e-12))[..., :3]
    return [np.concatenate(pair, axis=1) for pair in zip(paint(images), heat, strict=True)]
