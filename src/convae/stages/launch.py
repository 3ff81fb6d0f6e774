"""How a parallel stage starts its own processes, on this machine or, with srun, on several."""

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from convae.errors import ConvaeError
from convae.params import TrainParams

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def start_processes(stage: str, train: TrainParams) -> int | None:
    """Run the stage in several processes if the parameters ask for them and no launcher has started them yet.

    Returns:
        The processes' exit code; None if this process should do the work alone.

    Raises:
        ConvaeError: a process was killed, or `train.nodes` asks for several machines outside a SLURM job.
    """
    count, nodes = _devices(train), train.nodes if stage == "train" else 1
    if "RANK" in os.environ or count * nodes == 1:
        return None
    if nodes > 1:
        _exec_srun(stage, count, nodes)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(1, 1, count, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, run_id=stage)
    try:
        elastic_launch(config, sys.executable)("-m", f"pipeline.{stage}")
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        return _code(error)
    return 0


def _code(failed: "ChildFailedError") -> int:
    """Return the exit code of the process that failed and has printed why.

    Raises:
        ConvaeError: a signal killed it before it could print anything.
    """
    # When one process fails, torch ends the others with SIGTERM: a process ended by it is not the cause.
    codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
    killed = [rank for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM]
    if killed:
        sign = signal.Signals(-codes[killed[0]]).name
        raise ConvaeError(f"process {killed[0]} was killed by {sign}; run the stage again to resume")
    return max(codes.values())


def _devices(train: TrainParams) -> int:
    if train.devices != "auto":
        return train.devices
    if train.accelerator not in ("auto", "gpu"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _exec_srun(stage: str, devices: int, nodes: int) -> NoReturn:
    if "SLURM_JOB_ID" not in os.environ:
        raise ConvaeError(
            f"train.nodes = {nodes}: a stage can start processes on other machines only inside a SLURM job; "
            "elsewhere use torchrun, see docs/cluster.md"
        )
    options = [f"--nodes={nodes}", f"--ntasks-per-node={devices}", "--kill-on-bad-exit=1"]
    os.execvp("srun", ["srun", *options, sys.executable, "-m", f"pipeline.{stage}"])
