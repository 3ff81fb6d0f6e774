"""The first and the last step of the ladder: the experiment of each cell, and the page about all of them."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

import pipeline  # noqa: F401  puts this folder's own sources first
from convae.errors import ConvaeError
from convae.experiment import map_sizes
from convae.files import new_folder, read_json, write_json
from convae.params import DataParams, FeaturesParams, Params, load_params

SETTINGS = Path("benchmark/ladder.yaml")
SYSTEMS = Path("systems")
PARAMETERS = Path("data/ladder/parameters")
CELLS = Path("reports/ladder")
GROUPS = ("main", "others", "untouched_by_chance", "quick")


def write_parameters() -> None:
    """data/ladder/parameters/<data set>/<system>.json: a cell's whole experiment, and what its row is to say of it."""
    settings = YAML(typ="safe").load(SETTINGS)
    with new_folder(PARAMETERS) as scratch:
        for dataset, changes in settings["data"].items():
            groups = [settings[group] for group in GROUPS if dataset in settings[group]["datasets"]]
            for system in [system for group in groups for system in group["systems"]]:
                write_json(scratch / dataset / f"{system}.json", _describe(settings, changes, system))
            # Apart, so that another default does not fetch the images again.
            data = _changed(SYSTEMS / "default.yaml", changes).data
            write_json(scratch / dataset / "images.json", data.model_dump(mode="json"))


def _describe(settings: dict[str, Any], of_dataset: dict[str, Any], system: str) -> dict[str, Any]:
    variant = settings["variants"].get(system, {"of": system, "set": {}})
    shortened = settings["shortened"].get(system, {})
    file = SYSTEMS / f"{variant['of']}.yaml"
    params = _changed(file, {**of_dataset, **variant["set"], **shortened})
    common = _changed(SYSTEMS / "default.yaml", of_dataset).features
    maps = [map_sizes(params)[layer] for layer in params.features.layers]
    if system in settings["own_readout"]:  # each pixel, however many the images have
        readout = params.features.model_copy(update={"grid": maps[0]})
    else:
        grid = tuple(min(common.grid[axis], *(size[axis] for size in maps)) for axis in (0, 1))
        readout = common.model_copy(update={"layers": params.features.layers, "grid": grid})
    epochs, whole = params.train.epochs, load_params(file).train.epochs
    return {
        "params": params.model_copy(update={"features": readout}).model_dump(mode="json"),
        "control_of": variant["of"] if "control" in variant else None,
        "control": variant.get("control"),
        "initialized_by": settings["initialized_by"].get(system),
        "note": f"{epochs} epochs instead of {whole}" if epochs < whole and params.objective.kind != "none" else None,
        "curves": system in settings["curves"],
        "protocol": _protocol(params.data, common),
    }


def _changed(file: Path, changes: dict[str, Any]) -> Params:
    """A system's file with changes of its keys."""
    scratch = PARAMETERS.with_name("scratch.yaml")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, scratch)
    apply_overrides(scratch, [f"{key}={'null' if value is None else value}" for key, value in changes.items()])
    params = load_params(scratch)
    scratch.unlink()
    return params


def _protocol(data: DataParams, readout: FeaturesParams) -> str:
    held_out = " Test images: held out of the pictures." if data.dataset == "image_folder" else ""
    return (
        f"Readout: each map over the strength of all at the same place, {readout.rectification} signs rectified, "
        f"{readout.pooling} over a grid of {readout.grid[0]}×{readout.grid[1]} cells (as large as the map where that "
        f"is smaller), to the power {readout.power}, standardised; pixels and their principal components are "
        f"standardised alone.{held_out}"
    )


def write_page() -> None:
    """reports/ladder.json and reports/ladder.html from all cells that were measured."""
    from benchmark.ladder.page import write_ladder

    rows = [read_json(path) for path in sorted(CELLS.glob("*/*.json"))]
    write_json(Path("reports/ladder.json"), rows)
    write_ladder(rows, Path("reports/ladder.html"))


def main() -> None:
    """Run one step."""
    steps = {"parameters": write_parameters, "page": write_page}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=steps)
    try:
        steps[parser.parse_args().step]()
    except ConvaeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
