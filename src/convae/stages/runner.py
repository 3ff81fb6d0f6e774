"""How every script in pipeline/ runs its stage."""

import ctypes
import errno
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
NOT_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS}  # to do with the disk, not with a bug
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def run_stage(name: str, body: Callable[..., None], parallel: bool = False) -> None:
    """Run `body` with the parameters of params.yaml and a run in MLflow.

    A `parallel` body is run by as many processes as `train.devices` says, or as torchrun or srun have started. The
    first one has the run.

    A ConvaeError, a lack of memory, a full disk or a file that must not be touched ends it with code 1 and one line,
    Ctrl-C with 130, SIGTERM with 143. Any other exception is a bug of ours and keeps its traceback.
    """
    end_with_dvc()
    keep_freed_memory()
    survive_any_encoding()
    rank = 0
    try:
        adopt_srun()
        rank = int(os.environ.get("RANK", "0"))
        if rank and not parallel:  # there is nothing to do for the others
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
        sys.exit(f"{name}: {line or 'out of memory'}; smaller settings in params.yaml need less")
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"{name}: {error.strerror}{where}; mend that and run `dvc repro` again, which goes on from here")
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns Ctrl-C into exit code 1, and SIGTERM at times into none, which would mean success.
        interrupted = KeyboardInterrupt in (type(error), type(error.__context__))
        print(f"{name}: {'interrupted' if interrupted else 'terminated'}", file=sys.stderr)
        sys.exit(130 if interrupted else 143)
    if code:
        sys.exit(code)


def _run(name: str, body: Callable[..., None], params: Params, text: str, rank: int, parallel: bool) -> None:
    """Run `body`, alone in this workspace but for the processes that belong to it: they share the first one's lock."""
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
            print(f"{name}: another process is gone; run the stage again, it goes on from here", file=sys.stderr)
            raise SystemExit(1) from None  # stopped, as by a signal: what goes on does so in the same run
        finally:
            run.log_metrics({"duration_seconds": time.monotonic() - start})


def _check_unedited(name: str, text: str) -> None:
    """DVC reads params.yaml for dvc.lock when the stage has ended, and would record what the stage has not seen."""
    after = read_text(PARAMS_FILE)
    if "DVC_STAGE" not in os.environ or after == text:
        return
    load_experiment(PARAMS_FILE, after)  # or DVC could not read it either
    changed = changes(name, text, after)
    if changed:
        raise ConvaeError(
            f"{PARAMS_FILE} was edited while the stage ran ({', '.join(changed)}): DVC would record the new values; "
            f"`dvc repro` runs the stage with them; or undo the edit and run `dvc commit --force {name}`"
        )


def _is_lack_of_memory(error: Exception) -> bool:
    """Also in the words of torch, which has an exception of its own on a GPU and none on a CPU."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


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


def keep_freed_memory() -> None:
    """Have glibc keep the memory of large tensors for the next ones: Linux clears what it gives, page by page."""
    most_mapped, trim_threshold = -4, -1
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(most_mapped, 0)
        mallopt(trim_threshold, 2**31 - 1)


def end_with_dvc() -> None:
    """End this stage when the process that started it dies: DVC, the shell DVC uses, or torchrun."""
    if not {"DVC_STAGE", "TORCHELASTIC_RUN_ID"}.isdisjoint(os.environ):
        end_with_parent()


def end_with_parent() -> None:
    """Have Linux send SIGTERM when the process that started this one dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def end_group_with_parent() -> None:
    """Likewise, and kill all of this process's group: a shell between DVC and a stage hands no signal on."""
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    end_with_parent()
