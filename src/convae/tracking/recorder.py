"""The process that records a stage in MLflow, so that MLflow's imports and a slow store cost the stage no time.

It reads lines of JSON from stdin. The first says where to record and which stage, the last how the stage ended; if the
last is missing, the stage was killed. On stdout the recorder tells the stage when it starts and ends hashing outputs,
and why recording failed. The stage prints that reason once its progress bars are gone.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from convae.history.git import Place, now, workspace
from convae.history.lock import Execution, begun, chain, ended, load_stage, reports_in
from convae.tracking.context import context_tags
from convae.tracking.records import Records
from convae.tracking.store import SERVERS, check_answer, import_mlflow, one_at_a_time, presentable

SAMPLING_SECONDS = 5  # between samples of system metrics


def main() -> None:
    """Record the stage at the other end of stdin."""
    gc.disable()  # it finds nothing during the imports, but takes a quarter of their time
    messages = map(json.loads, sys.stdin)
    first = next(messages, None)
    if first is None:  # the stage died before its first message
        return
    code = 0
    with _own_stdout() as signs:
        try:
            _record(messages, signs, **first)
        except Exception as error:  # any at all: nothing may disturb the stage
            print(f"failed: {presentable(error)}", file=signs, flush=True)
            code = 1
    # Everything is written. The libraries' exit handlers would take a second, or forever if a connection hangs.
    os._exit(code)


def _record(
    messages: Iterator[dict[str, Any]],
    signs: TextIO,
    uri: str,
    experiment: str,
    stage: str,
    params: str | None,
    began: int,
    tags: dict[str, str],
) -> None:
    if uri.startswith(SERVERS):
        check_answer(uri)
    # Without pandas, which nothing here needs, MLflow starts in two thirds of the time.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    import_mlflow()
    place = workspace(began)
    definition = load_stage(stage)
    execution = begun(definition, params)
    records = Records(uri, experiment)
    gc.freeze()
    gc.enable()
    records.close_vanished()
    _add_missing(records, execution, place)
    run_id = records.begin(execution, place, tags | context_tags())
    with _system_metrics(run_id, uri):
        end = _follow(messages, records, run_id)
    if end is None:
        records.client.set_terminated(run_id, "KILLED")
        return
    if end["problem"]:
        records.log(run_id, tags={"problem": end["problem"]})
    if end["status"] == "FINISHED":
        print("hashing", file=signs, flush=True)
        execution, place = ended(execution, definition), replace(place, time=now())
        print("hashed", file=signs, flush=True)
        records.complete(run_id, execution, place, Path())
        _add_row(records, execution, place)
    records.client.set_terminated(run_id, end["status"])


def _follow(messages: Iterator[dict[str, Any]], records: Records, run_id: str) -> dict[str, Any] | None:
    """Record the stage's messages; return the last one, which has its status, or None if the stage was killed."""
    from mlflow.entities import Metric

    there = records.epochs(run_id)  # a resumed training reports its earlier epochs again
    for message in messages:
        if "status" in message:
            return message
        metrics = [
            Metric(name, value, now(), message["step"])
            for name, value in message.get("metrics", {}).items()
            if (name, message["step"], value) not in there
        ]
        records.log(run_id, tags=message.get("tags"), metrics=metrics)
    return None


def _add_missing(records: Records, execution: Execution, place: Place) -> None:
    """Record the executions that this stage builds on if they are missing, because DVC restored their results."""
    with one_at_a_time():
        for producer in chain(place.executions, execution):
            if records.find(records.stages, producer.key) is None:
                records.restore(producer, place, Path())


def _add_row(records: Records, execution: Execution, place: Place) -> None:
    with one_at_a_time():
        for report in reports_in({execution.stage: execution}):
            if records.find(records.rows, report.experiment_key) is None:
                records.add_row(report, place, Path())


@contextmanager
def _system_metrics(run_id: str, uri: str) -> Iterator[None]:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        run_id, SAMPLING_SECONDS, samples_before_logging=1, resume_logging=True, tracking_uri=uri
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


@contextmanager
def _own_stdout() -> Iterator[TextIO]:
    """Reserve stdout for the recorder's messages; discard what libraries print there and on stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout, Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        yield stdout


if __name__ == "__main__":
    main()
