"""Published models as MLflow loads them, from a folder with `encoder/` and optionally `classifier/`.

MLflow stores the name of this module and calls `_load_pyfunc`, so a model needs no pickle. In addition to the
requirements of `convae.classifier` it needs pandas.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convae.classifier import ImageClassifier, load_image_classifier
from convae.encoder import Encoder, load_encoder

LABEL = "label"


class EncoderModel:
    """Computes features of images.

    Example:
        >>> EncoderModel(load_encoder("models/encoder")).predict(np.zeros((5, 1, 8, 8), np.uint8)).shape
        (5, 16)
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return the features `float32 [N, D]` of images `[N, C, H, W]`, or with `{"code": True}` the code."""
        return self.encoder.features(images, code=bool(params and params.get("code")))


class ClassifierModel:
    """Predicts labels of images, with the probability of each class, or its decision value without probabilities.

    Example:
        >>> ClassifierModel(load_image_classifier("models")).predict(np.zeros((5, 1, 8, 8), np.uint8)).columns.tolist()
        ['label', 'score a', 'score b', 'score c']
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row for each of the images `[N, C, H, W]`: `label`, then a column for each class."""
        scores, classes = self.classifier.scores(images), self.classifier.classes
        # float64 is the type that the published signature names, whatever the classifier returns.
        table = pd.DataFrame(scores.astype(np.float64), columns=score_columns(self.classifier))
        table.insert(0, LABEL, [classes[index] for index in scores.argmax(axis=1)])
        return table


def score_columns(classifier: ImageClassifier) -> list[str]:
    """Names of the columns after the label.

    Example:
        >>> score_columns(load_image_classifier("models"))
        ['score a', 'score b', 'score c']
    """
    kind = "probability" if classifier.has_probabilities else "score"
    return [f"{kind} {name}" for name in classifier.classes]


def _load_pyfunc(path: str) -> EncoderModel | ClassifierModel:
    """Load a published model; the entry point that MLflow calls."""
    folder = Path(path)
    if (folder / "classifier").exists():
        return ClassifierModel(load_image_classifier(folder))
    return EncoderModel(load_encoder(folder / "encoder"))
