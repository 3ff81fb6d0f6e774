"""Messages on a terminal: in any encoding, and never on the line of a progress bar."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def survive_any_encoding() -> None:
    """Have characters that the terminal can't show written as their codes, instead of ending the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def finished_bars() -> Iterator[None]:
    """Where an exception interrupts progress bars, leave their lines before it is told."""
    try:
        yield
    except BaseException:
        for bar in list(tqdm._instances):  # type: ignore[attr-defined]
            bar.close()
        raise


def warn_beside_bars(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Takes the place of `warnings.showwarning` while there are progress bars."""
    tqdm.write(f"{category.__name__}: {message}", file=sys.stderr)
