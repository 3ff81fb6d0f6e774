"""The steps of a cell of the ladder: one system, trained with one seed on one data set, by the scripts in pipeline/.

Each cell has a folder of its own below .convae/ladder, where a training that was interrupted is taken up.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from filelock import FileLock

import pipeline.train  # puts this folder's own sources first
from convae.errors import ConvaeError
from convae.files import read_json, write_json
from convae.params import DataParams, Params, load_params
from convae.processes import ALONE
from convae.stages.runner import end_with_dvc, keep_freed_memory, limit_threads
from convae.tracking.ladder import record_live
from convae.tracking.runs import Run

DATA = Path("data/ladder")
CELLS = Path("reports/ladder")


def load_cell(dataset: str, system: str, seed: int) -> Params:
    """The experiment of a cell, its single stages not recorded: a cell is one row."""
    content = read_json(DATA / "parameters" / dataset / f"{system}.json")["params"]
    content["tracking"]["enabled"] = False
    return Params.model_validate(content | {"seed": seed})


def divide_images(dataset: str) -> None:
    """data/ladder/images/<data set>: what the stages `download` and `prepare` make, with the seed 0."""
    from convae.datasets.download import download
    from convae.datasets.prepare import prepare

    data = DataParams.model_validate(read_json(DATA / "parameters" / dataset / "images.json"))
    raw = DATA / "raw" / dataset
    download(data, raw, Path("data/downloads"))
    prepare(data, 0, raw, DATA / "images" / dataset)


def train(dataset: str, system: str, seed: int) -> None:
    """data/ladder/encoders/<data set>/<system>-<seed>: what the stage `train` makes."""
    params = load_cell(dataset, system, seed)
    output = (DATA / "encoders" / dataset / f"{system}-{seed}").absolute()
    with _workspace(dataset, system, seed), limit_threads(params.train.threads):
        pipeline.train.main(params, Run("train", params), ALONE)
        shutil.rmtree(output, ignore_errors=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move("models/autoencoder", output)


def measure(dataset: str, system: str, seed: int) -> None:
    """reports/ladder/<data set>/<system>-<seed>.json: a row of the ladder, recorded in MLflow as well."""
    from benchmark.ladder.measure import measure_cell

    tracking = load_params().tracking
    params = load_cell(dataset, system, seed)
    about = read_json(DATA / "parameters" / dataset / f"{system}.json")
    encoder = (DATA / "encoders" / dataset / f"{system}-{seed}").absolute()
    output = (CELLS / dataset / f"{system}-{seed}.json").absolute()
    row = {"dataset": dataset, "system": system, "seed": seed, "objective": params.objective.kind}
    row |= {key: about[key] for key in ("control_of", "control", "initialized_by", "note")}
    with _workspace(dataset, system, seed), limit_threads(params.train.threads):
        row |= measure_cell(params, encoder, curves=about["curves"], first=seed == 0)
        row["protocol"] = f"{about['protocol']} {row['protocol']}"
        write_json(output, row)
    record_live(tracking, row)


@contextmanager
def _workspace(dataset: str, system: str, seed: int) -> Iterator[None]:
    """A folder in which the scripts in pipeline/ find their images; it stays until they have succeeded."""
    folder = Path(".convae/ladder") / dataset / f"{system}-{seed}"
    prepared = folder / "data/prepared"
    prepared.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        prepared.parent.mkdir(parents=True, exist_ok=True)  # another process may have finished this cell
        prepared.unlink(missing_ok=True)
        prepared.symlink_to((DATA / "images" / dataset).absolute())
        with chdir(folder):
            yield
        shutil.rmtree(folder)


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    steps.add_parser("images", help="fetch and divide the images of a data set").add_argument("dataset")
    for name, text in (("train", "train the encoder of a cell"), ("measure", "measure a cell")):
        step = steps.add_parser(name, help=text)
        step.add_argument("dataset")
        step.add_argument("system")
        step.add_argument("seed", type=int)
    arguments = vars(parser.parse_args())
    commands: dict[str, Callable[..., None]] = {"images": divide_images, "train": train, "measure": measure}
    run = commands[arguments.pop("step")]
    end_with_dvc()
    keep_freed_memory()
    try:
        run(**arguments)
    except ConvaeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
