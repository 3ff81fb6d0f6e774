"""Train the autoencoder on images without their labels."""

from collections.abc import Mapping
from pathlib import Path

from convae.params import Params
from convae.tracking.runs import Run
from convae.tracking.stage import run_stage

FORMAT = "%.6g"


def main(params: Params, run: Run) -> None:
    """models/autoencoder/ and reports/training.csv."""
    import pandas as pd

    from convae.datasets.image_set import ImageSet
    from convae.files import new_file
    from convae.training.train import train_encoder

    prepared = Path("data/prepared")
    unlabelled = ImageSet.load(prepared / "unlabelled")
    training = unlabelled if len(unlabelled) else ImageSet.load(prepared / "train")
    encoder, history, device = train_encoder(
        params, training, ImageSet.load(prepared / "validation"), on_epoch=lambda row: log_epoch(run, row)
    )
    run.log_tags({"device": device})
    encoder.save(Path("models/autoencoder"))
    columns = ["epoch", "train_loss", "validation_loss", "learning_rate"]
    with new_file(Path("reports/training.csv")) as scratch:
        pd.DataFrame(history, columns=columns).to_csv(scratch, index=False, float_format=FORMAT, lineterminator="\n")


def log_epoch(run: Run, row: Mapping[str, float]) -> None:
    """Show an epoch while the training goes on, in the digits that reports/training.csv will have."""
    losses = {name: float(FORMAT % value) for name, value in row.items() if name != "epoch"}
    run.log_metrics(losses, step=int(row["epoch"]))


if __name__ == "__main__":
    run_stage("train", main)
