"""Charts of training and test: learning curves, confusion matrix, most confident mistakes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convae.reporting.drawing import BLUE, GREY, ORANGE, Paint, label_columns, short

FEW_CLASSES = 20  # whose counts are readable in a confusion matrix
MISTAKES, MISTAKE_COLUMNS = 24, 8


def learning_curves_figure(history: pd.DataFrame) -> Figure:
    """Loss over epochs; marks the epoch with the lowest validation loss in each phase.

    Args:
        history: the rows of reports/training.csv: phase, epoch, train_loss, validation_loss, learning_rate.

    Example:
        >>> losses = {"train_loss": [0.9, 0.5], "validation_loss": [0.8, 0.6]}
        >>> figure = learning_curves_figure(pd.DataFrame({"phase": [0, 0], "epoch": [0, 1], **losses}))
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['training', 'validation', 'epoch kept']
    """
    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    marker = "o" if len(history) <= 30 else None
    # Only the first phase has labels, so that the legend names each kind of line once.
    for phase, rows in history.groupby("phase"):
        for column, name, colour in (("train_loss", "training", GREY), ("validation_loss", "validation", BLUE)):
            label = None if phase else name
            axes.plot(rows["epoch"], rows[column], marker=marker, markersize=4, color=colour, label=label)
        best = rows.iloc[rows["validation_loss"].to_numpy().argmin()]
        label = None if phase else "epoch kept"
        axes.plot(best["epoch"], best["validation_loss"], "o", ms=10, mfc="none", mec=ORANGE, label=label)
        if phase:
            axes.axvline(rows["epoch"].min() - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    losses = history[["train_loss", "validation_loss"]].to_numpy()
    if losses.min() > 0 and losses.max() > 10 * losses.min():
        axes.set_yscale("log")
    axes.set(xlim=(-0.5, history["epoch"].max() + 0.5), xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend()
    return figure


def confusion_figure(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """The confusion matrix, coloured by the fraction of the row (its square root); up to 20 classes show counts too.

    Args:
        counts: `int64 [K, K]`; rows are true classes, columns predicted classes.
        classes: the K names.

    Example:
        >>> figure = confusion_figure(np.array([[8, 2], [1, 9]]), ["cat", "dog"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['8', '2', '1', '9']
    """
    few = len(classes) <= FEW_CLASSES
    side = max(3.0, (0.5 if few else 0.105) * len(classes))
    size = 8.0 if few else max(3.5, min(8.0, 450 / len(classes)))
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    positions = range(len(classes))
    axes.set_yticks(positions, map(short, classes))
    label_columns(axes, positions, classes, slanted=few and max(map(len, classes)) > 3)
    axes.tick_params(labelsize=size)
    if not few:
        axes.tick_params(axis="x", labelrotation=90)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("prediction", labelpad=8)
    axes.set_ylabel("truth", labelpad=8)
    for row, column in np.argwhere(counts > 0) if few else ():
        colour = "white" if fractions[row, column] > 0.3 else "#52606d"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=colour, fontsize=7.5)
    return figure


def mistakes_figure(images: np.ndarray, predictions: pd.DataFrame, paint: Paint) -> Figure | None:
    """The 24 mistakes that the classifier was most confident of, or None if it made no mistakes.

    Args:
        images: the test images, `[N, C, H, W]`.
        predictions: columns index, truth, prediction, and confidence or margin; see `predictions_table`.
        paint: shows images.

    Example:
        >>> images = np.zeros((1, 1, 8, 8), np.uint8)
        >>> predictions = pd.DataFrame({"index": [0], "truth": ["cat"], "prediction": ["dog"], "confidence": [0.9]})
        >>> mistakes_figure(images, predictions, Paint()).axes[0].get_title().split()
        ['dog', '90.0', '%']
    """
    wrong = predictions[predictions["truth"].astype(str) != predictions["prediction"].astype(str)]
    certainty = "confidence" if "confidence" in predictions else "margin"
    # Ties are sorted by index, so that the same predictions give the same picture.
    worst = wrong.sort_values([certainty, "index"], ascending=[False, True]).head(MISTAKES)
    if worst.empty:
        return None
    rows = -(-len(worst) // MISTAKE_COLUMNS)
    figure = Figure(figsize=(1.25 * MISTAKE_COLUMNS, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, MISTAKE_COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, row in zip(grid, worst.to_dict("records"), strict=False):
        axes.imshow(paint(images[row["index"]]), interpolation="nearest")
        value = f"{100 * row[certainty]:.1f} %" if certainty == "confidence" else f"+{row[certainty]:.2f}"
        axes.set_title(f"{short(row['prediction'])}\n{value}", fontsize=8, color=ORANGE, pad=3)
        axes.text(0.5, -0.04, short(row["truth"]), ha="center", va="top", fontsize=8, transform=axes.transAxes)
    return figure
