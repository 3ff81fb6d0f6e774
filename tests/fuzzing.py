"""Reproducible random damage to valid input."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from convae.errors import ConvaeError


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


Edit = tuple[str, float, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, edits: list[Edit]) -> bytes:
    """Flip, cut out or insert bytes of `content` at some places, or cut off its end."""
    for kind, place, some in edits:
        at = int(place * len(content))
        if kind == "flip":
            old = content[at : at + len(some)]
            content = content[:at] + bytes(a ^ b for a, b in zip(old, some, strict=False)) + content[at + len(some) :]
        elif kind == "cut":
            content = content[:at] + content[at + len(some) :]
        elif kind == "insert":
            content = content[:at] + some + content[at:]
        else:
            content = content[:at]
    return content


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([10**6, 2**31, 2**63, 10**30, -1, "image", "same", "max", "0", "", "1e5", "~", "\0", "none"]),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-1, 9), st.none(), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.sampled_from(["kind", "size", "window", "x"]), st.integers(-1, 9), max_size=2),
)
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), VALUES), min_size=1, max_size=3)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key or index of every value in nested dictionaries and lists."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def changed(tree: Any, changes: list[tuple[float, Any]]) -> Any:
    """A copy of `tree` with some values replaced."""
    tree = json.loads(json.dumps(tree))
    for place, value in changes:
        found = list(places(tree))
        holder, key = found[int(place * len(found))]
        holder[key] = value
    return tree


@contextlib.contextmanager
def one_line(allowed: type[Exception] = ConvaeError) -> Iterator[None]:
    """Allow damaged input to be refused, in one line."""
    said = ""
    try:
        yield
    except allowed as refusal:
        said = str(refusal)
    assert "\n" not in said
