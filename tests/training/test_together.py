"""Several real processes give the same result as one for the same batches, with every objective."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from layers import layer
from ruamel.yaml import YAML

from convae.encoder import load_encoder
from convae.files import read_json
from convae.training.train import train_encoder

WINNERS = {"block": (4, 4), "lifetime": 0.2}
SGD = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
}  # Adam turns the rounding errors in the gradient of a bias before batch norm into full steps
AUGMENTATION = {"flip": True, "shift": 1}
KINDS = {
    "plain": {},
    "masked": {
        "model": {"layers": [layer(batch_norm=True, dropout=0.3)], "tied_weights": False},
        "objective": {"sparsity": None, "corruption": {"kind": "masking", "level": 0.3, "block": (2, 2)}},
        "train": {"augmentation": AUGMENTATION, **SGD},
    },
    "greedy": {
        "model": {"layers": [layer(dropout=0.3, pool={"kind": "max", "size": (2, 2)}), layer()]},
        "objective": {"sparsity": WINNERS, "corruption": {"kind": "gaussian", "level": 0.2}},
        "train": {"order": "greedy_then_end_to_end", "gradient_clip": 0.5, "optimizer": "adamw", "weight_decay": 0.01},
    },
    "simultaneous": {
        "model": {"layers": [layer(), layer()], "stacked_on": "reconstructions"},
        "objective": {"sparsity": {"block": None, "lifetime": 0.3}, "corruption": {"kind": "masking", "level": 0.4}},
        "train": {"order": "simultaneous", "schedule": "one_cycle"},
    },
    "denoised_maps": {
        "model": {"layers": [layer(), layer()]},
        "objective": {"sparsity": None, "corruption": {"kind": "uniform", "level": 0.5}},
        "train": {"order": "simultaneous"},
    },
    "supervised": {
        "model": {"layers": [layer(batch_norm=True)]},
        "objective": {"kind": "classify", "pretraining": 1, "sparsity": None},
        "train": {"augmentation": AUGMENTATION, "head_learning_rate": 0.05, **SGD},
    },
    "untrained": {"objective": {"kind": "none"}},
    "places": {"train": {"augmentation": AUGMENTATION}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "names"), [(2, KINDS), (4, ["plain", "masked", "greedy", "places"])], ids=["two", "four"]
)
def test_the_same_batches_give_the_same_result(
    count, names, experiment, shipped, train_set, validation_set, digits, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trained = {}
    for name in names:
        changes = KINDS[name]
        # 400 images leave one over in batches of 57, and two in batches of 199: fewer than the four processes.
        size = 199 if name in ("masked", "simultaneous", "places") else 57
        make = shipped if name == "places" else experiment
        params = make(**changes | {"train": {"epochs": 2, "batch_size": size, **changes.get("train", {})}})
        YAML(typ="safe").dump(params.model_dump(mode="json"), tmp_path / f"{name}.yaml")
        trained[name] = train_encoder(params, train_set, validation_set, lambda row: None, progress=False)

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    worker = Path(__file__).with_name("together.py")
    done = subprocess.run([*torchrun, str(worker), str(tmp_path)], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]

    for name, (alone, history, _) in trained.items():
        together, images = load_encoder(tmp_path / name), validation_set.images
        # The square root between the layers magnifies rounding errors close to zero.
        tolerance = 1e-3 if name == "places" else 1e-5
        for maps, expected in zip(together.activation_maps(images), alone.activation_maps(images), strict=True):
            np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=tolerance, err_msg=name)
        if alone.has_decoder:
            reconstructed = together.reconstruct(images)
            np.testing.assert_allclose(reconstructed, alone.reconstruct(images), rtol=1e-4, atol=1e-5, err_msg=name)
        rows = read_json(tmp_path / f"{name}.json")
        assert len(rows) == len(history)
        for row, expected in zip(rows, history, strict=True):
            assert row == pytest.approx(expected, rel=1e-4)
