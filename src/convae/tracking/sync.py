"""Adding to MLflow what DVC and git have recorded."""

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

Homes = list[tuple[Execution, Place]]  # an execution with each place that records it, the oldest place first


class Table(NamedTuple):
    """An MLflow experiment: its runs by key, how to add a run, and how to update the note on where its results are."""

    experiment: str
    known: "dict[str, Recorded]"
    add: Callable[[Execution, Place, Path], None]
    describe: Callable[[str, Execution, Place], None]


def sync(records: Records) -> tuple[int, int]:
    """Add the runs and rows that MLflow lacks, from every dvc.lock in the repository; return how many of each.

    Existing ones stay as they are, except for the note on how to restore their results.

    Raises:
        ConvaeError: dvc.lock in the workspace can't be read.
        Exception: any error of MLflow or its database.
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
    for table, kept in ((stages, kept_stages), (rows, kept_rows)):
        for key in table.known.keys() - kept.keys():
            tags = table.known[key].data.tags
            if tags.get(REPOSITORY) == this_repository() and tags.get(COMMAND) != GONE:
                records.forget_place(table.known[key])
    return added


def _bring(records: Records, table: Table, kept: Mapping[str, Homes]) -> int:
    """Bring a table up to date; return the number of runs added."""
    added = 0
    for key, homes in tqdm(kept.items(), "Recording", leave=False, disable=None):
        with one_at_a_time():  # for one run at a time, so that stages can record theirs in between
            run = table.known.get(key) or records.find(table.experiment, key)
            if run is None:
                execution, place = _whole(homes)
                with place.folder() as folder:
                    table.add(execution, place, folder)
                added += 1
            elif _is_elsewhere(run, homes):
                table.describe(run.info.run_id, *homes[0])
    return added


def _by_key(records: Records, experiment: str) -> "dict[str, Recorded]":
    """Return the oldest run of each key.

    Two machines that sync to one server at the same time add the same run twice: the younger one is removed, unless a
    stage was really executed for it.
    """
    oldest: dict[str, Recorded] = {}
    for run in every_run(records.client, experiment):
        key = run.data.tags.get(KEY)
        if key and oldest.setdefault(key, run) is not run and run.data.tags.get(ORIGIN, RESTORED) == RESTORED:
            records.remove(run.info.run_id)
    return oldest


def _whole(homes: Homes) -> tuple[Execution, Place]:
    """Find the first home whose reports/ has all files of the execution. They may be committed later than dvc.lock."""
    hashes = {**homes[0][0].inputs, **homes[0][0].outputs}
    wanted = [path for path in hashes if path.startswith(REPORTS)]
    for execution, place in homes if wanted else []:
        with place.folder() as folder:
            files = files_in(folder, hashes)
        if all(any(file.is_relative_to(path) for file in files) for path in wanted):
            return execution, place
    return homes[0]


def _is_elsewhere(run: "Recorded", homes: Homes) -> bool:
    commands = {place.command for _, place in homes if place.command} or {""}  # the workspace only if nothing else
    return run.data.tags.get(COMMAND, "") not in commands
