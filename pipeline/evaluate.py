"""Choose a classifier on validation images, then measure it on the test images, once."""

from pathlib import Path

from convae.params import Params
from convae.tracking.runs import Run
from convae.tracking.stage import run_stage


def main(params: Params, run: Run) -> None:
    """models/classifier/, data/predictions/test.parquet and the numbers in reports/."""
    from convae.encoder import load_encoder
    from convae.evaluation.evaluate import evaluate

    evaluate(
        params,
        load_encoder("models/encoder"),
        Path("data/features"),
        Path("data/prepared"),
        classifier=Path("models/classifier"),
        predictions=Path("data/predictions/test.parquet"),
        reports=Path("reports"),
    )


if __name__ == "__main__":
    run_stage("evaluate", main)
