"""Peak memory of a command."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

INTERVAL = 0.01  # seconds between samples


def peak_memory(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> float:
    """Peak memory in MB of a Python program run in `folder`, with its libraries but without memory-mapped files.

    Raises:
        CalledProcessError: the program failed.
    """
    peak = 0
    silent = subprocess.DEVNULL
    with subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, stdout=silent, stderr=silent
    ) as program:
        process = psutil.Process(program.pid)
        while program.poll() is None:
            with suppress(psutil.Error):  # the process has just ended
                found = process.memory_info()
                # Pages of memory-mapped files count as shared; the system can drop them at any time.
                peak = max(peak, found.rss - found.shared)
            time.sleep(INTERVAL)
    if program.returncode:
        raise subprocess.CalledProcessError(program.returncode, words)
    return peak / 1e6
