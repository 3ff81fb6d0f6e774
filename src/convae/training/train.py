"""Training an autoencoder; resumable after each epoch and within long ones."""

import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
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
from convae.datasets.image_set import ImageSet
from convae.datasets.shards import ShardedImages
from convae.devices import exact_arithmetic, explained_memory, find_device
from convae.encoder import CONFIG, Encoder, build_autoencoder, load_encoder
from convae.errors import ConvaeError
from convae.experiment import check_frozen
from convae.files import file_sha256, new_file
from convae.models.autoencoder import Autoencoder
from convae.models.compatibility import check_source
from convae.models.corruption import Corruption
from convae.models.geometry import resolve_kernels
from convae.models.initialization import fit_layer, set_filters
from convae.models.limits import check_effort
from convae.params import Params, TrainParams
from convae.processes import ALONE, PATIENCE, Processes
from convae.training.batches import Batches, ImageBatches, StreamedBatches
from convae.training.module import Row, TrainingModule
from convae.training.objectives import (
    Classification,
    LayerReconstruction,
    Objective,
    PlaceReconstruction,
    Reconstruction,
    SimultaneousReconstruction,
)
from convae.training.probe import Probe
from convae.training.state import quiet_lightning

CHECKPOINTS = Path(".convae/checkpoints")
POINTS = 50  # rows of the history: about so many, or one per epoch if there are more epochs
BEST, LAST = "best.ckpt", "last.ckpt"
LIGHTNING = (2, 6)  # the first version that reads its checkpoints without unpickling
KEPT_SECONDS = 30 * 24 * 3600  # how long an interrupted training run can be resumed
CODE = (
    "datasets/image_set",
    "datasets/shards",
    "devices",
    "encoder",
    "files",
    "images",
    "models",
    "processes",
    "training",
)
UNIMPORTANT = {"checkpoint_minutes", "devices", "nodes", "strategy"}  # training resumes even if these have changed


class AtomicCheckpointIO(TorchCheckpointIO):
    """Moves a complete checkpoint into place in one step; Lightning's own class copies it from /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file next to `path`, then rename it."""
        with new_file(Path(path)) as scratch:
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)  # when writing to a file, torch would hide that the disk is full
            scratch.write_bytes(buffer.getbuffer())


def load_training_set(params: Params, prepared: Path) -> ImageSet:
    """The images to learn from: the unlabelled ones if there are any and the objective needs no labels."""
    unlabelled = ImageSet.load(prepared / "unlabelled")
    if len(unlabelled) and params.objective.kind != "classify":
        return unlabelled
    return ImageSet.load(prepared / "train")


def train_encoder(
    params: Params,
    training: ImageSet,
    validation: ImageSet,
    on_row: Callable[[Row], None],
    checkpoints: Path = CHECKPOINTS,
    progress: bool = True,
    processes: Processes = ALONE,
) -> tuple[Encoder, list[Row], str]:
    """Fit the preprocessing, then train the autoencoder phase by phase; each keeps its best epoch by validation loss.

    An interrupted run with the same parameters, images and code resumes from its last checkpoint and ends with the same
    bits.

    Args:
        params: the experiment.
        training: images to learn from; only the objective `classify` uses their labels.
        validation: images whose loss chooses the epoch.
        on_row: called with each row of the history; on resuming, first with the rows so far.
        checkpoints: folder for checkpoints. A training run removes its own when it ends; those of an interrupted run
            stay until another run starts 30 days later.
        progress: show a progress bar.
        processes: the processes that train together.

    Returns:
        The encoder; the history, about 50 rows or one per epoch, with the `COLUMNS` to six digits, empty if the
        objective is `none`; and the device it was trained on. All processes return the same.

    Raises:
        ConvaeError: the loss is not finite, the requested accelerator is not available, there are no labels or layers
            to learn, or the encoder to start from is incompatible.
    """
    _check(params, training)
    torch.set_num_threads(params.train.threads)
    network, config, start = _initial_network(params, training, processes)
    kept = len(start.config["layers"]) if start else 0
    phases = _phases(params, network, training, kept)
    folder = checkpoints / training_key(params, training, validation, start)
    if phases and not processes.rank:
        prune(checkpoints, folder)
    history: list[Row] = []
    device = "cpu"
    fitted = kept
    batches = _batches(params, training, validation, processes)  # once, so that a GPU gets the images once
    probe = Probe(validation) if params.train.probe_every and Probe.suits(validation) else None
    points = max(1, round(POINTS / sum(epochs for _, epochs in phases))) if phases else 1
    for phase, (objective, epochs) in enumerate(phases):
        fitted = _fit_layers(network, params, training, fitted, objective.depth)
        saved = folder / str(phase)
        module = TrainingModule(
            objective, *batches, probe, points, params.train, saved / LAST, params.seed, phase, history, on_row
        )
        device = _fit(module, epochs, saved, progress)
        history = history + module.history
    _fit_layers(network, params, training, fitted, len(network.layers))
    if history and not processes.rank:
        _discard(folder)
    return Encoder(network, None, config), history, device


def _check(params: Params, training: ImageSet) -> None:
    """Reject an experiment that can't be trained, before any computation."""
    installed = version("pytorch-lightning")
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) < LIGHTNING:
        needed = ".".join(map(str, LIGHTNING))
        raise ConvaeError(f"pytorch-lightning {installed}: {needed} or newer is needed; reinstall convae[train]")
    if params.objective.kind == "classify" and training.labels is None:
        raise ConvaeError("objective.kind = classify: the training images have no labels; reconstruct needs none")


def _initial_network(
    params: Params, training: ImageSet, processes: Processes
) -> tuple[Autoencoder, dict[str, Any], Encoder | None]:
    """The network before training, its `config.json`, and the encoder that its first layers come from, if any."""
    config = encoder_config(params, training)
    network = build_autoencoder(config, processes)
    _set_first_weights(network, params, training)
    source = Path(params.model.initialize_from)
    check_effort(network, config, sys.maxsize)  # what can't be loaded need not be trained
    start = load_encoder(source) if (source / CONFIG).exists() else None
    if start:
        take_over(network, config, start, params)
        config["initialized_from"] = {"sha256": start.sha256, "trained_on": start.config["trained_on"]}
    check_frozen(params, len(start.autoencoder.layers) if start else 0)
    return network, config, start


def _set_first_weights(network: Autoencoder, params: Params, training: ImageSet) -> None:
    """Fit the preprocessing to a sample of the images, and draw or fit the initial filters."""
    generator = torch.Generator().manual_seed(params.seed)
    network.initialize(generator)
    images = torch.from_numpy(training.sample())
    network.preprocessing.fit(images, generator)
    kind = params.model.initialization
    if kind == "filter_bank" or (kind != "normal" and not _reads_windows(params)):
        set_filters(network.eval(), kind, images, generator)
    network.to(memory_format=torch.channels_last)


def _reads_windows(params: Params) -> bool:
    """Whether a layer is fitted to what the layers below give, once these are trained."""
    return any(layer.input or layer.output for layer in params.model.layers)


def _fit_layers(network: Autoencoder, params: Params, training: ImageSet, first: int, end: int) -> int:
    """Fit what layers `first` to `end` - 1 read, see `fit_layer`; return the number of layers that are now ready."""
    if first < end and _reads_windows(params):
        images = torch.from_numpy(training.sample())
        for index in range(first, end):
            fit_layer(network, index, params.model.initialization, images, params.seed)
        network.to(memory_format=torch.channels_last)
    return max(first, end)


def prune(checkpoints: Path, current: Path) -> None:
    """Remove the checkpoints of training runs that were interrupted and not resumed within 30 days.

    Args:
        checkpoints: folder with a folder for each run.
        current: the folder of the run that starts now; it stays.
    """
    if not checkpoints.exists():
        return
    # The lock keeps a process from removing an old run that another is about to resume: the other either marks it as
    # used first, or finds it gone and starts afresh.
    with FileLock(checkpoints.with_name(f"{checkpoints.name}.lock")):
        if current.exists():
            os.utime(current)
        for folder in filter(Path.is_dir, checkpoints.iterdir()):
            with suppress(FileNotFoundError):  # its run has just ended
                last_used = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
                if folder != current and last_used < time.time() - KEPT_SECONDS:
                    _discard(folder)


def _discard(folder: Path) -> None:
    for resume in folder.glob(f"*/{LAST}"):
        resume.unlink()  # first, so that a half-removed folder can't be resumed
    shutil.rmtree(folder)


def _phases(params: Params, network: Autoencoder, training: ImageSet, kept: int) -> list[tuple[Objective, int]]:
    """The objectives to minimise in turn, each with its maximum number of epochs; each starts where the last ended.

    The first `kept` layers come from a saved encoder. Pretraining includes the others, even if they are frozen later.
    """
    phases: list[tuple[Objective, int]] = []
    objective, train, frozen = params.objective, params.train, min(params.frozen_layers, kept)
    corruption = Corruption(**objective.corruption.model_dump(), batch=network.batch) if objective.corruption else None
    augmentation = train.augmentation.model_dump() if train.augmentation else None
    of_images = augmentation if objective.kind == "reconstruct" else None  # pretraining for `classify` has none
    epochs = {"reconstruct": train.epochs, "classify": objective.pretraining, "none": 0}[objective.kind]
    if epochs and train.order.startswith("greedy"):
        for index in range(frozen, len(network.layers)):
            if train.places:
                phases.append((PlaceReconstruction(network, of_images, index, train.places), epochs))
            else:
                phases.append((LayerReconstruction(network, corruption, of_images, index), epochs))
    if epochs and train.order.endswith("end_to_end"):
        phases.append((Reconstruction(network, corruption, of_images, frozen), epochs))
    if epochs and train.order == "simultaneous":
        phases.append((SimultaneousReconstruction(network, corruption, of_images, frozen), epochs))
    if objective.kind == "classify":
        size = (training.images.shape[2], training.images.shape[3])
        head = Classification(network, augmentation, size, len(training.classes), params.seed, params.frozen_layers)
        phases.append((head, train.epochs))
    return phases


def encoder_config(params: Params, training: ImageSet) -> dict[str, Any]:
    """Contents of `config.json` for an encoder trained with these parameters; the readout is decided later."""
    channels, height, width = training.images.shape[1:]
    layers = [layer.model_dump(mode="json") for layer in params.model.layers]
    scale = {"scale": asdict(training.scale)} if training.scale else {}
    bands = {"bands": True} if params.data.dataset == "image_folder" and params.data.color == "bands" else {}
    return {
        "channels": channels,
        "value_range": None if training.scale else {"uint8": [0, 255], "float32": [0.0, 1.0]},
        **({} if training.images.dtype == "uint8" else {"image_type": "float32"}),
        "image_size": [height, width],
        "pictures": {"fit": params.data.fit, "white_level": params.data.white_level, **bands},
        "preprocessing": params.preprocessing.model_dump(mode="json") | scale,
        "layers": resolve_kernels((height, width), layers, params.model.stacked_on),
        "tied_weights": params.model.tied_weights,
        "stacked_on": params.model.stacked_on,
        "sparsity": params.objective.sparsity and params.objective.sparsity.model_dump(mode="json"),
        "decoder": params.objective.kind == "reconstruct" and not _reads_windows(params),
        "readout": None,
        "mirror": None,
        "code": None,
        "initialized_from": None,
        "trained_on": {
            "dataset": params.data.dataset,
            "images": len(training),
            "classes": list(training.classes),
            "sha256": training.sha256,
        },
        "versions": {"convae": convae.__version__, "torch": torch.__version__},
    }


def take_over(network: Autoencoder, config: dict[str, Any], source: Encoder, params: Params) -> None:
    """Replace the network's preprocessing and first layers by those of a saved encoder.

    Decoder and sparsity are replaced too if they are of the same kind. The remaining layers stay as they are.

    Args:
        network: changed in place.
        config: the network's `encoder_config`; `decoder` becomes true if a trained decoder is kept without training,
            and false if the decoders of frozen layers never learn.
        source: the saved encoder, with at most as many layers.
        params: the experiment.

    Raises:
        ConvaeError: the saved encoder is incompatible.
    """
    check_source(source.config, config)
    both = ["layers"]
    if source.has_decoder and source.config["tied_weights"] == config["tied_weights"]:
        both.append("decoder")
        # Without training, the layers and this decoder reconstruct as before.
        whole = len(source.config["layers"]) == len(config["layers"])
        config["decoder"] = config["decoder"] or (params.objective.kind == "none" and whole)
    elif params.train.order == "greedy" and params.frozen_layers:
        config["decoder"] = False
    if _with_new_keys(source.config["sparsity"]) == config["sparsity"]:
        both.append("sparsity")
    network.preprocessing.load_state_dict(source.autoencoder.preprocessing.state_dict())
    theirs, ours = (bool(one["preprocessing"].get("scale")) for one in (source.config, config))
    if theirs != ours:
        raise ConvaeError(
            f"model.initialize_from: that encoder learned with{'' if theirs else 'out'} data.scale, so set it to "
            f"{'a scale' if theirs else 'null'}"
        )
    if theirs:
        config["preprocessing"]["scale"] = source.config["preprocessing"]["scale"]
        network.preprocessing.set_scale(config["preprocessing"]["scale"])
    for name in both:
        theirs = getattr(source.autoencoder, name)
        # Not strict: the source's last layer has no output for a layer above it.
        getattr(network, name)[: len(theirs)].load_state_dict(theirs.state_dict(), strict=False)


def _with_new_keys(sparsity: dict[str, Any] | None) -> dict[str, Any] | None:
    """The sparsity in the `config.json` of an encoder, which may be older than the key `per_place`."""
    return sparsity and {"per_place": None, **sparsity}


@quiet_lightning()
def _fit(module: TrainingModule, epochs: int, folder: Path, progress: bool) -> str:
    """Train one phase, load its best epoch and return the device. A finished phase is not repeated."""
    trainer = _trainer(module, epochs, folder, progress)
    module.objective.requires_grad_(False)  # DDP waits for a gradient of every parameter that requires one
    for parameter in module.objective.trained():
        parameter.requires_grad_(True)
    resume = folder / LAST
    remedy = f"lower train.batch_size = {module.params.batch_size}"
    with ExitStack() as until_the_end, explained_memory(remedy):
        arithmetic = exact_arithmetic(module.params.precision == "tf32-true")
        module.on_start = partial(until_the_end.enter_context, arithmetic)
        trainer.fit(module, ckpt_path=resume if resume.exists() else None, weights_only=True)
    checkpoint = torch.load(folder / BEST, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    trainer.strategy.barrier()  # rank 0 deletes the file at the end
    return str(trainer.strategy.root_device)


def _trainer(module: TrainingModule, epochs: int, folder: Path, progress: bool) -> lightning.Trainer:
    """Lightning's trainer, which keeps the best and the last epoch in `folder` and logs nothing."""
    # Otherwise `deterministic` fills every new tensor with NaN, which takes time; nothing here reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not torch.cuda.is_available():  # Lightning sets it, and Adam would look for NVIDIA's library at each step
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    train = module.params
    # With a version counter, the file that a killed run left would keep the name that we read.
    keep = partial(ModelCheckpoint, folder, save_on_train_epoch_end=True, enable_version_counter=False)
    best, last = keep(Path(BEST).stem, monitor="validation_loss"), keep(Path(LAST).stem)
    try:
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator=train.accelerator,
            **_devices(train, module.processes),
            precision="32-true" if train.precision == "tf32-true" else train.precision,
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
) -> tuple[Batches, ImageBatches, ImageBatches]:
    """Training images in random order, validation images in their own order, and a batch of the latter."""
    size = params.train.batch_size
    labels = validation.labels if params.objective.kind == "classify" else None
    some = validation.spread(size)
    kind = StreamedBatches if isinstance(training.images, ShardedImages) else ImageBatches
    learned_from = training.labels if labels is not None else None
    return (
        kind(training.images, size, params.seed, learned_from, processes),
        ImageBatches(validation.images, max(size, 256), None, labels, processes),
        ImageBatches(validation.images[some], size, None, None if labels is None else labels[some], processes),
    )


def _devices(train: TrainParams, processes: Processes) -> dict[str, Any]:
    """Arguments that tell Lightning's trainer about the processes, which are already running."""
    several = processes.count > 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several else 1
    gpus = _gpus(local, processes) if several and train.accelerator in ("auto", "gpu") else None
    # No broadcast of buffers before each step: the whole batch updates them, so they are equal, see `shared_batch`.
    ddp = DDPStrategy(parallel_devices=gpus, timeout=PATIENCE, forward_sync_buffers=False)
    return {
        "devices": "auto" if gpus else local,
        "num_nodes": processes.count // local,
        "strategy": ddp if several or train.strategy == "ddp" else "auto",
        "plugins": [AtomicCheckpointIO(), TorchElasticEnvironment() if several else LightningEnvironment()],
    }


def _gpus(local: int, processes: Processes) -> list[torch.device] | None:
    """The GPU of each process on this machine, or None if no process sees any.

    Under SLURM, each process may see only its own GPU, and then calls it `cuda:0`.

    Raises:
        ConvaeError: two processes see the same one, or one sees none.
    """
    visible = torch.cuda.device_count()
    mine = str(torch.cuda.get_device_properties(find_device("cuda")).uuid) if visible else ""
    everyones = processes.collect(mine)  # in all processes, even those without a GPU
    if not any(everyones):
        return None
    if "" in everyones or len(set(everyones)) < processes.count:
        raise ConvaeError(
            f"{local} processes train on this machine, and each needs a GPU of its own; this process sees {visible}. "
            "Lower train.devices, or set train.accelerator = cpu"
        )
    return [torch.device("cuda", rank % visible) for rank in range(local)]


def training_key(params: Params, training: ImageSet, validation: ImageSet, start: Encoder | None) -> str:
    """Hash of all that determines the trained weights: parameters, images, initial weights, code and libraries."""
    home = Path(convae.__path__[0])
    paths = [path for name in CODE for path in (sorted(home.glob(f"{name}/*.py")) or [home / f"{name}.py"])]
    code = [file_sha256(path) for path in paths]
    names = ("preprocessing", "model", "objective", "train")
    sections = {name: getattr(params, name).model_dump(mode="json", exclude=UNIMPORTANT) for name in names}
    first = start.sha256 if start else None
    libraries = [version(name) for name in ("torch", "pytorch-lightning")]
    scale = training.scale and asdict(training.scale)
    key = [params.seed, sections, training.sha256, validation.sha256, scale, first, code, libraries]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]
