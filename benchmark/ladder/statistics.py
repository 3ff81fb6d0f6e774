"""What the cells of the ladder say together: means over seeds, differences to controls, and their intervals.

A cell is one system trained with one seed. Cells are compared where they have the same data set and protocol.
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
NUMBERS = ("test_accuracy", "knn_accuracy", "test_images", "dimension", "encoder_parameters")
CURVES = ("by_dimension", "by_labels")


def cells_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of reports/ladder.json that have a test accuracy yet, one a cell; what is not known is null."""
    missing: dict[str, Any] = {**dict.fromkeys(NAMES), "protocol": "not stated", **{key: [] for key in CURVES}}
    cells = [
        missing | {key: value for key, value in row.items() if value is not None}
        for row in rows
        if row.get("test_accuracy") is not None
    ]
    return pd.DataFrame(cells, columns=[*NAMES, *NUMBERS, *CURVES]).astype(dict.fromkeys(NUMBERS, float))


@dataclass(frozen=True)
class Comparison:
    """The systems on one data set under one protocol.

    Attributes:
        dataset: its name.
        protocol: how features were read and classified.
        systems: `systems_table`.
        differences: `differences` of the test accuracy with all labels.
        few_labels_differences: `differences` of the accuracy with `FEW_LABELS` labels per class.
        by_dimension: `curve` over the number of dimensions.
        by_labels: `curve` over the number of labels per class.
    """

    dataset: str
    protocol: str
    systems: pd.DataFrame
    differences: pd.DataFrame
    few_labels_differences: pd.DataFrame
    by_dimension: pd.DataFrame
    by_labels: pd.DataFrame


def compare(cells: pd.DataFrame) -> list[Comparison]:
    """A comparison for each data set and protocol, in the order in which they occur."""
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
    """Rows with their columns as attributes."""
    return list(table.itertuples())


def accuracy_interval(accuracies: Sequence[float] | np.ndarray, images: int) -> tuple[float, float]:
    """95 % interval of the mean accuracy p over k seeds, all of them on the same n test images.

        variance = p(1 - p)/n + s²/k,  s² the variance between seeds

    The first part is due to the choice of images, the second to that of seeds. The quantile is Student's with the
    degrees of freedom of Welch (1947), "The generalization of 'Student's' problem when several different population
    variances are involved", Biometrika 34, 28-35, the first variance being known. Where seeds make no difference or
    there is one alone, the interval is Wilson's, in which images are the only chance.
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
    """A row for each system, the highest mean test accuracy first.

    Args:
        cells: of one data set and protocol.

    Returns:
        `system`, `objective`, `control_of`, `control`, `accuracy` (mean over `seeds`), `low` and `high` (95 %; not
        known without a number of test images), `knn_accuracy` (mean), `dimension`, `encoder_parameters`, `note`, and
        `fine_tuned`: of each system that went on from such an encoder with labels, the mean test accuracy.
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
                "knn_accuracy": own["knn_accuracy"].mean(),
                "fine_tuned": means[parents[parents == system].index].tolist(),
                "note": "; ".join(own["note"].dropna().unique()),
            }
        )
    return pd.DataFrame(rows).sort_values(["accuracy", "system"], ascending=[False, True], ignore_index=True)


def student_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean, mean ± t s/√k with k - 1 degrees of freedom; NaN where there is one value alone."""
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


DIFFERENCES = ("trained", "control", "system", "control_accuracy", "difference", "low", "high", "seeds")


def differences(cells: pd.DataFrame, accuracy: pd.Series) -> pd.DataFrame:
    """By how much trained systems exceed their untrained controls, paired over the seeds that both have.

    Args:
        cells: of one data set and protocol.
        accuracy: of each cell (same index); NaN where it was not measured.

    Returns:
        `trained`, `control` (what it is), `system` (the control's name), `control_accuracy` (mean over its seeds),
        `difference` (mean of the paired differences of accuracies), `low` and `high` (95 %, over seeds; NaN for a
        single pair), `seeds` (number of pairs) and `strongest`: whether the control has the highest mean accuracy of
        those of this trained system. The strongest stands first.
    """
    measured = cells.assign(accuracy=accuracy).dropna(subset=["accuracy"])
    by_seed = measured.pivot(index="system", columns="seed", values="accuracy")
    controls = measured.dropna(subset=["control_of"]).drop_duplicates("system")
    rows = []
    for control in rows_of(controls[controls["control_of"].isin(by_seed.index)]):
        paired = (by_seed.loc[control.control_of] - by_seed.loc[control.system]).dropna().to_numpy()
        low, high = student_interval(paired)
        rows.append(
            {
                "trained": control.control_of,
                "control": control.control,
                "system": control.system,
                "control_accuracy": by_seed.loc[control.system].mean(),
                "difference": paired.mean() if len(paired) else math.nan,
                "low": low,
                "high": high,
                "seeds": len(paired),
            }
        )
    table = pd.DataFrame(rows, columns=list(DIFFERENCES))
    order = ["trained", "control_accuracy", "system"]
    table = table[table["seeds"] > 0].sort_values(order, ascending=[True, False, True], ignore_index=True)
    return table.assign(strongest=~table["trained"].duplicated())


def few_labels_accuracy(cells: pd.DataFrame, labels_per_class: int) -> pd.Series:
    """Of each cell the mean test accuracy over the draws of so many labels per class; NaN where there are none."""

    def mean(draws: list[dict[str, Any]]) -> float:
        found = [row["test_accuracy"] for row in draws if row["labels_per_class"] == labels_per_class]
        return float(np.mean(found)) if found else math.nan

    return cells["by_labels"].map(mean).astype(float)


def curve(cells: pd.DataFrame, key: str, x: str) -> pd.DataFrame:
    """Test accuracy against something that was varied within cells.

    Args:
        cells: of one data set and protocol.
        key: `by_dimension` or `by_labels`.
        x: what was varied: `dimension` or `labels_per_class`.

    Returns:
        `system`, x, `accuracy` (mean over draws, then over seeds), `low` and `high` (the lowest and the highest of
        all seeds and draws), `seeds`; ordered by system and x.
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
