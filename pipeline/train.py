"""Train the encoder; only `objective.kind: classify` uses labels."""

from pathlib import Path

from convae.params import Params
from convae.processes import Processes
from convae.stages.runner import run_stage
from convae.tracking.runs import Run


def main(params: Params, run: Run, processes: Processes) -> None:
    """Write models/autoencoder/ and reports/training.csv."""
    import pandas as pd

    from convae.datasets.image_set import ImageSet
    from convae.files import new_file
    from convae.training.module import COLUMNS
    from convae.training.train import load_training_set, train_encoder

    prepared = Path("data/prepared")
    training, validation = load_training_set(params, prepared), ImageSet.load(prepared / "validation")
    encoder, history, device = train_encoder(params, training, validation, run.log_row, processes=processes)
    if processes.rank:  # rank 0 writes the outputs
        return
    run.log_tags({"device": device})
    encoder.save(Path("models/autoencoder"))
    with new_file(Path("reports/training.csv")) as scratch:
        pd.DataFrame(history, columns=COLUMNS).to_csv(scratch, index=False, lineterminator="\n")


if __name__ == "__main__":
    run_stage("train", main, parallel=True)
