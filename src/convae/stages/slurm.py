"""The processes of a stage that SLURM's srun has started."""

import os

from convae.errors import ConvaeError


def adopt_srun() -> None:
    """Where srun started this process along with others, give what it says of it the names that torchrun uses.

    Raises:
        ConvaeError: srun was not told how many processes there are on a machine.
    """
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
