"""Every shipped system runs on the embedded digits."""

import json
import shutil
from pathlib import Path

import pytest

from convae import load_encoder
from convae.params import load_params

FOLDER = Path(__file__).parents[2] / "systems"
SYSTEMS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# What has no more than one map of one pixel, or reads the pixels of a larger image.
GRIDS = {"dense_autoencoder": 1, "pixels": 8, "pca": 8}


def test_every_system_is_there():
    names = """pixels pca filter_bank random_filters random_patches kmeans dense_autoencoder seed_cae seed_cae_l2
        stacked_cae stacked_reconstruction_cae stacked_denoising_cae denoising_cae masked_cae wta_cae wta_cae_stacked
        default supervised_cnn finetuned_cnn"""
    assert sorted(names.split()) == SYSTEMS


def test_the_default_is_what_is_shipped():
    assert load_params(FOLDER / "default.yaml") == load_params(FOLDER.parent / "params.yaml")


STAGES = """
from importlib import import_module
from convae.experiment import load_experiment
from convae.tracking.runs import Run
params = load_experiment()
for stage in ("train", "features", "evaluate", "report"):
    import_module(f"pipeline.{stage}").main(params, Run(stage, params))
"""


@pytest.fixture(scope="module")
def repository(clone):
    """One clone for all, so that the digits are fetched and divided once."""
    return clone(history=False)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_runs_to_its_report(repository, system):
    shutil.copy(FOLDER / f"{system}.yaml", repository.folder / "params.yaml")
    repository.set(
        "data.dataset=digits",
        "data.validation_size=0.1",
        "train.epochs=1",
        "train.threads=1",
        f"features.grid={GRIDS.get(system, 4)}",
        f"features.pca={20 if system == 'pca' else 'null'}",
    )
    # Images are prepared by DVC once; the stages themselves run in one process, which spares most of the imports.
    repository.run("dvc", "repro", "prepare", CONVAE_TRACKING="off")
    repository.run("python", "-c", STAGES, CONVAE_TRACKING="off")
    # One in ten by chance; nine layers trained for one epoch with dropout reach 0.66.
    assert json.loads(repository.read("reports/metrics.json"))["test"]["accuracy"] > 0.5
    assert b"Encoder health" in repository.read("reports/report.html")
    if system == "seed_cae":
        encoder = load_encoder(repository.folder / "models/encoder")
        assert encoder.parameter_count == 320
        assert sum(parameter.numel() for parameter in encoder.autoencoder.decoder.parameters()) == 289
        assert encoder.map_sizes == [(10, 10)]
