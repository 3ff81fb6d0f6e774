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
from convae.params import FeaturesParams, Params, load_params, parse_sections, read_text

HOME = Path("benchmark/ladder")
SETTINGS, INPUTS = HOME / "ladder.yaml", HOME / "inputs.json"
CELLS, COMMITS, SECONDS = HOME / "cells", HOME / "commits.json", HOME / "seconds.json"
SYSTEMS = Path("systems")
GROUPS = ("main", "colour", "controls", "deterministic", "others", "quick")

# The seed is in the cell's name, and `Experiment.key` adds what the classifier reads. The other keys change how a cell
# runs, and at most the rounding of its numbers.
NOT_COMPARED: Any = {
    "seed": True,
    "report": True,
    "tracking": True,
    "classifier": {"reads"},
    "train": {"accelerator", "devices", "nodes", "strategy", "checkpoint_minutes", "probe_every"},
}


@dataclass(frozen=True)
class Experiment:
    """What the cells of one data set and system compute; they differ in the seed alone.

    Attributes:
        params: the whole experiment, with an arbitrary seed.
        recipe_epochs: epochs in the system's own file.
        protocol: the readout that all systems share. Only cells with the same protocol are compared.
        curves: whether to measure with few labels, too.
        versions: of each component of the code that the row depends on.
    """

    params: Params
    recipe_epochs: int
    protocol: dict[str, Any]
    curves: bool
    versions: dict[str, int]

    @property
    def key(self) -> str:
        """A hash of everything that decides the row."""
        # Without keys that have their default value, a new key with a default leaves every cell valid. The systems'
        # files omit no key (a test asserts it), so that a default can change without changing what they compute.
        params = self.params.model_dump(mode="json", exclude=NOT_COMPARED, exclude_defaults=True)
        reads_code = self.params.classifier.reads == "code"
        return digest([params, self.protocol, self.curves, reads_code, self.versions])

    @property
    def images_key(self) -> str:
        """A hash of everything that decides the images and their splits."""
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
    default = SYSTEMS / f"{settings['defaults'][dataset]}.yaml"
    file = default if variant["of"] == "default" else SYSTEMS / f"{variant['of']}.yaml"
    of_dataset, shortened = settings["data"][dataset], settings["shortened"].get(system, {})
    params = _changed(file, {**of_dataset, **variant["set"], **shortened}, variant.get("layers"))
    common = _changed(default, of_dataset).features
    if common.code:
        code = common.code.model_copy(update={"images": settings["code_images"]})
        common = common.model_copy(update={"code": code})
    trained = params.objective.kind != "none"
    stated = common.model_dump(mode="json", include={"pooling", "grid", "power", "mirror", "code"})
    return Experiment(
        params.model_copy(update={"features": _readout(settings, system, params, common)}),
        load_params(file).train.epochs,
        {**stated, "held_out": params.data.dataset == "image_folder"},
        system in settings["curves"],
        {name: version for name, version in settings["versions"].items() if trained or name != "training"},
    )


def _readout(settings: dict[str, Any], system: str, params: Params, common: FeaturesParams) -> FeaturesParams:
    """The readout of a system on a data set whose default has the readout `common`."""
    own, sizes = params.features, map_sizes(params)
    maps = [sizes[layer] for layer in own.layers]
    if system in settings["own_readout"]:
        changes = {"grid": maps[0], "code": own.code or common.code}
    else:
        grid = tuple(min(common.grid[axis], *(size[axis] for size in maps)) for axis in (0, 1))
        changes = {name: getattr(common, name) for name in settings["readout"]} | {"grid": grid}
    return own.model_copy(update=changes)


def _changed(file: Path, changes: dict[str, Any], layers: int | None = None) -> Params:
    """A system's file with only its first layers and some keys changed: `{"train.epochs": 10}`."""
    content = YAML(typ="safe").load(read_text(file))
    if layers:
        filters = content["model"]["layers"][-1]["filters"]
        content["model"]["layers"] = content["model"]["layers"][:layers]
        content["model"]["layers"][-1] |= {"filters": filters, "output": None}
    for key, value in changes.items():
        *sections, name = key.split(".")
        reduce(_inner, sections, content)[name] = value
    return parse_sections(file, json.dumps(content), Params)  # JSON is YAML


def _inner(section: Any, name: str) -> Any:
    """A section within another, or an entry of a list."""
    return section[int(name)] if isinstance(section, list) else section.setdefault(name, {})


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
