"""Check in a few minutes that a GPU computes what the CPU does, reproducibly and fast.

    PYTHONPATH=src python -m benchmark.gpu_check

Needs no internet, and of this project only the checkout. It makes its own images. Packages: torch 2.9 or newer, NumPy,
scikit-learn, pytorch-lightning 2.6, safetensors, pydantic, ruamel.yaml, filelock and tqdm.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier

from benchmark.speed import gpu
from benchmark.speed.experiments import params_of
from convae.datasets.image_set import ImageSet
from convae.devices import exact_arithmetic, find_device
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.features.extract import attach_readout, fit_readout
from convae.params import Params
from convae.training.module import TrainingModule
from convae.training.train import train_encoder


@dataclass(frozen=True)
class Row:
    """One line of the table; `met` is None where nothing is expected."""

    what: str
    found: str
    expected: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Setting:
    """What to check, and with how many images and which batch size speed is measured."""

    device: torch.device
    images: int
    batch: int


Check = Callable[[Setting], Iterator[Row]]


def main() -> None:
    """Run the checks in turn, print the table and write it as JSON. The exit code is 1 if an expectation is not met."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda", help="what to check (default: %(default)s)")
    parser.add_argument("--images", type=int, default=gpu.IMAGES, help="to measure speed (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=9, help="start no check after this time (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the table, too")
    arguments = parser.parse_args()
    try:
        device = find_device(arguments.device)
    except ConvaeError as error:
        sys.exit(str(error))
    setting = Setting(device, arguments.images, min(gpu.BATCH, arguments.images // 4))
    rows, start = [], time.monotonic()
    for check in CHECKS:
        if time.monotonic() - start > 60 * arguments.minutes:
            rows.append(Row(check.__name__, "not run: out of time"))
            continue
        rows += _rows(check, setting)
        print(f"{time.monotonic() - start:5.0f} s  {check.__name__}", file=sys.stderr, flush=True)
        if arguments.json:  # after each check, in case a later one does not return
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", "utf-8")
    width = [max(len(getattr(row, name)) for row in rows) for name in ("what", "found", "expected")]
    for row in rows:
        verdict = {None: "", True: "yes", False: "NO"}[row.met]
        print(f"{row.what:{width[0]}}  {row.found:{width[1]}}  {row.expected:{width[2]}}  {verdict}".rstrip())
    sys.exit(any(row.met is False for row in rows))


def _rows(check: Check, setting: Setting) -> list[Row]:
    rows: list[Row] = []
    try:
        rows += check(setting)
    except Exception as error:  # the other checks still tell something
        rows.append(
            Row(check.__name__, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "no error", False)
        )
    return rows


def machine(setting: Setting) -> Iterator[Row]:
    """What is checked."""
    name = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else str(setting.device)
    yield Row("device", name)
    yield Row("torch, Lightning", f"{torch.__version__}, {version('pytorch-lightning')}")


def precision(setting: Setting) -> Iterator[Row]:
    """TF32 is off unless asked for, and mixed precision leaves targets alone."""
    encoder, images = _with_readout(_digits_params(setting, epochs=0)), _digits()[0][:256]
    expected = encoder.features(images)
    encoder.to(setting.device)
    yield _below("features, relative distance from the CPU's", _distance(encoder.features(images), expected), 1e-5)
    with torch.inference_mode(), exact_arithmetic(allow_tf32=True):
        rounded = encoder.read_out(torch.from_numpy(images).to(setting.device)).cpu().numpy()
    yield Row("the same if TF32 were allowed", f"{_distance(rounded, expected):.1e}")
    # Its targets are whitened images.
    kinds = [_digits_params(setting, "whitened_wta_cae", 1, precision=kind) for kind in ("32-true", "bf16-mixed")]
    yield _holds("targets of bf16-mixed have the bits of 32-true", torch.equal(*map(_first_target, kinds)))


def reproducibility(setting: Setting) -> Iterator[Row]:
    """The same bits again, after an interruption too."""
    params = _digits_params(setting, epochs=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first, _ = _trained(params)
    odd = sorted({str(one.message).split(" does not")[0] for one in caught if "deterministic" in str(one.message)})
    yield Row("operations without deterministic implementation", ", ".join(odd) or "none", "none", not odd)
    yield _holds("training twice gives the same bits", _same(first, _trained(params)[0]))
    yield _holds("training that was interrupted and resumed gives the same bits", _same(first, _resumed(params)))
    once, again = (_with_readout(params, first).to(setting.device).features(_digits()[0]) for _ in range(2))
    yield _holds("extraction twice gives the same bits", bool((once == again).all()))


def agreement(setting: Setting) -> Iterator[Row]:
    """Training agrees with that of the CPU; an encoder loads anywhere."""
    cpu = Setting(torch.device("cpu"), setting.images, setting.batch)
    # No random draws on the device, whose generators differ.
    histories = [_trained(_digits_params(one, "seed_cae", epochs=2))[1] for one in (setting, cpu)]
    losses = [np.array([row["train_loss"] for row in history]) for history in histories]
    yield _below(
        "losses of seed_cae, largest relative difference from the CPU's",
        float(np.abs(losses[0] / losses[1] - 1).max()),
        1e-3,
    )
    accuracies = {}
    for kind in ("32-true", "bf16-mixed"):
        encoder, _ = _trained(_digits_params(setting, epochs=4, precision=kind))
        accuracies[kind] = _accuracy(_with_readout(_digits_params(setting), encoder).to(setting.device))
    shown = ", ".join(f"{kind} {value:.2%}" for kind, value in accuracies.items())
    yield Row(
        "test accuracy on digits",
        shown,
        "within 2 points",
        abs(accuracies["32-true"] - accuracies["bf16-mixed"]) < 0.02,
    )
    with TemporaryDirectory() as folder:
        encoder.save(Path(folder) / "encoder")
        loaded, images = load_encoder(Path(folder) / "encoder"), _digits()[0][:64]
        there, here = (one.activation_maps(images)[-1] for one in (encoder.to(setting.device), loaded))
    yield _below("an encoder saved there and loaded on the CPU, maps, relative distance", _distance(there, here), 1e-5)


def memory(setting: Setting) -> Iterator[Row]:
    """Memory is bounded, and too little of it is explained."""
    if setting.device.type != "cuda":
        yield Row("memory", "not run: no GPU")
        return
    images = gpu.textures(setting.images)
    for name, work in {
        f"training, batch size {setting.batch}": lambda: gpu.trained(
            gpu.params_for(setting.device, setting.batch), images
        ),
        "extraction": lambda: gpu.extracted(gpu.params_for(setting.device, setting.batch), images, setting.device),
    }.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        peak = torch.cuda.max_memory_allocated() / 2**30
        yield Row(f"peak memory of {name}", f"{peak:.2f} GiB", "≤ 6 GiB", peak <= 6)
    try:
        torch.cuda.set_per_process_memory_fraction(0.01)
        torch.cuda.empty_cache()
        gpu.trained(gpu.params_for(setting.device, 8192), images)
        said = "no error"
    except ConvaeError as error:
        said = str(error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    yield Row("too little memory", said, "names train.batch_size", "train.batch_size" in said)


def speed_of_training(setting: Setting) -> Iterator[Row]:
    """Images per second against the bare loop, by batch size; waiting for the GPU; ways not taken."""
    images = gpu.textures(setting.images)
    params = gpu.params_for(setting.device, setting.batch)
    own, bare = gpu.trained(params, images), gpu.bare_loop(params, images, setting.device)
    yield Row(
        f"training, batch size {setting.batch}, images/s, to the bare loop",
        f"{own:,.0f}: {own / bare:.2f}",
        "≥ 0.9",
        own / bare >= 0.9,
    )
    if setting.device.type == "cuda":
        waits = _waits(params, images)
        yield Row("waits for the GPU in a step", f"{waits:g}", "0", waits == 0)
        with gpu.utilisation() as shares:
            gpu.trained(params, images)
        yield Row("utilisation during training", f"{np.mean(shares):.0f} %" if shares else "nvidia-smi is missing")
    for batch in (64, 256, 4096):
        if batch <= setting.batch * 4:
            rate = gpu.trained(gpu.params_for(setting.device, batch), images)
            yield Row(f"training, batch size {batch}, images/s", f"{rate:,.0f}")


def ways_not_taken(setting: Setting) -> Iterator[Row]:
    """What only a measurement on a GPU can decide; the pipeline takes the first way of each pair."""
    params = gpu.params_for(setting.device, setting.batch, "whitened_wta_cae")
    images = gpu.textures(setting.batch)
    network: Any = gpu.untrained(params, images).autoencoder.requires_grad_(True).to(setting.device).train()
    batch = network.preprocessing(torch.from_numpy(images[: setting.batch]).to(setting.device)).detach()
    ways = {
        "winners alone (sparse)": lambda: network.reconstruct_layer(0, batch),
        "whole maps (dense)": lambda: network.reconstruct_layer(0, batch, network.layers[0](batch)),
    }
    for name, reconstruct in ways.items():
        seconds = gpu.seconds_of(partial(_learn, reconstruct, batch), setting.device)
        yield Row(f"winner-take-all, {name}, images/s", f"{setting.batch / seconds:,.0f}")
    network = gpu.untrained(gpu.params_for(setting.device, setting.batch), images).autoencoder.to(setting.device)
    if setting.device.type != "cuda":  # a compiler for the CPU may be missing, and takes minutes
        return
    some = network.preprocessing(torch.from_numpy(images[: setting.batch]).to(setting.device))
    for name, encode in {
        "as it is": network.encode,
        "torch.compile": torch.compile(network.encode),
        "CUDA graph": torch.compile(network.encode, mode="reduce-overhead"),
    }.items():
        with torch.inference_mode(), exact_arithmetic():
            seconds = gpu.seconds_of(partial(encode, some), setting.device)
        yield Row(f"encoding, {name}, images/s", f"{setting.batch / seconds:,.0f}")


def speed_of_extraction(setting: Setting) -> Iterator[Row]:
    """Images per second against the chip's limits, and on the way to disk."""
    images = gpu.textures(setting.images)
    found = gpu.extracted(gpu.params_for(setting.device, setting.batch), images, setting.device)
    rates = gpu.chip(setting.device) if setting.device.type == "cuda" else {"bytes": 1e10, "operations": 1e11}
    best = gpu.roof(found.encoder, rates)
    yield Row(
        "copies within memory, products of float32",
        f"{rates['bytes'] / 1e12:.2f} TB/s, {rates['operations'] / 1e12:.1f} TFLOP/s",
    )
    yield Row(
        "extraction, forward passes, images/s, to the roofline",
        f"{found.rate:,.0f}: {found.rate / best:.2f}",
        "≥ 0.5",
        found.rate / best >= 0.5,
    )
    written = found.to_disk * 4 * found.encoder.features([]).shape[1]
    disk = _disk_rate()
    yield Row(
        "extraction to disk, images/s, to the forward passes; to the disk",
        f"{found.to_disk:,.0f}: {found.to_disk / found.rate:.2f}; {written / disk:.2f}",
        "one of them ≥ 0.5",
        max(found.to_disk / found.rate, written / disk) >= 0.5,
    )
    size = (images.shape[2], images.shape[3])
    yield Row("images at a time", f"{found.encoder.batch_size(size)} (maps of {found.encoder.room[1] >> 20} MiB)")


def whole(setting: Setting) -> Iterator[Row]:
    """Seconds of the stages `train` and `features`, compact code included, as shipped."""
    if setting.device.type != "cuda":
        yield Row("stages as shipped", "not run: no GPU")
        return
    params = params_of("default", train={"accelerator": "gpu"})
    images = gpu.textures(setting.images)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_encoder(params, *gpu.image_sets(images), lambda row: None, Path(folder), progress=False)
        yield Row(f"train as shipped, {setting.images} images", f"{time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    gpu.extracted(params, images, setting.device)
    yield Row("features and compact code", f"{time.perf_counter() - start:.1f} s")


CHECKS: tuple[Check, ...] = (
    machine,
    precision,
    reproducibility,
    agreement,
    speed_of_training,
    speed_of_extraction,
    memory,
    whole,
    ways_not_taken,
)


def _below(what: str, found: float, limit: float) -> Row:
    return Row(what, f"{found:.1e}", f"≤ {limit:g}", found <= limit)


def _holds(what: str, found: bool) -> Row:
    return Row(what, "yes" if found else "no", "yes", found)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's digits and their labels."""
    bunch = load_digits()
    return np.round(bunch.images * 255 / 16).astype(np.uint8)[:, None], bunch.target


def _digits_params(setting: Setting, system: str = "default", epochs: int = 4, precision: str = "32-true") -> Params:
    params = gpu.params_for(setting.device, 64, system, precision=precision)
    content = params.model_dump(mode="json")
    content["train"]["epochs"] = max(1, epochs)
    if not epochs:
        content["objective"] |= {"kind": "none"}
    return Params.model_validate(content)


def _trained(params: Params, folder: Path | None = None) -> tuple[Encoder, list[dict[str, float]]]:
    images, _ = _digits()
    training, validation = (
        ImageSet(part, None, (), name) for name, part in (("a", images[:1200]), ("b", images[1200:1400]))
    )
    with TemporaryDirectory() as scratch:
        checkpoints = folder or Path(scratch)
        return train_encoder(params, training, validation, lambda row: None, checkpoints, progress=False)[:2]


def _resumed(params: Params) -> Encoder:
    """Train with interruptions."""
    content = params.model_dump(mode="json")
    content["train"] |= {"checkpoint_minutes": 1e-9}
    step, steps = TrainingModule.training_step, 0

    def interrupted(module: TrainingModule, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps % 9 == 0:
            raise KeyboardInterrupt
        return step(module, batch)

    TrainingModule.training_step = interrupted  # type: ignore[method-assign, assignment]
    try:
        with TemporaryDirectory() as folder:
            while True:
                try:
                    return _trained(Params.model_validate(content), Path(folder))[0]
                except (KeyboardInterrupt, SystemExit):
                    continue
    finally:
        TrainingModule.training_step = step  # type: ignore[method-assign]


def _same(one: Encoder, other: Encoder) -> bool:
    ours, theirs = (encoder.autoencoder.cpu().state_dict() for encoder in (one, other))
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def _with_readout(params: Params, encoder: Encoder | None = None) -> Encoder:
    encoder = encoder or _trained(params)[0]
    readout = attach_readout(encoder, params.features)
    fit_readout(readout, encoder.features(_digits()[0][:1200]))
    return encoder


def _accuracy(encoder: Encoder) -> float:
    images, labels = _digits()
    features = encoder.features(images)
    return float(RidgeClassifier().fit(features[:1400], labels[:1400]).score(features[1400:], labels[1400:]))


def _first_target(params: Params) -> torch.Tensor:
    """The first preprocessed batch of a training run."""
    targets: list[torch.Tensor] = []
    start = TrainingModule.on_train_start

    def hooked(module: TrainingModule) -> None:
        start(module)
        module.objective.autoencoder.preprocessing.register_forward_hook(lambda *of: targets.append(of[2].clone()))

    TrainingModule.on_train_start = hooked  # type: ignore[method-assign, assignment]
    try:
        _trained(params)
    finally:
        TrainingModule.on_train_start = start  # type: ignore[method-assign]
    return targets[0]


def _waits(params: Params, images: np.ndarray) -> float:
    """How often a training step waits for the GPU, as PyTorch's debug mode counts it."""
    start, end = TrainingModule.on_train_batch_start, TrainingModule.on_train_batch_end
    counts: list[int] = []

    def watch(module: TrainingModule, *arguments: Any) -> None:
        start(module, *arguments)
        torch.cuda.set_sync_debug_mode("warn")

    def release(module: TrainingModule, *arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        end(module, *arguments)
        counts.append(sum("synchroniz" in str(one.message) for one in caught))
        caught.clear()

    TrainingModule.on_train_batch_start = watch  # type: ignore[method-assign, assignment]
    TrainingModule.on_train_batch_end = release  # type: ignore[method-assign, assignment]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gpu.trained(params, images[: 5 * params.train.batch_size])
    finally:
        torch.cuda.set_sync_debug_mode("default")
        TrainingModule.on_train_batch_start, TrainingModule.on_train_batch_end = start, end  # type: ignore[method-assign]
    return float(np.mean(counts[2:]))  # the first steps allocate memory


def _learn(reconstruct: Callable[[], torch.Tensor], batch: torch.Tensor) -> None:
    (reconstruct() - batch).square().mean().backward()


def _disk_rate() -> float:
    """Bytes per second that a plain write of 256 MiB to a temporary file reaches."""
    block = bytes(1 << 24)
    with TemporaryDirectory() as folder, (Path(folder) / "file").open("wb") as stream:
        start = time.perf_counter()
        for _ in range(16):
            stream.write(block)
        return 16 * len(block) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
