"""Figures of where images lie in feature space."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from convae.evaluation.principal_components import principal_components
from convae.reporting.charts import learning_curves_figure, mistakes_figure
from convae.reporting.drawing import GAP, Paint, gallery, style
from convae.reporting.space import (
    FRAME,
    embed_in_plane,
    embedding_figure,
    neighbors_figure,
    picture_map_figure,
)

DATA, LABELS = load_digits(return_X_y=True)
DATA = DATA.astype(np.float32)[:600]
LABELS = LABELS[:600]


@pytest.mark.parametrize(("kind", "least"), [("pca", 0.5), ("tsne", 0.9)])
def test_digits_are_placed_beside_digits_of_their_class_the_same_each_time(kind, least):
    components = principal_components(DATA)
    positions = embed_in_plane(components, kind)
    np.testing.assert_array_equal(embed_in_plane(components, kind), positions)
    found = KNeighborsClassifier(5).fit(positions[::2], LABELS[::2]).score(positions[1::2], LABELS[1::2])
    assert found > least


@pytest.mark.parametrize("kind", ["pca", "tsne"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_few_images_are_placed_too(kind, count):
    positions = embed_in_plane(principal_components(DATA[:count]), kind)
    assert positions.shape == (count, 2)
    assert np.isfinite(positions).all()
    embedding_figure(positions, None, ())
    picture_map_figure(positions, DATA[:count].reshape(-1, 1, 8, 8) / 16, Paint())


def test_each_class_has_its_colour_and_many_have_no_legend():
    positions = embed_in_plane(principal_components(DATA), "pca")
    figure = embedding_figure(positions, LABELS, [str(digit) for digit in range(10)])
    colours = figure.axes[0].collections[0].get_facecolors()
    assert len(np.unique(colours, axis=0)) == 10
    assert len(np.unique(colours[LABELS == 3], axis=0)) == 1
    assert len(embedding_figure(positions, LABELS, [str(number) for number in range(30)]).legends) == 0
    assert len(embedding_figure(positions, None, ()).legends) == 0


def test_a_cell_shows_the_image_nearest_to_its_centre():
    images = np.zeros((3, 1, 1, 1), np.float32)
    images[:, 0, 0, 0] = [0.0, 0.5, 0.75]
    positions = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    canvas = picture_map_figure(positions, images, Paint()).axes[0].images[0].get_array()
    levels, counts = np.unique(np.round(canvas[..., 0] * 255).astype(int), return_counts=True)
    assert levels.tolist() == [0, 128, 255]  # of two images at one place, the first
    assert counts[0] == counts[1] == 29**2
    row, column = np.argwhere(canvas[..., 0] == 0)[0]
    other = np.argwhere(np.abs(canvas[..., 0] - 0.5) < 0.01)[0]
    assert row > other[0]  # larger values are further up
    assert column < other[1]


def test_neighbors_of_another_class_have_a_frame():
    images = np.zeros((2, 1, 8, 8), np.uint8)
    other_class = np.array([[False, True], [False, False], [True, False]])
    canvas = (
        neighbors_figure(images, ["a", "b"], np.stack([images] * 3), other_class, Paint()).axes[0].images[0].get_array()
    )
    framed = np.argwhere((np.abs(canvas - FRAME) < 1e-6).all(axis=2))
    cells = np.unique(framed // ((canvas.shape[0] + GAP) // 4), axis=0)
    assert cells.tolist() == [[1, 1], [3, 0]]


def test_names_and_numbers_stand_at_their_pictures():
    pictures = [np.full((8, 8, 3), shade) for shade in (0.1, 0.2, 0.3)]
    axes = gallery(pictures, ["1.0", "2.0", "3.0"], ["a", "b", "c"], columns=2).axes
    assert [one.get_title() for one in axes] == ["1.0", "2.0", "3.0", ""]
    assert [one.texts[0].get_text() for one in axes[:3]] == ["a", "b", "c"]
    assert [float(one.images[0].get_array()[0, 0, 0]) for one in axes[:3]] == [0.1, 0.2, 0.3]


def overlapping(figure):
    """Pairs of texts in a figure that overlap; the boxes of slanted ones do, although their letters do not."""
    figure.draw_without_rendering()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    shown = [text for legend in legends for text in legend.get_texts()]
    for axes in figure.axes:
        shown += [axes.title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            shown += [axis.label, *(label for tick in ticks for label in (tick.label1, tick.label2))]
    texts = [text for text in shown if text.get_visible() and text.get_text().strip() and text.get_rotation() % 90 == 0]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [(one, other) for (one, box), (other, its) in combinations(boxes, 2) if box.shrunk(0.98, 0.98).overlaps(its)]


NAMES = [f"a class with a long name {number}" for number in range(20)]


@pytest.mark.parametrize("count", [2, 10, 20])
def test_no_label_overlaps_another(count):
    names, images = NAMES[:count], np.zeros((count, 1, 8, 8), np.uint8)
    labels = np.arange(count)
    predictions = {"index": labels, "truth": names, "prediction": names[::-1], "confidence": 0.5}
    with style():
        figures = [
            embedding_figure(np.random.default_rng(0).normal(size=(count, 2)), labels, names),
            gallery(list(Paint()(images)), names, names, columns=10),
            neighbors_figure(images[:10], names[:10], np.stack([images[:10]] * 5), np.zeros((5, 10), bool), Paint()),
            mistakes_figure(images, pd.DataFrame(predictions), Paint()),
            learning_curves_figure(HISTORY),
        ]
        assert [overlapping(figure) for figure in figures] == [[]] * 5


HISTORY = pd.DataFrame(
    {
        "phase": np.repeat([0, 1], 25),
        "epoch": np.repeat([0, 1], 25),
        "trained": np.arange(1, 51) / 25,
        "train_loss": 1 / np.arange(1, 51),
        "sample_loss": 1 / np.arange(1, 51),
        "validation_loss": [0.1 if row in (24, 49) else None for row in range(50)],
        "probe_accuracy": [row / 100 if row % 5 == 4 else None for row in range(50)],
    }
)
