"""Divide the images into training, validation and test sets that can be memory-mapped."""

from pathlib import Path

from convae.params import Params
from convae.tracking.runs import Run
from convae.tracking.stage import run_stage


def main(params: Params, run: Run) -> None:
    """data/prepared/: one image set for each part, and a description."""
    from convae.datasets.prepare import prepare

    prepare(params.data, params.seed, Path("data/raw") / params.data.dataset, Path("data/prepared"))


if __name__ == "__main__":
    run_stage("prepare", main, parallel=True)
