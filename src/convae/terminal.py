"""Print messages in any encoding, and never onto the line of a progress bar."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm


def survive_any_encoding() -> None:
    """Make stdout and stderr escape characters that the terminal can't encode, instead of raising an error.

    Streams that the parent process has closed become empty.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def finished_bars() -> Iterator[None]:
    """End the lines of open progress bars if the block raises, so that the error message starts on a new line."""
    try:
        yield
    except BaseException:
        # tqdm has no public list of its open bars.
        for bar in list(tqdm._instances):  # type: ignore[attr-defined]
            bar.close()
        raise


def warn_beside_bars(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print a warning above the progress bars; a replacement for `warnings.showwarning`."""
    tqdm.write(f"{category.__name__}: {message}", file=sys.stderr)
