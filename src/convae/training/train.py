"""Training an autoencoder, resumable after each epoch."""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar

import convae.models
import convae.training
from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder, build_autoencoder
from convae.errors import ConvaeError
from convae.files import file_sha256
from convae.params import Params
from convae.training.batches import ImageBatches
from convae.training.module import ReconstructionModule, Row

CHECKPOINTS = Path(".convae/checkpoints")


def train_encoder(
    params: Params, training: ImageSet, validation: ImageSet, on_epoch: Callable[[Row], None]
) -> tuple[Encoder, list[Row], str]:
    """Fit the preprocessing, then train the autoencoder and keep its best epoch by validation loss.

    An interrupted training of the same parameters, images and code is taken up after its last whole epoch and ends
    with the same bits.

    Args:
        params: the experiment.
        training: images to learn from; labels are not used.
        validation: images that choose the epoch.
        on_epoch: called with each row of the history: those of a resumed training first, then after each epoch.

    Returns:
        The encoder; the history: epoch, train_loss, validation_loss, learning_rate for each epoch trained, to six
        digits, none where the objective is `none`; and the device that it was trained on.

    Raises:
        ConvaeError: the loss is not finite, or the accelerator asked for is not there.
    """
    torch.set_num_threads(params.train.threads)
    config = encoder_config(params, training)
    autoencoder = build_autoencoder(config)
    generator = torch.Generator().manual_seed(params.seed)
    autoencoder.initialize(generator)
    autoencoder.preprocessing.fit(torch.from_numpy(training.images), generator)
    autoencoder.to(memory_format=torch.channels_last)
    if params.objective.kind == "none":
        return Encoder(autoencoder, None, config), [], "cpu"
    module = ReconstructionModule(autoencoder, params.train, params.seed, on_epoch)
    device = _fit(module, params, training, validation)
    return Encoder(autoencoder, None, config), module.history, device


def encoder_config(params: Params, training: ImageSet) -> dict[str, Any]:
    """What `config.json` says of an encoder trained so, its readout not yet decided."""
    return {
        "channels": training.images.shape[1],
        "image_size": list(training.images.shape[2:]),
        "preprocessing": params.preprocessing.model_dump(mode="json"),
        "layers": [layer.model_dump(mode="json") for layer in params.model.layers],
        "tied_weights": params.model.tied_weights,
        "sparsity": params.objective.sparsity and params.objective.sparsity.model_dump(mode="json"),
        "decoder": params.objective.kind == "reconstruct",
        "readout": None,
        "trained_on": {
            "dataset": params.data.dataset,
            "images": len(training),
            "classes": list(training.classes),
            "sha256": training.sha256,
        },
        "versions": {"torch": torch.__version__},
    }


def _fit(module: ReconstructionModule, params: Params, training: ImageSet, validation: ImageSet) -> str:
    # Lightning's advertisements and notes on its own internals; errors and warnings about the training stay.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec|Checkpoint directory", module="pytorch_lightning")
    train = params.train
    folder = CHECKPOINTS / training_key(params, training, validation)
    # Without version counters, so that a file left by a killed training is replaced and never kept beside the new one.
    best = ModelCheckpoint(
        folder, "best", monitor="validation_loss", save_on_train_epoch_end=True, enable_version_counter=False
    )
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    try:
        trainer = lightning.Trainer(
            max_epochs=train.epochs,
            accelerator=train.accelerator,
            devices=train.devices,
            precision=train.precision,
            gradient_clip_val=train.gradient_clip,
            callbacks=[best, last, TQDMProgressBar(refresh_rate=10)],
            deterministic="warn",
            logger=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:
        asked = f"accelerator = {train.accelerator}, devices = {train.devices}, precision = {train.precision}"
        raise ConvaeError(f"train.{asked}: {' '.join(str(error).split())}") from None
    resume = folder / "last.ckpt"
    if resume.exists():
        print(f"resuming after the last whole epoch, from {resume}")
    trainer.fit(
        module,
        ImageBatches(training.images, train.batch_size, params.seed),
        ImageBatches(validation.images, max(train.batch_size, 256)),
        ckpt_path=resume if resume.exists() else None,
    )
    if not trainer.is_global_zero:  # the other processes of a distributed training have done their part
        raise SystemExit(0)
    checkpoint = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    resume.unlink()  # first: without it a folder half removed is no training to resume
    shutil.rmtree(folder)
    return str(trainer.strategy.root_device)


def training_key(params: Params, training: ImageSet, validation: ImageSet) -> str:
    """Hash of everything that determines the trained weights: parameters, images, code and torch."""
    code = [
        file_sha256(path)
        for package in (convae.models, convae.training)
        for path in sorted(Path(package.__path__[0]).glob("*.py"))
    ]
    names = ("preprocessing", "model", "objective", "train")
    sections = {name: getattr(params, name).model_dump(mode="json") for name in names}
    key = [params.seed, sections, training.sha256, validation.sha256, code, torch.__version__]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
