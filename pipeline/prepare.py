"""Divide the images into training, validation and test sets that can be memory-mapped."""

from pathlib import Path

from convae.datasets.prepare import prepare
from convae.params import Params
from convae.tracking.runs import Run
from convae.tracking.stage import run_stage


def main(params: Params, run: Run) -> None:
    """data/prepared/: one image set for each part, and a description."""
    output = Path("data/prepared")
    prepare(params.data, params.seed, Path("data/raw") / params.data.dataset, output)
    run.log_file(output / "description.json")


if __name__ == "__main__":
    run_stage("prepare", main)
