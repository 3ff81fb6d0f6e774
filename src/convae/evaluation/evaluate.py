"""The evaluation: choose the classifier on validation images, then measure it on the test images, once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from convae.datasets.image_set import ImageSet
from convae.datasets.reading import Scale
from convae.encoder import Encoder
from convae.errors import ConvaeError
from convae.evaluation.anomalies import Reference
from convae.evaluation.classifiers import fit_best
from convae.evaluation.health import encoder_health
from convae.evaluation.linear_decoder import (
    as_images,
    as_pixels,
    decoder_rows,
    fit_linear_decoder,
    linear_reconstruction_mse,
)
from convae.evaluation.metrics import (
    DIGITS,
    classification_metrics,
    per_class_table,
    predictions_table,
    reconstruction_mse,
    wilson_interval,
)
from convae.evaluation.neighbors import (
    AMONG_VALUES,
    LOOKED_AT,
    NEIGHBORS,
    TELLING,
    directions,
    near_copies,
    nearest,
    spread_rows,
    vote,
)
from convae.evaluation.principal_components import principal_components
from convae.evaluation.saving import save_classifier
from convae.evaluation.scores import check_finite, class_scores, has_probabilities
from convae.files import new_file, read_json, row_chunks, save_array, write_json
from convae.names import PARTS
from convae.params import Params


@dataclass(frozen=True)
class FeatureSet:
    """An image set, its features `float32 [N, D]`, and their compact code `float32 [N, d]`, if there is one.

    Example:
        >>> images = ImageSet(np.zeros((2, 1, 8, 8), np.uint8), np.array([1, 0]), ("cat", "dog"), sha256="")
        >>> FeatureSet(np.zeros((2, 16), np.float32), images).labels.tolist()
        [1, 0]
    """

    features: np.ndarray
    image_set: ImageSet
    code: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """Labels `int64 [N]` of a labelled image set."""
        assert self.image_set.labels is not None
        return self.image_set.labels

    def of_code(self) -> "FeatureSet":
        """The same images with the compact code in place of the features.

        Raises:
            ConvaeError: there is no code.
        """
        if self.code is None:
            raise ConvaeError("the features have no compact code beside them; rerun `dvc repro features`")
        return FeatureSet(self.code, self.image_set)

    @property
    def compact(self) -> np.ndarray:
        """The compact code, or the features if there is none."""
        return self.features if self.code is None else self.code

    def accuracy(self, estimator: BaseEstimator) -> float:
        """Fraction of the images that a fitted classifier labels correctly."""
        scores = class_scores(estimator, self.features, len(self.image_set.classes))
        return float(np.mean(scores.argmax(axis=1) == self.labels))


SHOWN = 2000  # test images on a map of the report
HEADLINE = ("accuracy", "majority_accuracy", "balanced_accuracy", "worst_recall")
# The figures to store with the classifier, which is often used without `metrics.json`.
HEADLINES = {"validation": HEADLINE, "test": (*HEADLINE, "accuracy_low", "accuracy_high", "worst_class")}


def evaluate(
    params: Params,
    encoder: Encoder,
    features: Path,
    prepared: Path,
    *,
    classifier: Path,
    reference: Path,
    predictions: Path,
    reports: Path,
) -> dict[str, Any]:
    """Fit the classifier on training images, choose its settings on validation images, measure it on test images.

    Args:
        params: the experiment.
        encoder: the encoder that computed the features.
        features: folder that `extract_features` wrote.
        prepared: folder with the image sets of the same names.
        classifier: folder to write the fitted classifier to.
        reference: folder to write a `Reference` to, for scoring how unusual images are.
        predictions: Parquet file to write, with a row for each test image: its `anomaly`, see `Reference.scores`, and
            the columns of `predictions_table`. Next to it,
            `reconstructions.npy`, `[2 or 3, n, C, H, W]`, gets the `examples` of the test images, and what a
            linear map makes of their compact codes, if there are any, and of their features; `neighbors.npy`,
            `int64 [n, k]`, the rows of the training images nearest to them; and `components.npy`, `float32 [m, c]`,
            the principal components of the features of up to 2000 test images, spread evenly.
        reports: folder to write `metrics.json` and `per_class.csv` to.

    Returns:
        The content of `metrics.json`; its `health` is what `encoder_health` returns. Without labels there is no
        classifier, and the tables are empty.

    Raises:
        ConvaeError: features, labels and image sets do not belong together, or the classifier can't be fitted.
    """
    parts = _load_parts(encoder, features, prepared)
    metrics: dict[str, Any] = {
        "test": {},
        "validation": {},
        "features": {"dimension": parts["train"].features.shape[1]},
        "encoder": {"parameters": encoder.parameter_count},
    }
    if _labelled(parts, prepared):
        of_code = params.classifier.reads == "code"
        read = {name: part.of_code() if of_code else part for name, part in parts.items()}
        estimator, description = _choose(params, encoder, read["train"], read["validation"])
        per_class, rows = _measure(estimator, read, metrics)
        metrics["classifier"] = {"kind": description["kind"], **description["settings"]}
        description |= {part: {name: metrics[part][name] for name in names} for part, names in HEADLINES.items()}
        if of_code:
            metrics["code"] = {
                "accuracy": metrics["test"]["accuracy"],
                "validation_accuracy": metrics["validation"]["accuracy"],
            }
        elif parts["train"].code is not None:
            metrics["code"] = _code_accuracies(params, parts)
    else:
        estimator, description = None, {"kind": None, "reason": "the images have no labels"}
        per_class, rows = _empty_tables(len(parts["test"].image_set))
    neighbors = _measure_neighbors(parts["test"], parts["train"], metrics)
    tested = parts["test"]
    most = min(SHOWN, max(1, AMONG_VALUES // tested.features.shape[1]))
    shown = tested.features[tested.image_set.spread(most)]
    training_images = Reference.fit(parts["train"].compact, encoder.sha256, parts["train"].code is not None)
    scores = [training_images.scores(tested.compact[part]) for part in row_chunks(tested.compact)]
    rows["anomaly"] = np.concatenate(scores).round(DIGITS)
    _measure_reconstructions(encoder, parts, metrics)
    pictures = _reconstruct_linearly(encoder.scale, parts, metrics)
    training, validation = parts["train"], parts["validation"]
    metrics["health"] = encoder_health(
        encoder, training.image_set.sample(), validation.image_set.images, validation.features, params.seed
    )
    save_classifier(classifier, estimator, description)
    training_images.save(reference)
    with new_file(reports / "per_class.csv") as scratch:
        per_class.to_csv(scratch, index=False, lineterminator="\n")
    with new_file(predictions) as scratch:
        rows.to_parquet(scratch, engine="pyarrow", index=False)
    arrays = {"reconstructions": pictures, "neighbors": neighbors, "components": principal_components(shown)}
    for name, array in arrays.items():
        with new_file(predictions.with_name(f"{name}.npy")) as scratch:
            save_array(scratch, array)
    write_json(reports / "metrics.json", metrics)
    return metrics


def _measure_neighbors(test: FeatureSet, train: FeatureSet, metrics: dict[str, Any]) -> np.ndarray:
    """Fill in what the training images nearest to test images say about them, for samples of both.

    Returns:
        Rows of the training images nearest to the `examples` of the test images, `int64 [n, k]`.
    """
    looked_at = spread_rows(len(test.compact), LOOKED_AT)
    among = spread_rows(len(train.compact), max(1, AMONG_VALUES // train.compact.shape[1]))
    features, others = directions(test.compact[looked_at]), directions(train.compact[among])
    _, rows = nearest(features, others, min(NEIGHBORS, len(others)))
    if features.shape[1] >= TELLING:
        copies = near_copies(features, others, rows[:, 0])
        metrics["features"]["near_copies"] = {"looked_at": len(features), "images": copies}
    metrics["neighbors"] = {"k": rows.shape[1], "looked_at": len(features), "among": len(others)}
    if "classifier" in metrics:
        said = vote(train.labels[among[rows]], len(train.image_set.classes))
        metrics["neighbors"]["accuracy"] = round(float(np.mean(said == test.labels[looked_at])), DIGITS)
    examples = directions(test.compact[test.image_set.examples()[0]])
    of_examples: np.ndarray = among[nearest(examples, others, min(NEIGHBORS, len(others)))[1]]
    return of_examples


def _code_accuracies(params: Params, parts: Mapping[str, FeatureSet]) -> dict[str, float]:
    """How well a classifier of the same kind reads the compact code."""
    train, validation, test = (parts[name].of_code() for name in ("train", "validation", "test"))
    estimator, _ = fit_best(
        params.classifier, train.features, train.labels, validation.features, validation.labels, params.seed
    )
    return {
        name: round(part.accuracy(estimator), DIGITS)
        for name, part in (("accuracy", test), ("validation_accuracy", validation))
    }


def _reconstruct_linearly(scale: Scale | None, parts: Mapping[str, FeatureSet], metrics: dict[str, Any]) -> np.ndarray:
    """Fill in the errors of linear reconstructions, and return a few of them, see `evaluate`."""
    train, test = parts["train"], parts["test"]
    images = test.image_set.images
    rows, _ = test.image_set.examples()
    pictures = [images[rows]]
    fitted = decoder_rows(train.image_set, train.features.shape[1])
    pixels = as_pixels(train.image_set.images[fitted], scale)
    if train.code is not None and test.code is not None:
        decoder = fit_linear_decoder(train.code[fitted], pixels)
        error = linear_reconstruction_mse(decoder, test.code, images, scale)
        metrics["code"] = {
            "dimension": train.code.shape[1],
            **metrics.get("code", {}),
            "linear_reconstruction_mse": error,
        }
        pictures.append(as_images(decoder(test.code[rows]), images, scale))
    decoder = fit_linear_decoder(train.features[fitted], pixels)
    for name in ("test", "validation"):
        part = parts[name]
        error = linear_reconstruction_mse(decoder, part.features, part.image_set.images, scale)
        metrics[name]["linear_reconstruction_mse"] = error
    pictures.append(as_images(decoder(test.features[rows]), images, scale))
    return np.stack(pictures)


def _measure_reconstructions(encoder: Encoder, parts: Mapping[str, FeatureSet], metrics: dict[str, Any]) -> None:
    """Fill in the reconstruction errors, if the encoder has a decoder."""
    for part in ("test", "validation"):
        if (error := reconstruction_mse(encoder, parts[part].image_set.images)) is not None:
            metrics[part]["reconstruction_mse"] = error


def _empty_tables(images: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables for images without labels: DVC expects both files even then."""
    per_class = pd.DataFrame(columns=["class", "precision", "recall", "f1", "support"])
    return per_class, pd.DataFrame({"index": np.arange(images)})


def _load_parts(encoder: Encoder, features: Path, prepared: Path) -> dict[str, FeatureSet]:
    """Load all parts and check that their features have one dimension and come from this encoder."""
    parts = {part: load_part(part, features, prepared) for part in PARTS}
    dimensions = {part: parts[part].features.shape[1] for part in PARTS}
    if len(set(dimensions.values())) > 1:
        raise ConvaeError(f"{features}: numbers of features differ: {dimensions}; rerun `dvc repro features`")
    if read_json(features / "description.json").get("encoder") != encoder.sha256:
        raise ConvaeError(f"{features}: not the features of this encoder; rerun `dvc repro features`")
    return parts


def load_part(part: str, features: Path, prepared: Path) -> FeatureSet:
    """Open the image set and features of `train`, `validation` or `test`, memory-mapped.

    Raises:
        ConvaeError: a file is missing or damaged, or the features belong to other images.
    """
    image_set = ImageSet.load(prepared / part)
    path = features / f"{part}.npy"
    code_path, labels_path = features / f"{part}_code.npy", features / f"{part}_labels.npy"
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        code = np.load(code_path, mmap_mode="r", allow_pickle=False) if code_path.exists() else None
        labels = np.load(labels_path, allow_pickle=False) if labels_path.exists() else None
        images = read_json(features / "description.json")["images"][part]
    except Exception as error:  # a damaged header can make NumPy raise nearly anything
        reason = " ".join(str(error).split())
        raise ConvaeError(f"{path}: not readable features ({reason}); rerun `dvc repro features`") from None
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32:
        raise ConvaeError(f"{path}: not an array of float32; rerun `dvc repro features`")
    if rows.ndim != 2 or len(rows) != len(image_set):
        raise ConvaeError(f"{path}: shape {list(rows.shape)} for {len(image_set)} images; rerun `dvc repro features`")
    if code is not None and (code.dtype != np.float32 or code.ndim != 2 or len(code) != len(image_set)):
        raise ConvaeError(f"{code_path}: not the codes of {len(image_set)} images; rerun `dvc repro features`")
    if images != image_set.sha256:
        raise ConvaeError(f"{path}: not the features of the images in {prepared / part}; rerun `dvc repro features`")
    if not _same(labels, image_set.labels):
        raise ConvaeError(f"{labels_path}: not the labels of {prepared / part}; rerun `dvc repro features`")
    return FeatureSet(rows, image_set, code)


def _same(labels: np.ndarray | None, others: np.ndarray | None) -> bool:
    return labels is others if labels is None or others is None else np.array_equal(labels, others)


def _labelled(parts: dict[str, FeatureSet], prepared: Path) -> bool:
    """Whether the parts have labels: all of them or none."""
    without = [part for part in PARTS if parts[part].image_set.labels is None]
    if without and len(without) < len(PARTS):
        raise ConvaeError(f"{prepared / without[0]}: has no labels, but other parts have; label all parts or none")
    return not without


def _choose(
    params: Params, encoder: Encoder, train: FeatureSet, validation: FeatureSet
) -> tuple[BaseEstimator, dict[str, Any]]:
    """The classifier with the best settings, and its description."""
    estimator, candidates = fit_best(
        params.classifier, train.features, train.labels, validation.features, validation.labels, params.seed
    )
    settings = estimator.get_params()
    description = {
        "kind": params.classifier.kind,
        "reads": params.classifier.reads,
        "settings": {name: settings[name] for name in params.classifier.candidates},
        "class_weight": params.classifier.class_weight,
        "select_by": params.classifier.select_by,
        "classes": list(train.image_set.classes),
        "dimension": train.features.shape[1],
        "candidates": candidates,
        "images": {"train": train.image_set.sha256, "validation": validation.image_set.sha256},
        "encoder": encoder.sha256,
    }
    return estimator, description


def _measure(
    estimator: BaseEstimator, parts: Mapping[str, FeatureSet], metrics: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fill in the metrics of validation and test images, and return the table of classes and that of predictions.

    Only `_code_accuracies` predicts labels of test images as well.
    """
    test = parts["test"]
    classes = test.image_set.classes
    probabilities = has_probabilities(estimator)
    commonest = int(np.bincount(parts["train"].labels).argmax())
    check_finite(test.features, "test")
    scores = {name: class_scores(estimator, parts[name].features, len(classes)) for name in ("validation", "test")}
    for name, own in scores.items():
        metrics[name] = classification_metrics(
            parts[name].labels, own.argmax(axis=1), own if probabilities else None, commonest
        )
    prediction = scores["test"].argmax(axis=1)
    low, high = wilson_interval(int(np.sum(test.labels == prediction)), len(prediction))
    per_class = per_class_table(test.labels, prediction, classes)
    # A stable sort always names the same one of several classes with the lowest recall.
    occurring = per_class[per_class["support"] > 0].sort_values("recall", kind="stable")
    metrics["test"] |= {
        "accuracy_low": low,
        "accuracy_high": high,
        "worst_class": occurring["class"].tolist()[0],
        "never_found": occurring["class"][occurring["recall"] == 0].tolist(),
    }
    return per_class, predictions_table(test.labels, scores["test"], probabilities, classes)
