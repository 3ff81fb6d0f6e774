"""Train the autoencoder on images without their labels."""

from pathlib import Path

import pandas as pd

from convae.datasets.image_set import ImageSet
from convae.files import new_file
from convae.params import Params
from convae.tracking.runs import Run
from convae.tracking.stage import run_stage
from convae.training.train import train_encoder


def main(params: Params, run: Run) -> None:
    """models/autoencoder/ and reports/training.csv."""
    prepared = Path("data/prepared")
    unlabelled = ImageSet.load(prepared / "unlabelled")
    training = unlabelled if len(unlabelled) else ImageSet.load(prepared / "train")
    encoder, history = train_encoder(
        params,
        training,
        ImageSet.load(prepared / "validation"),
        on_epoch=lambda row: run.log_metrics(row, step=int(row["epoch"])),
    )
    encoder.save(Path("models/autoencoder"))
    columns = ["epoch", "train_loss", "validation_loss", "learning_rate"]
    with new_file(Path("reports/training.csv")) as scratch:
        pd.DataFrame(history, columns=columns).to_csv(scratch, index=False, float_format="%.6g", lineterminator="\n")
    run.log_file(Path("reports/training.csv"))


if __name__ == "__main__":
    run_stage("train", main)
