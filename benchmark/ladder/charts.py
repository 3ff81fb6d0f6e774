"""Charts of the ladder: accuracies of all systems, differences to controls, curves over dimensions and labels."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from benchmark.ladder.statistics import rows_of
from convae.reporting.drawing import BLUE, GREY, INK, ORANGE, short
from convae.reporting.page import number

WIDTH = 6.6  # inches: on a narrow screen the text stays legible
ROW = 0.215  # inches per system
LONGEST = 30  # characters of a name; the rest would squeeze the chart
FAINT = "#e4e7eb"
COLOURS = {"reconstruct": BLUE, "classify": ORANGE, "none": GREY}
MEANING = {"reconstruct": "trained by reconstruction", "classify": "trained with labels", "none": "not trained"}


def accuracy_figure(systems: pd.DataFrame, bold: Collection[str]) -> Figure:
    """A dot for each system's accuracy and a bar for its interval, highest on top.

    Args:
        systems: `systems_table` of benchmark.ladder.statistics.
        bold: systems to emphasise.
    """
    figure = Figure(figsize=(WIDTH, 0.75 + ROW * len(systems)), layout="constrained")
    axes = figure.add_subplot()
    for position, row in enumerate(rows_of(systems)):
        colour = COLOURS[row.objective]
        axes.plot([100 * row.low, 100 * row.high], [position] * 2, color=colour, linewidth=2, alpha=0.55)
        axes.plot(100 * row.accuracy, position, "o", color=colour, markersize=5)
        axes.annotate(
            f"{100 * row.accuracy:.2f}",
            (1.015, position),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            fontweight="bold" if row.system in bold else "normal",
        )
    _name_rows(axes, systems["system"], bold)
    axes.set_xlabel("test accuracy in %")
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    present = [objective for objective in COLOURS if objective in set(systems["objective"])]
    dots = [Line2D([], [], marker="o", linestyle="", markersize=5, color=COLOURS[name]) for name in present]
    figure.legend(dots, [MEANING[name] for name in present], loc="outside upper center", ncols=3, handletextpad=0.2)
    return figure


def differences_figure(panels: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """Differences to the controls in points, one panel per measure; a dot is hollow if the interval contains zero.

    Args:
        panels: for each measure, its name and `differences` of benchmark.ladder.statistics.
    """
    pairs = pd.concat([table[["trained", "system"]] for _, table in panels]).drop_duplicates(ignore_index=True)
    several = pairs["trained"].nunique() > 1
    figure = Figure(figsize=(WIDTH, 0.95 + 0.3 * len(pairs)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (measure, table) in zip(grid, panels, strict=True):
        axes.axvline(0, color=INK, linewidth=1)
        for position, row in pairs.merge(table, how="left").iterrows():
            low, middle, high = 100 * row[["low", "difference", "high"]].astype(float)
            axes.plot([low, high], [position] * 2, color=BLUE, linewidth=2, alpha=0.55)
            certain = low > 0 or high < 0
            axes.plot(middle, position, "o", markersize=6, color=BLUE, markerfacecolor=BLUE if certain else "white")
            axes.annotate(
                "" if np.isnan(middle) else f"{middle:+.2f}".replace("-", "−"),
                (middle, position),
                (0, 5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
            )
        axes.set_title(measure, fontsize=9)
        axes.set_xlabel("difference in points")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", color=FAINT, linewidth=0.8)
        axes.margins(x=0.12)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    names = [f"{row.trained} − {row.system}" if several else row.system for row in rows_of(pairs)]
    _name_rows(grid[0], names, ())
    grid[0].set_ylim(len(pairs) - 0.5, -0.8)
    return figure


def _name_rows(axes: Axes, names: Sequence[str] | pd.Series, bold: Collection[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name, LONGEST) for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name in bold else "normal")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)


def curves_figure(
    points: pd.DataFrame,
    x: str,
    xlabel: str,
    base: float,
    objectives: dict[str, str],
    bold: Collection[str],
    ranges: bool = False,
) -> Figure:
    """A line for each system over a logarithmic axis, with its name at the right end.

    Args:
        points: `curve` of benchmark.ladder.statistics.
        x: its second column.
        xlabel: label of that axis.
        base: ticks are powers of this number.
        objectives: the objective of each system.
        bold: systems to emphasise.
        ranges: whether to draw the range of each point, too.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    lines = {str(system): line for system, line in points.groupby("system")}
    # Ranges at the same x would hide each other.
    shift = 1.05 ** (np.arange(len(lines)) - (len(lines) - 1) / 2) if ranges else np.ones(len(lines))
    for factor, (system, line) in zip(shift, lines.items(), strict=True):
        style: dict[str, Any] = {"color": COLOURS[objectives[system]], "linewidth": 2.4 if system in bold else 1.1}
        where = factor * line[x]
        axes.plot(where, 100 * line["accuracy"], marker="o", markersize=5 if system in bold else 3.5, **style)
        if ranges:
            axes.vlines(where, 100 * line["low"], 100 * line["high"], **style | {"linewidth": 1, "alpha": 0.6})
    axes.xaxis.set_major_locator(LogLocator(base))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(xlabel)
    axes.set_ylabel("test accuracy in %")
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    _name_lines(axes, lines, x, objectives, bold)
    return figure


def _name_lines(
    axes: Axes, lines: dict[str, pd.DataFrame], x: str, objectives: dict[str, str], bold: Collection[str]
) -> None:
    """Names next to the right ends of lines, moved apart so that they do not overlap."""
    ends = sorted((100 * float(line["accuracy"].iloc[-1]), system) for system, line in lines.items())
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gaps = (high - low) / 22 * np.arange(len(ends))
    # The nearest places that keep the order and are at least a gap apart.
    places = isotonic_regression([end for end, _ in ends] - gaps).x + gaps
    for place, (end, system) in zip(places, ends, strict=True):
        axes.annotate(
            short(system, LONGEST),
            (lines[system][x].iloc[-1], end),
            (1.04, place),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=COLOURS[objectives[system]],
            fontweight="bold" if system in bold else "normal",
            arrowprops={"arrowstyle": "-", "color": "#c3cad2", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4},
        )
