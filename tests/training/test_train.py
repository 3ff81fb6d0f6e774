"""Training: the same bits, resumed or not, and the best epoch kept."""

import os
import time
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import epochs

from convae.datasets import shards
from convae.encoder import load_encoder
from convae.errors import ConvaeError
from convae.training import batches
from convae.training.batches import ImageBatches
from convae.training.module import TrainingModule
from convae.training.train import CHECKPOINTS, prune, train_encoder

RESTLESS = {"learning_rate": 0.3, "batch_size": 8}  # the validation loss goes up and down


@pytest.fixture(autouse=True)
def _in_scratch_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ignore(row):
    pass


@pytest.mark.parametrize("changes", [{}, {"schedule": "cosine", "optimizer": "adamw", "weight_decay": 0.01}])
def test_resumed_training_ends_with_the_same_bits(experiment, train_set, validation_set, tmp_path, capsys, changes):
    params = experiment(train={"epochs": 5, **changes})
    whole, history, _ = train_encoder(params, train_set, validation_set, ignore)
    whole.save(tmp_path / "whole")

    def die_after_the_third(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_encoder(params, train_set, validation_set, die_after_the_third)
    seen = []
    resumed, resumed_history, _ = train_encoder(params, train_set, validation_set, seen.append)
    resumed.save(tmp_path / "resumed")

    assert [row["epoch"] for row in epochs(seen)] == [0, 1, 2, 3, 4]
    assert seen == history
    assert "resuming" in capsys.readouterr().out
    assert resumed_history == history
    assert folder_bytes(tmp_path / "resumed") == folder_bytes(tmp_path / "whole")
    assert not list(CHECKPOINTS.iterdir())


@pytest.mark.parametrize(("count", "points"), [(1, 50), (3, 51), (60, 60)])
def test_curves_have_about_fifty_points_at_most_one_per_batch(experiment, train_set, validation_set, count, points):
    params = experiment(train={"epochs": count, "batch_size": 8})
    _, history, _ = train_encoder(params, train_set, validation_set, ignore)
    assert [row["point"] for row in history] == list(range(points))
    trained = [row["trained"] for row in history]
    assert trained == sorted(trained)
    assert trained[-1] == count
    assert [row["trained"] for row in epochs(history)] == list(range(1, count + 1))
    few = experiment(train={"epochs": 1, "batch_size": len(train_set) // 4})
    assert len(train_encoder(few, train_set, validation_set, ignore)[1]) == 4


@pytest.mark.parametrize(("count", "size"), [(1, 8), (60, 100)])  # a point per batch, and per epoch
def test_a_row_has_the_mean_loss_since_the_row_before(experiment, train_set, validation_set, monkeypatch, count, size):
    losses, step = [], TrainingModule.training_step

    def remember(module, batch):
        loss = step(module, batch)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", remember)
    params = experiment(train={"epochs": count, "batch_size": size})
    _, history, _ = train_encoder(params, train_set, validation_set, ignore)
    means = np.reshape(losses, (len(history), -1)).mean(axis=1)
    assert [row["train_loss"] for row in history] == pytest.approx(means, rel=1e-5)


def interrupt(params, *images):
    """Train for 5 epochs, interrupt the fourth, and return the folder that this leaves."""
    before = set(CHECKPOINTS.glob("*"))

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_encoder(params, *images, stop, progress=False)
    (folder,) = set(CHECKPOINTS.iterdir()) - before
    return folder


def last_used(folder, days):
    """Pretend that the newest of its files was written `days` ago, the others earlier."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, 0))
    moment = time.time() - days * 24 * 3600
    os.utime(folder / "0/last.ckpt", (moment, moment))


def test_checkpoints_unused_for_thirty_days_are_removed_unless_in_use(experiment, train_set, validation_set, capsys):
    images = train_set, validation_set
    params = [experiment(seed=seed, train={"epochs": 5}) for seed in range(3)]
    abandoned, recent = interrupt(params[0], *images), interrupt(params[1], *images)
    last_used(abandoned, 29)
    train_encoder(params[2], *images, ignore, progress=False)
    assert set(CHECKPOINTS.iterdir()) == {abandoned, recent}
    last_used(abandoned, 31)
    last_used(recent, 31)
    capsys.readouterr()
    train_encoder(params[1], *images, ignore, progress=False)  # resumes an old checkpoint itself
    assert "resuming" in capsys.readouterr().out
    assert not list(CHECKPOINTS.iterdir())


def test_a_resumed_old_checkpoint_is_not_removed(tmp_path):
    old, other = tmp_path / "checkpoints/old", tmp_path / "checkpoints/other"
    (old / "0").mkdir(parents=True)
    (old / "0/last.ckpt").touch()
    last_used(old, 31)
    with FileLock(tmp_path / "checkpoints.lock"):
        pruning = Thread(target=prune, args=(other.parent, other))
        pruning.start()
        os.utime(old)
    pruning.join()
    assert (old / "0/last.ckpt").exists()
    last_used(old, 31)
    prune(other.parent, other)
    assert not old.exists()


RANDOM = {
    "model": {"layers": [{"filters": 4, "kernel": (3, 3), "batch_norm": True, "dropout": 0.3}], "tied_weights": False},
    "objective": {"corruption": {"kind": "masking", "level": 0.3}},
    "train": {"augmentation": {"flip": True, "shift": 1}},
}
SUPERVISED = {
    "objective": {"kind": "classify", "pretraining": 1, "sparsity": None},
    "train": {"augmentation": {"flip": True, "shift": 1}, "optimizer": "sgd", "head_learning_rate": 0.1},
}


STREAMED = {"train": {"schedule": "cosine"}}
PLACES = {"train": {"augmentation": {"flip": True, "shift": 1}}}


@pytest.mark.parametrize("changes", [{}, RANDOM, SUPERVISED, PLACES], ids=["plain", "random", "supervised", "places"])
def test_probing_changes_no_bit_of_the_encoder(experiment, shipped, train_set, validation_set, tmp_path, changes):
    build = shipped if changes is PLACES else experiment
    for every, points in ((None, []), (1, range(50)), (20, [19, 24, 39, 49]), (999, [24, 49])):
        train = {**changes.get("train", {}), "epochs": 1, "batch_size": 8, "probe_every": every}
        params = build(**changes | {"train": train})
        encoder, history, _ = train_encoder(params, train_set, validation_set, ignore)
        encoder.save(tmp_path / str(every))
        found = {row["point"]: row["probe_accuracy"] for row in history if "probe_accuracy" in row}
        two_phases = changes in (SUPERVISED, PLACES)
        assert list(found) == [point for point in points if two_phases or point != 24 or every == 1]
        assert all(accuracy > 0.5 for accuracy in found.values())  # chance: 0.1
        assert folder_bytes(tmp_path / str(every)) == folder_bytes(tmp_path / "None")


def test_without_labels_or_with_few_per_class_nothing_is_probed(experiment, train_set, validation_set):
    params = experiment(train={"epochs": 1, "probe_every": 5})
    for validation in (replace(validation_set, labels=None), some(validation_set, 99), some(validation_set, 1)):
        _, history, _ = train_encoder(params, train_set, validation, ignore)
        assert not any("probe_accuracy" in row for row in history)


def in_pieces(image_set, folder, monkeypatch):
    """The same images, as `data.shards` keeps them, in pieces of 50 and windows of 100."""
    monkeypatch.setattr(shards, "PIECE_BYTES", 50 * 64)
    monkeypatch.setattr(batches, "PIECE_BYTES", 50 * 64)
    monkeypatch.setattr(batches, "WINDOW_BYTES", 100 * 64)
    images = shards.write_shards(str(folder / "shards"), image_set.images.shape, [image_set.images])
    return replace(image_set, images=images)


@pytest.mark.parametrize(
    "changes", [{}, RANDOM, SUPERVISED, STREAMED, PLACES], ids=["plain", "random", "supervised", "streamed", "places"]
)
def test_training_killed_repeatedly_within_epochs_resumes_from_its_checkpoints(
    experiment, shipped, train_set, validation_set, tmp_path, monkeypatch, capsys, changes
):
    if changes is STREAMED:
        train_set = in_pieces(train_set, tmp_path, monkeypatch)
    if changes is PLACES:
        experiment = shipped
    params = experiment(**changes | {"train": {"epochs": 3, **changes.get("train", {})}})
    whole, history, _ = train_encoder(params, train_set, validation_set, ignore)
    whole.save(tmp_path / "whole")
    capsys.readouterr()
    params = experiment(**changes | {"train": {"epochs": 3, "checkpoint_minutes": 1e-9, **changes.get("train", {})}})
    step, steps = TrainingModule.training_step, []

    def die_at_every_third(module, batch):
        steps.append((module.phase, module.current_epoch, module.batches_done))
        if len(steps) % 3 == 0:
            raise KeyboardInterrupt
        return step(module, batch)

    monkeypatch.setattr(TrainingModule, "training_step", die_at_every_third)
    deaths = 0
    while True:
        try:
            resumed, resumed_history, _ = train_encoder(params, train_set, validation_set, ignore)
            break
        except (KeyboardInterrupt, SystemExit):
            deaths += 1
    resumed.save(tmp_path / "resumed")
    assert deaths >= 8
    assert len(steps) == len(set(steps)) + deaths  # only unfinished steps were repeated
    assert "after 2 batches" in capsys.readouterr().out
    assert resumed_history == history
    assert folder_bytes(tmp_path / "resumed") == folder_bytes(tmp_path / "whole")


def test_training_killed_before_its_first_checkpoint_starts_afresh(experiment, train_set, validation_set, tmp_path):
    params = experiment(train={"epochs": 3})
    train_encoder(params, train_set, validation_set, ignore)[0].save(tmp_path / "whole")

    def die(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_encoder(params, train_set, validation_set, die)
    (folder,) = CHECKPOINTS.iterdir()
    (folder / "0/last.ckpt").unlink()  # best.ckpt is written first
    train_encoder(params, train_set, validation_set, ignore)[0].save(tmp_path / "again")
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize("removed", [[], ["last.ckpt"], ["last.ckpt", "best.ckpt"]])
def test_training_killed_after_early_stopping_ends_the_same(
    experiment, train_set, validation_set, tmp_path, monkeypatch, removed
):
    params = experiment(train={"epochs": 40, "patience": 2, **RESTLESS})
    whole, history, _ = train_encoder(params, train_set, validation_set, ignore)
    whole.save(tmp_path / "whole")

    def die_while_removing(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("convae.training.train.shutil.rmtree", die_while_removing)
        patch.setattr("pathlib.Path.unlink", lambda path, missing_ok=False: None)
        with pytest.raises(KeyboardInterrupt):
            train_encoder(params, train_set, validation_set, ignore)
    (folder,) = CHECKPOINTS.iterdir()
    for name in removed:
        (folder / "0" / name).unlink()
    again, history_again, _ = train_encoder(params, train_set, validation_set, ignore)
    again.save(tmp_path / "again")
    assert history_again == history
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "whole")


def test_a_process_group_of_one_trains_identically(experiment, train_set, validation_set, tmp_path):
    for strategy in ("auto", "ddp"):
        params = experiment(train={"epochs": 1, "strategy": strategy})
        train_encoder(params, train_set, validation_set, ignore)[0].save(tmp_path / strategy)
    torch.distributed.destroy_process_group()
    assert folder_bytes(tmp_path / "auto") == folder_bytes(tmp_path / "ddp")


def test_half_precision_trains_the_shipped_model(experiment, train_set, validation_set):
    encoder, history, _ = train_encoder(
        experiment(train={"epochs": 1, "precision": "bf16-mixed"}), train_set, validation_set, ignore
    )
    assert len(epochs(history)) == 1
    assert encoder.filters.dtype == "float32"


def test_another_configuration_does_not_resume_the_checkpoint(experiment, train_set, validation_set, capsys):
    def die(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_encoder(experiment(), train_set, validation_set, die)
    train_encoder(experiment(train={"learning_rate": 0.002}), train_set, validation_set, ignore)
    assert "resuming" not in capsys.readouterr().out


def test_the_epoch_with_the_lowest_validation_loss_is_kept(experiment, train_set, validation_set):
    params = experiment(train={"epochs": 5, **RESTLESS})
    images = np.resize(validation_set.images, (300, *validation_set.images.shape[1:]))  # in batches of 256 and 44
    encoder, history, _ = train_encoder(params, train_set, replace(validation_set, images=images), ignore)
    losses = [row["validation_loss"] for row in epochs(history)]
    assert min(losses) < losses[-1]
    error = ((encoder.reconstruct(images) - encoder.preprocess(images)) ** 2).mean()
    assert error == pytest.approx(min(losses), rel=1e-5)


def test_early_stopping_ends_the_training(experiment, train_set, validation_set):
    params = experiment(train={"epochs": 40, "patience": 2, **RESTLESS})
    _, history, _ = train_encoder(params, train_set, validation_set, ignore)
    losses = [row["validation_loss"] for row in epochs(history)]
    assert len(losses) < 40
    assert losses.index(min(losses)) == len(losses) - 3


def test_without_an_objective_filters_keep_their_initial_values(experiment, train_set, validation_set):
    params = experiment(objective={"kind": "none"})
    encoder, history, _ = train_encoder(params, train_set, validation_set, ignore)
    trained, *_ = train_encoder(experiment(), train_set, validation_set, ignore)
    assert history == []
    assert not encoder.has_decoder
    with pytest.raises(ConvaeError, match="no trained decoder"):
        encoder.reconstruct(validation_set.images)
    generator = torch.Generator().manual_seed(params.seed)
    assert torch.equal(
        torch.from_numpy(encoder.filters), torch.empty(4, 1, 3, 3).normal_(std=1 / 3, generator=generator)
    )
    assert (encoder.filters != trained.filters).all()


def test_a_non_finite_loss_is_reported_with_advice(experiment, train_set, validation_set):
    params = experiment(train={"learning_rate": 1e12, "optimizer": "sgd"}, objective={"sparsity": None})
    with pytest.raises(ConvaeError, match=r"the loss became \w+ in epoch 0: lower train.learning_rate"):
        train_encoder(params, train_set, validation_set, ignore)


DENSE = {"filters": 4, "kernel": (8, 8), "padding": "valid", "batch_norm": True}


@pytest.mark.parametrize("order", ["end_to_end", "greedy", "simultaneous"])
@pytest.mark.parametrize(("images", "size"), [(1, 64), (5, 1)])
def test_batch_norm_over_a_single_value_is_refused_in_one_line(
    experiment, train_set, validation_set, order, images, size
):
    params = experiment(
        model={"layers": [DENSE]}, objective={"sparsity": None}, train={"order": order, "batch_size": size}
    )
    with pytest.raises(ConvaeError, match=r"^batch normalisation has only one value per map to learn from"):
        train_encoder(params, some(train_set, images), some(validation_set, 1), ignore)


def test_classification_of_a_single_labelled_image_is_refused(experiment, train_set, validation_set):
    params = experiment(objective={"kind": "classify", "sparsity": None})
    with pytest.raises(ConvaeError, match=r"^batch normalisation has only one value per map to learn from"):
        train_encoder(params, some(train_set, 1), validation_set, ignore)


@pytest.mark.parametrize("kind", ["reconstruct", "classify"])
def test_a_last_batch_of_one_and_a_single_validation_image_are_allowed(experiment, train_set, validation_set, kind):
    params = experiment(
        model={"layers": [DENSE]}, objective={"kind": kind, "sparsity": None}, train={"batch_size": 4, "epochs": 1}
    )
    _, history, _ = train_encoder(params, some(train_set, 9), some(validation_set, 1), ignore)
    assert len(epochs(history)) == 1


def some(image_set, count):
    return replace(image_set, images=image_set.images[:count], labels=image_set.labels[:count])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_an_encoder_that_could_not_be_loaded_is_not_trained(experiment, train_set, validation_set, monkeypatch):
    monkeypatch.setattr("convae.models.limits.MOST_WORK", 1000)
    with pytest.raises(ConvaeError, match=r"8×8 pixels would take \d\.\d\de\+04 multiplications"):
        train_encoder(experiment(), train_set, validation_set, ignore)


def test_a_missing_gpu_is_reported(experiment, train_set, validation_set):
    with pytest.raises(ConvaeError, match=r"^train\.accelerator = gpu, .*: ") as refusal:
        train_encoder(experiment(train={"accelerator": "gpu"}), train_set, validation_set, ignore)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_gives_an_encoder_that_loads_on_the_cpu(
    experiment, train_set, validation_set, tmp_path, monkeypatch
):
    devices = set()
    slices = ImageBatches.__iter__
    monkeypatch.setattr(
        ImageBatches,
        "__iter__",
        lambda one: (devices.add(one.images.device.type), slices(one))[1],
    )
    encoder, history, _ = train_encoder(experiment(train={"accelerator": "gpu"}), train_set, validation_set, ignore)
    encoder.save(tmp_path / "encoder")
    assert len(epochs(history)) == 3
    assert devices == {"cuda"}
    assert load_encoder(tmp_path / "encoder").device.type == "cpu"
