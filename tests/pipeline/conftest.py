"""A small experiment on the embedded digits, in scratch copies of the repository."""

from collections.abc import Callable
from pathlib import Path

import pytest
from clones import SMALL, Clone, make_clone
from helpers import made_once


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Clone]:
    """`clone()`: a fresh copy whose params.yaml is a small experiment on the embedded digits.

    `clone(history=False)`: without the results that the repository ships.
    """

    def make(history: bool = True) -> Clone:
        return make_clone(tmp_path_factory.mktemp("clone") / "convae", *SMALL, history=history)

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which `dvc repro` has run once, recorded in MLflow, its results committed."""
    original = made_once("finished", _run_pipeline)
    return Clone(original).copy(tmp_path_factory.mktemp("finished") / "convae")


def _run_pipeline(folder: Path) -> None:
    repository = make_clone(folder, *SMALL, history=False)
    repository.run("dvc", "repro")
    repository.commit("First results")
