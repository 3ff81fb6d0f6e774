"""Names, tags and notes of runs."""

import posixpath
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convae.history.git import Place, lock_at
from convae.history.lock import Execution, Executions, chain, reports_in, written
from convae.names import code

if TYPE_CHECKING:
    from mlflow.entities import Run as Recorded

GONE = "gone"  # in place of a command, if nothing restores the results any more
SHOWN_CHANGES = 3
LONGEST_TAG = 250


def all_params(executions: Executions, report: Execution) -> dict[str, Any]:
    """Return all parameters of an experiment, from its report and the stages behind it.

    Example:
        >>> train = Execution("train", {"seed": 0}, {"data": "1"}, {"model": "2"})
        >>> report = Execution("report", {"classifier.kind": "ridge"}, {"model": "2"})
        >>> all_params({"train": train, "report": report}, report)
        {'seed': 0, 'classifier.kind': 'ridge'}
    """
    return {name: value for one in [*chain(executions, report), report] for name, value in one.params.items()}


def row_name(report: Execution, place: Place) -> str:
    """Return the name of a row: the place, and the parameters that differ from its baseline.

    Example:
        >>> row_name(Execution("report", {"seed": 0}, {}), Place("1234567 Larger filters", {}, time=0, command=""))
        '1234567 Larger filters'
    """
    baseline = lock_at(place.baseline) if place.baseline else {}
    before = next(reports_in(baseline), None)
    if before is None:
        return place.name
    old, new = (written(all_params(*pair)) for pair in ((baseline, before), (place.executions, report)))
    changes = [f"{name}={value}" for name, value in new.items() if old.get(name) != value]
    more = ", …" if len(changes) > SHOWN_CHANGES else ""
    return f"{place.name}: {', '.join(changes[:SHOWN_CHANGES])}{more}" if changes else place.name


def hash_tags(prefix: str, hashes: Mapping[str, str]) -> dict[str, str]:
    """Return tags for hashes of inputs or outputs.

    Example:
        >>> hash_tags("output", {"models/encoder": "1234"})
        {'output.models/encoder': '1234'}
    """
    return {tag_name(prefix, path): md5 for path, md5 in hashes.items()}


def tag_name(prefix: str, path: str) -> str:
    """Return a tag name that MLflow allows: certain characters, a normalised path, a limited length.

    Example:
        >>> tag_name("input", "data//raw/a,b.png")
        'input.data/raw/a_b.png'
    """
    allowed = re.sub(r"[^\w./: -]", "_", path)
    return posixpath.normpath(f"{prefix}.{allowed}"[:LONGEST_TAG])


def link(text: str, run: "Recorded | None", page: str = "") -> str:
    """Return a Markdown link to a run or one of its pages; without a run, the text alone.

    Example:
        >>> link("a|b", None)
        'a\\\\|b'
    """
    text = re.sub(r"([\\\[\]<&|])", r"\\\1", text)
    if run is None:
        return text
    return f"[{text}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{page})"


def way_back(command: str) -> str:
    """Return Markdown that says how to restore results; an empty command means that only the workspace has them.

    Example:
        >>> way_back("dvc exp apply first"), way_back("")
        ('Restore it with `dvc exp apply first`', 'In the workspace, not committed yet.')
    """
    if command == GONE:
        return "No longer reachable from any commit or experiment."
    return f"Restore it with {code(command)}" if command else "In the workspace, not committed yet."
