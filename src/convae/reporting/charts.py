"""Charts of training and test: learning curves, confusion matrix, most confident mistakes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from convae.reporting.drawing import BLUE, GREY, ORANGE, Paint, gallery, label_columns, short

FEW_CLASSES = 20  # whose counts are readable in a confusion matrix
MISTAKES, MISTAKE_COLUMNS = 24, 8
FEW_POINTS = 10  # that a line alone would hide


def learning_curves_figure(history: pd.DataFrame) -> Figure:
    """Loss within training, and below it the accuracy of the probe, if it was measured.

    A circle marks the epoch with the lowest validation loss of each phase.

    Args:
        history: the rows of reports/training.csv.

    Example:
        >>> history = pd.DataFrame({"phase": 0, "trained": [0.5, 1.0], "train_loss": [0.9, 0.5]})
        >>> history = history.assign(sample_loss=[0.8, 0.6], validation_loss=[None, 0.6], probe_accuracy=[0.7, 0.8])
        >>> loss, accuracy = learning_curves_figure(history).axes
        >>> [text.get_text() for text in loss.get_legend().get_texts()], accuracy.get_ylabel()
        (['training', 'validation', 'epoch kept'], 'probe accuracy')
    """
    probed = history["probe_accuracy"].notna().any()
    figure = Figure(figsize=(6.5, 5.0 if probed else 3.2), layout="constrained")
    panels = figure.subplots(2 if probed else 1, sharex=True, squeeze=False, height_ratios=[3, 2] if probed else [1])
    loss = panels[0, 0]
    validation = "sample_loss" if history["validation_loss"].isna().any() else "validation_loss"
    # Only the first phase has labels, so that the legend names each kind of line once.
    for phase, rows in history.groupby("phase"):
        names = ("training", "validation", "epoch kept") if phase == history["phase"].min() else (None, None, None)
        loss.plot(rows["trained"], rows["train_loss"], color=GREY, label=names[0])
        loss.plot(rows["trained"], rows[validation], color=BLUE, label=names[1])
        best = rows.iloc[np.nanargmin(rows["validation_loss"].to_numpy(np.float64))]
        loss.plot(best["trained"], best[validation], "o", ms=10, mfc="none", mec=ORANGE, label=names[2])
        if probed:
            measured = rows[rows["probe_accuracy"].notna()]
            marker = "o" if len(measured) <= FEW_POINTS else None
            panels[1, 0].plot(measured["trained"], measured["probe_accuracy"], marker=marker, ms=4, color=BLUE)
        for axes in panels[:, 0] if phase else ():
            axes.axvline(rows["epoch"].min(), color=GREY, linewidth=0.8, linestyle=":")
    losses = history[["train_loss", validation]].to_numpy()
    if losses.min() > 0 and losses.max() > 10 * losses.min():
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter("{x:g}")  # by default labels are formulas, which `style` forbids
        loss.yaxis.set_minor_formatter(NullFormatter())
    loss.set_ylabel("loss")
    loss.legend()
    if probed:
        panels[1, 0].set_ylabel("probe accuracy")
    panels[-1, 0].set(xlim=(0, history["trained"].max() * 1.02), xlabel="epochs trained")
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in panels[:, 0]:
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
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
    values = [f"{100 * value:.1f} %" if certainty == "confidence" else f"+{value:.2f}" for value in worst[certainty]]
    names = (" ".join(name.split()) for name in worst["prediction"].astype(str))
    above = [f"{name}\n{value}" for name, value in zip(names, values, strict=True)]
    pictures = [paint(images[row]) for row in worst["index"]]
    return gallery(pictures, above, worst["truth"].astype(str).tolist(), MISTAKE_COLUMNS)
