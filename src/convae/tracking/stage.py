"""How every script in pipeline/ runs its stage."""

import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout
from threadpoolctl import threadpool_limits

from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.params import Params
from convae.tracking.runs import Run, start_run

LOCK_FOLDER = Path(".convae")
NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS}  # to do with the disk, not with a bug
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def run_stage(name: str, body: Callable[[Params, Run], None]) -> None:
    """Run `body` with the parameters of params.yaml and a run in MLflow.

    A ConvaeError, a full disk or a file that must not be touched ends the process with code 1 and a line on stderr,
    Ctrl-C with 130, SIGTERM with 143. Any other exception is a bug of ours and keeps its traceback.
    """
    end_with_dvc()
    # Lightning runs the script once more for each further device; these share the first one's lock and run.
    is_helper = os.environ.get("LOCAL_RANK", "0") != "0"
    if is_helper:
        os.environ["CONVAE_TRACKING"] = "off"
    try:
        params = load_experiment()
        with (
            nullcontext() if is_helper else _alone(name),
            limit_threads(params.train.threads),
            start_run(name, params) as run,
        ):
            start = time.monotonic()
            try:
                body(params, run)
            finally:
                run.log_metrics({"duration_seconds": time.monotonic() - start})
    except ConvaeError as error:
        sys.exit("\n".join(f"{name}: {line}" for line in str(error).splitlines()))
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"{name}: {error.strerror}{where}; mend that and run `dvc repro` again, which goes on from here")
    except (KeyboardInterrupt, SystemExit) as error:
        if is_helper and isinstance(error, SystemExit) and error.code == 0:  # it has done its part of a training
            raise
        # Lightning turns Ctrl-C into exit code 1, and SIGTERM at times into none, which would mean success.
        interrupted = KeyboardInterrupt in (type(error), type(error.__context__))
        print(f"{name}: {'interrupted' if interrupted else 'terminated'}", file=sys.stderr)
        sys.exit(130 if interrupted else 143)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Wait for another stage in this workspace to end; it and this one would destroy each other's outputs.

    DVC lets no two run at once. But where it was killed, its stage may live on for a while.
    """
    LOCK_FOLDER.mkdir(exist_ok=True)
    holder = LOCK_FOLDER / "stages.holder"
    lock = FileLock(LOCK_FOLDER / "stages.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = holder.read_text("utf-8") if holder.exists() else "just starting"
        print(f"{name}: waiting until another stage in this folder ends ({who})", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        holder.write_text(f"{name}, process {os.getpid()}", "utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Limit the threads of linear algebra, in the libraries loaded already and in those that will be."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    with threadpool_limits(count):
        yield


def end_with_dvc() -> None:
    """Have Linux send SIGTERM when the process that started this stage dies: DVC, or the shell DVC uses."""
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
