"""Choose a classifier on validation images, then measure it once on the test images."""

from pathlib import Path

from convae.params import Params
from convae.stages.runner import run_stage
from convae.tracking.runs import Run


def main(params: Params, run: Run) -> None:
    """Write models/classifier/, models/reference/, data/predictions/test.parquet and the tables in reports/."""
    from convae.encoder import load_encoder
    from convae.environment import environment
    from convae.evaluation.evaluate import evaluate
    from convae.files import write_json

    evaluate(
        params,
        load_encoder("models/encoder"),
        Path("data/features"),
        Path("data/prepared"),
        classifier=Path("models/classifier"),
        reference=Path("models/reference"),
        predictions=Path("data/predictions/test.parquet"),
        reports=Path("reports"),
    )
    # Not an output of the stage, so that the same results on another machine leave dvc.lock unchanged.
    write_json(Path("reports/environment.json"), environment())


if __name__ == "__main__":
    run_stage("evaluate", main)
