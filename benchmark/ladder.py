"""The steps of benchmark/dvc.yaml: every system on the same images, splits, readout and classifier.

A cell is one system, trained with one seed on one data set. Each goes through the scripts in pipeline/, in a folder of
its own below .convae/ladder, where a training that was interrupted is taken up.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

import pipeline.train  # puts this folder's own sources first
from convae.errors import ConvaeError
from convae.experiment import map_sizes
from convae.files import read_json, write_json
from convae.params import FeaturesParams, Params, load_params
from convae.tracking.ladder import record_live
from convae.tracking.runs import Run
from convae.tracking.stage import limit_threads

SETTINGS = Path("benchmark/ladder.yaml")
SYSTEMS = Path("systems")
DATA = Path("data/ladder")
CELLS = Path("reports/ladder")
GROUPS = ("main", "others", "untouched_by_chance")


def write_parameters() -> None:
    """data/ladder/parameters/<data set>/<system>.json: a cell's whole experiment, and what its row is to say of it."""
    settings = YAML(typ="safe").load(SETTINGS)
    shutil.rmtree(DATA / "parameters", ignore_errors=True)
    for dataset, about in settings["data"].items():
        folder = DATA / "parameters" / dataset
        groups = [settings[group] for group in GROUPS if dataset in settings[group]["datasets"]]
        for system in [system for group in groups for system in group["systems"]]:
            write_json(folder / f"{system}.json", _describe(settings, about, system))
        data = load_cell(dataset, "default").data
        write_json(folder / "images.json", {"data": data.model_dump(mode="json")})


def _describe(settings: dict[str, Any], about: dict[str, Any], system: str) -> dict[str, Any]:
    variant = settings["variants"].get(system, {"of": system, "set": {}})
    shortened = settings["shortened"].get(system, {"set": {}, "note": None})
    scratch = DATA / "parameters/params.yaml"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(SYSTEMS / f"{variant['of']}.yaml", scratch)
    changes = {**about, **variant["set"], **shortened["set"]}
    if system in settings["own_readout"]:
        changes.pop("features.grid", None)
    apply_overrides(scratch, [f"{key}={'null' if value is None else value}" for key, value in changes.items()])
    params = load_params(scratch)
    scratch.unlink()
    common = load_params(SYSTEMS / "default.yaml").features
    grid = (about["features.grid"],) * 2 if "features.grid" in about else common.grid
    height, width = map_sizes(params)[params.features.layers[-1]]
    if system in settings["own_readout"]:
        readout = params.features.model_copy(update={"grid": (height, width)})
    else:
        fitting = (min(grid[0], height), min(grid[1], width))
        readout = common.model_copy(update={"layers": params.features.layers, "grid": fitting})
    return {
        "params": params.model_copy(update={"features": readout}).model_dump(mode="json"),
        "control_of": variant["of"] if "control" in variant else None,
        "control": variant.get("control"),
        "initialized_by": settings["initialized_by"].get(system),
        "note": shortened["note"],
        "protocol": _protocol(common, grid),
        "curves": system in settings["curves"],
    }


def _protocol(readout: FeaturesParams, grid: tuple[int, int]) -> str:
    return (
        f"Readout: maps over their strength at the same place, {readout.rectification} signs rectified, "
        f"{readout.pooling} over a grid of {grid[0]}×{grid[1]} cells, to the power {readout.power}, standardised; "
        "pixels and their principal components as they are. "
    )


def load_cell(dataset: str, system: str, seed: int = 0) -> Params:
    """The experiment of a cell."""
    content = read_json(DATA / "parameters" / dataset / f"{system}.json")["params"]
    return Params.model_validate(content | {"seed": seed})


def divide_images(dataset: str) -> None:
    """data/ladder/images/<data set>: what the stages `download` and `prepare` make, with the seed 0."""
    from convae.datasets.download import download
    from convae.datasets.prepare import prepare

    params = load_cell(dataset, "default")
    raw = DATA / "raw" / dataset
    download(params.data, raw, Path("data/downloads"))
    prepare(params.data, 0, raw, DATA / "images" / dataset)


def train(dataset: str, system: str, seed: int) -> None:
    """data/ladder/encoders/<data set>/<system>-<seed>: what the stage `train` makes."""
    params = load_cell(dataset, system, seed)
    output = (DATA / "encoders" / dataset / f"{system}-{seed}").absolute()
    with _workspace(dataset, system, seed), limit_threads(params.train.threads):
        pipeline.train.main(params, Run("train", params))
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move("models/autoencoder", output)


def measure(dataset: str, system: str, seed: int) -> None:
    """reports/ladder/<data set>/<system>-<seed>.json: a row of the ladder, recorded in MLflow as well."""
    from benchmark.measure import measure_cell

    params = load_cell(dataset, system, seed)
    about = read_json(DATA / "parameters" / dataset / f"{system}.json")
    encoder = (DATA / "encoders" / dataset / f"{system}-{seed}").absolute()
    output = (CELLS / dataset / f"{system}-{seed}.json").absolute()
    row = {"dataset": dataset, "system": system, "seed": seed, "objective": params.objective.kind}
    row |= {key: about[key] for key in ("control_of", "control", "initialized_by", "note")}
    with _workspace(dataset, system, seed), limit_threads(params.train.threads):
        row |= measure_cell(params, encoder, curves=about["curves"], first=seed == 0)
        row["protocol"] = about["protocol"] + row["protocol"]
        write_json(output, row)
    record_live(load_params().tracking, row)


def write_page() -> None:
    """reports/ladder.json and reports/ladder.html from all cells that were measured."""
    from convae.reporting.ladder import write_ladder

    rows = [read_json(path) for path in sorted(CELLS.glob("*/*.json"))]
    write_json(Path("reports/ladder.json"), rows)
    write_ladder(rows, Path("reports/ladder.html"))


@contextmanager
def _workspace(dataset: str, system: str, seed: int) -> Iterator[None]:
    """A folder in which the scripts in pipeline/ find their images; it stays until they have succeeded."""
    folder = Path(".convae/ladder") / dataset / f"{system}-{seed}"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    prepared = folder / "data/prepared"
    prepared.unlink(missing_ok=True)
    prepared.symlink_to((DATA / "images" / dataset).absolute())
    os.environ["CONVAE_TRACKING"] = "off"  # of the single stages: a cell is one row
    with chdir(folder):
        yield
    del os.environ["CONVAE_TRACKING"]
    shutil.rmtree(folder)


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    steps.add_parser("parameters", help="write the experiment of each cell")
    steps.add_parser("images", help="fetch and divide the images of a data set").add_argument("dataset")
    for name, text in (("train", "train the encoder of a cell"), ("measure", "measure a cell")):
        step = steps.add_parser(name, help=text)
        step.add_argument("dataset")
        step.add_argument("system")
        step.add_argument("seed", type=int)
    steps.add_parser("page", help="write reports/ladder.json and reports/ladder.html")
    arguments = vars(parser.parse_args())
    run = {
        "parameters": write_parameters,
        "images": divide_images,
        "train": train,
        "measure": measure,
        "page": write_page,
    }[arguments.pop("step")]
    try:
        run(**arguments)
    except ConvaeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
