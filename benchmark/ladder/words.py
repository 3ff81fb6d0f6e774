"""Sentences about the ladder, each of which claims no more than the intervals do."""

from typing import Any

import pandas as pd

from benchmark.ladder.statistics import FEW_LABELS, Comparison, rows_of
from convae.reporting.page import number, percent, signed


def headlines(comparison: Comparison) -> list[str]:
    """What was found, in a sentence for each trained system with controls, or else the highest accuracy."""
    rows = strongest(comparison.differences)
    return [verdict(row) for row in rows_of(rows)] or [highest_sentence(comparison)]


def strongest(differences: pd.DataFrame) -> pd.DataFrame:
    """Of each trained system the difference to its strongest control alone."""
    return differences[differences["strongest"]]


def verdict(row: Any) -> str:
    """A sentence on a row of `differences`."""
    control = f"its strongest control, {row.system} ({row.control})"
    if row.seeds == 1:
        return (
            f"{row.trained} and {control}, differ by {signed(row.difference)} points; 1 seed gives no interval, "
            "so chance is not ruled out."
        )
    if row.low <= 0 <= row.high:
        return (
            f"{row.trained} cannot be told from {control}: the difference of {signed(row.difference)} points "
            f"({signed(row.low)} to {signed(row.high)}, {seeds(row.seeds)}) may be zero."
        )
    word, low, high = ("ahead of", row.low, row.high) if row.low > 0 else ("behind", -row.high, -row.low)
    return (
        f"{row.trained} is {word} {control}, by {100 * abs(row.difference):.2f} points "
        f"({100 * low:.2f} to {100 * high:.2f}, {seeds(row.seeds)})."
    )


def highest_sentence(comparison: Comparison) -> str:
    """Which system has the highest mean accuracy, and how many have intervals that overlap with its own."""
    systems = comparison.systems
    first = systems.iloc[0]
    overlapping = int((systems["high"].iloc[1:] >= first.low).sum())
    sentence = f"{first.system} has the highest mean accuracy, {percent(first.accuracy)}"
    without = systems[systems["objective"] != "classify"]
    if first.objective == "classify" and len(without):
        sentence += f"; without labels it is {without.iloc[0].system} with {percent(without.iloc[0].accuracy)}"
    if overlapping == 1:
        sentence += f". The interval of 1 other system overlaps with that of {first.system}"
    elif overlapping:
        sentence += f". The intervals of {overlapping} other systems overlap with that of {first.system}"
    return sentence + "."


def differences_sentence(comparison: Comparison) -> str:
    """What training adds, with all labels and with few."""
    found = [verdict(row) for row in rows_of(strongest(comparison.differences))]
    few = [verdict(row) for row in rows_of(strongest(comparison.few_labels_differences))]
    return " ".join([*found, *(f"With {FEW_LABELS} labels per class, {sentence}" for sentence in few)])


def dimension_sentence(comparison: Comparison, bold: list[str]) -> str:
    """What the curves over dimensions show of the systems that stand out."""
    advice = "At equal dimension, the higher curve has the better features; one that still rises at its right end owes "
    points = comparison.by_dimension
    found = [
        f"{system} has {percent(line['accuracy'].iloc[0])} with {number(line['dimension'].iloc[0])} dimensions and "
        f"{percent(line['accuracy'].iloc[-1])} with {number(line['dimension'].iloc[-1])}"
        for system, line in _lines(points, bold)
    ]
    return " ".join([advice + "some of its accuracy to its width.", *(f"{sentence}." for sentence in found)])


def labels_sentence(comparison: Comparison, bold: list[str]) -> str:
    """What the curves over labels show of the systems that stand out."""
    advice = "Features matter most where labels are few: look at the left."
    found = [
        f"{system} has {percent(line['accuracy'].iloc[0])} with {labels(line['labels_per_class'].iloc[0])} and "
        f"{percent(line['accuracy'].iloc[-1])} with {number(line['labels_per_class'].iloc[-1])}"
        for system, line in _lines(comparison.by_labels, bold)
    ]
    return " ".join([advice, *(f"{sentence}." for sentence in found)])


def _lines(points: pd.DataFrame, systems: list[str]) -> list[tuple[str, pd.DataFrame]]:
    """Of the systems those that were measured at two places or more."""
    lines = [(system, points[points["system"] == system]) for system in systems]
    return [(system, line) for system, line in lines if len(line) > 1]


def seeds(count: int) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{count} seed{'' if count == 1 else 's'}"


def measured_seeds(points: pd.DataFrame) -> str:
    """With how many seeds the points of a `curve` were measured: `1 seed`, `1 to 5 seeds`."""
    fewest, most = points["seeds"].min(), points["seeds"].max()
    return seeds(most) if fewest == most else f"{fewest} to {seeds(most)}"


def labels(count: int) -> str:
    """`1 label per class`, `10 labels per class`."""
    return f"{number(count)} label{'' if count == 1 else 's'} per class"
