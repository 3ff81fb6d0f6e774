"""Entries of `model.layers` for tests."""

from typing import Any


def layer(**changes: Any) -> dict[str, Any]:
    """Four 3×3 filters and tanh, with these keys changed."""
    return {
        "filters": 4,
        "kernel": (3, 3),
        "stride": (1, 1),
        "padding": "same",
        "activation": "tanh",
        "batch_norm": False,
        "dropout": 0.0,
        "pool": None,
    } | changes
