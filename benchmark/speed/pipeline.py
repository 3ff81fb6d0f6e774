"""What the pipeline costs beside its computation: imports, stages that have nothing to do, whole runs from nothing."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.utils.hydra import apply_overrides

from benchmark.speed.measuring import Row, alternate, at_least, at_most, clone, command, timed
from convae.params import load_params
from convae.stages.runner import keep_freed_memory, limit_threads
from convae.tracking.runs import Run

STAGES = ("prepare", "features", "evaluate", "report")  # those that need no Lightning


def rows() -> Iterator[Row]:
    """Seconds, but for the accuracy."""
    yield from _imports()
    with TemporaryDirectory() as scratch:
        digits, bare, fashion = (Path(scratch) / name for name in ("digits", "bare", "fashion"))
        seconds = alternate({"ours": partial(from_nothing, digits, ["data.dataset=digits"])}, 2)["ours"]
        yield at_most("pipeline of the digits from nothing, s", 40, seconds, seconds)
        yield _nothing_to_do(digits, bare)
        yield from _stages(digits)
        seconds = from_nothing(fashion, [])
        yield at_most("pipeline of Fashion-MNIST from nothing, s", 300, seconds, seconds)
        accuracy = 100 * json.loads((fashion / "reports/metrics.json").read_text())["test"]["accuracy"]
        yield at_least("pipeline of Fashion-MNIST, accuracy on test images, %", 93, accuracy, accuracy, None, None)


def from_nothing(folder: Path, overrides: list[str]) -> float:
    """Seconds of `dvc repro` in a fresh clone of the last commit."""
    clone(folder)
    apply_overrides(folder / "params.yaml", overrides)
    return command(["dvc", "repro"], folder)


def _imports() -> Iterator[Row]:
    kinds = {"python": "pass", "convae": "import convae"}
    contestants = {name: partial(command, [sys.executable, "-c", code]) for name, code in kinds.items()}
    contestants["help"] = partial(command, [str(Path(sys.executable).with_name("convae")), "--help"])
    seconds = alternate(contestants, 15)
    beyond = seconds["convae"] - seconds["python"]
    yield at_most("import convae, s beyond Python's own start", 0.1, beyond, beyond)
    yield at_most("convae --help, s", 0.3, seconds["help"], seconds["help"])


def _nothing_to_do(folder: Path, bare: Path) -> Row:
    """`dvc repro` that finds everything up to date, and the same graph of stages that would run `true`."""
    shutil.copytree(folder, bare, symlinks=True)
    for name in ("dvc.yaml", "dvc.lock"):
        text = (bare / name).read_text()
        for stage in ("validate", "download", "train", *STAGES):
            text = text.replace(f"cmd: python -m pipeline.{stage}\n", "cmd: 'true'\n")
        (bare / name).write_text(text)
    command(["dvc", "repro"], bare)
    seconds = alternate(
        {name: partial(command, ["dvc", "repro"], where) for name, where in (("ours", folder), ("limit", bare))}, 9
    )
    ratio = seconds["ours"] / seconds["limit"]
    return at_most(
        "dvc repro with nothing to do, s, to stages of `true`", 1.15, ratio, seconds["ours"], None, seconds["limit"]
    )


def _stages(folder: Path) -> Iterator[Row]:
    for stage in STAGES:
        wall = partial(command, [sys.executable, "-m", f"pipeline.{stage}"], folder)
        seconds = alternate({"wall": wall, "computation": partial(computation, stage, folder)}, 3)
        beyond = seconds["wall"] - seconds["computation"]
        yield Row(f"stage {stage} of the digits, s beyond its computation", beyond)


def computation(stage: str, folder: Path) -> float:
    """Seconds of a stage once everything is imported."""
    os.environ["CONVAE_TRACKING"] = "off"
    keep_freed_memory()
    main = import_module(f"pipeline.{stage}").main
    with chdir(folder):
        params = load_params()
        run = Run(stage, params)
        with limit_threads(params.train.threads):
            main(params, run)
            return timed(main, params, run)
