"""A small experiment on the embedded digits, in scratch copies of the repository."""

from collections.abc import Callable

import pytest
from clones import SMALL, Clone, make_clone


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Clone]:
    """`clone()`: a fresh copy whose params.yaml is a small experiment on the embedded digits.

    `clone(history=False)`: without the results that the repository ships.
    """

    def make(history: bool = True) -> Clone:
        return make_clone(tmp_path_factory.mktemp("clone") / "convae", *SMALL, history=history)

    return make
