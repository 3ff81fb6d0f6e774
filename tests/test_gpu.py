"""What needs a GPU: `make test-gpu`. `python -m benchmark.gpu_check` also measures speed, without this environment."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from sklearn.linear_model import RidgeClassifier

from convae import load_encoder
from convae.datasets.image_set import ImageSet
from convae.estimators import ConvolutionalAutoencoderFeatures
from convae.features.extract import attach_readout, extract_features, fit_readout
from convae.params import Params
from convae.training.module import TrainingModule
from convae.training.train import train_encoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and `make test-gpu`"),
]
GPU, CPU = {"train": {"accelerator": "gpu"}}, {"train": {"accelerator": "cpu"}}


@pytest.fixture
def trained(digits, tmp_path):
    """`trained(params)`: the encoder, on the CPU, and the history."""

    def run(params: Params, folder=None):
        training, validation = (ImageSet.load(digits / part) for part in ("train", "validation"))
        checkpoints = folder or tmp_path / os.urandom(4).hex()
        encoder, history, device = train_encoder(params, training, validation, lambda row: None, checkpoints, False)
        assert device.startswith({"gpu": "cuda"}.get(params.train.accelerator, "cpu"))
        return encoder.to("cpu"), history

    return run


def tensors(encoder):
    return encoder.autoencoder.state_dict()


def assert_same(one, other):
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


def test_training_agrees_with_the_cpus(experiment, trained):
    """Without random draws, for which GPUs have generators of their own."""
    (ours, our_history), (theirs, their_history) = (trained(experiment(**where)) for where in (GPU, CPU))
    for row, expected in zip(our_history, their_history, strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    torch.testing.assert_close(tensors(ours), tensors(theirs), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["whole maps", "places"])
def test_training_twice_or_interrupted_gives_the_same_bits(experiment, shipped, trained, tmp_path, monkeypatch, kind):
    build = experiment if kind == "whole maps" else shipped
    first, _ = trained(build(**GPU))
    assert_same(first, trained(build(**GPU))[0])
    step, steps = TrainingModule.training_step, []

    def die_at_every_third(module, batch):
        steps.append(0)
        if len(steps) % 3 == 0:
            raise KeyboardInterrupt
        return step(module, batch)

    monkeypatch.setattr(TrainingModule, "training_step", die_at_every_third)
    params = build(train=GPU["train"] | {"checkpoint_minutes": 1e-9})
    while True:
        try:
            resumed, _ = trained(params, tmp_path / "interrupted")
            break
        except (KeyboardInterrupt, SystemExit):
            pass
    assert_same(first, resumed)


def test_no_step_waits_for_the_gpu(shipped, trained, monkeypatch):
    """From the start of a step to its end: loss, gradients and optimiser."""
    start, end = TrainingModule.on_train_batch_start, TrainingModule.on_train_batch_end

    def watch(module, *arguments):
        start(module, *arguments)
        torch.cuda.set_sync_debug_mode("error")

    def release(module, *arguments):
        torch.cuda.set_sync_debug_mode("default")
        end(module, *arguments)

    monkeypatch.setattr(TrainingModule, "on_train_batch_start", watch)
    monkeypatch.setattr(TrainingModule, "on_train_batch_end", release)
    try:
        trained(shipped(**GPU))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_features_agree_with_the_cpus(shipped, trained, digits, tmp_path):
    params = shipped(**GPU)
    trained(params)[0].save(tmp_path / "trained")
    for name, where in (("gpu", GPU), ("cpu", CPU), ("again", GPU)):
        extract_features(shipped(**where), tmp_path / "trained", digits, tmp_path / name)
    ours, again, theirs = (np.load(tmp_path / name / "test.npy") for name in ("gpu", "again", "cpu"))
    np.testing.assert_array_equal(ours, again)
    # The square root of features near zero magnifies single rounding errors.
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_mixed_precision_is_as_accurate(shipped, trained, digits):
    training, test = (ImageSet.load(digits / part) for part in ("train", "test"))
    accuracies = []
    for precision in ("32-true", "bf16-mixed"):
        params = shipped(train=GPU["train"] | {"precision": precision})
        encoder, _ = trained(params)
        readout = attach_readout(encoder, params.features)
        fit_readout(readout, encoder.features(training.images))
        classifier = RidgeClassifier().fit(encoder.features(training.images), training.labels)
        accuracies.append(classifier.score(encoder.features(test.images), test.labels))
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.05)


def test_an_encoder_trained_on_a_gpu_loads_anywhere(experiment, trained, digits, tmp_path):
    trained(experiment(**GPU))[0].save(tmp_path / "encoder")
    images = ImageSet.load(digits / "test").images
    here, there = (load_encoder(tmp_path / "encoder", device).activation_maps(images)[-1] for device in ("cpu", "auto"))
    assert np.linalg.norm(here - there) <= 1e-5 * np.linalg.norm(here)


def test_the_estimator_trains_there_and_computes_there():
    images = np.random.default_rng(0).random((40, 12, 12))
    estimator = ConvolutionalAutoencoderFeatures(filters=(8,), device="cuda")
    features = estimator.fit_transform(images)
    assert estimator.encoder_.device.type == "cuda"
    estimator.encoder_.to("cpu")
    assert np.linalg.norm(estimator.transform(images) - features) <= 1e-5 * np.linalg.norm(features)


def test_two_processes_on_one_gpu_are_refused(clone):
    repository = clone(history=False)
    repository.set("train.accelerator=gpu")
    repository.run("dvc", "repro", "prepare", CONVAE_TRACKING="off")
    command = ["torchrun", "--nproc-per-node=2", "-m", "pipeline.train"]
    failed = repository.run(*command, check=False, CUDA_VISIBLE_DEVICES="0", CONVAE_TRACKING="off")
    assert failed.returncode
    assert "each needs a GPU of its own; this process sees 1" in failed.stderr


def test_the_check_passes(tmp_path):
    command = [sys.executable, "-m", "benchmark.gpu_check", "--images", "6000", "--minutes", "5"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stdout.splitlines() if line.endswith(" NO") and "images/s" not in line]
    assert "training twice" in done.stdout
    assert not wrong, done.stdout
