"""Processes that do the work of one stage together, started by torchrun, by srun or by the stage itself.

The first one writes what is one for all; in a process that is alone nothing here does anything.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike

from convae.files import new_array, new_folder

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # for a process that works alone for a while; that one died is seen by who started it

_connected = False


def connect() -> None:
    """Get into touch with the other processes, where the environment tells of some: RANK, WORLD_SIZE, MASTER_ADDR."""
    global _connected
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch.distributed  # prepare does without torch where it is alone

        torch.distributed.init_process_group(timeout=PATIENCE)
        atexit.register(torch.distributed.destroy_process_group)  # else its threads may abort an ending process
        _connected = True


def count() -> int:
    """How many processes there are."""
    if not _connected:
        return 1
    import torch.distributed

    return torch.distributed.get_world_size()


def rank() -> int:
    """The place of this one among them; the first is 0."""
    if not _connected:
        return 0
    import torch.distributed

    return torch.distributed.get_rank()


def is_loss_of_another(error: RuntimeError) -> bool:
    """Whether a process could not go on because another one is gone."""
    if not _connected:
        return False
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def share_of(rows: int) -> slice:
    """The rows that are this process's: the first has the first ones, and no two shares differ by more than one."""
    return slice(rows * rank() // count(), rows * (rank() + 1) // count())


def collect(value: T) -> list[T]:
    """The values of all processes, in all of them."""
    if not _connected:
        return [value]
    import torch.distributed

    values: list[T] = [value] * count()
    torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def shared_folder(path: Path) -> Iterator[Path]:
    """`files.new_folder`, made by the first process, for all."""
    with nullcontext(path) if rank() else new_folder(path) as folder:
        yield collect(folder)[0]


def shared_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """`files.new_array`, made by the first process, mapped by all."""
    array = None if rank() else new_array(path, dtype, shape)
    collect(None)
    return np.load(path, mmap_mode="r+", allow_pickle=False) if array is None else array
