"""What the numbers of an evaluation say against its encoder."""

from collections.abc import Mapping
from typing import Any

LEAST_RANK = 2  # of features that tell images apart
AS_WELL = 1.1  # times the error


def concerns(metrics: Mapping[str, Any]) -> list[str]:
    """What makes an encoder doubtful and what to do about it, a sentence or two each; empty for a sound one.

    Args:
        metrics: what `metrics.json` holds.
    """
    health, found = metrics["health"], []
    for number, layer in enumerate(health["filters"], 1):
        for kind, advice in (
            ("dead", "a smaller train.learning_rate or a larger objective.sparsity.lifetime may keep them alive"),
            ("duplicates", "fewer filters, or winners that compete (objective.sparsity), would do"),
        ):
            if layer[kind] > layer["filters"] / 2:
                found.append(f"Layer {number}: {layer[kind]} of {layer['filters']} filters are {kind}; {advice}.")
    if health["effective_rank"] < LEAST_RANK:
        found.append("The features hardly vary from image to image: see whether the training went well.")
    copied = health["copying"]
    if copied and copied["reconstruction_mse"] >= copied["baseline_mse"]:
        found.append("This encoder reconstructs no better than the mean image: train it longer or faster.")
    elif copied and copied["twin_reconstruction_mse"] <= AS_WELL * copied["reconstruction_mse"]:
        found.append(
            "The low reconstruction error says nothing about the filters: a random encoder with a trained decoder "
            "reconstructs as well. Where there are more activations than pixels the input can be copied; winners "
            "(objective.sparsity) or masking (objective.corruption) prevent that."
        )
    return found
