"""Choose a classifier on validation images, then measure it on the test images, once."""

from pathlib import Path

from convae.encoder import load_encoder
from convae.evaluation.evaluate import evaluate
from convae.params import Params
from convae.tracking.runs import Run
from convae.tracking.stage import run_stage


def main(params: Params, run: Run) -> None:
    """models/classifier/, data/predictions/test.parquet and the numbers in reports/."""
    reports = Path("reports")
    metrics = evaluate(
        params,
        load_encoder("models/encoder"),
        Path("data/features"),
        Path("data/prepared"),
        classifier=Path("models/classifier"),
        predictions=Path("data/predictions/test.parquet"),
        reports=reports,
    )
    run.log_metrics(
        {
            f"{section}.{name}": value
            for section in ("test", "validation", "features", "encoder")
            for name, value in metrics[section].items()
        }
    )
    run.log_file(reports / "per_class.csv")
    run.log_file(reports / "confusion_matrix.csv")


if __name__ == "__main__":
    run_stage("evaluate", main)
