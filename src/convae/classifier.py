"""The image classifier: an encoder, and a scikit-learn classifier that reads its features or its compact code.

Needs torch, NumPy and safetensors; Pillow to read pictures; scikit-learn and skops unless the classifier is logistic
regression, the default.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convae.addresses import fetched, needs_fetching
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.evaluation.saving import load_scores
from convae.evaluation.scores import check_finite, class_scores, has_probabilities
from convae.images import Images


class ImageClassifier:
    """Classifies images.

    Args:
        encoder: an encoder with a readout.
        estimator: a scikit-learn classifier fitted on its features, or on its code if `reads_code`; for logistic
            regression a `LogisticScores`.
        description: the content of `classifier.json`.

    Example:
        >>> classifier = load_image_classifier("models")
        >>> classifier.classes, classifier.has_probabilities
        (['a', 'b', 'c'], False)
        >>> classifier.scores(np.zeros((5, 8, 8), np.uint8)).shape
        (5, 3)
    """

    def __init__(self, encoder: Encoder, estimator: Any, description: dict[str, Any]) -> None:
        self.encoder = encoder
        self.estimator = estimator
        self.description = description

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the columns of `scores`."""
        return list(self.description["classes"])

    @property
    def reads_code(self) -> bool:
        """Whether the classifier reads the compact code rather than the features."""
        return self.description.get("reads") == "code"

    @property
    def has_probabilities(self) -> bool:
        """Whether `scores` returns probabilities rather than decision values."""
        return has_probabilities(self.estimator)

    def scores(self, images: Images) -> np.ndarray:
        """Scores of each class, `[N, classes]`; the highest is the prediction.

        Args:
            images: arrays, tensors, files or Pillow images, see `convae.images.Images`. Files and Pillow images are
                read and resized like the training images.

        Raises:
            ConvaeError: the encoder does not accept the images, or a file can't be read.
        """
        return np.concatenate(list(self.score_batches(images)))

    def score_batches(self, images: Images) -> Iterator[np.ndarray]:
        """Yield the rows of `scores` in batches, so that memory does not grow with N."""
        none = np.zeros((0, len(self.classes)))  # scikit-learn refuses to classify zero rows
        for features in self.encoder.feature_batches(images, code=self.reads_code):
            check_finite(features, "given")
            yield class_scores(self.estimator, features, len(self.classes)) if len(features) else none

    def predict(self, images: Images) -> list[str]:
        """The class name of each image; see `scores`."""
        return [self.classes[index] for index in self.scores(images).argmax(axis=1)]


def load_image_classifier(source: str | Path, device: str = "cpu") -> ImageClassifier:
    """Load the encoder and the classifier from a folder such as `models/`.

    Args:
        source: a folder with `encoder/` and `classifier/`; or a name or address, as in `load_encoder`.
        device: where the encoder computes, as in `load_encoder`.

    Raises:
        ConvaeError: one of them is missing, damaged or of an unknown format, or they do not belong together.

    Example:
        >>> load_image_classifier("models").predict("picture.png")
        ['b']
    """
    if needs_fetching(source):
        with fetched(str(source)) as published:
            return load_image_classifier(published, device)
    folder = Path(source)
    encoder = load_encoder(folder / "encoder", device)
    estimator, description = load_scores(folder / "classifier")
    if description.get("encoder") != encoder.sha256:
        raise ConvaeError(f"{folder}: classifier/ was fitted on the features of another encoder than that in encoder/")
    classifier = ImageClassifier(encoder, estimator, description)
    try:
        _try(classifier)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConvaeError(f"{folder}: encoder/ and classifier/ do not belong together: {error}") from None
    return classifier


def _try(classifier: ImageClassifier) -> None:
    """Classify an image, so that a mismatch shows up on loading rather than in use."""
    if not all(isinstance(name, str) for name in classifier.classes):
        raise TypeError("class names must be text")
    encoder = classifier.encoder
    # The smallest image that the encoder accepts keeps even a forged model from taking long.
    image = np.zeros((1, encoder.config["channels"], *encoder.minimum_size), np.uint8)
    features = encoder.features(image, resize=False, code=classifier.reads_code)
    scores = class_scores(classifier.estimator, features, len(classifier.classes))
    if np.isnan(scores).any():
        raise ValueError("a score is not a number")
