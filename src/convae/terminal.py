"""Messages on a terminal: in any encoding, and never on the line of a progress bar."""

import io
import sys
from typing import Any

from tqdm import tqdm


def survive_any_encoding() -> None:
    """Have characters that the terminal can't show written as their codes, instead of ending the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish_bars() -> None:
    """Leave the line of the progress bars that an exception has interrupted."""
    for bar in list(tqdm._instances):  # type: ignore[attr-defined]
        bar.close()


def warn_beside_bars(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Takes the place of `warnings.showwarning` while there are progress bars."""
    tqdm.write(f"{category.__name__}: {message}", file=sys.stderr)
