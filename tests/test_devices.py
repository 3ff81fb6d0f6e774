"""Devices and precision, as far as a machine without a GPU can show them.

PyTorch can compute shapes and devices of tensors on a GPU that does not exist, which
shows where a network mixes devices.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from pytorch_lightning.accelerators import CPUAccelerator
from saved_models import save_models
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from convae import estimators, load_encoder
from convae.datasets.image_set import ImageSet
from convae.devices import batch_room, exact_arithmetic, explained_memory, find_device
from convae.errors import ConvaeError
from convae.estimators import CAEFeatures, ConvolutionalAutoencoderFeatures
from convae.models.readout import Readout
from convae.params import load_params
from convae.processes import ALONE, Processes
from convae.training import train
from convae.training.module import TrainingModule
from convae.training.objectives import Objective
from convae.training.state import state_as_before

GIB = 1 << 30
SYSTEMS = sorted(REPOSITORY.glob("systems/*.yaml"), key=lambda path: path.stem)


def flags():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.fixture
def saved_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_models()
    return "models/encoder"


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(2)`: PyTorch says that there are two GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


@pytest.mark.parametrize("name", ["xyz", "cpu:", "cpu:7", "", "meta", "gpu", "CPU", "cuda:-1"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ConvaeError, match=f"^device '{name}': unknown; auto, cpu, cuda, cuda:1 and mps are"):
        find_device(name)


@pytest.mark.parametrize("name", ["cuda:7", "mps"])
def test_a_device_that_does_not_exist_is_one_line(gpus, name):
    gpus(0)
    with pytest.raises(ConvaeError, match=rf"^device {name}: not available \(.{{5,90}}\); cpu always is$"):
        find_device(name)


def test_auto_is_the_cpu_without_a_gpu(gpus):
    gpus(0)
    assert find_device("auto") == torch.device("cpu")
    assert find_device(torch.device("cpu", 0)).type == "cpu"


@pytest.mark.parametrize(
    ("visible", "local_rank", "expected"), [(4, "3", "cuda:3"), (1, "3", "cuda:0"), (2, None, "cuda:0")]
)
def test_a_process_takes_the_gpu_of_its_local_rank(gpus, monkeypatch, visible, local_rank, expected):
    gpus(visible)
    monkeypatch.setattr(torch, "empty", lambda size, device: torch.zeros(size))
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    for name in ("auto", "cuda"):
        assert find_device(name) == torch.device(expected)
    assert find_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("free", "expected"),
    [(80 * GIB, (4096, 1 << 28)), (GIB, (4096, GIB // 16))],
    ids=["plenty", "a GPU that others use"],
)
def test_maps_take_a_bounded_part_of_a_gpus_memory(monkeypatch, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - GIB // 2, 80 * GIB))
    # Half a gigabyte is kept by PyTorch without being in use.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB // 2)
    assert batch_room(torch.device("cuda")) == expected


def test_exact_arithmetic_is_exact_and_ends():
    before = flags()
    with exact_arithmetic():
        assert flags() == ("ieee", "ieee")
        with exact_arithmetic(allow_tf32=True):
            assert flags() == ("tf32", "tf32")
        assert flags() == ("ieee", "ieee")
    assert flags() == before
    torch.backends.cudnn.allow_tf32  # noqa: B018 - would raise if the flags contradicted each other


def test_an_encoder_computes_in_exact_arithmetic(saved_encoder):
    encoder, seen = load_encoder(saved_encoder), []
    encoder.autoencoder.layers[0].register_forward_hook(lambda *_: seen.append(flags()))
    encoder.features(np.zeros((2, 8, 8), np.uint8))
    assert set(seen) == {("ieee", "ieee")}


@pytest.mark.parametrize(
    ("precision", "expected"), [("32-true", "ieee"), ("tf32-true", "tf32"), ("bf16-mixed", "ieee")]
)
def test_training_uses_tf32_only_if_asked(experiment, digits, tmp_path, monkeypatch, precision, expected):
    seen = []
    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", _recording(TrainingModule.on_train_epoch_start, seen))
    # As Lightning does for a GPU: raises if `tf32-true` has set the new flags already.
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda self, device: torch.get_float32_matmul_precision())
    training, validation = (ImageSet.load(digits / part) for part in ("train", "validation"))
    params = experiment(train={"epochs": 1, "precision": precision})
    train.train_encoder(params, training, validation, lambda row: None, tmp_path, progress=False)
    assert set(seen) == {(expected, expected)}


def _recording(method, seen):
    def recorded(self, *args):
        seen.append(flags())
        return method(self, *args)

    return recorded


def test_mixed_precision_leaves_the_target_exact(experiment, digits, tmp_path, monkeypatch):
    """The preprocessed images, which the network reconstructs, have the bits of single precision."""
    seen = {}
    loss = Objective.forward
    monkeypatch.setattr(Objective, "forward", lambda self, batch: _first_target(self, batch, loss, seen))
    training, validation = (ImageSet.load(digits / part) for part in ("train", "validation"))
    for precision in ("32-true", "bf16-mixed"):
        seen["now"] = precision
        params = experiment(train={"epochs": 1, "precision": precision})
        train.train_encoder(params, training, validation, lambda row: None, tmp_path / precision, progress=False)
    assert seen["bf16-mixed"].dtype == torch.float32
    assert torch.equal(seen["32-true"], seen["bf16-mixed"])


def _first_target(objective, batch, forward, seen):
    preprocess = objective.autoencoder.preprocessing.register_forward_hook(
        lambda module, given, result: seen.setdefault(seen["now"], result.clone())
    )
    try:
        return forward(objective, batch)
    finally:
        preprocess.remove()


def test_a_full_gpu_says_what_to_lower(experiment, digits, tmp_path, monkeypatch):
    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nOf the allocated memory ...")

    monkeypatch.setattr(Objective, "forward", full)
    training, validation = (ImageSet.load(digits / part) for part in ("train", "validation"))
    with pytest.raises(ConvaeError, match=r"^the GPU's memory is full; lower train.batch_size = \d+$"):
        train.train_encoder(experiment(), training, validation, lambda row: None, tmp_path, progress=False)
    with pytest.raises(ConvaeError, match=r"^the GPU's memory is full; use a CPU$"), explained_memory("use a CPU"):
        full(None, None)


def test_all_phases_share_the_images(experiment, digits, tmp_path, monkeypatch):
    """A GPU gets them once."""
    seen = []
    monkeypatch.setattr(TrainingModule, "on_fit_end", lambda self: seen.append((self.phase, self.training_batches)))
    training, validation = (ImageSet.load(digits / part) for part in ("train", "validation"))
    params = load_params(REPOSITORY / "systems/stacked_cae.yaml")
    small = params.train.model_copy(update={"epochs": 1})
    train.train_encoder(
        params.model_copy(update={"train": small}), training, validation, lambda row: None, tmp_path, False
    )
    assert [phase for phase, _ in seen] == [0, 1, 2]
    assert len({id(batches) for _, batches in seen}) == 1


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: path.stem)
def test_a_system_computes_on_one_device(path: Path):
    """Loss and features of every system, on a GPU that does not exist."""
    params = load_params(path)
    channels = 3 if path.stem == "cifar10" else 1
    images = np.random.default_rng(0).integers(256, size=(40, channels, 28, 28), dtype=np.uint8)
    image_set = ImageSet(images, np.arange(40) % 10, tuple("0123456789"), "")
    network, _, _ = train._initial_network(params, image_set, ALONE)
    readout = Readout(**params.features.model_dump(exclude={"mirror", "code"}))
    objectives = [objective for objective, _ in train._phases(params, network, image_set, kept=0)]
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        batch = (
            torch.empty(8, *images.shape[1:], dtype=torch.uint8, device="cuda"),
            torch.zeros(8, device="cuda").long(),
        )
        for objective in objectives:
            objective.start_training()
            loss = torch.func.functional_call(objective, _on_gpu(objective), (batch,))
            assert loss.device.type == "cuda"
        network.eval()
        preprocessed = torch.empty(8, network.preprocessing.channels, 28, 28, device="cuda")
        maps = torch.func.functional_call(_Encode(network), _on_gpu(_Encode(network)), (preprocessed,))
        readout = readout.to("cuda")  # as `attach_readout` does
        features = readout(maps)
        fitted = torch.zeros(features.shape[1])  # on the CPU, as fitting leaves it
        readout.load_fitted({"mean": fitted, "scale": fitted, "components": torch.empty(0)})
        assert readout(maps).device.type == "cuda"


class _Encode(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, preprocessed):
        return self.network.encode(preprocessed)


def _on_gpu(module):
    """Parameters and buffers of a module, on a GPU that does not exist."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for name, tensor in tensors}


def test_processes_need_gpus_of_their_own(gpus, monkeypatch):
    """Under SLURM's --gpus-per-task=1, each process calls its own GPU cuda:0."""
    gpus(1)
    monkeypatch.setattr(train, "find_device", lambda name: torch.device("cuda:0"))
    own = type("Properties", (), {"uuid": "GPU-1"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: own)
    monkeypatch.setattr(Processes, "collect", lambda self, value: [value, "GPU-2"])
    assert train._gpus(2, Processes(1, 2)) == [torch.device("cuda:0")] * 2
    monkeypatch.setattr(Processes, "collect", lambda self, value: [value, value])
    with pytest.raises(ConvaeError, match="each needs a GPU of its own; this process sees 1"):
        train._gpus(2, Processes(1, 2))
    monkeypatch.setattr(Processes, "collect", lambda self, value: [value, ""])
    with pytest.raises(ConvaeError, match="each needs a GPU of its own"):
        train._gpus(2, Processes(0, 2))
    gpus(0)
    assert train._gpus(2, Processes(0, 2)) is None


def test_estimators_take_no_gpu_unasked(gpus, saved_encoder):
    gpus(1)
    images = np.random.default_rng(0).random((20, 8, 8))
    assert CAEFeatures(saved_encoder).fit(images).encoder_.device.type == "cpu"
    own = ConvolutionalAutoencoderFeatures(filters=(4,), kernel=3)
    assert own._experiment(0, str(saved_encoder)).train.accelerator == "cpu"
    gpus(0)
    with pytest.raises(ConvaeError, match=r"^device cuda:9: not available"):
        own.set_params(device="cuda:9").fit(images)


def test_training_on_the_cpu_looks_at_no_gpu(monkeypatch):
    """Even to read the state of its generator, which would take hundreds of megabytes there."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail("looked at a GPU"))
    with state_as_before():
        torch.manual_seed(0)


def test_an_estimator_trains_on_the_first_gpu_only(saved_encoder, monkeypatch):
    monkeypatch.setattr(estimators, "find_device", torch.device)
    with pytest.raises(ConvaeError, match="CUDA_VISIBLE_DEVICES"):
        ConvolutionalAutoencoderFeatures(device="cuda:1")._experiment(0, str(saved_encoder))
