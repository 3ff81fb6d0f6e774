"""How much memory a command takes at most."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

INTERVAL = 0.01  # seconds between looks


def peak_memory(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> float:
    """MB that a Python program run there takes at most, its libraries included, without files mapped into memory.

    Raises:
        CalledProcessError: it failed.
    """
    peak = 0
    silent = subprocess.DEVNULL
    with subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, stdout=silent, stderr=silent
    ) as program:
        process = psutil.Process(program.pid)
        while program.poll() is None:
            with suppress(psutil.Error):  # it has just ended
                found = process.memory_info()
                peak = max(peak, found.rss - found.shared)
            time.sleep(INTERVAL)
    if program.returncode:
        raise subprocess.CalledProcessError(program.returncode, words)
    return peak / 1e6
