"""Metrics of predictions and reconstructions; reported figures are rounded to six digits."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, log_loss, precision_recall_fscore_support

from convae.encoder import Encoder

DIGITS = 6
Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion p = successes / trials.

        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212.

    Example:
        >>> wilson_interval(8, 10), wilson_interval(800, 1000)
        ((0.490162, 0.943318), (0.774081, 0.823623))
    """
    p, n, z = successes / trials, trials, Z_95
    centre = p + z**2 / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)
    return round(max(0.0, low), DIGITS), round(min(1.0, high), DIGITS)


def accuracy(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Fraction of the labels `int64 [N]` that were predicted.

    Example:
        >>> accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
        0.75
    """
    return float(np.mean(truth == prediction))


def recalls(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Recall of each class that occurs in `truth`, in the order of labels.

    Example:
        >>> recalls(np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])).tolist()  # no image is of class 1
        [0.5, 1.0]
    """
    images = np.bincount(truth)
    right: np.ndarray = np.bincount(truth[truth == prediction], minlength=len(images))[images > 0]
    return right / images[images > 0]


def balanced_accuracy(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Mean recall of the classes that occur in `truth`.

    Example:
        >>> truth, prediction = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
        >>> accuracy(truth, prediction), balanced_accuracy(truth, prediction)
        (0.75, 0.5)
    """
    return float(recalls(truth, prediction).mean())


def macro_f1(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Mean F1 score of the classes that occur in `truth` or `prediction`.

    Example:
        >>> round(macro_f1(np.array([0, 0, 1]), np.array([0, 0, 0])), 6)  # 0.8 for class 0, nothing for class 1
        0.4
    """
    return float(f1_score(truth, prediction, average="macro", zero_division=0))


# Metrics that `classifier.select_by` can name.
FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def classification_metrics(
    truth: np.ndarray, prediction: np.ndarray, probabilities: np.ndarray | None, commonest: int
) -> dict[str, float]:
    """Metrics of predictions, and of always guessing the same class.

    Args:
        truth: labels `int64 [N]`.
        prediction: labels `int64 [N]`.
        probabilities: `[N, classes]`, or None.
        commonest: the most frequent label of the training images.

    Returns:
        `accuracy`; `majority_accuracy`, the accuracy of always guessing `commonest`; `balanced_accuracy`;
        `worst_recall`, the lowest recall of a class that occurs; `macro_f1`; and, if there are probabilities,
        `log_loss` (natural logarithm, mean over the images).

    Example:
        >>> metrics = classification_metrics(np.array([0, 0, 1]), np.array([0, 0, 0]), None, commonest=0)
        >>> metrics["accuracy"], metrics["majority_accuracy"], metrics["worst_recall"], metrics["macro_f1"]
        (0.666667, 0.666667, 0.0, 0.4)
    """
    metrics = {
        "accuracy": accuracy(truth, prediction),
        "majority_accuracy": np.mean(truth == commonest),
        "balanced_accuracy": balanced_accuracy(truth, prediction),
        "worst_recall": recalls(truth, prediction).min(),
        "macro_f1": macro_f1(truth, prediction),
    }
    if probabilities is not None:
        metrics["log_loss"] = log_loss(truth, probabilities, labels=np.arange(probabilities.shape[1]))
    return {name: round(float(value), DIGITS) for name, value in metrics.items()}


def per_class_table(truth: np.ndarray, prediction: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """A row for each class: `class`, `precision`, `recall`, `f1` and `support`, its number of images.

    Example:
        >>> per_class_table(np.array([0, 0, 1]), np.array([0, 1, 1]), ["cat", "dog"])
          class  precision  recall        f1  support
        0   cat        1.0     0.5  0.666667        2
        1   dog        0.5     1.0  0.666667        1
    """
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, prediction, labels=np.arange(len(classes)), zero_division=0
    )
    table = {"class": list(classes), "precision": precision, "recall": recall, "f1": f1, "support": support}
    return pd.DataFrame(table).round(DIGITS)


def predictions_table(
    truth: np.ndarray, scores: np.ndarray, probabilities: bool, classes: Sequence[str]
) -> pd.DataFrame:
    """A row for each image, in the order of the image set.

    Args:
        truth: labels `int64 [N]`.
        scores: `[N, classes]`; the highest is the prediction.
        probabilities: whether the scores are probabilities.
        classes: the name of each label.

    Returns:
        `index`, `truth` and `prediction` (names, as categories) and either `confidence`, the highest probability, or
        `margin`, the difference of the two highest decision values. A margin is in the classifier's own units and
        unbounded, so it is good only for sorting.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.6, 0.4]])
        >>> predictions_table(np.array([0, 1]), scores, probabilities=True, classes=["cat", "dog"])
           index truth prediction  confidence
        0      0   cat        cat         0.9
        1      1   dog        cat         0.6
    """
    runner_up, highest = np.partition(scores, -2, axis=1)[:, -2:].T
    certainty = {"confidence": highest} if probabilities else {"margin": highest - runner_up}
    names = pd.CategoricalDtype(list(classes))
    return pd.DataFrame(
        {
            "index": np.arange(len(truth)),
            "truth": pd.Categorical.from_codes(truth, dtype=names),
            "prediction": pd.Categorical.from_codes(scores.argmax(axis=1), dtype=names),
            **{name: values.astype(np.float64).round(DIGITS) for name, values in certainty.items()},
        }
    )


def reconstruction_mse(encoder: Encoder, images: np.ndarray, batch: int = 256) -> float | None:
    """Mean squared error between reconstructions and preprocessed images, over all images and pixels.

    Args:
        encoder: the trained encoder.
        images: `[N, C, H, W]`, read in batches.
        batch: images per batch.

    Returns:
        The error in squared units of the preprocessed image, or None if the encoder has no decoder.

    Example:
        >>> from convae.encoder import load_encoder
        >>> images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
        >>> reconstruction_mse(load_encoder("models/encoder"), images) > 0
        True
    """
    if not encoder.has_decoder:
        return None
    total, count = 0.0, 0
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        error = encoder.reconstruct(chunk) - encoder.preprocess(chunk)
        total += float(np.square(error, dtype=np.float64).sum())
        count += error.size
    return round(total / count, DIGITS)
