"""How runs are called, and what they say about themselves."""

import posixpath
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convae.history.git import Place, lock_at
from convae.history.lock import Execution, Executions, chain, reports_in, written

if TYPE_CHECKING:
    from mlflow.entities import Run as Recorded

GONE = "gone"  # stands for the command that brings a row back, where none does
SHOWN_CHANGES = 3
LONGEST_TAG = 250


def all_params(executions: Executions, report: Execution) -> dict[str, Any]:
    """The parameters of an experiment: those that it reports, and others of the stages behind it."""
    return {name: value for one in [*chain(executions, report), report] for name, value in one.params.items()}


def row_name(report: Execution, place: Place) -> str:
    """The place's name, and what sets an experiment's parameters apart."""
    baseline = lock_at(place.baseline) if place.baseline else {}
    before = next(reports_in(baseline), None)
    if before is None:
        return place.name
    old, new = (written(all_params(*pair)) for pair in ((baseline, before), (place.executions, report)))
    changes = [f"{name}={value}" for name, value in new.items() if old.get(name) != value]
    more = ", …" if len(changes) > SHOWN_CHANGES else ""
    return f"{place.name}: {', '.join(changes[:SHOWN_CHANGES])}{more}" if changes else place.name


def hash_tags(prefix: str, hashes: Mapping[str, str]) -> dict[str, str]:
    """Tags with the hashes of inputs or outputs, which go by path."""
    return {tag_name(prefix, path): md5 for path, md5 in hashes.items()}


def tag_name(prefix: str, path: str) -> str:
    """What MLflow allows: certain characters, no detour in the path, a limited length."""
    allowed = re.sub(r"[^\w./: -]", "_", path)
    return posixpath.normpath(f"{prefix}.{allowed}"[:LONGEST_TAG])


def link(text: str, run: "Recorded | None", page: str = "") -> str:
    """In Markdown: a link to a run, or to a page of it, where there is one; its text stays text."""
    text = re.sub(r"([\\\[\]<&|])", r"\\\1", text)
    if run is None:
        return text
    return f"[{text}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{page})"


def code(text: str) -> str:
    """In Markdown: words as they are."""
    return "`" + re.sub(r"[`|]", "_", text) + "`"


def way_back(command: str) -> str:
    """In Markdown: what brings results back; the command is empty where they are in the workspace alone."""
    if command == GONE:
        return "Kept nowhere any more."
    return f"Bring it back: {code(command)}" if command else "In the workspace, not committed yet."
