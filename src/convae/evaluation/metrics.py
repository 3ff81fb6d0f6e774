"""What is measured on predictions and reconstructions. Reported figures are rounded to six digits."""

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
    """
    p, n, z = successes / trials, trials, Z_95
    centre = p + z**2 / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)
    return round(max(0.0, low), DIGITS), round(min(1.0, high), DIGITS)


def accuracy(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Part of the labels `int64 [N]` that were predicted."""
    return float(np.mean(truth == prediction))


def recalls(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Of each class that occurs in `truth`, in the order of labels: the part of its images that were predicted so."""
    images = np.bincount(truth)
    right: np.ndarray = np.bincount(truth[truth == prediction], minlength=len(images))[images > 0]
    return right / images[images > 0]


def balanced_accuracy(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Mean recall of the classes that occur in `truth`."""
    return float(recalls(truth, prediction).mean())


def macro_f1(truth: np.ndarray, prediction: np.ndarray) -> float:
    """F1 score, the mean over the classes that occur in truth or prediction."""
    return float(f1_score(truth, prediction, average="macro", zero_division=0))


# What may choose among classifiers.
FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def classification_metrics(
    truth: np.ndarray, prediction: np.ndarray, probabilities: np.ndarray | None, commonest: int
) -> dict[str, float]:
    """How good predictions are, and how good they would be without looking.

    Args:
        truth: labels `int64 [N]`.
        prediction: labels `int64 [N]`.
        probabilities: `[N, classes]`, or None.
        commonest: the label that most training images have.

    Returns:
        `accuracy`; `majority_accuracy`, that of always guessing `commonest`; `balanced_accuracy`; `worst_recall`, the
        lowest of a class that occurs; `macro_f1`; and, where there are probabilities, `log_loss` (natural logarithm,
        mean over the images).
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
    """A row for each class: `class`, `precision`, `recall`, `f1` and `support`, its number of images."""
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, prediction, labels=np.arange(len(classes)), zero_division=0
    )
    table = {"class": list(classes), "precision": precision, "recall": recall, "f1": f1, "support": support}
    return pd.DataFrame(table).round(DIGITS)


def predictions_table(
    truth: np.ndarray, scores: np.ndarray, probabilities: bool, classes: Sequence[str]
) -> pd.DataFrame:
    """A row for each image, in the image set's order.

    Args:
        truth: labels `int64 [N]`.
        scores: `[N, classes]`, the highest is the prediction.
        probabilities: whether the scores are probabilities.
        classes: the name of each label.

    Returns:
        `index`, `truth` and `prediction` (names, as categories) and either `confidence`, the highest
        probability, or `margin`, by how much the highest decision value exceeds the second: in the
        classifier's own units, without an upper limit, and good for an order only.
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
        images: `uint8 [N, C, H, W]`, read `batch` at a time.
        batch: a number of images.

    Returns:
        The error in squared units of the preprocessed image, or None where the encoder has no decoder.
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
