"""Where networks compute, with which precision, and in how much memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from convae.errors import ConvaeError

CPU_MAP_BYTES = 1 << 23  # fits into caches; twice as fast as 64 MiB
GPU_MAP_BYTES = 1 << 28
GPU_PART = 16  # at most one part in 16 of the free memory, as a dozen arrays of this size may exist at a time


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name.

    Args:
        name: `cpu`, `cuda`, `cuda:1`, `mps` or another of PyTorch's names; or `auto`: `cuda` if there is such a GPU,
            otherwise `cpu`. Of several GPUs, `auto` and `cuda` stand for the one whose number is in the environment
            variable LOCAL_RANK, modulo the number of GPUs that this process sees.

    Raises:
        ConvaeError: this machine has no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
        >>> find_device("cuda:99")
        Traceback (most recent call last):
        convae.errors.ConvaeError: device cuda:99: not available (...); cpu always is
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (visible := torch.cuda.device_count()):
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % visible}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConvaeError(f"device {name}: not available ({reason}); cpu always is") from None
    return device


@contextmanager
def single_precision(allow_tf32: bool = False) -> Iterator[None]:
    """Compute with all 24 bits of `float32`, unless `allow_tf32`.

    By default, PyTorch lets convolutions on NVIDIA's GPUs round their factors to 11 bits (TF32), which changes features
    in the third digit.

    Example:
        >>> with single_precision():
        ...     torch.backends.cuda.matmul.allow_tf32
        False
    """
    backends: Any = torch.backends
    if hasattr(backends, "fp32_precision"):  # since torch 2.9, where the two ways must not be mixed
        owners, name = (backends.cuda.matmul, backends.cudnn.conv), "fp32_precision"
        value: str | bool = "tf32" if allow_tf32 else "ieee"
    else:
        owners, name, value = (backends.cuda.matmul, backends.cudnn), "allow_tf32", allow_tf32
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, value)
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
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


def map_bytes(device: torch.device) -> int:
    """Bytes that the largest activation maps of a batch should take on `device`.

    Example:
        >>> map_bytes(torch.device("cpu"))
        8388608
    """
    if device.type == "cpu":
        return CPU_MAP_BYTES
    if device.type != "cuda":
        return GPU_MAP_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    # Memory that PyTorch keeps for this process is free, too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(GPU_MAP_BYTES, free // GPU_PART)
