"""Fixtures: the shipped experiment, reduced to the embedded digits."""

import copy
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import REPOSITORY
from saved_models import ending, save_models
from sklearn.datasets import load_digits
from web_server import Server, serving

from convae.datasets.image_set import ImageSet, write_image_set
from convae.params import Params, load_params

# The longest files run first, or one worker would still be busy with them while the others are idle. The second file
# needs no finished pipeline, which gives the first one time to make it.
LONGEST = (
    "pipeline/test_pipeline.py",
    "tracking/test_sync.py",
    "pipeline/test_reuse.py",
    "tracking/test_runs.py",
    "pipeline/test_tracking.py",
    "pipeline/test_systems.py",
    "pipeline/test_team.py",
    "pipeline/test_ladder.py",
    "pipeline/test_search.py",
    "pipeline/test_processes.py",
    "pipeline/test_chaos.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let tests start and interrupt this environment's commands, however pytest was started."""
    gc.set_threshold(100_000)  # as stages and commands do
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if config.option.markexpr != "gpu":  # the results that other tests expect are those of a CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {REPOSITORY / "tests" / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def experiment() -> Callable[..., Params]:
    """`experiment(train={"epochs": 2})`: a small encoder of the digits that learns from whole maps."""

    def build(**changes: Any) -> Params:
        content = load_params(REPOSITORY / "systems/whitened_wta_cae.yaml").model_dump()
        small: dict[str, Any] = {
            "data": {"dataset": "digits"},
            "model": {"layers": [content["model"]["layers"][0] | {"filters": 4, "kernel": (3, 3)}]},
            "objective": {"sparsity": {"block": (4, 4), "lifetime": 0.2}},
            "preprocessing": {"whitening": {"kind": "zca", "window": 3, "epsilon": 0.1}},
            "features": {"grid": (2, 2)},
            "train": {"epochs": 3, "threads": 1, "accelerator": "cpu", "devices": 1},
        }
        return changed(content, small, changes)

    return build


@pytest.fixture
def shipped() -> Callable[..., Params]:
    """`shipped(train={"epochs": 2})`: params.yaml for the digits with few filters, with these keys changed."""

    def build(**changes: Any) -> Params:
        content = load_params(REPOSITORY / "params.yaml").model_dump()
        first, second = content["model"]["layers"]
        second = copy.deepcopy(second | {"filters": 8})
        second["input"]["whitening"]["components"] = 20
        small: dict[str, Any] = {
            "data": {"dataset": "digits"},
            "model": {"layers": [first | {"filters": 6, "kernel": (3, 3)}, second]},
            "features": {"grid": (2, 2), "code": content["features"]["code"] | {"components": 10, "images": None}},
            "train": {"epochs": 2, "threads": 1, "accelerator": "cpu", "devices": 1},
        }
        return changed(content, small, changes)

    return build


def changed(content: dict[str, Any], *parts: dict[str, Any]) -> Params:
    """An experiment with some keys of its sections replaced."""
    for part in parts:
        for section, keys in part.items():
            content[section] = content[section] | keys if isinstance(keys, dict) else keys
    return Params.model_validate(content)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder of prepared image sets: 400 training, 100 validation and 100 test digits."""
    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    classes = [str(digit) for digit in range(10)]
    folder = tmp_path / "prepared"
    for part, rows in {
        "train": slice(0, 400),
        "validation": slice(400, 500),
        "test": slice(500, 600),
    }.items():
        chunk = images[rows]
        write_image_set(folder / part, chunk.shape, [chunk], bunch.target[rows], classes)
    write_image_set(folder / "unlabelled", (0, 1, 8, 8), [], None, [])
    return folder


@pytest.fixture
def train_set(digits: Path) -> ImageSet:
    return ImageSet.load(digits / "train")


@pytest.fixture
def validation_set(digits: Path) -> ImageSet:
    return ImageSet.load(digits / "validation")


@pytest.fixture
def convae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command in a folder with `models/` and return the line that it ends with, if any."""
    monkeypatch.chdir(tmp_path)
    save_models()
    return lambda *arguments: ending(monkeypatch, *arguments)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        yield running
