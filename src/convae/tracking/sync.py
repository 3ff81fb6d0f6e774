"""Bringing MLflow up to what DVC and git know."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from convae.tracking.facts import files_in
from convae.tracking.git import Place, places
from convae.tracking.lock import REPORTS, Execution, ordered, reports_in
from convae.tracking.records import COMMAND, KEY, ORIGIN, REPOSITORY, RESTORED, Records, this_repository
from convae.tracking.store import one_at_a_time
from convae.tracking.wording import GONE

if TYPE_CHECKING:
    from mlflow.entities import Run as Recorded

Homes = dict[str, list[tuple[Execution, Place]]]  # by key, the oldest place first


class Sync:
    """One pass over every dvc.lock of the repository. What is recorded already is only told where it is kept now.

    Its methods raise whatever MLflow and what lies under it come up with.
    """

    runs_added = 0
    rows_added = 0

    def __init__(self, records: Records) -> None:
        """Find out what is recorded."""
        self._records = records
        records.close_vanished()
        self._runs = self._by_key(records.stages)
        self._rows = self._by_key(records.rows)

    def run(self) -> None:
        """Create the runs and rows that are missing.

        Raises:
            ConvaeError: dvc.lock in the workspace can't be read.
        """
        runs: Homes = {}
        rows: Homes = {}
        for place in tqdm(places(), "Reading dvc.lock", unit=" states", leave=False, disable=None):
            for execution in ordered(place.executions):
                runs.setdefault(execution.key, []).append((execution, place))
            for report in reports_in(place.executions):
                rows.setdefault(report.experiment_key, []).append((report, place))
        for homes in tqdm(runs.values(), "Stages", leave=False, disable=None):
            self._bring_run(homes)
        for homes in tqdm(rows.values(), "Experiments", leave=False, disable=None):
            self._bring_row(homes)
        for key, row in self._rows.items():
            tags = row.data.tags
            if key not in rows and tags.get(REPOSITORY) == this_repository() and tags.get(COMMAND) != GONE:
                self._records.forget_place(row)

    def _bring_run(self, homes: list[tuple[Execution, Place]]) -> None:
        execution, place = homes[0]
        with one_at_a_time():
            run = self._runs.get(execution.key) or self._records.find(self._records.stages, KEY, execution.key)
            if run is None:
                execution, place = _whole(homes, execution.outputs)
                with place.folder() as folder:
                    self._records.restore(execution, place, folder)
                self.runs_added += 1
            elif _is_elsewhere(run, homes):
                self._records.describe_run(run.info.run_id, execution, place)

    def _bring_row(self, homes: list[tuple[Execution, Place]]) -> None:
        report, place = homes[0]
        key = report.experiment_key
        with one_at_a_time():
            row = self._rows.get(key) or self._records.find(self._records.rows, KEY, key)
            if row is None:
                report, place = _whole(homes, report.inputs)
                with place.folder() as folder:
                    self._records.add_row(report, place, folder)
                self.rows_added += 1
            elif _is_elsewhere(row, homes):
                self._records.describe_row(row.info.run_id, report, place)

    def _by_key(self, experiment: str) -> "dict[str, Recorded]":
        """The oldest run of each key. A younger one that nobody executed is a double, written from two machines."""
        oldest: dict[str, Recorded] = {}
        for run in self._records.all(experiment):
            key = run.data.tags.get(KEY)
            if key and oldest.setdefault(key, run) is not run and run.data.tags.get(ORIGIN, RESTORED) == RESTORED:
                self._records.remove(run.info.run_id)
        return oldest


def _whole(homes: list[tuple[Execution, Place]], hashes: Mapping[str, str]) -> tuple[Execution, Place]:
    """The first home with all files of reports/ that are meant; these may have been committed after dvc.lock."""
    meant = {path for path in hashes if path.startswith(REPORTS)}
    for execution, place in homes if meant else []:
        with place.folder() as folder:
            files = files_in(folder, hashes)
        if all(any(file.is_relative_to(Path(path)) for file in files) for path in meant):
            return execution, place
    return homes[0]


def _is_elsewhere(run: "Recorded", homes: list[tuple[Execution, Place]]) -> bool:
    commands = {place.command for _, place in homes if place.command} or {""}  # rather than the workspace
    return run.data.tags.get(COMMAND, "") not in commands
