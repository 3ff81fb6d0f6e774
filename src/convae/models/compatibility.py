"""Check whether an encoder's layers can start from those of another encoder."""

from collections.abc import Mapping
from typing import Any

from convae.errors import ConvaeError

NEW: dict[str, Any] = {"border": "zeros", "input": None, "output": None}  # keys that older encoders do not have


def check_source(source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Check that the encoder `target` can start from the weights of `source`.

    Image size and dropout may differ, and the target may have more layers.

    Args:
        source: the saved encoder's `config.json`.
        target: its keys `channels`, `preprocessing`, `stacked_on`, `tied_weights` and `layers` for the new encoder.

    Raises:
        ConvaeError: names the first difference.

    Example:
        >>> small = {"channels": 1, "preprocessing": {}, "stacked_on": "maps", "layers": [{"filters": 8}]}
        >>> small |= {"decoder": True, "tied_weights": True}
        >>> check_source(small, small | {"layers": [{"filters": 8}, {"filters": 4}]})
        >>> check_source(small, small | {"layers": [{"filters": 16}]})
        Traceback (most recent call last):
        convae.errors.ConvaeError: model.initialize_from: model.layers[0].filters is 8 in that encoder, but 16 here
    """
    if source["channels"] != target["channels"]:
        raise ConvaeError(
            f"model.initialize_from: that encoder needs images of {source['channels']} channel(s), "
            f"but these have {target['channels']}"
        )
    for name in ("preprocessing", "stacked_on"):
        _compare(name if name == "preprocessing" else f"model.{name}", _unscaled(source[name]), _unscaled(target[name]))
    if len(source["layers"]) > len(target["layers"]):
        raise ConvaeError(
            f"model.initialize_from: that encoder has {len(source['layers'])} layers, but model.layers has "
            f"{len(target['layers'])}; at least {len(source['layers'])} are needed"
        )
    last = len(source["layers"]) - 1
    for index, layers in enumerate(zip(source["layers"], target["layers"], strict=False)):
        # Dropout has no weights, and only a layer above reads the last layer's output.
        ignored = {"dropout": 0, **({"output": None} if index == last else {})}
        theirs, ours = (NEW | layer | ignored for layer in layers)
        _compare(f"model.layers[{index}]", theirs, ours)
    has_decoder = source["decoder"] and source["tied_weights"] == target["tied_weights"]
    if target["stacked_on"] == "reconstructions" and not has_decoder:
        raise ConvaeError(
            "model.initialize_from: that encoder has no trained decoder with the same model.tied_weights, "
            "which model.stacked_on: reconstructions needs"
        )


def _unscaled(value: Any) -> Any:
    """Without the scale of the images, which training takes over."""
    return {key: inner for key, inner in value.items() if key != "scale"} if isinstance(value, Mapping) else value


def _compare(name: str, theirs: Any, ours: Any) -> None:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in theirs:
            _compare(f"{name}.{key}", theirs[key], ours.get(key))
    elif theirs != ours:
        raise ConvaeError(f"model.initialize_from: {name} is {theirs} in that encoder, but {ours} here")
