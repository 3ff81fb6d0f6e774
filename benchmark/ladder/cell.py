"""Run one cell of the ladder: train a system with one seed on one data set, then measure it.

A cell works in its own folder in .convae/ladder until its row is written. If it is killed, the next attempt
continues from the last checkpoint, or with the trained encoder.
"""

import argparse
import os
import shutil
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmark.ladder.measure import measure_cell
from benchmark.ladder.parameters import (
    CELLS,
    COMMITS,
    HOME,
    INPUTS,
    SECONDS,
    SETTINGS,
    Experiment,
    experiment,
    load_settings,
)
from benchmark.ladder.rows import ladder_row
from convae.datasets.download import download
from convae.datasets.image_set import ImageSet
from convae.datasets.prepare import prepare
from convae.errors import ConvaeError
from convae.files import new_folder, read_json, write_json
from convae.history.git import git
from convae.params import Params, load_params
from convae.stages.runner import end_with_dvc, keep_freed_memory, limit_threads
from convae.tracking.ladder import record_live
from convae.training.train import load_training_set, train_encoder

IMAGES, SCRATCH = Path("data/ladder"), Path(".convae/ladder")
SOURCES = ("src", "pipeline", "systems", f"{HOME}/*.py", str(SETTINGS))


def run_cell(dataset: str, system: str, seed: int) -> None:
    """Write benchmark/ladder/cells/<data set>/<system>-<seed>.json and record the row in MLflow.

    Raises:
        ConvaeError: the images cannot be prepared or the encoder cannot be trained; or the experiment was edited after
            DVC compared it.
    """
    settings, commit = load_settings(), current_commit()
    cell = experiment(settings, dataset, system)
    if cell.key != read_json(INPUTS)[dataset].get(system):  # DVC would record the row as that of the old experiment
        raise ConvaeError(f"{dataset}, {system}: the experiment was edited meanwhile; run `make ladder` again")
    params = cell.params.model_copy(update={"seed": seed})
    prepared = prepare_images(dataset, cell).absolute()
    scratch = SCRATCH / dataset / f"{system}-{seed}"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{scratch}.lock"), limit_threads(params.train.threads):
        fresh = not scratch.exists()
        scratch.mkdir(exist_ok=True)
        # There the system cannot start from the user's own models/initial.
        with chdir(scratch):
            start = time.monotonic()
            encoder = train(params, prepared, Path(f"encoder-{cell.key[:12]}"))
            training = round(time.monotonic() - start, 1) if fresh else None  # not of the last attempt alone
            measured, extraction = measure_cell(params, prepared, encoder, curves=cell.curves, first=seed == 0)
        written = {
            "dataset": dataset,
            "system": system,
            "seed": seed,
            "objective": params.objective.kind,
            "epochs": params.train.epochs,
            "recipe_epochs": cell.recipe_epochs,
            **measured,
            "protocol": cell.protocol | measured["protocol"],
        }
        name, seconds = f"{dataset}/{system}-{seed}", {"training": training, "extraction": round(extraction, 1)}
        note(COMMITS, name, commit)
        note(SECONDS, name, seconds)
        write_json(CELLS / dataset / f"{system}-{seed}.json", written)
        shutil.rmtree(scratch)
    record_live(load_params().tracking, ladder_row(written, settings, commit, seconds))


def prepare_images(dataset: str, cell: Experiment) -> Path:
    """The folder with the image sets of a data set; the first cell that needs them downloads and splits the images.

    All seeds share one split, so that they differ only in filters and batches.
    """
    folder = IMAGES / f"{dataset}-{cell.images_key[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            raw = folder.with_name(f"{folder.name}-raw")
            download(cell.params.data, raw, Path("data/downloads"))
            prepare(cell.params.data, 0, raw, folder)
            shutil.rmtree(raw)
    return folder


def train(params: Params, prepared: Path, output: Path) -> Path:
    """Train an encoder and save it in the folder `output`, unless an earlier attempt at this cell has done so."""
    if not output.exists():
        images, validation = load_training_set(params, prepared), ImageSet.load(prepared / "validation")
        encoder, _, _ = train_encoder(params, images, validation, lambda row: None)
        with new_folder(output) as scratch:
            encoder.save(scratch)
    return output


def current_commit() -> str:
    """The commit that is checked out, `-dirty` if the code of the ladder was edited since; empty without git."""
    commit = git("rev-parse", "--short=7", "HEAD")
    return f"{commit}-dirty" if commit and git("diff", "--name-only", "HEAD", "--", *SOURCES) else commit


def note(file: Path, name: str, value: Any) -> None:
    """Write what differs between measurements of a cell to a common file; in its own, every one would change it."""
    with FileLock(SCRATCH / "notes.lock"):  # cells may run at the same time
        write_json(file, dict(sorted({**read_json(file), name: value}.items())))


def main() -> None:
    """Run the cell named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("system")
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    os.environ["DVC_ROOT"] = str(Path.cwd())  # MLflow's store is at the top, not in the ladder's own DVC project
    end_with_dvc()
    keep_freed_memory()
    try:
        run_cell(**vars(arguments))
    except ConvaeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
