"""Calls that may fail or hang, kept away from those who make them."""

import re
import sys
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock, Thread


class Background:
    """Makes calls one after the other in a thread of its own, until one fails or waiting has taken too long.

    From then on calls are dropped without a word; what went wrong is said once, on stderr.
    """

    def __init__(self, what: str, patience: float) -> None:
        """`what` begins the one warning; `patience` is how long all waiting together may take, in seconds."""
        self.broken = False
        self._what = what
        self._patience = patience
        self._lock = Lock()
        self._calls: SimpleQueue[tuple[Callable[[], None], Event] | None] = SimpleQueue()
        # A daemon: a call that hangs must not keep the process from ending.
        Thread(target=self._work, name="tracking", daemon=True).start()

    def submit(self, call: Callable[[], None]) -> Event:
        """Have `call` made after all earlier ones; the event is set once it was made or dropped."""
        done = Event()
        self._calls.put((call, done))
        return done

    def wait(self, done: Event) -> None:
        """Wait for a submitted call, as long as patience lasts."""
        if self.broken:
            return
        start = time.monotonic()
        if not done.wait(self._patience):
            self._give_up("no answer in time")
        self._patience = max(0.0, self._patience - (time.monotonic() - start))

    def end(self) -> None:
        """Let the thread end after the calls submitted so far."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, done = item
            if not self.broken:
                try:
                    call()
                except Exception as error:
                    self._give_up(presentable(error))
            done.set()

    def _give_up(self, reason: str) -> None:
        with self._lock:
            if not self.broken:
                self.broken = True
                print(f"{self._what} ({reason}); results are unaffected", file=sys.stderr, flush=True)


def presentable(error: Exception) -> str:
    """An error in one line, without the password that an address may hold."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    text = re.sub(r"//[^/@ ]*@", "//", text)  # an address may hold a password
    return text if len(text) <= 200 else text[:197] + "..."
