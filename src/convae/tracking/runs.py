"""Recording each stage execution as a run in MLflow. No result depends on it, and its errors never stop a stage."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, cast

from convae.errors import ConvaeError
from convae.history.git import now
from convae.params import Params
from convae.tracking.context import process_tags, user_tags
from convae.tracking.store import SQLITE, WARNING, ending, store_uri

# Seconds that a stage waits for its recorder to end. A server may be dead; creating a database's tables takes a while.
SERVER_PATIENCE = 10.0
SQLITE_PATIENCE = 120.0
# Messages from the recorder.
HASHING, FAILED = b"hashing\n", b"failed: "
LONGEST_PROBLEM = 600  # characters; writes of up to 4096 bytes to a pipe are atomic, so no message is cut in two


class Run:
    """The run of one stage execution, written by a recorder process. No method fails, and only `close` waits."""

    _recorder: "subprocess.Popen[bytes] | None" = None

    def __init__(self, stage: str, params: Params, text: str | None = None) -> None:
        """Start the recorder; with tracking off, do nothing here or later."""
        self._stage = stage
        uri = store_uri(params.tracking)
        if uri is None:
            return
        self._patience = SQLITE_PATIENCE if uri.startswith(SQLITE) else SERVER_PATIENCE
        self._process = process_tags()
        # Import this workspace's package: under `dvc exp run --temp` the installed one is another copy.
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self._recorder = subprocess.Popen(
                [sys.executable, "-m", "convae.tracking.recorder"],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C must stop the stage only: the recorder still records it
            )
        except OSError as error:  # too many processes, or no memory
            self._warn(str(error))
            return
        self._messages = cast("IO[bytes]", self._recorder.stdin)
        self._signs = cast("IO[bytes]", self._recorder.stdout)
        # Through the pipe, not as arguments, which every user can read: the address may contain a password.
        tags = {**self._process, **user_tags(), "threads": str(params.train.threads)}
        experiment = params.tracking.experiment
        self._tell(uri=uri, experiment=experiment, stage=stage, params=text, began=now(), tags=tags)
        os.set_blocking(self._messages.fileno(), False)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record metrics at `step`; pass all metrics of a step in one call."""
        self._tell(metrics={name: float(value) for name, value in metrics.items()}, step=step)

    def log_row(self, row: Mapping[str, float]) -> None:
        """Record a row of the history of a training; its `point` becomes the step."""
        numbers = dict(row)
        step = int(numbers.pop("point"))
        self.log_metrics(numbers, step)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags of the run, replacing those of the same name."""
        self._tell(tags={name: str(value) for name, value in tags.items()})

    def close(self, status: str, problem: str = "") -> None:
        """End the run with MLflow's `status` (FINISHED, FAILED or KILLED) and wait until it is recorded.

        Ctrl-C and SIGTERM end the wait, but not the stage: its work is done.
        """
        recorder = self._recorder
        if recorder is None:
            return
        try:
            reason = self._wait(recorder, status, problem)
        except (KeyboardInterrupt, SystemExit):
            reason = "interrupted"
        with _on_sigterm(signal.SIG_IGN):
            if recorder.poll() is None:
                recorder.kill()
                recorder.wait()
            if recorder.returncode:
                self._warn(reason)
                self._leave_word(status)
            self._messages.close()
            self._signs.close()

    def _wait(self, recorder: "subprocess.Popen[bytes]", status: str, problem: str) -> str:
        """Send the status, wait for the recorder to end, and return the reason if it failed or was too slow."""
        start = time.monotonic()
        select.select([], [self._messages], [], self._patience)  # until the pipe has room for the last message
        self._tell(status=status, problem=problem[:LONGEST_PROBLEM])
        left = self._patience - (time.monotonic() - start)
        if not select.select([self._signs], [], [], max(0.0, left))[0]:
            return "no answer in time"
        left = self._patience - (time.monotonic() - start)
        said = self._signs.readline()
        if said == HASHING:  # no limit: DVC would have to hash the outputs anyway, and reuses the hashes
            said = self._signs.readline()
        try:
            recorder.wait(max(0.0, left))
        except subprocess.TimeoutExpired:
            return "no answer in time"
        _, failed, reason = (said + self._signs.read()).partition(FAILED)
        return reason.decode(errors="replace").strip() if failed else "its recorder died"

    def _leave_word(self, status: str) -> None:
        """Leave the status in a file: `Records.close_vanished` reads it when it finds the run still open."""
        word = ending(self._process)
        with suppress(OSError):
            word.parent.mkdir(parents=True, exist_ok=True)
            word.write_text(status, "utf-8")

    def _warn(self, reason: str) -> None:
        print(WARNING.format(self._stage, reason), file=sys.stderr, flush=True)

    def _tell(self, **message: Any) -> None:
        if self._recorder is not None:
            # The pipe is full if the recorder waits for a server, and closed if it failed. `convae sync` adds the rest.
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(self._messages.fileno(), json.dumps(message).encode() + b"\n")


@contextmanager
def start_run(stage: str, params: Params, text: str | None = None) -> Iterator[Run]:
    """Record the block as a run of `stage` in the experiment `<tracking.experiment>-stages`.

    The run ends as FINISHED, as FAILED on an exception, or as KILLED on Ctrl-C and SIGTERM. Within the block SIGTERM
    raises SystemExit with code 143.

    Args:
        stage: the stage's name in dvc.yaml.
        params: its parameters.
        text: params.yaml as `params` were read from it, because the file may be edited at any time; None if they come
            from elsewhere.
    """
    with _on_sigterm(_terminate):
        run = Run(stage, params, text)
        try:
            yield run
        except (KeyboardInterrupt, SystemExit):
            with _on_sigterm(signal.SIG_IGN):  # a second signal must not keep the run from being closed
                run.close("KILLED")
            raise
        except BaseException as error:
            run.close("FAILED", str(error) if isinstance(error, ConvaeError) else f"{type(error).__name__}: {error}")
            raise
        run.close("FINISHED")


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Raise at every signal: if a library swallows the first exception, the next one still ends the stage."""
    raise SystemExit(128 + signum)


@contextmanager
def _on_sigterm(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
