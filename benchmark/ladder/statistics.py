"""Statistics over cells: means over seeds, differences to controls, and their intervals.

A cell is one system trained with one seed. Only cells with the same data set and protocol are compared.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from convae.evaluation.metrics import DIGITS, wilson_interval

CONFIDENCE = 0.95
FEW_LABELS = 10  # per class
NAMES = ("dataset", "protocol", "system", "seed", "objective", "control_of", "control", "initialized_by", "note")
NUMBERS = ("test_accuracy", "knn_accuracy", "test_images", "dimension", "encoder_parameters",
           "training_seconds", "extraction_seconds")  # fmt: skip
CURVES = ("by_dimension", "by_labels")


def cells_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of reports/ladder.json that have a test accuracy; other values that a row lacks are null."""
    missing: dict[str, Any] = {**dict.fromkeys(NAMES), "protocol": "not stated", **{key: [] for key in CURVES}}
    cells = [
        missing | {key: value for key, value in row.items() if value is not None}
        for row in rows
        if row.get("test_accuracy") is not None
    ]
    return pd.DataFrame(cells, columns=[*NAMES, *NUMBERS, *CURVES]).astype(dict.fromkeys(NUMBERS, float))


@dataclass(frozen=True)
class Comparison:
    """The tables of one data set and protocol, `few_labels_differences` with `FEW_LABELS` labels per class."""

    dataset: str
    protocol: str
    systems: pd.DataFrame
    differences: pd.DataFrame
    few_labels_differences: pd.DataFrame
    by_dimension: pd.DataFrame
    by_labels: pd.DataFrame


def compare(cells: pd.DataFrame) -> list[Comparison]:
    """One comparison per data set and protocol, in order of appearance."""
    return [
        Comparison(
            str(dataset),
            str(protocol),
            systems_table(group),
            differences(group, group["test_accuracy"]),
            differences(group, few_labels_accuracy(group, FEW_LABELS)),
            curve(group, "by_dimension", "dimension"),
            curve(group, "by_labels", "labels_per_class"),
        )
        for (dataset, protocol), group in cells.groupby(["dataset", "protocol"], sort=False)
    ]


def rows_of(table: pd.DataFrame) -> list[Any]:
    """The rows, with columns as attributes."""
    return list(table.itertuples())


def accuracy_interval(accuracies: Sequence[float] | np.ndarray, images: int) -> tuple[float, float]:
    """95 % interval of the mean accuracy p over k seeds, all measured on the same n test images.

        variance = p(1 - p)/n + s²/k,  s² the variance between seeds

    The first term is due to the choice of images, the second to the choice of seeds. The quantile is Student's with
    the degrees of freedom of Welch (1947), "The generalization of 'Student's' problem when several different
    population variances are involved", Biometrika 34, 28-35, with the first variance known. With a single seed, or
    if all seeds agree, this is Wilson's interval.

    Example:
        >>> low, high = accuracy_interval([0.90, 0.91, 0.92], images=1000)
        >>> round(low, 3), round(high, 3)
        (0.888, 0.932)
    """
    p, k = float(np.mean(accuracies)), len(accuracies)
    seeds = float(np.var(accuracies, ddof=1)) / k if k > 1 else 0.0
    if seeds == 0:
        return wilson_interval(round(p * images), images)
    variance = p * (1 - p) / images + seeds
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, (k - 1) * (variance / seeds) ** 2)
    half = float(quantile) * math.sqrt(variance)
    return max(0.0, p - half), min(1.0, p + half)


def systems_table(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per system, sorted by mean test accuracy, highest first.

    Args:
        cells: cells of one data set and protocol.

    Returns:
        `system`, `objective`, `control_of`, `control`, `accuracy` (mean over `seeds`), `low` and `high` (95 %; NaN if
        the number of test images is unknown), `knn_accuracy` (mean), `dimension`, `encoder_parameters`,
        `training_seconds` and `extraction_seconds` (means over the seeds where they are known), `note`, and
        `fine_tuned`: the mean test accuracies of the systems that continued from such an encoder with labels.
    """
    means = cells.groupby("system")["test_accuracy"].mean().round(DIGITS)
    parents = cells.groupby("system")["initialized_by"].first()
    rows = []
    for system, own in cells.groupby("system"):
        accuracies, images = own["test_accuracy"].to_numpy(), own["test_images"].max()
        low, high = (math.nan, math.nan) if math.isnan(images) else accuracy_interval(accuracies, int(images))
        rows.append(
            {
                "system": system,
                **own[["objective", "control_of", "control", "dimension", "encoder_parameters"]].bfill().iloc[0],
                "accuracy": means[system],
                "low": low,
                "high": high,
                "seeds": len(own),
                **own[["knn_accuracy", "training_seconds", "extraction_seconds"]].mean(),
                "fine_tuned": means[parents[parents == system].index].tolist(),
                "note": "; ".join(own["note"].dropna().unique()),
            }
        )
    return pd.DataFrame(rows).sort_values(["accuracy", "system"], ascending=[False, True], ignore_index=True)


def student_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean, mean ± t s/√k with k - 1 degrees of freedom; NaN for a single value.

    Example:
        >>> low, high = student_interval([1.0, 2.0, 3.0])
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
    """
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


DIFFERENCES = ("trained", "control", "system", "control_accuracy", "difference", "low", "high", "seeds")


def differences(cells: pd.DataFrame, accuracy: pd.Series) -> pd.DataFrame:
    """Accuracies of trained systems minus those of their untrained controls, paired over the seeds that both have.

    Args:
        cells: cells of one data set and protocol.
        accuracy: one value per cell (same index); NaN if not measured.

    Returns:
        `trained`, `control` (its kind), `system` (the control's name), `control_accuracy` (mean over its seeds),
        `difference` (mean of the paired differences), `low` and `high` (95 %, over seeds; NaN for a single pair),
        `seeds` (number of pairs) and `strongest`: whether this control has the highest mean accuracy of all controls
        of the trained system. The strongest comes first.
    """
    measured = cells.assign(accuracy=accuracy).dropna(subset=["accuracy"])
    by_seed = measured.pivot(index="system", columns="seed", values="accuracy")
    controls = measured.dropna(subset=["control_of"]).drop_duplicates("system")
    rows = []
    for control in rows_of(controls[controls["control_of"].isin(by_seed.index)]):
        paired = (by_seed.loc[control.control_of] - by_seed.loc[control.system]).dropna().to_numpy()
        if len(paired):
            names, mean = (control.control_of, control.control, control.system), by_seed.loc[control.system].mean()
            rows.append((*names, mean, paired.mean(), *student_interval(paired), len(paired)))
    order = ["trained", "control_accuracy", "system"]
    table = pd.DataFrame(rows, columns=list(DIFFERENCES))
    table = table.sort_values(order, ascending=[True, False, True], ignore_index=True)
    return table.assign(strongest=~table["trained"].duplicated())


def few_labels_accuracy(cells: pd.DataFrame, labels_per_class: int) -> pd.Series:
    """Each cell's mean test accuracy over the draws with this many labels per class; NaN without such draws."""

    def mean(draws: list[dict[str, Any]]) -> float:
        found = [row["test_accuracy"] for row in draws if row["labels_per_class"] == labels_per_class]
        return float(np.mean(found)) if found else math.nan

    return cells["by_labels"].map(mean).astype(float)


def curve(cells: pd.DataFrame, key: str, x: str) -> pd.DataFrame:
    """Test accuracy as a function of a quantity varied within cells.

    Args:
        cells: cells of one data set and protocol.
        key: `by_dimension` or `by_labels`.
        x: the quantity: `dimension` or `labels_per_class`.

    Returns:
        `system`, x, `accuracy` (mean over draws, then over seeds), `low` and `high` (lowest and highest over all seeds
        and draws), `seeds`; sorted by system and x.
    """
    points = [
        {"system": cell.system, "seed": cell.seed, x: row[x], "accuracy": row["test_accuracy"]}
        for cell in rows_of(cells)
        for row in getattr(cell, key)
    ]
    table = pd.DataFrame(points, columns=["system", "seed", x, "accuracy"])
    of_seeds = table.groupby(["system", x, "seed"])["accuracy"].agg(["mean", "min", "max"])
    return (
        of_seeds.groupby(level=["system", x])
        .agg(accuracy=("mean", "mean"), low=("min", "min"), high=("max", "max"), seeds=("mean", "size"))
        .reset_index()
    )
