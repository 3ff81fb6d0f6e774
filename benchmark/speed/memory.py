"""How much memory a function takes at most."""

import threading
from collections.abc import Callable
from typing import Any

import psutil

INTERVAL = 0.01  # seconds between looks


def peak_memory(function: Callable[..., object], *arguments: Any) -> float:
    """MB that a call takes at most beyond what the process has, without files mapped into memory."""
    process, done = psutil.Process(), threading.Event()
    peak = start = _own(process)

    def watch() -> None:
        nonlocal peak
        while not done.wait(INTERVAL):
            peak = max(peak, _own(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function(*arguments)
    finally:
        done.set()
        watcher.join()
    return peak - start


def _own(process: psutil.Process) -> float:
    found = process.memory_info()
    return (found.rss - found.shared) / 1e6
