"""A stage's processes are started by itself, torchrun or srun, with the variables that these set."""

import os
import subprocess
import sys

import pytest
from helpers import REPOSITORY

STAGE = """\
import os
from convae.stages.runner import run_stage

def main(params, run, processes):
    found = processes.collect((processes.rank, os.environ.get("LOCAL_WORLD_SIZE")))
    os.write(1, f"{{found if len(found) > 1 else 'alone'}}\\n".encode())  # whole lines, as all write into one pipe

run_stage("{name}", main, parallel=True)
"""
# As srun of SLURM 22.05 does it, on one machine.
SRUN = """\
#!/bin/sh
echo "$@" > arguments
for option; do
    case $option in
        --nodes=*) nodes=${option#*=} ;;
        --ntasks-per-node=*) tasks=${option#*=} ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
export SLURM_NNODES=$nodes SLURM_STEP_NUM_NODES=$nodes SLURM_NTASKS_PER_NODE=$tasks SLURM_NODELIST=localhost
export SLURM_NTASKS=$((nodes * tasks)) SLURM_STEP_NUM_TASKS=$((nodes * tasks))
rank=1
while [ $rank -lt $SLURM_NTASKS ]; do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % tasks)) SLURM_NODEID=$((rank / tasks)) "$@" &
    rank=$((rank + 1))
done
SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 "$@" && wait
"""


@pytest.fixture
def stage(fresh, tmp_path):
    """`stage("train", devices=2)`: a script that says which processes it found, run with these parameters."""
    (fresh / "pipeline").mkdir()
    srun = tmp_path / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o755)

    def run(name, variables=None, **train):
        (fresh / f"pipeline/{name}.py").write_text(STAGE.format(name=name))
        text = (REPOSITORY / "params.yaml").read_text()
        for key, value in train.items():
            assert f"  {key}: 1 " in text
            text = text.replace(f"  {key}: 1 ", f"  {key}: {value} ")
        (fresh / "params.yaml").write_text(text)
        environment = {**os.environ, "CONVAE_TRACKING": "off", "PYTHONPATH": str(REPOSITORY / "src")}
        environment |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **(variables or {})}
        command = [sys.executable, "-m", f"pipeline.{name}"]
        return subprocess.run(command, cwd=fresh, env=environment, capture_output=True, text=True)

    return run


def test_a_single_process_has_world_size_one(stage):
    assert stage("prepare").stdout == "alone\n"


def test_a_stage_starts_its_processes_itself(stage):
    done = stage("prepare", devices=2, nodes=3)  # only training uses them
    assert done.stdout == 2 * "[(0, '2'), (1, '2')]\n", done.stderr


@pytest.mark.slow
def test_in_a_slurm_job_srun_starts_the_processes_on_all_nodes(stage, fresh):
    done = stage("train", {"SLURM_JOB_ID": "4711"}, nodes=2)
    assert done.stdout == 2 * "[(0, '1'), (1, '1')]\n", done.stderr
    arguments = (fresh / "arguments").read_text()
    assert arguments == f"--nodes=2 --ntasks-per-node=1 --kill-on-bad-exit=1 {sys.executable} -m pipeline.train\n"


def test_several_nodes_without_slurm_are_refused(stage):
    done = stage("train", nodes=2)
    assert done.returncode == 1
    assert done.stderr.startswith("train: train.nodes = 2: a stage can start processes on other machines only")
    assert done.stderr.count("\n") == 1
