"""Every shipped system runs on the embedded digits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from clones import Clone
from ruamel.yaml import YAML
from sklearn.linear_model import RidgeClassifier

from convae import load_encoder
from convae.datasets.image_set import ImageSet
from convae.features.extract import extract_features
from convae.names import flatten
from convae.params import load_params
from convae.training.train import train_encoder

FOLDER = Path(__file__).parents[2] / "systems"
SYSTEMS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# What has no more than one map of one pixel, reads the pixels of a larger image, or has many maps.
GRIDS = {"dense_autoencoder": 1, "pixels": 8, "pca": 8, "cifar10": 1, "default": 2}
CODES = {"pca": 20, "default": 64, "cifar10": 64}


def test_every_system_is_there():
    names = """pixels pca filter_bank random_filters random_patches kmeans dense_autoencoder seed_cae seed_cae_l2
        stacked_cae stacked_reconstruction_cae stacked_denoising_cae denoising_cae masked_cae wta_cae wta_cae_stacked
        default cifar10 whitened_wta_cae supervised_cnn finetuned_cnn"""
    assert sorted(names.split()) == SYSTEMS


def test_the_default_is_what_is_shipped():
    assert load_params(FOLDER / "default.yaml") == load_params(FOLDER.parent / "params.yaml")


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_states_every_key(system):
    """Otherwise a default could change what a system computes, and its cells on the ladder would stay valid."""
    path = FOLDER / f"{system}.yaml"
    stated = flatten(YAML(typ="safe").load(path))
    assert stated.keys() == flatten(load_params(path).model_dump(mode="json")).keys()


def write_small(system, folder):
    """Write a system's params.yaml, for one epoch on the digits."""
    shutil.copy(FOLDER / f"{system}.yaml", folder / "params.yaml")
    Clone(folder).set(
        "data.dataset=digits",
        "data.root=data/local",
        "data.image_size=null",
        "data.validation_size=0.1",
        "train.epochs=1",
        "train.threads=1",
        "train.accelerator=cpu",
        f"features.grid={GRIDS.get(system, 4)}",
        "classifier.kind=ridge",
        *([f"features.code.components={CODES[system]}"] if system in CODES else []),
        *(["model.layers.1.filters=64"] if system == "cifar10" else []),
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_trains_and_gives_features_that_tell_digits_apart(system, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small(system, tmp_path)
    params = load_params(tmp_path / "params.yaml")
    training, validation, test = (ImageSet.load(digits / part) for part in ("train", "validation", "test"))
    train_encoder(params, training, validation, lambda row: None)[0].save(tmp_path / "autoencoder")
    extract_features(params, tmp_path / "autoencoder", digits, tmp_path / "features")
    features, others = (np.load(tmp_path / f"features/{part}.npy") for part in ("train", "test"))
    # One in ten by chance; nine layers that saw 400 digits once, with dropout, reach 0.4.
    assert RidgeClassifier().fit(features, training.labels).score(others, test.labels) > 0.3


STAGES = """
import shutil, sys, traceback
from importlib import import_module
from pathlib import Path
from convae.experiment import load_experiment
from convae.processes import ALONE
from convae.tracking.runs import Run
for system in sys.argv[1:]:
    results = Path("results") / system
    (results / "again").mkdir()
    shutil.copy(results / "params.yaml", "params.yaml")
    try:
        params = load_experiment()
        for stage in ("train", "features", "evaluate", "report", "train", "features"):
            main = import_module(f"pipeline.{stage}").main
            alone = (ALONE,) if stage in ("train", "features") else ()
            main(params, Run(stage, params), *alone)
            if stage == "report":
                for output in ("models/encoder", "data/features", "reports"):
                    shutil.move(output, results)
        for output in ("models/encoder", "data/features"):
            shutil.move(output, results / "again")
    except BaseException:
        (results / "error.txt").write_text(traceback.format_exc())
"""


@pytest.fixture(scope="module")
def results(clone):
    """`results/SYSTEM`: its parameters and results, and in `again` encoder and features of a second time, or its error.

    DVC prepares the digits once; the stages run in one process, which spares most of the imports.
    """
    repository = clone(history=False)
    folder = repository.folder / "results"
    for system in SYSTEMS:
        write_small(system, repository.folder)
        (folder / system).mkdir(parents=True)
        shutil.copy(repository.folder / "params.yaml", folder / system)
    repository.run("dvc", "repro", "prepare", CONVAE_TRACKING="off")
    repository.run("python", "-c", STAGES, *SYSTEMS, CONVAE_TRACKING="off")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_runs_to_its_report_and_a_second_time_to_the_same_bits(results, system):
    folder = results / system
    assert not (folder / "error.txt").exists(), (folder / "error.txt").read_text()
    # One in ten by chance; nine layers trained for one epoch with dropout reach 0.66.
    assert json.loads((folder / "reports/metrics.json").read_text())["test"]["accuracy"] > 0.5
    assert "Encoder health" in (folder / "reports/report.html").read_text()
    assert load_params(folder / "params.yaml").data == load_params(results / "default/params.yaml").data
    second_time = [path for path in (folder / "again").rglob("*") if path.is_file()]
    assert len(second_time) > 8
    for again in second_time:
        assert again.read_bytes() == (folder / again.relative_to(folder / "again")).read_bytes(), again
    if system == "seed_cae":
        encoder = load_encoder(folder / "encoder")
        assert encoder.parameter_count == 320
        assert sum(parameter.numel() for parameter in encoder.autoencoder.decoder.parameters()) == 289
        assert encoder.map_sizes == [(10, 10)]
