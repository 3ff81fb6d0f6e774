"""The examples in docstrings run, in a folder with `models/` and `picture.png`."""

import doctest
from importlib import import_module

import pytest
from helpers import REPOSITORY

SOURCE = REPOSITORY / "src"
# Modules without an example are not imported: Lightning and MLflow take seconds.
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.usefixtures("convae")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried
    assert not failed
