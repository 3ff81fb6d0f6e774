"""The overhead of the pipeline: imports, and stages that are up to date."""

import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.utils.hydra import apply_overrides

from benchmark.speed.measuring import Row, alternate, at_most, clone, command


def rows() -> Iterator[Row]:
    """Seconds against Python's own start, and against the same graph of stages that do nothing."""
    yield from _starts()
    with TemporaryDirectory() as scratch:
        yield _up_to_date(Path(scratch) / "digits", Path(scratch) / "bare")


def _starts() -> Iterator[Row]:
    kinds = {"python": "pass", "import convae": "import convae"}
    contestants = {name: partial(command, [sys.executable, "-c", code]) for name, code in kinds.items()}
    contestants["convae --help"] = partial(command, [str(Path(sys.executable).with_name("convae")), "--help"])
    seconds = alternate(contestants, 15)  # more runs than elsewhere, because each takes only milliseconds
    python = seconds.pop("python")
    for name, ours in seconds.items():
        yield at_most(f"{name}, s, to Python's own start", 10, ours / python, ours, None, python)


def _up_to_date(folder: Path, bare: Path) -> Row:
    """`dvc repro` that finds everything up to date, and the same graph of stages with `true` as their command."""
    clone(folder)
    apply_overrides(folder / "params.yaml", ["data.dataset=digits"])
    repro = partial(command, ["dvc", "repro"])
    repro(folder)
    shutil.copytree(folder, bare, symlinks=True)
    # In the lock as well, so that DVC makes the same checks and finds everything up to date.
    for name in ("dvc.yaml", "dvc.lock"):
        text = (bare / name).read_text()
        (bare / name).write_text(re.sub(r"cmd: python -m pipeline\.\w+\n", "cmd: 'true'\n", text))
    repro(bare)
    seconds = alternate({"ours": partial(repro, folder), "limit": partial(repro, bare)}, 9)
    ratio = seconds["ours"] / seconds["limit"]
    return at_most("dvc repro with nothing to do, s, to stages of `true`", 1.15, ratio, **seconds)
