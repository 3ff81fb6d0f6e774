"""Split the images into memory-mapped training, validation and test sets."""

from pathlib import Path

from convae.params import Params
from convae.processes import Processes
from convae.stages.runner import run_stage
from convae.tracking.runs import Run


def main(params: Params, run: Run, processes: Processes) -> None:
    """Write data/prepared/: an image set for each part, and a description."""
    from convae.datasets.prepare import prepare

    raw = Path("data/raw") / params.data.dataset
    prepare(params.data, params.seed, raw, Path("data/prepared"), processes)


if __name__ == "__main__":
    run_stage("prepare", main, parallel=True)
