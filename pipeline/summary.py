"""What `make run` ends with: the result, where to read about it, and where to compare runs."""

from pathlib import Path

from convae.evaluation.concerns import concerns
from convae.files import read_json


def main() -> None:
    """Print the test accuracy with its interval, the report's path and the command that opens MLflow."""
    metrics = read_json(Path("reports/metrics.json"))
    test = metrics["test"]
    print()
    if "accuracy" in test:
        low, high = test["accuracy_low"], test["accuracy_high"]
        print(f"test accuracy   {test['accuracy']:.2%}   (95 % interval {low:.2%} to {high:.2%})")
    else:
        print("no labels, so no accuracy")
    if "reconstruction_mse" in test:
        print(f"reconstruction  {test['reconstruction_mse']:.4f}   (mean squared error of preprocessed test images)")
    for concern in concerns(metrics):
        print(f"doubtful        {concern}")
    print("report          reports/report.html")
    print("compare runs    make ui")


if __name__ == "__main__":
    main()
