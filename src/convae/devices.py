"""Where networks compute, with which precision, and in how much memory."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from convae.errors import ConvaeError
from convae.names import printable

CPU_ROOM = (256, 1 << 23)  # maps of 8 MiB fit into caches; 64 MiB take twice as long
GPU_ROOM = (4096, 1 << 28)
GPU_PART = 16  # at most one part in 16 of the free memory, as a dozen arrays of this size may exist at a time
WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # with which matrix products on NVIDIA's GPUs are deterministic


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, `mps`; or `auto`: `cuda` if there is such a GPU, otherwise `cpu`. Of several,
            `auto` and `cuda` stand for the one whose number is in the environment variable LOCAL_RANK, modulo the
            number of GPUs that this process sees.

    With a GPU of NVIDIA's, this also sets the environment variable CUBLAS_WORKSPACE_CONFIG, if it is not set.

    Raises:
        ConvaeError: the name is unknown, or this machine has no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
        >>> find_device("cuda:99")
        Traceback (most recent call last):
        convae.errors.ConvaeError: device cuda:99: not available (...); cpu always is
    """
    name = str(name)
    if not re.fullmatch(r"auto|(cpu|mps)(:0)?|cuda(:\d+)?", name):
        raise ConvaeError(f"device '{printable(name)}': unknown; auto, cpu, cuda, cuda:1 and mps are allowed")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (visible := torch.cuda.device_count()):
        name = f"cuda:{int(os.environ.get('LOCAL_RANK') or 0) % visible}"
    if name.startswith("cuda"):
        os.environ.setdefault(*WORKSPACE)  # read once, at the first product
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        if reason.startswith("Could not run"):  # followed by a page about PyTorch's operators
            reason = "this machine or this PyTorch has none"
        raise ConvaeError(f"device {name}: not available ({reason}); cpu always is") from None
    return device


@contextmanager
def exact_arithmetic(allow_tf32: bool = False) -> Iterator[None]:
    """Compute with all 24 bits of `float32`, unless `allow_tf32`, and with deterministic convolutions.

    By default, PyTorch lets convolutions on NVIDIA's GPUs round their factors to 11 bits (TF32), which changes features
    in the third digit.

    Example:
        >>> with exact_arithmetic():
        ...     torch.backends.cudnn.deterministic
        True
    """
    backends: Any = torch.backends
    if hasattr(backends, "fp32_precision"):  # since torch 2.9, where the two ways must not be mixed
        name, value = "fp32_precision", "tf32" if allow_tf32 else "ieee"
        flags: list[tuple[Any, str, Any]] = [(backends.cuda.matmul, name, value), (backends.cudnn.conv, name, value)]
    else:
        flags = [(owner, "allow_tf32", allow_tf32) for owner in (backends.cuda.matmul, backends.cudnn)]
    flags += [(backends.cudnn, "deterministic", True), (backends.cudnn, "benchmark", False)]
    before = [getattr(owner, name) for owner, name, _ in flags]
    try:
        for flag in flags:
            setattr(*flag)
        yield
    finally:
        for (owner, name, _), old in zip(flags, before, strict=True):
            setattr(owner, name, old)


@contextmanager
def explained_memory(remedy: str) -> Iterator[None]:
    """Turn a GPU's lack of memory into a line that says what to change.

    Raises:
        ConvaeError: the GPU's memory is full.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise ConvaeError(f"the GPU's memory is full; {remedy}") from None


def batch_room(device: torch.device) -> tuple[int, int]:
    """The most images of a batch on `device`, and the most bytes that its largest activation maps should take.

    Example:
        >>> batch_room(torch.device("cpu"))
        (256, 8388608)
    """
    if device.type == "cpu":
        return CPU_ROOM
    images, maps = GPU_ROOM
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that PyTorch keeps for this process is free, too.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        maps = min(maps, free // GPU_PART)
    return images, maps
