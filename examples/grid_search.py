"""Choose a scikit-learn classifier for a folder of pictures by grid search, with the features of a trained encoder.

    python examples/grid_search.py pictures/ --encoder models/encoder

`pictures/` has one folder per class. A quarter of the pictures is held out and measures the chosen pipeline once.
"""

import argparse
import sys
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC

from convae import CAEFeatures

SUFFIXES = (".png", ".jpg", ".jpeg")
GRID = [
    {"classifier": [LogisticRegression(max_iter=1000)], "classifier__C": [0.001, 0.01, 0.1]},
    {"classifier": [SVC()], "classifier__C": [1.0, 10.0, 100.0]},
    {"classifier": [KNeighborsClassifier()], "classifier__n_neighbors": [1, 5]},
]


def main(pictures: Path, encoder: str) -> None:
    """Print the best classifier, its accuracy in cross-validation, and the accuracy of its pipeline on new pictures."""
    files = sorted(file for file in pictures.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        sys.exit(f"{pictures}: no pictures in folders of classes")
    labels = [file.parent.name for file in files]
    training, test, training_labels, test_labels = train_test_split(files, labels, stratify=labels, random_state=0)
    # A frozen encoder learns nothing from these pictures, so features computed once, outside the cross-validation, are
    # the same as within it.
    features = CAEFeatures(encoder)
    search = GridSearchCV(Pipeline([("classifier", SVC())]), GRID, cv=3)
    search.fit(features.fit_transform(training), training_labels)
    pipeline = make_pipeline(features, search.best_estimator_)  # takes files, arrays and Pillow images
    print(search.best_params_["classifier"])
    print(f"cross-validation {search.best_score_:.3f}, held-out pictures {pipeline.score(test, test_labels):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Choose a classifier of the features of a trained encoder.")
    parser.add_argument("pictures", type=Path, help="a folder with one folder of pictures per class")
    parser.add_argument("--encoder", default="fashion_mnist", help="a folder or a name (default: %(default)s)")
    main(**vars(parser.parse_args()))
