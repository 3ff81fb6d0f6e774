"""Bringing MLflow up to what DVC and git know."""

from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from convae.tracking.git import Place, places
from convae.tracking.lock import Execution, ordered, reports_in
from convae.tracking.records import COMMAND, INPUTS_KEY, KEY, NOTE, ORIGIN, RESTORED, VANISHED, Records
from convae.tracking.store import one_at_a_time

if TYPE_CHECKING:
    from mlflow.entities import Run as Recorded


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
        runs = list(records.all(records.stages))
        self._runs = self._by_key(runs)
        self._rows = self._by_key(list(records.all(records.rows)))
        # Broken off by a server, perhaps, while the stage carried on: completed rather than written once more.
        self._vanished = {run.data.tags[INPUTS_KEY]: run.info.run_id for run in runs if VANISHED in run.data.tags}
        self._seen: set[str] = set()

    def run(self) -> None:
        """Create the runs and rows that are missing."""
        for place in tqdm(places(), "Reading dvc.lock", unit=" states", leave=False, disable=None):
            # The first place that has something is the one to bring it back from.
            runs = [one for one in ordered(place.executions) if self._is_new(one.key)]
            rows = [one for one in reports_in(place.executions) if self._is_new(one.experiment_key)]
            if runs or rows:
                with one_at_a_time(), place.folder() as folder:
                    for execution in runs:
                        self._bring_run(execution, place, folder)
                    for report in rows:
                        self._bring_row(report, place, folder)

    def _is_new(self, key: str) -> bool:
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new

    def _bring_run(self, execution: Execution, place: Place, folder: Path) -> None:
        run = self._runs.get(execution.key) or self._records.find(self._records.stages, KEY, execution.key)
        if run is None or VANISHED in run.data.tags:
            self._add_run(execution, place, folder)
        elif run.data.tags.get(COMMAND, "") != place.command:
            tags = {COMMAND: place.command, NOTE: self._records.note(execution, place)}
            self._records.log(run.info.run_id, tags=tags)

    def _add_run(self, execution: Execution, place: Place, folder: Path) -> None:
        vanished = self._vanished.pop(execution.inputs_key, None)
        if vanished is None:
            self._records.restore(execution, place, folder)
        else:
            self._records.complete(vanished, execution, place, folder)
            self._records.client.delete_tag(vanished, VANISHED)
            self._records.client.set_terminated(vanished, "FINISHED")
        self.runs_added += 1

    def _bring_row(self, report: Execution, place: Place, folder: Path) -> None:
        key = report.experiment_key
        row = self._rows.get(key) or self._records.find(self._records.rows, KEY, key)
        if row is None:
            self._records.add_row(report, place, folder)
            self.rows_added += 1
        elif row.data.tags.get(COMMAND, "") != place.command:
            self._records.describe_row(row.info.run_id, report, place)

    def _by_key(self, found: "list[Recorded]") -> "dict[str, Recorded]":
        """The oldest run of each key. A younger one that nobody executed is a double, written from two machines."""
        oldest: dict[str, Recorded] = {}
        for run in found:
            key = run.data.tags.get(KEY)
            if key and oldest.setdefault(key, run) is not run and run.data.tags.get(ORIGIN, RESTORED) == RESTORED:
                self._records.client.delete_run(run.info.run_id)
        return oldest
