"""Time contestants side by side, and turn the result into rows of the table."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, get_start_method, set_start_method
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
THREADS = 2  # the same for all contestants


@dataclass(frozen=True)
class Row:
    """One line of the table; `ours`, `usual` and `limit` are in the unit that `name` gives."""

    name: str
    ours: float
    usual: float | None = None
    limit: float | None = None
    ratio: float | None = None
    target: str | None = None
    met: bool | None = None


def at_least(name: str, target: float, ratio: float, ours: float, usual: float | None, limit: float | None) -> Row:
    """A row that meets its target if `ratio >= target`."""
    return Row(name, ours, usual, limit, ratio, f"≥ {target:g}", ratio >= target)


def at_most(
    name: str, target: float, ratio: float, ours: float, usual: float | None = None, limit: float | None = None
) -> Row:
    """A row that meets its target if `ratio <= target`."""
    return Row(name, ours, usual, limit, ratio, f"≤ {target:g}", ratio <= target)


def alternate(contestants: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """Run the contestants in turn and return the median of the seconds that each reports; the first run is a warm-up.

    Each has its own process, so that none benefits from another's settings or memory.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with ExitStack() as stack:
        pools = {name: stack.enter_context(_new_process()) for name in contestants}
        # In turn, so that a busy moment of the machine affects all contestants.
        for repetition in range(repetitions + 1):
            for name, contestant in contestants.items():
                result = pools[name].submit(_silent, contestant).result()
                if repetition:
                    seconds[name].append(result)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rates(count: int, kinds: Iterable[Callable[..., float]], repetitions: int, *arguments: Any) -> dict[str, float]:
    """Call each function in turn with the same arguments, and return how many of `count` images it does per second."""
    contestants = {kind.__name__: partial(kind, *arguments) for kind in kinds}
    return {name: count / seconds for name, seconds in alternate(contestants, repetitions).items()}


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` in a new process and return its result."""
    with _new_process() as pool:
        return pool.submit(_silent, function, *arguments).result()


def _new_process() -> ProcessPoolExecutor:
    """A pool of one spawned process, which inherits no state from this one."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_set_up, initargs=(get_start_method(),))


def _set_up(start_method: str) -> None:
    # A spawned process would make its DataLoaders spawn their workers too, which is slower than in an ordinary script.
    set_start_method(start_method, force=True)
    torch.set_num_threads(THREADS)


def clone(folder: Path) -> None:
    """Clone the last commit into `folder`, replacing what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, folder], check=True)


def _silent(function: Callable[..., Any], *arguments: Any) -> Any:
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        return function(*arguments)


def timed(function: Callable[..., object], *arguments: Any) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def command(words: Sequence[str | Path], folder: Path = REPOSITORY, **environment: str) -> float:
    """Seconds that a command takes in `folder`.

    Raises:
        CalledProcessError: the command failed.
    """
    # Without the caller's tracking server, and with the programs of this interpreter's environment first.
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    variables |= environment
    return timed(partial(subprocess.run, words, cwd=folder, env=variables, capture_output=True, check=True))
