"""Stages run by several real processes, started by `dvc repro` (train.devices) or torchrun."""

import numpy as np
import psutil
import pytest
from helpers import recorded, wait_for
from mlflow import MlflowClient
from PIL import Image
from ruamel.yaml import YAML

from convae import load_encoder

TORCHRUN = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
REPRO = ("dvc", "repro", "--force", "--single-item", "train")
LOST = "process 1 was killed by SIGKILL; run the stage again to resume"

pytestmark = pytest.mark.slow


def ranks(parent):
    """The training processes below `parent`, by rank."""
    found = {}
    for process in psutil.Process(parent.pid).children(recursive=True):
        try:
            if "pipeline.train" in process.cmdline() and "RANK" in process.environ():
                found[process.environ()["RANK"]] = process
        except psutil.Error:
            continue
    return found


def has_saved(clone):
    return list(clone.folder.glob(".convae/checkpoints/*/0/last.ckpt"))


def equal(left, right):
    """Up to rounding errors."""
    first, second = load_encoder(left).autoencoder.state_dict(), load_encoder(right).autoencoder.state_dict()
    return all(np.allclose(value, second[name], rtol=1e-3, atol=1e-3) for name, value in first.items())


def test_training_that_lost_a_process_resumes_with_another_world_size(finished, tmp_path):
    repository = finished
    # Among winners, rounding errors would decide between maps that are equally strong.
    repository.set("train.epochs=20", "train.checkpoint_minutes=0.001", "objective.sparsity=null")
    repository.run("dvc", "repro", "train")
    undisturbed = tmp_path / "undisturbed"
    (repository.folder / "models/autoencoder").rename(undisturbed)

    repository.set("train.devices=2")
    log = tmp_path / "log"
    with log.open("w") as stream:
        repro = repository.start(*REPRO, log=stream)
        wait_for(lambda: has_saved(repository))
        ranks(repro)["1"].kill()
        assert repro.wait() != 0
    assert f"train: {LOST}\n" in log.read_text()
    assert "Traceback" not in log.read_text()
    repository.set("train.devices=1")
    assert "resuming epoch" in repository.run(*REPRO).stdout
    assert equal(undisturbed, repository.folder / "models/autoencoder")

    with log.open("w") as stream:
        alone = repository.start("python", "-m", "pipeline.train", log=stream)
        wait_for(lambda: has_saved(repository))
        alone.kill()
        alone.wait()
    resumed = repository.run(*TORCHRUN, "2", "-m", "pipeline.train")
    assert "resuming epoch" in resumed.stdout
    assert equal(undisturbed, repository.folder / "models/autoencoder")

    runs = [run for run in recorded(MlflowClient(f"sqlite:///{repository.folder}/mlflow.db")) if is_train(run)]
    assert [run.info.status for run in runs] == 4 * ["FINISHED"]  # one per training run, and the one before them
    assert not list(repository.folder.glob("**/*.partial"))


def is_train(run):
    return run.data.tags["mlflow.runName"].startswith("train")


def test_images_and_features_do_not_depend_on_the_number_of_processes(clone, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 20, 16, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(pictures / f"{index:03}.png")
    broken = (pictures / "250.png").read_bytes()
    (pictures / "250.png").write_bytes(broken[: len(broken) // 2])
    repository = clone(history=False)
    changes = ["data.dataset=image_folder", f"data.root={pictures}", "data.image_size=[20,16]", "data.max_rejected=1"]
    # With 64 maps, a batch holds 102 images: several batches, the last one smaller.
    repository.set(*changes, "objective.kind=none", "model.layers.0.filters=64", "features.grid=4")
    off = {"CONVAE_TRACKING": "off"}
    repository.run("dvc", "repro", "features", **off)
    lock = repository.read("dvc.lock")

    repository.set("train.devices=2")
    repository.run("dvc", "repro", "--force", "--single-item", "features", **off)
    assert repository.read("dvc.lock") == lock

    for stage in ("prepare", "features"):
        repository.run(*TORCHRUN, "3", "-m", f"pipeline.{stage}", **off)
    status = repository.run("dvc", "status", "prepare", "features").stdout
    assert "up to date" in status

    outputs = ("data/features", "models/encoder")
    before = [md5(lock, path) for path in outputs]
    repository.set(f"data.shards={tmp_path / 'shards'}")
    repository.run("dvc", "repro", "features", **off)
    assert not (repository.folder / "data/prepared/train/images.npy").exists()
    assert [md5(repository.read("dvc.lock"), path) for path in outputs] == before
    repository.run(*TORCHRUN, "3", "-m", "pipeline.prepare", **off)
    assert "up to date" in repository.run("dvc", "status", "prepare").stdout


def md5(lock, path):
    """The hash of an output in dvc.lock."""
    stages = YAML(typ="safe").load(lock)["stages"].values()
    return next(out["md5"] for stage in stages for out in stage["outs"] if out["path"] == path)
