"""Published models as MLflow loads them, from a folder with `encoder/` and optionally `classifier/`.

MLflow stores the name of this module and calls `_load_pyfunc`, so a model needs no pickle. In addition to the
requirements of `convae.classifier` it needs pandas, and Pillow to read pictures.

The models take images as an array `[N, C, H, W]` of the size trained on, or as pictures: an array `[N]` of objects,
each the content of a PNG, JPEG, WebP, BMP or TIFF file as bytes or as text in base64. Pictures are read and resized
like the training images. Text is never the name of a file, because a caller must not read the server's files.
"""

from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convae.classifier import ImageClassifier, load_image_classifier
from convae.datasets.pictures import UnusableError, decode
from convae.datasets.reading import Reading
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.images import Images

LABEL = "label"
MOST_BYTES = 1 << 26  # of a picture's file: 64 MiB


class EncoderModel:
    """Computes features of images.

    Example:
        >>> model = EncoderModel(load_encoder("models/encoder"))
        >>> model.predict(np.zeros((5, 1, 8, 8), np.uint8)).shape
        (5, 16)
        >>> model.predict(np.array([Path("picture.png").read_bytes()], object)).shape
        (1, 16)
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return the features `float32 [N, D]` of images `[N, C, H, W]` or pictures `[N]`.

        With `{"code": True}`, return their compact code.

        Raises:
            RefusedError: the images can't be used.
        """
        with _refusals():
            return self.encoder.features(_read(images, self.encoder), code=bool(params and params.get("code")))


class ClassifierModel:
    """Predicts labels of images, with the probability of each class, or its decision value without probabilities.

    Example:
        >>> ClassifierModel(load_image_classifier("models")).predict(np.zeros((5, 1, 8, 8), np.uint8)).columns.tolist()
        ['label', 'score a', 'score b', 'score c']
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row for each of the images `[N, C, H, W]` or pictures `[N]`: `label`, then a column for each class.

        Raises:
            RefusedError: the images can't be used.
        """
        with _refusals():
            scores = self.classifier.scores(_read(images, self.classifier.encoder))
        classes = self.classifier.classes
        # float64 is the type that the published signature names, whatever the classifier returns.
        table = pd.DataFrame(scores.astype(np.float64), columns=score_columns(self.classifier))
        table.insert(0, LABEL, [classes[index] for index in scores.argmax(axis=1)])
        return table


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ConvaeError as error:
        from convae.tracking.refusal import RefusedError  # MLflow has been imported by whoever loaded the model

        raise RefusedError(str(error)) from None


def _read(images: np.ndarray, encoder: Encoder) -> Images:
    """Images as MLflow passes them on, in a form that the encoder takes; pictures are decoded one after the other."""
    if images.ndim == 1 and images.dtype.kind in "OU":
        reading = encoder.reading()
        return (_decoded(place, picture, reading) for place, picture in enumerate(images))
    if images.dtype.kind == "S":
        raise ConvaeError("an array of bytes, from which NumPy has cut trailing zeros; use np.array(pictures, object)")
    wanted = [encoder.config["channels"], *encoder.config["image_size"]]
    if list(images.shape[1:]) != wanted:  # features of other sizes are not comparable
        expected = f"[N, {', '.join(map(str, wanted))}], or [N] with the content of a picture's file in each"
        raise ConvaeError(f"images have the shape {list(images.shape)}; expected: {expected}")
    return images if images.dtype != object else _numbers(images, encoder)


def _numbers(images: np.ndarray, encoder: Encoder) -> np.ndarray:
    """The numbers of a JSON document in the type of the training images."""
    try:
        numbers = np.array(images.tolist())
    except ValueError:  # lists in the place of numbers
        numbers = images
    if encoder.image_type != np.uint8:
        return numbers
    if not numbers.size:
        return numbers.reshape(images.shape).astype(np.uint8)
    if numbers.dtype.kind not in "iu":  # with fractions, 1 could be white, or almost black
        raise ConvaeError("images hold values that are not integers; integers from 0 to 255 are needed")
    if numbers.min() < 0 or numbers.max() > 255:
        raise ConvaeError(f"images have values from {numbers.min()} to {numbers.max()}; 0 to 255 are allowed")
    return numbers.astype(np.uint8)


def _decoded(place: int, picture: object, reading: Reading) -> np.ndarray:
    """The pixels `uint8 [C, H, W]` of a picture."""
    try:
        return decode(_content(picture), reading).pixels
    except UnusableError as error:
        raise ConvaeError(f"images[{place}]: {error}") from None


def _content(picture: object) -> bytes:
    """The bytes of a picture's file.

    Example:
        >>> _content(b"the file"), _content("dGhlIGZpbGU=")
        (b'the file', b'the file')
    """
    if not isinstance(picture, (bytes, str)):
        raise UnusableError(f"of type {type(picture).__name__}; the content of a picture's file is needed, in base64")
    content = b""
    if len(picture) <= MOST_BYTES * 3 // 2:  # base64 with line breaks
        try:
            content = picture if isinstance(picture, bytes) else b64decode("".join(picture.split()), validate=True)
        except ValueError:
            raise UnusableError("not base64; the content of a picture's file is needed, in base64") from None
    if len(picture) > MOST_BYTES * 3 // 2 or len(content) > MOST_BYTES:
        raise UnusableError(f"more than {MOST_BYTES >> 20} MiB; make the picture smaller")
    return content


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
