"""Fetch the data set, check it and decode it."""

from pathlib import Path

from convae.params import Params
from convae.stages.runner import run_stage
from convae.tracking.runs import Run


def main(params: Params, run: Run) -> None:
    """Write data/raw/<dataset>/: decoded arrays, or for a folder of images the list of its files."""
    from convae.datasets.download import download

    source = download(params.data, Path("data/raw") / params.data.dataset, Path("data/downloads"))
    run.log_tags({"source": source})
    print(f"{params.data.dataset} from {source}")


if __name__ == "__main__":
    run_stage("download", main)
