"""Running a stage: parameters, lock, signals, processes and a run in MLflow, for every script in pipeline/."""

import ctypes
import errno
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from threadpoolctl import threadpool_limits

from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.history.lock import changes
from convae.params import PARAMS_FILE, Params, read_text
from convae.processes import ALONE, connect
from convae.stages.launch import start_processes
from convae.stages.slurm import adopt_srun
from convae.terminal import finished_bars, survive_any_encoding
from convae.tracking.runs import start_run

LOCK_FOLDER = Path(".convae")
NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS}  # the disk's fault, not a bug
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class LostPeerError(SystemExit):
    """A peer is gone. An exit, not an error: the run is recorded as KILLED, and the next attempt resumes it."""


def run_stage(name: str, body: Callable[..., None], parallel: bool = False) -> None:
    """Run `body(params, run)` with the parameters in params.yaml and a run in MLflow.

    A parallel body is called as `body(params, run, processes)` in as many processes as `train.devices` says, or as
    torchrun or srun have started. Only rank 0 records the run.

    A ConvaeError, lack of memory, a full disk or a protected file ends the stage with exit code 1 and one line, Ctrl-C
    with 130, SIGTERM with 143. Any other exception is a bug and keeps its traceback.
    """
    end_with_dvc()
    keep_freed_memory()
    # With Python's default, garbage collections that find nothing take a sixth of the imports' time.
    gc.set_threshold(100_000)
    # Before OpenMP is loaded: otherwise its threads spin while they wait, and take the cores from other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    survive_any_encoding()
    rank = 0
    try:
        adopt_srun()
        rank = int(os.environ.get("RANK", "0"))
        if rank and not parallel:  # rank 0 does all the work
            return
        text = read_text(PARAMS_FILE)
        params = load_experiment(PARAMS_FILE, text)
        code = start_processes(name, params.train) if parallel else None
        if code is None:
            name += f", process {rank}" if rank else ""
            _run(name, body, params, text, rank, parallel)
    except ConvaeError as error:
        sys.exit("\n".join(f"{name}: {line}" for line in str(error).splitlines()))
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        line = str(error).rpartition("DefaultCPUAllocator: ")[2].partition("\n")[0]
        sys.exit(f"{name}: {line or 'out of memory'}; smaller settings in params.yaml need less memory")
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"{name}: {error.strerror}{where}; fix that and run `dvc repro` again to resume")
    except LostPeerError:
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns Ctrl-C into exit code 1 and SIGTERM sometimes into 0, which DVC would take for success.
        interrupted = KeyboardInterrupt in (type(error), type(error.__context__))
        print(f"{name}: {'interrupted' if interrupted else 'terminated'}", file=sys.stderr)
        sys.exit(130 if interrupted else 143)
    if code:
        sys.exit(code)


def _run(name: str, body: Callable[..., None], params: Params, text: str, rank: int, parallel: bool) -> None:
    """Run `body` while no other stage runs in this workspace. Rank 0 takes the lock for all processes of the stage."""
    if rank:
        os.environ["CONVAE_TRACKING"] = "off"
    with (
        nullcontext() if rank else _alone(name),
        limit_threads(params.train.threads),
        start_run(name, params, text) as run,
        finished_bars(),
    ):
        processes = connect() if parallel else ALONE
        if len(set(processes.collect(text))) > 1:
            raise ConvaeError(f"{PARAMS_FILE} was edited while the processes started; run the stage again")
        start = time.monotonic()
        try:
            body(params, run, processes) if parallel else body(params, run)
            if not rank:
                _check_unedited(name, text)
        except RuntimeError as error:
            if not processes.is_loss_of_another(error):
                raise
            print(f"{name}: another process is gone; run the stage again to resume", file=sys.stderr)
            raise LostPeerError(1) from None
        finally:
            run.log_metrics({"duration_seconds": time.monotonic() - start})


def _check_unedited(name: str, text: str) -> None:
    """Refuse an edit of params.yaml during the stage.

    DVC reads the file again once the stage has ended, and would record values in dvc.lock that the stage never saw.

    Raises:
        ConvaeError: a parameter of this stage has changed, or the file is no longer valid.
    """
    after = read_text(PARAMS_FILE)
    if "DVC_STAGE" not in os.environ or after == text:
        return
    load_experiment(PARAMS_FILE, after)  # raises if it is invalid: DVC could not read it either
    changed = changes(name, text, after)
    if changed:
        raise ConvaeError(
            f"{PARAMS_FILE} was edited while the stage ran ({', '.join(changed)}): DVC would record the new values; "
            f"run `dvc repro` to use them, or undo the edit and run `dvc commit --force {name}`"
        )


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether memory ran out. torch raises its own exception for this on GPUs, and a plain RuntimeError on CPUs."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Wait until no other stage runs in this workspace: two stages would overwrite each other's outputs.

    DVC never starts two at once, but if DVC is killed, its stage may live on for a while.
    """
    LOCK_FOLDER.mkdir(exist_ok=True)
    holder = LOCK_FOLDER / "stages.holder"
    lock = FileLock(LOCK_FOLDER / "stages.lock")  # the operating system releases it even after SIGKILL
    try:
        lock.acquire(blocking=False)
    except Timeout:
        who = holder.read_text("utf-8") if holder.exists() else "just starting"
        print(f"{name}: waiting for another stage in this folder to end ({who})", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        holder.write_text(f"{name}, process {os.getpid()}", "utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def limit_threads(count: int) -> Iterator[None]:
    """Limit the threads of linear algebra, both in libraries already loaded and in those loaded later."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    with threadpool_limits(count):
        yield


def keep_freed_memory() -> None:
    """Have glibc reuse the memory of freed tensors.

    By default it returns large blocks to Linux at once and requests new ones for the next batch. Linux zeroes those
    page by page, which costs training noticeable time.
    """
    most_mapped, trim_threshold = -4, -1
    with suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(most_mapped, 0)
        mallopt(trim_threshold, 2**31 - 1)


def end_with_dvc() -> None:
    """End this stage when the process that started it (DVC, its shell or torchrun) dies."""
    if not {"DVC_STAGE", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ):
        end_with_parent()


def end_with_parent() -> None:
    """Have Linux send this process SIGTERM when its parent dies.

    A killed DVC can't stop its stage. The orphan would run on next to the stage of the next `dvc repro`.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def end_group_with_parent() -> None:
    """When the parent dies, kill this process's whole group: a shell between DVC and a stage forwards no signals."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    end_with_parent()
