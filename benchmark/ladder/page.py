"""Write reports/ladder.json and reports/ladder.html from the cells measured so far."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmark.ladder.charts import MEANING, accuracy_figure, curves_figure, differences_figure
from benchmark.ladder.parameters import CELLS, COMMITS, GROUPS, SECONDS, load_settings
from benchmark.ladder.rows import ladder_row
from benchmark.ladder.statistics import FEW_LABELS, Comparison, cells_table, compare, rows_of
from convae.files import read_json, write_json
from convae.reporting.drawing import save_figure, style
from convae.reporting.page import Exhibit, embed, percent, signed, write_page

TEMPLATE = Path(__file__).with_name("ladder.html")
ROWS = Path("reports/ladder.json")
ALL, FEW = "all labels", f"{FEW_LABELS} labels per class"


def main() -> None:
    """Write both files."""
    settings, commits, seconds = load_settings(), read_json(COMMITS), read_json(SECONDS)
    names = sorted(path.relative_to(CELLS).with_suffix("").as_posix() for path in CELLS.glob("*/*.json"))
    rows = [
        ladder_row(read_json(CELLS / f"{name}.json"), settings, commits[name], seconds.get(name, {})) for name in names
    ]
    write_json(ROWS, rows)
    write_ladder(rows, ROWS.with_suffix(".html"), missing_cells(settings, names))


def missing_cells(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, list[str]]:
    """What is not measured yet: for each data set, its systems, with the number of seeds that are missing.

    A data set of which nothing was measured counts only if it is part of the whole comparison, not of the quick one.

    Args:
        settings: content of ladder.yaml.
        names: the cells that exist, such as `digits/default-0`.
    """
    missing: dict[str, list[str]] = {}
    for group in GROUPS:
        for dataset in settings[group]["datasets"]:
            if group == "quick" and not any(name.startswith(f"{dataset}/") for name in names):
                continue
            for system in settings[group]["systems"]:
                seeds = [seed for seed in settings[group]["seeds"] if f"{dataset}/{system}-{seed}" not in names]
                if seeds:
                    missing.setdefault(dataset, []).append(f"{system} ({_seeds(len(seeds))})")
    return missing


def write_ladder(
    rows: Sequence[Mapping[str, Any]], page: Path, missing: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> None:
    """Write the page; the same rows give the same bytes.

    Args:
        rows: content of reports/ladder.json: a row for each system and seed. The page omits what they lack.
        page: the HTML file.
        missing: for each data set, what is not measured yet.
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
    write_page(
        page,
        TEMPLATE,
        sections=sections,
        commits=sorted({row["commit"] for row in rows if row.get("commit")}),
        unmeasured=len(rows) - len(cells),
        missing=missing,
        meaning=MEANING,
    )


def _section(comparison: Comparison, identifier: str) -> dict[str, Any]:
    """The template's values for one data set and protocol."""
    measured = {ALL: comparison.differences, FEW: comparison.few_labels_differences}
    differences = {measure: table for measure, table in measured.items() if len(table)}
    by_labels = comparison.by_labels
    codes = {system: _records(line)[:-1] for system, line in comparison.by_dimension.groupby("system")}
    return {
        "id": identifier,
        "protocol": comparison.protocol,
        "tiles": list(_tiles(comparison, differences)),
        "systems": _records(comparison.systems),
        "differences": {measure: _records(table) for measure, table in differences.items()},
        "codes": {system: {row["dimension"]: row["accuracy"] for row in line} for system, line in codes.items()},
        "code_lengths": sorted({row["dimension"] for line in codes.values() for row in line}),
        "label_counts": sorted(by_labels["labels_per_class"].unique()),
        "by_labels": {
            system: {row["labels_per_class"]: row for row in _records(line)}
            for system, line in by_labels.groupby("system")
        },
        "charts": [
            (Exhibit(f"{identifier}-{name}", figure, title, caption), *_drawn(figure))
            for name, figure, title, caption in _charts(comparison, differences)
        ],
    }


def _charts(comparison: Comparison, differences: dict[str, pd.DataFrame]) -> Iterator[tuple[str, Figure, str, str]]:
    """Name, figure, title and caption of each chart that has data."""
    systems = comparison.systems
    trained = list(comparison.differences["trained"].unique())
    objectives = dict(zip(systems["system"], systems["objective"], strict=True))
    yield (
        "systems",
        accuracy_figure(systems, trained),
        "All systems",
        "Test accuracy: dots are means over seeds, bars 95 % intervals.",
    )
    if differences:
        yield (
            "differences",
            differences_figure(list(differences.items())),
            "What training adds",
            "The trained system minus each of its untrained controls, with the same seeds: above zero, training has "
            "helped. Bars are 95 % intervals; a hollow dot means that the difference may be zero.",
        )
    codes = comparison.by_dimension
    if len(codes):
        charted = codes["system"].isin([*comparison.by_labels["system"], *trained])
        codes = codes[charted] if charted.any() else codes
        yield (
            "dimension",
            curves_figure(codes, "dimension", "numbers per image", 4, objectives, trained),
            "Accuracy and dimension",
            "Compact codes of several lengths; the last dot of a line is the features themselves. At equal dimension, "
            f"the higher curve has the better features. Means over {_seeds_of(codes)}.",
        )
    if len(comparison.by_labels):
        yield (
            "labels",
            curves_figure(
                comparison.by_labels, "labels_per_class", "labels per class", 10, objectives, trained, ranges=True
            ),
            "Accuracy and labels",
            "Features matter most where labels are few, at the left. Dots are means over draws of the labelled images "
            f"and over {_seeds_of(comparison.by_labels)}, lines the range of all draws and seeds.",
        )


def _drawn(figure: Figure) -> tuple[str, int]:
    file = BytesIO()
    save_figure(figure, file)
    return embed(file.getvalue())


def _tiles(comparison: Comparison, differences: dict[str, pd.DataFrame]) -> Iterator[tuple[str, str, str]]:
    """The main numbers: name, number, and a line below it."""
    for measure, table in differences.items():
        for row in rows_of(table[table["strongest"]]):
            interval = "no interval" if row.seeds == 1 else f"{signed(row.low)} to {signed(row.high)}"
            below = f"{row.trained} over {row.system}; {interval}, {_seeds(row.seeds)}"
            yield f"Training adds, {measure}", f"{signed(row.difference)} points", below
    for name, chosen in (
        ("Highest without labels", comparison.systems["objective"] != "classify"),
        ("Highest with labels", comparison.systems["objective"] == "classify"),
    ):
        for row in rows_of(comparison.systems[chosen].head(1)):
            yield name, percent(row.accuracy), row.system


def _seeds(count: int) -> str:
    return f"{count} seed{'' if count == 1 else 's'}"


def _seeds_of(points: pd.DataFrame) -> str:
    """How many seeds the points of a `curve` have: `1 seed`, `1 to 5 seeds`."""
    fewest, most = points["seeds"].min(), points["seeds"].max()
    return _seeds(most) if fewest == most else f"{fewest} to {_seeds(most)}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None for what is missing."""
    records: list[dict[str, Any]] = table.astype(object).where(table.notna(), None).to_dict("records")  # type: ignore[assignment]
    return records


if __name__ == "__main__":
    main()
