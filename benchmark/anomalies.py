"""Which score finds unusual images best? Train on all classes but one, and look for that one among the test images.

    python -m benchmark.anomalies                          # the digits, with params.yaml: about five minutes
    python -m benchmark.anomalies --params systems/seed_cae.yaml
    python -m benchmark.anomalies --prepared data/prepared --classes 0 1

Prints the area under the ROC curve for each class that is left out. The first score is that of `convae anomalies`.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from convae.datasets.image_set import ImageSet, write_image_set
from convae.evaluation.anomalies import Reference
from convae.evaluation.evaluate import load_part
from convae.evaluation.neighbors import directions, nearest
from convae.features.extract import extract_features
from convae.params import PARAMS_FILE, Params, load_params
from convae.stages.runner import limit_threads
from convae.training.train import train_encoder

# The changes that the ladder makes for the digits.
SMALL = {"features": {"grid": 4}, "train": {"epochs": 10, "probe_every": None}}


def main() -> None:
    """Print a row for each class and the mean of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="the experiment (default: %(default)s)")
    parser.add_argument("--prepared", type=Path, metavar="FOLDER", help="prepared images (default: the digits)")
    parser.add_argument("--classes", type=int, nargs="+", metavar="N", help="classes to leave out (default: all)")
    arguments = parser.parse_args()
    content = load_params(arguments.params).model_dump(mode="json")
    if not arguments.prepared:
        for section, keys in SMALL.items():
            content[section] |= keys
    params = Params.model_validate(content)
    with TemporaryDirectory() as scratch, limit_threads(params.train.threads):
        prepared = arguments.prepared or digits_in(Path(scratch) / "digits")
        classes = ImageSet.load(prepared / "train").classes
        table = {}
        for left_out in arguments.classes or range(len(classes)):
            print(f"without {classes[left_out]} ...", file=sys.stderr, flush=True)
            with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
                table[classes[left_out]] = areas(params, prepared, left_out, Path(folder))
    shown = pd.DataFrame(table)
    print(shown.assign(mean=shown.mean(axis=1)).T.round(3).to_markdown())


def areas(params: Params, prepared: Path, left_out: int, folder: Path) -> dict[str, float]:
    """Area under the ROC curve of each score, for telling a class from the others after training without it.

    Args:
        params: the experiment.
        prepared: folder with labelled image sets.
        left_out: the label of the class.
        folder: an empty folder to work in.
    """
    for part in ("train", "validation", "test", "unlabelled"):
        whole = ImageSet.load(prepared / part)
        kept = np.ones(len(whole), bool) if whole.labels is None or part == "test" else whole.labels != left_out
        labels = None if whole.labels is None else whole.labels[kept]
        images = whole.images[kept]
        write_image_set(folder / "prepared" / part, images.shape, [images], labels, whole.classes)
    train, validation = (ImageSet.load(folder / "prepared" / part) for part in ("train", "validation"))
    trained, _, _ = train_encoder(params, train, validation, lambda row: None, folder / "checkpoints", progress=False)
    trained.save(folder / "trained")
    encoder = extract_features(params, folder / "trained", folder / "prepared", folder / "features")
    known, tested = (load_part(part, folder / "features", folder / "prepared") for part in ("train", "test"))
    scores = dict(_scores(known.compact, known.labels, tested.compact))
    if encoder.has_decoder:
        images = tested.image_set.images
        errors = np.square(encoder.reconstruct(images) - encoder.preprocess(images))
        scores["error of the decoder"] = errors.mean(axis=(1, 2, 3))
    return {name: float(roc_auc_score(tested.labels == left_out, score)) for name, score in scores.items()}


def _scores(known: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Scores of compact codes, or of features if there are none."""
    yield "5 nearest, directions", Reference.fit(known, "", code=False).scores(tested)
    yield "5 nearest", nearest(tested, known, 5)[0].mean(axis=1)
    yield "nearest, directions", nearest(directions(tested), directions(known), 1)[0][:, 0]
    yield "nearest", nearest(tested, known, 1)[0][:, 0]
    for how, change in (("", np.asarray), (", directions", directions)):
        means = np.stack([change(known)[labels == label].mean(axis=0) for label in np.unique(labels)])
        yield f"mean of a class{how}", nearest(change(tested), means, 1)[0][:, 0]


def digits_in(folder: Path) -> Path:
    """The digits that come with scikit-learn: 70 % to learn from, of which 150 for validation, and 30 % to test."""
    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    learned, tested = train_test_split(np.arange(len(images)), test_size=0.3, random_state=0, stratify=bunch.target)
    classes = [str(digit) for digit in range(10)]
    for part, rows in (("train", learned[:-150]), ("validation", learned[-150:]), ("test", tested)):
        write_image_set(folder / part, images[rows].shape, [images[rows]], bunch.target[rows], classes)
    write_image_set(folder / "unlabelled", (0, *images.shape[1:]), [], None, ())
    return folder


if __name__ == "__main__":
    main()
