"""The image classifier: an encoder and the scikit-learn classifier that reads its features.

Needs torch, NumPy, safetensors, scikit-learn and skops; Pillow to read pictures.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from convae.addresses import fetched, is_address
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.evaluation.classifiers import check_finite, class_scores, has_probabilities
from convae.evaluation.saving import load_classifier
from convae.images import Images


class ImageClassifier:
    """Images to class names.

    Args:
        encoder: with a readout.
        estimator: fitted on its features.
        description: what `classifier.json` holds.
    """

    def __init__(self, encoder: Encoder, estimator: BaseEstimator, description: dict[str, Any]) -> None:
        self.encoder = encoder
        self.estimator = estimator
        self.description = description

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the columns of `scores`."""
        return list(self.description["classes"])

    @property
    def has_probabilities(self) -> bool:
        """Whether `scores` are probabilities, or else decision values."""
        return has_probabilities(self.estimator)

    def scores(self, images: Images) -> np.ndarray:
        """The score of each class, `[N, classes]`; the highest is the prediction.

        Args:
            images: arrays, tensors, files or Pillow images, see `convae.images.Images`. Files and Pillow images are
                read and resized as those that the classifier learned from.

        Raises:
            ConvaeError: the images do not suit the encoder, or a file can't be read.
        """
        return np.concatenate(list(self.score_batches(images)))

    def score_batches(self, images: Images) -> Iterator[np.ndarray]:
        """The rows of `scores`, a batch at a time, so that memory stays flat in N."""
        none = np.zeros((0, len(self.classes)))
        for features in self.encoder.feature_batches(images):
            check_finite(features, "given")
            yield class_scores(self.estimator, features, len(self.classes)) if len(features) else none

    def predict(self, images: Images) -> list[str]:
        """The class name of each image; see `scores`."""
        return [self.classes[index] for index in self.scores(images).argmax(axis=1)]


def load_image_classifier(source: str | Path) -> ImageClassifier:
    """Load the encoder and the classifier in a folder such as `models/`.

    Args:
        source: a folder with `encoder/` and `classifier/`, or the address of a model in MLflow such as
            `models:/convae-classifier@champion`.

    Raises:
        ConvaeError: one is missing, damaged or foreign, or they do not belong together.
    """
    if is_address(source):
        with fetched(str(source)) as published:
            return load_image_classifier(published)
    folder = Path(source)
    encoder = load_encoder(folder / "encoder")
    estimator, description = load_classifier(folder / "classifier")
    if description.get("encoder") != encoder.sha256:
        raise ConvaeError(f"{folder}: classifier/ was fitted on the features of another encoder than that in encoder/")
    classifier = ImageClassifier(encoder, estimator, description)
    try:
        _try(classifier)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConvaeError(f"{folder}: encoder/ and classifier/ do not belong together: {error}") from None
    return classifier


def _try(classifier: ImageClassifier) -> None:
    """Classify an image: what does not belong together shows here."""
    if not all(isinstance(name, str) for name in classifier.classes):
        raise TypeError("names of classes are text")
    encoder = classifier.encoder
    # Of the smallest image there can be: what is forged shows without taking long.
    features = encoder.features(
        np.zeros((1, encoder.config["channels"], *encoder.minimum_size), np.uint8), resize=False
    )
    scores = class_scores(classifier.estimator, features, len(classifier.classes))
    if np.isnan(scores).any():
        raise ValueError("a score is not a number")
