"""Read features off the frozen encoder."""

from pathlib import Path

from convae.params import Params
from convae.tracking.runs import Run
from convae.tracking.stage import run_stage


def main(params: Params, run: Run) -> None:
    """data/features/, and models/encoder/: the trained encoder with its readout."""
    from convae.features.extract import extract_features

    encoder = extract_features(params, Path("models/autoencoder"), Path("data/prepared"), Path("data/features"))
    run.log_tags({"device": str(encoder.device)})
    encoder.to("cpu").save(Path("models/encoder"))


if __name__ == "__main__":
    run_stage("features", main, parallel=True)
