"""Names of parameters and of numbers, as they are shown everywhere."""

from collections.abc import Mapping
from typing import Any


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters under their dotted names, as `dvc params` and MLflow show them."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping):
            items = [(str(key), item) for key, item in value.items()]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            items = [(str(index), item) for index, item in enumerate(value)]
        else:
            return {prefix: value}
        return {k: v for key, item in items for k, v in walk(f"{prefix}.{key}" if prefix else key, item).items()}

    return walk("", content)
