"""Whether the layers of one encoder can start from those of another."""

from collections.abc import Mapping
from typing import Any

from convae.errors import ConvaeError


def check_source(source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Compare what `config.json` says of a saved encoder with the one that is to start from it.

    Images may differ in size, and the target may have further layers.

    Args:
        source: `channels`, `preprocessing`, `stacked_on` and `layers` of the saved encoder.
        target: the same of the other.

    Raises:
        ConvaeError: names the first difference.
    """
    if source["channels"] != target["channels"]:
        raise ConvaeError(
            f"model.initialize_from: that encoder reads images of {source['channels']} channel(s), "
            f"these have {target['channels']}"
        )
    for name in ("preprocessing", "stacked_on"):
        _compare(name if name == "preprocessing" else f"model.{name}", source[name], target[name])
    if len(source["layers"]) > len(target["layers"]):
        raise ConvaeError(
            f"model.initialize_from: that encoder has {len(source['layers'])} layers, "
            f"model.layers {len(target['layers'])}; as many or more are needed"
        )
    for index, (theirs, ours) in enumerate(zip(source["layers"], target["layers"], strict=False)):
        _compare(f"model.layers[{index}]", {**theirs, "dropout": 0}, {**ours, "dropout": 0})


def _compare(name: str, theirs: Any, ours: Any) -> None:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in theirs:
            _compare(f"{name}.{key}", theirs[key], ours.get(key))
    elif theirs != ours:
        raise ConvaeError(f"model.initialize_from: {name} is {theirs} in that encoder, but {ours} here")
