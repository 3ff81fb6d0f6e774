"""Names of parts and parameters, and their printable form."""

import re
from collections.abc import Mapping
from typing import Any

PARTS = ("train", "validation", "test")


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested parameters to dotted names, as `dvc params` and MLflow show them.

    Example:
        >>> flatten({"train": {"epochs": 2}, "model": {"layers": [{"filters": 8}]}})
        {'train.epochs': 2, 'model.layers.0.filters': 8}
    """

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            items = [(str(key), item) for key, item in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            items = [(str(index), item) for index, item in enumerate(value)]
        else:  # a list of plain values is one value
            return {prefix: value}
        return {k: v for key, item in items for k, v in walk(f"{prefix}.{key}" if prefix else key, item).items()}

    return walk("", content)


def printable(text: str) -> str:
    r"""Return `text` as one line of valid UTF-8, with control characters and undecodable bytes escaped.

    Example:
        >>> print(printable("one\ntwo"))
        one\ntwo
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def code(text: str) -> str:
    """Return Markdown that shows the text literally, as code.

    Example:
        >>> code("a|b")
        '`a_b`'
    """
    return "`" + re.sub(r"[`|]", "_", text) + "`"
