"""The rows of reports/ladder.json and MLflow: a cell's numbers, with what ladder.yaml says about its system.

Cells store no text: rewording it makes none of them stale.
"""

from collections.abc import Mapping
from typing import Any

CODES = {"denoising": "directions that best survive a change of the image", "pca": "principal components"}
NAMES = ("dataset", "system", "seed", "objective")
PROTOCOL = (
    "Readout: each system's own normalisation and threshold of its maps, {pooling} over a grid of {grid[0]}×{grid[1]} "
    "cells (as large as the map where that is smaller), to the power {power}, {mirror}standardised; pixels and their "
    "principal components are standardised alone. {code}{test_images}"
    "Classifier: {classifier} on {training_images} training images, the best of the candidates in the system's file on "
    "{validation_images} validation images, whose labels choose among them with few training labels too. "
    "k-NN: {neighbors} neighbours in a code of {neighbors_dimension} numbers at most. "
    "With few labels a system that learns from labels sees their images alone."
)


def ladder_row(
    cell: Mapping[str, Any], settings: Mapping[str, Any], commit: str, seconds: Mapping[str, float | None]
) -> dict[str, Any]:
    """The row of a cell.

    Args:
        cell: content of its file.
        settings: content of ladder.yaml.
        commit: the commit that measured the cell.
        seconds: what training and extraction took, if known.
    """
    measured = {name: value for name, value in cell.items() if name not in (*NAMES, "epochs", "recipe_epochs")}
    code = cell["protocol"]["code"]
    protocol = {
        **cell["protocol"],
        "mirror": "averaged with those of the mirror image, " if cell["protocol"]["mirror"] else "",
        "code": f"Code: {code['components']} {CODES[code['kind']]}, where there are as many features. " if code else "",
        "classifier": cell["protocol"]["classifier"].replace("_", " "),
        "test_images": "Test images: held out of the pictures. " if cell["protocol"]["held_out"] else "",
    }
    variant = settings["variants"].get(cell["system"], {})
    shortened = cell["objective"] != "none" and cell["epochs"] < cell["recipe_epochs"]
    return {
        **{name: cell[name] for name in NAMES},
        "control_of": variant["of"] if "control" in variant else None,
        "control": variant.get("control"),
        "initialized_by": settings["initialized_by"].get(cell["system"]),
        "note": f"{cell['epochs']} epochs instead of {cell['recipe_epochs']}" if shortened else None,
        **measured,
        "protocol": PROTOCOL.format(**protocol),
        "commit": commit,
        **{f"{name}_seconds": seconds.get(name) for name in ("training", "extraction")},
    }
