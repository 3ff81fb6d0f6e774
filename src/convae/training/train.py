"""Training an autoencoder, resumable after each epoch and within long ones."""

import hashlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from filelock import FileLock
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.strategies import DDPStrategy

import convae
import convae.encoder
import convae.images
import convae.models
import convae.training
from convae.datasets.image_set import ImageSet
from convae.datasets.shards import ShardedImages
from convae.encoder import CONFIG, Encoder, build_autoencoder, load_encoder
from convae.errors import ConvaeError
from convae.files import file_sha256, new_file
from convae.models.autoencoder import Autoencoder
from convae.models.compatibility import check_source
from convae.models.corruption import Corruption
from convae.models.geometry import resolve_kernels
from convae.models.initialization import set_filters
from convae.params import Params, TrainParams
from convae.processes import ALONE, PATIENCE, Processes
from convae.training.batches import Batches, ImageBatches, StreamedBatches
from convae.training.module import Row, TrainingModule
from convae.training.objectives import (
    Classification,
    LayerReconstruction,
    Objective,
    Reconstruction,
    SimultaneousReconstruction,
)
from convae.training.state import quiet_lightning

CHECKPOINTS = Path(".convae/checkpoints")
BEST, LAST = "best.ckpt", "last.ckpt"
LIGHTNING = (2, 6)  # the first whose checkpoints are read without unpickling
KEPT_SECONDS = 30 * 24 * 3600  # how long an interrupted training can be taken up
UNIMPORTANT = {"checkpoint_minutes", "devices", "nodes", "strategy"}  # a training is taken up whatever they are


class AtomicCheckpointIO(TorchCheckpointIO):
    """Puts a checkpoint into place in one step, whole; Lightning's own copies it from /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write next to `path`, then rename."""
        with new_file(Path(path)) as scratch:
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)  # to a file it would hide that the disk is full
            scratch.write_bytes(buffer.getbuffer())


def load_training_set(params: Params, prepared: Path) -> ImageSet:
    """The images to learn from: those without labels where there are some, unless labels are to be learned."""
    unlabelled = ImageSet.load(prepared / "unlabelled")
    if len(unlabelled) and params.objective.kind != "classify":
        return unlabelled
    return ImageSet.load(prepared / "train")


def train_encoder(
    params: Params,
    training: ImageSet,
    validation: ImageSet,
    on_epoch: Callable[[Row], None],
    checkpoints: Path = CHECKPOINTS,
    progress: bool = True,
    processes: Processes = ALONE,
) -> tuple[Encoder, list[Row], str]:
    """Fit the preprocessing, then train the autoencoder, phase by phase; each keeps its best epoch by validation loss.

    An interrupted training of the same parameters, images and code is taken up where it was saved last and ends with
    the same bits.

    Args:
        params: the experiment.
        training: images to learn from; labels are of use to the objective `classify` alone.
        validation: images that choose the epoch.
        on_epoch: called with each row of the history: those of a resumed training first, then after each epoch.
        checkpoints: folder for what an interrupted training is taken up from; what is left in it is of such alone, and
            removed when another one starts 30 days later.
        progress: show a bar.
        processes: those that train together.

    Returns:
        The encoder; the history: phase, epoch, train_loss, validation_loss, learning_rate for each epoch trained, to
        six digits, none where the objective is `none`; and the device that it was trained on. All processes have the
        same.

    Raises:
        ConvaeError: the loss is not finite, the accelerator asked for is not there, or there are no labels to learn.
    """
    _check(params, training)
    torch.set_num_threads(params.train.threads)
    config = encoder_config(params, training)
    source = Path(params.model.initialize_from)
    start = load_encoder(source) if (source / CONFIG).exists() else None
    network = build_autoencoder(config, processes)
    _set_first_weights(network, params, training)
    if start:
        take_over(network, config, start, params.objective.kind)
        config["initialized_from"] = {"sha256": start.sha256, "trained_on": start.config["trained_on"]}
    elif params.frozen_layers and not params.objective.pretraining:
        raise ConvaeError(
            f"train.freeze = {params.train.freeze}: {source} holds no encoder whose filters could be kept"
        )
    phases = _phases(params, network, training)
    if not phases and params.objective.kind != "none":
        raise ConvaeError(f"train.freeze = {params.train.freeze}: no layer is left to learn")
    folder = checkpoints / training_key(params, training, validation, start)
    if phases and not processes.rank:
        prune(checkpoints, folder)
    history: list[Row] = []
    device = "cpu"
    for phase, (objective, epochs) in enumerate(phases):
        batches = _batches(params, training, validation, processes)
        saved = folder / str(phase)
        module = TrainingModule(
            objective, *batches, params.train, saved / LAST, params.seed, phase, len(history), on_epoch
        )
        device = _fit(module, epochs, saved, progress)
        history += module.history
    if history and not processes.rank:
        _discard(folder)
    return Encoder(network, None, config), history, device


def _check(params: Params, training: ImageSet) -> None:
    """Refuse what can't be trained, before anything is computed."""
    installed = version("pytorch-lightning")
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) < LIGHTNING:
        needed = ".".join(map(str, LIGHTNING))
        raise ConvaeError(f"pytorch-lightning {installed}: {needed} or newer is needed; install convae[train] again")
    if params.objective.kind == "classify" and training.labels is None:
        raise ConvaeError("objective.kind = classify: the training images have no labels; reconstruct needs none")


def _set_first_weights(network: Autoencoder, params: Params, training: ImageSet) -> None:
    """Fit the preprocessing to a sample of the images, and draw or fit the filters that training starts from."""
    generator = torch.Generator().manual_seed(params.seed)
    network.initialize(generator)
    images = torch.from_numpy(training.sample())
    network.preprocessing.fit(images, generator)
    if params.model.initialization != "normal":
        set_filters(network.eval(), params.model.initialization, images, generator)
    network.to(memory_format=torch.channels_last)


def prune(checkpoints: Path, current: Path) -> None:
    """Remove what trainings left that were interrupted and not taken up for 30 days.

    Args:
        checkpoints: folder of the folders of all trainings.
        current: the one that is in use from now on, and stays.
    """
    if not checkpoints.exists():
        return
    # Of two processes the one that takes up an old training says so before the other looks, or finds it gone.
    with FileLock(checkpoints.with_name(f"{checkpoints.name}.lock")):
        if current.exists():
            os.utime(current)
        for folder in filter(Path.is_dir, checkpoints.iterdir()):
            with suppress(FileNotFoundError):  # its training has ended just now
                last_used = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                if folder != current and last_used < time.time() - KEPT_SECONDS:
                    _discard(folder)


def _discard(folder: Path) -> None:
    for resume in folder.glob(f"*/{LAST}"):
        resume.unlink()  # first: without it a folder half removed is no training to resume
    shutil.rmtree(folder)


def _phases(params: Params, network: Autoencoder, training: ImageSet) -> list[tuple[Objective, int]]:
    """What is minimised in turn, and for how many epochs at most; each phase starts where the one before ended."""
    phases: list[tuple[Objective, int]] = []
    objective, train, frozen = params.objective, params.train, params.frozen_layers
    corruption = Corruption(**objective.corruption.model_dump(), batch=network.batch) if objective.corruption else None
    augmentation = train.augmentation.model_dump() if train.augmentation else None
    of_images = augmentation if objective.kind == "reconstruct" else None  # a pretraining sees them as they are
    epochs = {"reconstruct": train.epochs, "classify": objective.pretraining, "none": 0}[objective.kind]
    if epochs and train.order.startswith("greedy"):
        for index in range(frozen, len(network.layers)):
            phases.append((LayerReconstruction(network, corruption, of_images, index), epochs))
    if epochs and train.order.endswith("end_to_end"):
        phases.append((Reconstruction(network, corruption, of_images, frozen), epochs))
    if epochs and train.order == "simultaneous":
        phases.append((SimultaneousReconstruction(network, corruption, of_images, frozen), epochs))
    if objective.kind == "classify":
        size = (training.images.shape[2], training.images.shape[3])
        head = Classification(network, augmentation, size, len(training.classes), params.seed, frozen)
        phases.append((head, train.epochs))
    return phases


def encoder_config(params: Params, training: ImageSet) -> dict[str, Any]:
    """What `config.json` says of an encoder trained so, its readout not yet decided."""
    channels, height, width = training.images.shape[1:]
    layers = [layer.model_dump(mode="json") for layer in params.model.layers]
    return {
        "channels": channels,
        "value_range": {"uint8": [0, 255], "float32": [0.0, 1.0]},
        "image_size": [height, width],
        "pictures": {"fit": params.data.fit, "white_level": params.data.white_level},
        "preprocessing": params.preprocessing.model_dump(mode="json"),
        "layers": resolve_kernels((height, width), layers, params.model.stacked_on),
        "tied_weights": params.model.tied_weights,
        "stacked_on": params.model.stacked_on,
        "sparsity": params.objective.sparsity and params.objective.sparsity.model_dump(mode="json"),
        "decoder": params.objective.kind == "reconstruct",
        "readout": None,
        "initialized_from": None,
        "trained_on": {
            "dataset": params.data.dataset,
            "images": len(training),
            "classes": list(training.classes),
            "sha256": training.sha256,
        },
        "versions": {"convae": convae.__version__, "torch": torch.__version__},
    }


def take_over(network: Autoencoder, config: dict[str, Any], source: Encoder, objective: str) -> None:
    """Preprocessing and layers of a saved encoder take the place of the network's first ones.

    Decoder and sparsity come along where both have them. Further layers stay as they are.

    Args:
        network: changed in place.
        config: what `encoder_config` says of it; changed where the decoder comes along.
        source: has as many layers or fewer.
        objective: what is minimised from there on.

    Raises:
        ConvaeError: they do not suit.
    """
    check_source(source.config, config)
    both = ["layers"]
    if source.has_decoder and source.config["tied_weights"] == config["tied_weights"]:
        both.append("decoder")
        # What is not trained further reconstructs as before.
        whole = len(source.config["layers"]) == len(config["layers"])
        config["decoder"] = config["decoder"] or (objective == "none" and whole)
    elif config["stacked_on"] == "reconstructions":
        raise ConvaeError(
            "model.initialize_from: that encoder's layers can't be stacked, it has no decoder of this kind"
        )
    if source.config["sparsity"] == config["sparsity"]:
        both.append("sparsity")
    network.preprocessing.load_state_dict(source.autoencoder.preprocessing.state_dict())
    for name in both:
        theirs = getattr(source.autoencoder, name)
        getattr(network, name)[: len(theirs)].load_state_dict(theirs.state_dict())


@quiet_lightning()
def _fit(module: TrainingModule, epochs: int, folder: Path, progress: bool) -> str:
    """Train one phase and leave the module with its best epoch; gives the device. A finished phase is not repeated."""
    trainer = _trainer(module, epochs, folder, progress)
    module.objective.requires_grad_(False)  # DDP waits for a gradient of whatever could have one
    for parameter in module.objective.trained():
        parameter.requires_grad_(True)
    resume = folder / LAST
    trainer.fit(module, ckpt_path=resume if resume.exists() else None, weights_only=True)
    checkpoint = torch.load(folder / BEST, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    trainer.strategy.barrier()  # rank 0 removes the file at the end
    return str(trainer.strategy.root_device)


def _trainer(module: TrainingModule, epochs: int, folder: Path, progress: bool) -> lightning.Trainer:
    """Lightning's trainer: it keeps the best and the last epoch in `folder`, and logs nothing."""
    # Else `deterministic` fills every new tensor with NaN first; nothing here reads what was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not torch.cuda.is_available():  # Lightning's setting has Adam look for NVIDIA's library at each step
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    train = module.params
    # Without version counters, a file left by a killed training is replaced.
    keep = partial(ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    best, last = keep(Path(BEST).stem, monitor="validation_loss"), keep(Path(LAST).stem)
    try:
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator=train.accelerator,
            **_devices(train, module.processes),
            precision=train.precision,
            gradient_clip_val=train.gradient_clip,
            callbacks=[best, last, *([TQDMProgressBar(refresh_rate=10)] if progress else [])],
            enable_progress_bar=progress,
            deterministic="warn",
            logger=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:
        asked = f"accelerator = {train.accelerator}, devices = {train.devices}, precision = {train.precision}"
        raise ConvaeError(f"train.{asked}: {' '.join(str(error).split())}") from None


def _batches(
    params: Params, training: ImageSet, validation: ImageSet, processes: Processes
) -> tuple[Batches, ImageBatches]:
    """The images to learn from, in random order, and those that choose the epoch, in their own."""
    size, labelled = params.train.batch_size, params.objective.kind == "classify"
    kind = StreamedBatches if isinstance(training.images, ShardedImages) else ImageBatches
    return (
        kind(training.images, size, params.seed, training.labels if labelled else None, processes),
        ImageBatches(validation.images, max(size, 256), None, validation.labels if labelled else None, processes),
    )


def _devices(train: TrainParams, processes: Processes) -> dict[str, Any]:
    """What Lightning's trainer is told of the processes, which are there already."""
    several = processes.count > 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several else 1
    # Buffers need no broadcast before each step: what changes them is the whole batch, see `shared_batch`.
    ddp = DDPStrategy(timeout=PATIENCE, forward_sync_buffers=False)
    return {
        "devices": local,
        "num_nodes": processes.count // local,
        "strategy": ddp if several or train.strategy == "ddp" else "auto",
        "plugins": [AtomicCheckpointIO(), TorchElasticEnvironment() if several else LightningEnvironment()],
    }


def training_key(params: Params, training: ImageSet, validation: ImageSet, start: Encoder | None) -> str:
    """Hash of everything that determines the trained weights: parameters, images, first weights, code and libraries."""
    packages = [path for one in (convae.models, convae.training) for path in sorted(Path(one.__path__[0]).glob("*.py"))]
    code = [file_sha256(path) for path in (*packages, Path(convae.encoder.__file__), Path(convae.images.__file__))]
    names = ("preprocessing", "model", "objective", "train")
    sections = {name: getattr(params, name).model_dump(mode="json", exclude=UNIMPORTANT) for name in names}
    first = start.sha256 if start else None
    libraries = [version(name) for name in ("torch", "pytorch-lightning")]
    key = [params.seed, sections, training.sha256, validation.sha256, first, code, libraries]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
