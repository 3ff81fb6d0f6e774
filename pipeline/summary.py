"""The end of `make run`: the result, where to read about it, and how to compare runs."""

from pathlib import Path

from convae.evaluation.concerns import concerns
from convae.files import read_json
from convae.names import printable
from convae.terminal import survive_any_encoding


def main() -> None:
    """Print the test accuracy with its baselines, any concerns, and where to read more."""
    survive_any_encoding()
    metrics = read_json(Path("reports/metrics.json"))
    test = metrics["test"]
    print()
    if "accuracy" in test:
        low, high = test["accuracy_low"], test["accuracy_high"]
        print(f"test accuracy   {test['accuracy']:.2%}   (95 % interval {low:.2%} to {high:.2%})")
        print(f"balanced        {test['balanced_accuracy']:.2%}   (mean recall of the classes)")
        print(f"worst class     {test['worst_recall']:.2%}   (recall of {printable(test['worst_class'])})")
        print(f"commonest       {test['majority_accuracy']:.2%}   (accuracy of always guessing the commonest class)")
    else:
        print("no labels, so no accuracy")
    if "accuracy" in metrics.get("code", {}):
        code = metrics["code"]
        print(
            f"compact code    {code['accuracy']:.2%}   (test accuracy with only {code['dimension']} numbers per image)"
        )
    if "reconstruction_mse" in test:
        print(f"reconstruction  {test['reconstruction_mse']:.4f}   (mean squared error of preprocessed test images)")
    for concern in concerns(metrics, read_json(Path("data/prepared/description.json"))):
        print(f"concern         {concern}")
    print("report          reports/report.html")
    print("compare runs    make ui")


if __name__ == "__main__":
    main()
