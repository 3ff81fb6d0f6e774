"""Draw the figures and write the report."""

from pathlib import Path

from convae.params import Params
from convae.stages.runner import run_stage
from convae.tracking.runs import Run


def main(params: Params, run: Run) -> None:
    """Write reports/report.html and reports/figures/."""
    from convae.encoder import load_encoder
    from convae.reporting.report import write_report

    write_report(
        params,
        load_encoder("models/encoder"),
        Path("data/prepared"),
        classifier=Path("models/classifier"),
        predictions=Path("data/predictions/test.parquet"),
        reports=Path("reports"),
    )


if __name__ == "__main__":
    run_stage("report", main)
