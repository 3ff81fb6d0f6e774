"""Processes that run one stage together, started by torchrun, srun or the stage itself."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike

from convae.files import new_array, new_folder

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # for a peer that works alone for a while; the launcher detects a dead one


@dataclass(frozen=True)
class Processes:
    """Rank and world size of this process. Rank 0 writes shared outputs; a process without peers has rank 0.

    Attributes:
        rank: the rank of this process, from 0.
        count: the world size.
    """

    rank: int = 0
    count: int = 1

    def is_loss_of_another(self, error: RuntimeError) -> bool:
        """Whether `error` means that a peer is gone."""
        if self.count == 1:
            return False
        import torch.distributed

        # gloo reports a lost connection as a plain RuntimeError.
        return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)

    def share_of(self, rows: int) -> slice:
        """Slice of this process's rows. Shares are in the order of ranks and differ by at most one row.

        Example:
            >>> [Processes(rank, 3).share_of(10) for rank in range(3)]
            [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
        """
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def collect(self, value: T) -> list[T]:
        """Gather the values of all processes, in the order of ranks. Blocks until every process has called it."""
        if self.count == 1:
            return [value]
        import torch.distributed

        values: list[T] = [value] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def shared_folder(self, path: Path) -> Iterator[Path]:
        """`files.new_folder` for all processes: rank 0 creates the scratch folder and moves it into place."""
        with nullcontext(path) if self.rank else new_folder(path) as folder:
            yield self.collect(folder)[0]

    def shared_array(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
        """`files.new_array` for all processes: rank 0 creates the file, and each process maps it."""
        array = None if self.rank else new_array(path, dtype, shape)
        self.collect(None)  # the file exists from here on
        return np.load(path, mmap_mode="r+", allow_pickle=False) if array is None else array


ALONE = Processes()


def connect() -> Processes:
    """Connect to the peers that RANK, WORLD_SIZE and MASTER_ADDR in the environment describe.

    Example:
        >>> connect()  # started by neither torchrun nor srun
        Processes(rank=0, count=1)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch.distributed  # late, so that a single process can prepare images without torch

    torch.distributed.init_process_group(timeout=PATIENCE)
    atexit.register(torch.distributed.destroy_process_group)  # or its threads may abort an exiting process
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
