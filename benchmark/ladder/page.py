"""The ladder's page: all systems on the same images, splits, readout and classifier."""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmark.ladder import words
from benchmark.ladder.charts import MEANING, accuracy_figure, curves_figure, differences_figure
from benchmark.ladder.statistics import FEW_LABELS, Comparison, cells_table, compare, rows_of
from convae.reporting.drawing import save_figure, style
from convae.reporting.page import Picture, embed, percent, signed, write_page

TEMPLATE = Path(__file__).with_name("ladder.html")
ALL, FEW = "all labels", f"{FEW_LABELS} labels per class"


def write_ladder(rows: Sequence[Mapping[str, Any]], page: Path) -> None:
    """Write the page; the same rows give the same bytes.

    Args:
        rows: content of reports/ladder.json, one a cell: a system trained with one seed. What they lack yet, the page
            lacks too.
        page: the HTML file.
    """
    cells = cells_table(rows)
    comparisons = compare(cells)
    datasets = [comparison.dataset for comparison in comparisons]
    with style():
        sections = []
        for position, comparison in enumerate(comparisons):
            several = datasets.count(comparison.dataset) > 1
            which = datasets[: position + 1].count(comparison.dataset)
            title = f"{comparison.dataset}, protocol {which}" if several else comparison.dataset
            sections.append({"title": title, **_section(comparison, f"ladder-{position + 1}")})
    write_page(page, TEMPLATE, sections=sections, unmeasured=len(rows) - len(cells), meaning=MEANING)


def _section(comparison: Comparison, identifier: str) -> dict[str, Any]:
    """What the template shows of one data set and protocol."""
    measured = {ALL: comparison.differences, FEW: comparison.few_labels_differences}
    differences = {measure: table for measure, table in measured.items() if len(table)}
    by_labels = comparison.by_labels
    return {
        "id": identifier,
        "protocol": comparison.protocol,
        "headlines": words.headlines(comparison),
        "tiles": list(_tiles(comparison)),
        "systems": _records(comparison.systems),
        "differences": {measure: _records(table) for measure, table in differences.items()},
        "label_counts": sorted(by_labels["labels_per_class"].unique()),
        "by_labels": {
            system: {row["labels_per_class"]: row for row in _records(line)}
            for system, line in by_labels.groupby("system")
        },
        "charts": [
            (sentence, Picture(f"{identifier}-{name}", figure, title, caption), *_drawn(figure))
            for name, figure, title, sentence, caption in _charts(comparison, differences)
        ],
    }


def _charts(
    comparison: Comparison, differences: dict[str, pd.DataFrame]
) -> Iterator[tuple[str, Figure, str, str, str]]:
    """Of each chart for which there is data: name, figure, title, the sentence above it and the caption below."""
    rows = words.strongest(comparison.differences)
    pairs = list(dict.fromkeys(name for row in rows_of(rows) for name in (row.trained, row.system)))
    trained = list(rows["trained"])
    objectives = dict(zip(comparison.systems["system"], comparison.systems["objective"], strict=True))
    yield (
        "systems",
        accuracy_figure(comparison.systems, trained),
        "All systems",
        words.highest_sentence(comparison),
        "Test accuracy: dots are means over seeds, bars 95 % intervals.",
    )
    if differences:
        yield (
            "differences",
            differences_figure(list(differences.items())),
            "What training adds",
            words.differences_sentence(comparison),
            "The trained system minus each of its untrained controls, with the same seeds: above zero, training has "
            "helped. Bars are 95 % intervals; a hollow dot means that the difference may be zero.",
        )
    if len(comparison.by_dimension):
        yield (
            "dimension",
            curves_figure(comparison.by_dimension, "dimension", "dimensions of the features", 4, objectives, trained),
            "Accuracy and dimension",
            words.dimension_sentence(comparison, pairs),
            "The features projected on their first principal components; the last dot of a line is their full width. "
            f"Means over {words.measured_seeds(comparison.by_dimension)}, so that they may differ from the table's.",
        )
    if len(comparison.by_labels):
        yield (
            "labels",
            curves_figure(
                comparison.by_labels, "labels_per_class", "labels per class", 10, objectives, trained, ranges=True
            ),
            "Accuracy and labels",
            words.labels_sentence(comparison, pairs),
            "Dots are means over draws of the labelled images and over "
            f"{words.measured_seeds(comparison.by_labels)}, lines the range of all draws and seeds.",
        )


def _drawn(figure: Figure) -> tuple[str, int]:
    file = BytesIO()
    save_figure(figure, file)
    return embed(file.getvalue())


def _tiles(comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """The few numbers that come first: of each a name, the number, and what belongs to it."""
    for measure, table in ((ALL, comparison.differences), (FEW, comparison.few_labels_differences)):
        for row in rows_of(words.strongest(table)):
            interval = "no interval" if row.seeds == 1 else f"{signed(row.low)} to {signed(row.high)}"
            more = f"{row.trained} over {row.system}; {interval}, {words.seeds(row.seeds)}"
            yield f"Training adds, {measure}", f"{signed(row.difference)} points", more
    for name, chosen in (
        ("Highest without labels", comparison.systems["objective"] != "classify"),
        ("Highest with labels", comparison.systems["objective"] == "classify"),
    ):
        for row in rows_of(comparison.systems[chosen].head(1)):
            yield name, percent(row.accuracy), row.system


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None for what is missing."""
    records: list[dict[str, Any]] = table.astype(object).where(table.notna(), None).to_dict("records")  # type: ignore[assignment]
    return records
