"""Processes that run one stage together, started by torchrun, by srun or by the stage itself."""

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
    """This process among its peers. Rank 0 writes shared outputs; a process without peers does everything itself.

    Attributes:
        rank: of this process, from 0.
        count: the world size.
    """

    rank: int = 0
    count: int = 1

    def is_loss_of_another(self, error: RuntimeError) -> bool:
        """Whether a process could not go on because a peer is gone."""
        if self.count == 1:
            return False
        import torch.distributed

        return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)

    def share_of(self, rows: int) -> slice:
        """The rows that are this process's, in the order of ranks; no two shares differ by more than one row.

        Example:
            >>> [Processes(rank, 3).share_of(10) for rank in range(3)]
            [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
        """
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def collect(self, value: T) -> list[T]:
        """The values of all processes, in all of them; nobody returns before everybody has called it."""
        if self.count == 1:
            return [value]
        import torch.distributed

        values: list[T] = [value] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def shared_folder(self, path: Path) -> Iterator[Path]:
        """`files.new_folder`, made by rank 0, for all."""
        with nullcontext(path) if self.rank else new_folder(path) as folder:
            yield self.collect(folder)[0]

    def shared_array(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
        """`files.new_array`, made by rank 0, mapped by all."""
        array = None if self.rank else new_array(path, dtype, shape)
        self.collect(None)
        return np.load(path, mmap_mode="r+", allow_pickle=False) if array is None else array


ALONE = Processes()


def connect() -> Processes:
    """Connect to the peers that the environment tells of, by RANK, WORLD_SIZE and MASTER_ADDR."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch.distributed  # prepare does without torch where it is alone

    torch.distributed.init_process_group(timeout=PATIENCE)
    atexit.register(torch.distributed.destroy_process_group)  # else its threads may abort an ending process
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
