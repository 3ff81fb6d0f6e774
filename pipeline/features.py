"""Extract features with the frozen encoder."""

from pathlib import Path

from convae.params import Params
from convae.processes import Processes
from convae.stages.runner import run_stage
from convae.tracking.runs import Run


def main(params: Params, run: Run, processes: Processes) -> None:
    """Write data/features/, and models/encoder/: the trained encoder with its readout."""
    from convae.features.extract import extract_features

    trained, prepared = Path("models/autoencoder"), Path("data/prepared")
    encoder = extract_features(params, trained, prepared, Path("data/features"), processes)
    if processes.rank:  # rank 0 writes the outputs
        return
    run.log_tags({"device": str(encoder.device)})
    encoder.to("cpu").save(Path("models/encoder"))


if __name__ == "__main__":
    run_stage("features", main, parallel=True)
