"""Each execution of a stage as a run in MLflow: a view of what happened, on which nothing depends."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from convae.errors import ConvaeError
from convae.params import Params, flatten
from convae.tracking.background import Background
from convae.tracking.context import context_tags
from convae.tracking.store import SQLITE, import_mlflow, open_store, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

# How long a stage waits for its records in all. A server may be dead; a database's first tables take a while.
SERVER_PATIENCE = 12.0
SQLITE_PATIENCE = 120.0


class Run:
    """One stage execution. No method fails or blocks for long; before `open` none does anything."""

    _background: Background | None = None
    _client: "MlflowClient"
    _run_id: str

    def open(self, stage: str, params: Params) -> None:
        """Begin the run in MLflow with its parameters and what surrounds it; nothing with tracking off."""
        uri = store_uri(params.tracking)
        if uri is not None:
            patience = SQLITE_PATIENCE if uri.startswith(SQLITE) else SERVER_PATIENCE
            self._background = Background(f"{stage}: no longer recorded in MLflow", patience)
            # Waited for, so that MLflow's imports are over before the stage begins its own.
            self._background.submit(import_mlflow).wait()
            self._submit(lambda: self._create(uri, stage, params), wait=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers, all of one epoch in one call, at `step`."""
        values, now = dict(metrics), _milliseconds()

        def log() -> None:
            from mlflow.entities import Metric

            entries = [Metric(name, float(value), now, step) for name, value in values.items()]
            self._client.log_batch(self._run_id, metrics=entries, synchronous=True)

        self._submit(log)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Record words about the run; a tag of the same name is replaced."""
        values = dict(tags)

        def log() -> None:
            from mlflow.entities import RunTag

            entries = [RunTag(name, str(value)) for name, value in values.items()]
            self._client.log_batch(self._run_id, tags=entries, synchronous=True)

        self._submit(log)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, under `folder`; once this returns the file may be moved."""
        self._submit(lambda: self._client.log_artifact(self._run_id, str(path), folder), wait=True)

    def close(self, status: str, problem: str | None = None) -> None:
        """Set MLflow's `status` (FINISHED, FAILED or KILLED) once all has been recorded."""
        if problem is not None:
            self.log_tags({"problem": problem})
        self._submit(lambda: self._client.set_terminated(self._run_id, status), wait=True)
        if self._background is not None:
            self._background.end()

    def _create(self, uri: str, stage: str, params: Params) -> None:
        self._client, experiment = open_store(uri, f"{params.tracking.experiment}-stages")
        from mlflow.entities import Param

        tags = context_tags(stage)
        name = " ".join([stage, params.data.dataset, tags.get("dvc.experiment", "")]).strip()
        self._run_id = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        # An address may hold a password, and where a run is recorded says nothing about it.
        written = {key: value for key, value in flatten(params).items() if not key.startswith("tracking.")}
        entries = [Param(key, _as_written(value)) for key, value in written.items()]
        self._client.log_batch(self._run_id, params=entries, synchronous=True)

    def _submit(self, call: Callable[[], Any], wait: bool = False) -> None:
        if self._background is not None:
            done = self._background.submit(call)
            if wait:
                self._background.wait(done)


@contextmanager
def start_run(stage: str, params: Params) -> Iterator[Run]:
    """Record what happens in the block as a run of `stage` in the experiment `<tracking.experiment>-stages`.

    It ends as FINISHED, as FAILED on an exception, or as KILLED on Ctrl-C and SIGTERM, which for the duration
    of the block raises SystemExit with code 143.
    """
    with _sigterm_raises():
        run = Run()
        try:
            run.open(stage, params)
            yield run
        except (KeyboardInterrupt, SystemExit):
            run.close("KILLED")
            raise
        except ConvaeError as error:
            run.close("FAILED", str(error))
            raise
        except BaseException as error:
            run.close("FAILED", f"{type(error).__name__}: {error}")
            raise
        run.close("FINISHED")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def terminate(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not keep the run from being closed
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _as_written(value: Any) -> str:
    """A parameter's value the way params.yaml has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
