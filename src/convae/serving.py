"""A published model as MLflow loads it, from a folder with `encoder/` and perhaps `classifier/`.

MLflow is told the name of this module; there is no pickle. It needs what `convae.classifier` needs, and pandas.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convae.classifier import ImageClassifier, load_image_classifier
from convae.encoder import Encoder, load_encoder

LABEL = "label"


class EncoderModel:
    """Images to features."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Features `float32 [N, D]` of images `uint8 [N, C, H, W]`."""
        return self.encoder.features(images)


class ClassifierModel:
    """Images to labels and the probability of each class, or its decision value where there are no probabilities."""

    def __init__(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row for each of the images `uint8 [N, C, H, W]`: `label`, then a column for each class."""
        scores, classes = self.classifier.scores(images), self.classifier.classes
        table = pd.DataFrame(scores.astype(np.float64), columns=score_columns(self.classifier))
        table.insert(0, LABEL, [classes[index] for index in scores.argmax(axis=1)])
        return table


def score_columns(classifier: ImageClassifier) -> list[str]:
    """Names of the columns beside the label."""
    kind = "probability" if classifier.has_probabilities else "score"
    return [f"{kind} {name}" for name in classifier.classes]


def _load_pyfunc(path: str) -> EncoderModel | ClassifierModel:
    """What MLflow calls."""
    folder = Path(path)
    if (folder / "classifier").exists():
        return ClassifierModel(load_image_classifier(folder))
    return EncoderModel(load_encoder(folder / "encoder"))
