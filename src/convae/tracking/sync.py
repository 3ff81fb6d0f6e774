"""Bringing MLflow up to what DVC and git know."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from convae.history.git import Place, places
from convae.history.lock import REPORTS, Execution, ordered, reports_in
from convae.tracking.facts import files_in
from convae.tracking.moving import REPOSITORY
from convae.tracking.records import COMMAND, KEY, ORIGIN, RESTORED, Records, this_repository
from convae.tracking.store import every_run, one_at_a_time
from convae.tracking.wording import GONE

if TYPE_CHECKING:
    from mlflow.entities import Run as Recorded

Homes = list[tuple[Execution, Place]]  # where an execution is kept, the oldest place first


class Table(NamedTuple):
    """An experiment of MLflow: what it has by key, and how something is added to it or told where it is kept."""

    experiment: str
    known: "dict[str, Recorded]"
    add: Callable[[Execution, Place, Path], None]
    describe: Callable[[str, Execution, Place], None]


def sync(records: Records) -> tuple[int, int]:
    """Create the runs and rows that are missing from any dvc.lock of the repository; gives their numbers.

    What is recorded already is only told where it is kept now.

    Raises:
        ConvaeError: dvc.lock in the workspace can't be read.
        Exception: whatever MLflow and what lies under it come up with.
    """
    records.close_vanished()
    stages = Table(records.stages, _by_key(records, records.stages), records.restore, records.describe_run)
    rows = Table(records.rows, _by_key(records, records.rows), records.add_row, records.describe_row)
    kept_stages: defaultdict[str, Homes] = defaultdict(list)
    kept_rows: defaultdict[str, Homes] = defaultdict(list)
    for place in tqdm(places(), "Reading dvc.lock", unit=" states", leave=False, disable=None):
        for execution in ordered(place.executions):
            kept_stages[execution.key].append((execution, place))
        for report in reports_in(place.executions):
            kept_rows[report.experiment_key].append((report, place))
    added = _bring(records, stages, kept_stages), _bring(records, rows, kept_rows)
    for key, row in rows.known.items():
        tags = row.data.tags
        if key not in kept_rows and tags.get(REPOSITORY) == this_repository() and tags.get(COMMAND) != GONE:
            records.forget_place(row)
    return added


def _bring(records: Records, table: Table, kept: Mapping[str, Homes]) -> int:
    """Bring a table up to date; gives the number of entries added."""
    added = 0
    for key, homes in tqdm(kept.items(), "Recording", leave=False, disable=None):
        with one_at_a_time():
            run = table.known.get(key) or records.find(table.experiment, KEY, key)
            if run is None:
                execution, place = _whole(homes)
                with place.folder() as folder:
                    table.add(execution, place, folder)
                added += 1
            elif _is_elsewhere(run, homes):
                table.describe(run.info.run_id, *homes[0])
    return added


def _by_key(records: Records, experiment: str) -> "dict[str, Recorded]":
    """The oldest run of each key. A younger one that nobody executed is a double, written from two machines."""
    oldest: dict[str, Recorded] = {}
    for run in every_run(records.client, experiment):
        key = run.data.tags.get(KEY)
        if key and oldest.setdefault(key, run) is not run and run.data.tags.get(ORIGIN, RESTORED) == RESTORED:
            records.remove(run.info.run_id)
    return oldest


def _whole(homes: Homes) -> tuple[Execution, Place]:
    """The first home with all files of reports/ that are meant; these may have been committed after dvc.lock."""
    hashes = {**homes[0][0].inputs, **homes[0][0].outputs}
    meant = [path for path in hashes if path.startswith(REPORTS)]
    for execution, place in homes if meant else []:
        with place.folder() as folder:
            files = files_in(folder, hashes)
        if all(any(file.is_relative_to(path) for file in files) for path in meant):
            return execution, place
    return homes[0]


def _is_elsewhere(run: "Recorded", homes: Homes) -> bool:
    commands = {place.command for _, place in homes if place.command} or {""}  # rather than the workspace
    return run.data.tags.get(COMMAND, "") not in commands
