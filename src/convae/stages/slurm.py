"""Processes of a stage that SLURM's srun has started."""

import os

from convae.errors import ConvaeError


def adopt_srun() -> None:
    """If srun started this process together with others, set the environment variables that torchrun would set.

    Raises:
        ConvaeError: srun was not told the number of processes per machine.
    """
    # The number of tasks of the step, not of the job: a batch script also has the latter, without other processes.
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    try:
        found = SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise ConvaeError(f"srun: {error}") from None
    os.environ |= {
        "RANK": str(found.global_rank()),
        "LOCAL_RANK": str(found.local_rank()),
        "GROUP_RANK": str(found.node_rank()),
        "WORLD_SIZE": str(found.world_size()),
        "LOCAL_WORLD_SIZE": str(found.world_size() // int(os.environ["SLURM_STEP_NUM_NODES"])),
        "MASTER_ADDR": found.main_address,
        "MASTER_PORT": str(found.main_port),
    }
