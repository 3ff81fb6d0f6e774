"""The experiment of each cell, and a hash of everything that decides its row.

DVC compares the hashes in inputs.json one by one. An edit therefore makes a cell stale only if it changes what the
cell computes, not if it changes a comment.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from convae.experiment import map_sizes
from convae.files import write_json
from convae.history.git import git
from convae.params import DataParams, FeaturesParams, Params, load_params, parse_sections, read_text

HOME = Path("benchmark/ladder")
SETTINGS, INPUTS, CELLS = HOME / "ladder.yaml", HOME / "inputs.json", HOME / "cells"
SYSTEMS = Path("systems")
GROUPS = ("main", "others", "untouched_by_chance", "quick")
SOURCES = ("src", "pipeline", "systems", f"{HOME}/*.py", str(SETTINGS))

# The seed is in the cell's name; the other keys change how a cell runs, but no number.
NOT_COMPARED: Any = {
    "seed": True,
    "tracking": True,
    "train": {"accelerator", "devices", "nodes", "strategy", "checkpoint_minutes"},
}


@dataclass(frozen=True)
class Experiment:
    """What the cells of one data set and system compute; they differ only in the seed.

    Attributes:
        params: the whole experiment, with an arbitrary seed.
        columns: columns of the row that are known before anything is measured.
        protocol: how the features are read.
        curves: whether to measure with few labels and at fewer dimensions, too.
        versions: of each component of the code that the row depends on.
    """

    params: Params
    columns: dict[str, str | None]
    protocol: str
    curves: bool
    versions: dict[str, int]

    @property
    def key(self) -> str:
        """A hash of everything that determines the row."""
        # Keys at their default are left out, so that a new key with a default leaves every cell valid.
        params = self.params.model_dump(mode="json", exclude=NOT_COMPARED, exclude_defaults=True)
        return digest([params, self.columns, self.protocol, self.curves, self.versions])

    @property
    def images_key(self) -> str:
        """A hash of everything that determines the images and their splits."""
        return digest([self.params.data.model_dump(mode="json", exclude_defaults=True), self.versions["images"]])


def digest(content: Any) -> str:
    """SHA-256 of a JSON value.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_settings() -> dict[str, Any]:
    """The content of ladder.yaml."""
    settings: dict[str, Any] = YAML(typ="safe").load(SETTINGS)
    return settings


def experiment(settings: dict[str, Any], dataset: str, system: str) -> Experiment:
    """The experiment of a system on a data set.

    Raises:
        ConvaeError: ladder.yaml or the system's file sets a key to a value that is not allowed.
    """
    variant = settings["variants"].get(system, {"of": system, "set": {}})
    file = SYSTEMS / f"{variant['of']}.yaml"
    of_dataset, shortened = settings["data"][dataset], settings["shortened"].get(system, {})
    params = _changed(file, {**of_dataset, **variant["set"], **shortened})
    common = _changed(SYSTEMS / "default.yaml", of_dataset).features
    sizes = map_sizes(params)
    maps = [sizes[layer] for layer in params.features.layers]
    if system in settings["own_readout"]:  # a cell per pixel
        readout = params.features.model_copy(update={"grid": maps[0]})
    else:
        grid = tuple(min(common.grid[axis], *(size[axis] for size in maps)) for axis in (0, 1))
        readout = common.model_copy(update={"layers": params.features.layers, "grid": grid})
    epochs, whole = params.train.epochs, load_params(file).train.epochs
    trained = params.objective.kind != "none"
    return Experiment(
        params.model_copy(update={"features": readout}),
        {
            "objective": params.objective.kind,
            "control_of": variant["of"] if "control" in variant else None,
            "control": variant.get("control"),
            "initialized_by": settings["initialized_by"].get(system),
            "note": f"{epochs} epochs instead of {whole}" if epochs < whole and trained else None,
        },
        _protocol(params.data, common),
        system in settings["curves"],
        {name: version for name, version in settings["versions"].items() if trained or name != "training"},
    )


def _changed(file: Path, changes: dict[str, Any]) -> Params:
    """A system's file with some keys changed: `{"train.epochs": 10}`."""
    content = YAML(typ="safe").load(read_text(file))
    for key, value in changes.items():
        *sections, name = key.split(".")
        reduce(lambda section, inner: section.setdefault(inner, {}), sections, content)[name] = value
    return parse_sections(file, json.dumps(content), Params)  # JSON is YAML


def _protocol(data: DataParams, readout: FeaturesParams) -> str:
    held_out = " Test images: held out of the pictures." if data.dataset == "image_folder" else ""
    return (
        f"Readout: each map over the strength of all at the same place, {readout.rectification} signs rectified, "
        f"{readout.pooling} over a grid of {readout.grid[0]}×{readout.grid[1]} cells (as large as the map where that "
        f"is smaller), to the power {readout.power}, standardised; pixels and their principal components are "
        f"standardised alone.{held_out}"
    )


def current_commit() -> str:
    """The commit that is checked out, `-dirty` if the code of the ladder was edited since; empty without git."""
    commit = git("rev-parse", "--short=7", "HEAD")
    return f"{commit}-dirty" if commit and git("diff", "--name-only", "HEAD", "--", *SOURCES) else commit


def main() -> None:
    """Write the hash of each data set and system to inputs.json."""
    settings = load_settings()
    inputs: dict[str, dict[str, str]] = {dataset: {} for dataset in settings["data"]}
    for group in (settings[name] for name in GROUPS):
        for dataset in group["datasets"]:
            inputs[dataset] |= {system: experiment(settings, dataset, system).key for system in group["systems"]}
    write_json(INPUTS, inputs)


if __name__ == "__main__":
    main()
