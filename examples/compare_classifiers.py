"""Compare scikit-learn classifiers on a folder of pictures, with the features of a trained encoder.

    python examples/compare_classifiers.py pictures/ --encoder models/encoder

`pictures/` has one folder per class. Features are computed once; accuracies come from five-fold cross-validation.
"""

import argparse
import sys
from pathlib import Path

from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from convae import load_encoder

SUFFIXES = (".png", ".jpg", ".jpeg")
CLASSIFIERS = {
    "the commonest class": DummyClassifier(),  # ignores the features
    "logistic regression": LogisticRegression(C=0.003, max_iter=1000),
    "nearest neighbours": KNeighborsClassifier(5),
    "support vectors": SVC(C=10.0),
}


def main(pictures: Path, encoder: str) -> None:
    """Print a line per classifier: mean and standard deviation of its accuracy over the folds, balanced accuracy."""
    files = sorted(file for file in pictures.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        sys.exit(f"{pictures}: no pictures in folders of classes")
    features = load_encoder(encoder).features(files)
    labels = [file.parent.name for file in files]
    for name, classifier in CLASSIFIERS.items():
        found = cross_validate(classifier, features, labels, cv=5, scoring=("accuracy", "balanced_accuracy"))
        accuracy, balanced = found["test_accuracy"], found["test_balanced_accuracy"]
        print(f"{name:20} {accuracy.mean():.3f} ± {accuracy.std():.3f}, balanced {balanced.mean():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare classifiers of the features of a trained encoder.")
    parser.add_argument("pictures", type=Path, help="a folder with one folder of pictures per class")
    parser.add_argument("--encoder", default="fashion_mnist", help="a folder or a name (default: %(default)s)")
    main(**vars(parser.parse_args()))
