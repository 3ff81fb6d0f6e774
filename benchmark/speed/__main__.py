"""`make benchmark`: measure, print the table and write it to reports/benchmark.json and reports/benchmark.md."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch

from benchmark.speed.measuring import REPOSITORY, Row
from convae.environment import environment
from convae.files import new_file, read_json, write_json

GROUPS = [
    "feeding",
    "training",
    "processes",
    "busy",
    "extraction",
    "code",
    "folders",
    "depth",
    "classifier",
    "pipeline",
    "growth",
    "gpu",
]
TABLE, PAGE = REPOSITORY / "reports/benchmark.json", REPOSITORY / "reports/benchmark.md"

HEAD = """# How fast it is

*Ours* is compared with *the usual way*, a script written with torchvision, a DataLoader, Lightning and scikit-learn,
and with *the limit*, the least code that does the same arithmetic. Contestants run in turn, each in its own process
with two threads; the table shows medians. `make benchmark` repeats the measurement;
[`benchmark/speed/`](../benchmark/speed) is the code.

"""
TAIL = """![Time against arithmetic](benchmark.png)

*Points are measurements. Lines start at the smallest task and are proportional to the arithmetic: pixels for `prepare`,
multiplications and additions in the windows of contrast normalisation, whitening and filters for the other stages. The
ratio in a row of growth is the worst task's time divided by its line.*
"""


def main() -> None:
    """Measure the groups named on the command line (default: all) and keep the rows of the others."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.speed", description=__doc__)
    known = ", ".join(GROUPS)
    parser.add_argument("groups", nargs="*", metavar="group", help=f"what to measure: {known} (default: all)")
    has_gpu = torch.cuda.is_available()
    groups = parser.parse_args().groups or [group for group in GROUPS if has_gpu or group != "gpu"]
    if unknown := ", ".join(sorted(set(groups) - set(GROUPS))):
        parser.error(f"unknown group: {unknown}; choose from {known}")
    if "gpu" in groups and not has_gpu:
        parser.error("gpu: PyTorch finds no CUDA GPU on this machine")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"This machine is busy (load {load:.1f}): ratios will be noisy.", file=sys.stderr)
    for group in groups:
        print(f"{group} ...", file=sys.stderr, flush=True)
        _keep(group, list(import_module(f"benchmark.speed.{group}").rows()))
    print(_markdown(read_json(TABLE)))


def _keep(group: str, rows: Sequence[Row]) -> None:
    """Replace a group's rows in the table; groups are in the order of `GROUPS`."""
    others = [row for row in read_json(TABLE) if row["group"] != group] if TABLE.exists() else []
    about = {"group": group, "machine": _machine()}
    table = others + [about | {name: _rounded(value) for name, value in asdict(row).items()} for row in rows]
    table.sort(key=lambda row: GROUPS.index(row["group"]))
    write_json(TABLE, table)
    with new_file(PAGE) as scratch:
        scratch.write_text(f"{HEAD}{_markdown(table)}\n{_machines(table)}{TAIL}", "utf-8")


def _machine() -> str:
    found = environment()
    packages = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "pytorch-lightning", "scikit-learn"))
    processor = f"{os.cpu_count()} cores of {found['processor']} ({found['instructions']})"
    return f"{processor}, Python {found['python']}; {packages}"


def _machines(table: Sequence[Mapping[str, Any]]) -> str:
    """Where rows were measured; they are kept until their group is measured again."""
    (machine, _), *others = Counter(row["machine"] for row in table).most_common()
    text = f"Measured on {machine}.\n\n"
    for other, _ in others:
        names = "; ".join(row["name"].partition(",")[0] for row in table if row["machine"] == other)
        text += f"Rows measured on {other}: {names}.\n\n"
    return text


def _markdown(table: Sequence[Mapping[str, Any]]) -> str:
    names = ("name", "ours", "usual", "limit", "ratio", "target", "met")
    lines = ["| " + " | ".join(names) + " |", "| --- " + "| ---: " * 5 + "| --- |"]
    for row in table:
        lines.append("| " + " | ".join(_shown(row[name]) for name in names) + " |")
    return "\n".join(lines) + "\n"


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:,.0f}".replace(",", " ") if isinstance(value, float) and value >= 1000 else str(value)


if __name__ == "__main__":
    main()
