"""Every shipped system runs on the embedded digits."""

import json
import shutil
from pathlib import Path

import pytest

from convae import load_encoder

SYSTEMS = sorted(path.stem for path in (Path(__file__).parents[2] / "systems").glob("*.yaml"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_runs_to_its_report(clone, system):
    repository = clone()
    shutil.copy(repository.folder / f"systems/{system}.yaml", repository.folder / "params.yaml")
    repository.set("data.dataset=digits", "data.validation_size=0.1", "train.epochs=1")
    repository.run("dvc", "repro", CONVAE_TRACKING="off")
    assert json.loads(repository.read("reports/metrics.json"))["test"]["accuracy"] > 0.8
    if system == "seed_cae":
        encoder = load_encoder(repository.folder / "models/encoder")
        assert encoder.parameter_count == 320
        assert sum(parameter.numel() for parameter in encoder.autoencoder.decoder.parameters()) == 289
        assert encoder.map_sizes == [(10, 10)]
