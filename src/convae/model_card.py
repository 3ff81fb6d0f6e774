"""The model card: what a model was trained on, how accurate it is, and what it is not for (Mitchell et al. 2019)."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from convae.datasets.reading import Reading
from convae.encoder import Encoder
from convae.evaluation.concerns import beside_accuracy
from convae.models.geometry import show
from convae.names import code


def model_card(name: str, encoder: Encoder, classifier: Mapping[str, Any] | None, origin: str) -> str:
    """Return a model card in Markdown.

    Args:
        name: of the data set.
        encoder: the encoder.
        classifier: the content of `classifier.json`, or None without a classifier.
        origin: a sentence that says where the model came from.
    """
    config = encoder.config
    size = " × ".join(map(str, (config["channels"], *config["image_size"])))
    rows = "\n".join(f"| {name} | {text} |" for name, text in _rows(encoder, classifier, size))
    classes = json.dumps(classifier["classes"], ensure_ascii=False) if classifier else ""
    told = f" Classes: {code(classes)}." if classes else ""
    beyond = ", and there is no class for images that belong to none of the classes" if classes else ""
    return f"""# Convolutional autoencoder of {name}

| | |
| --- | --- |
{rows}

{origin} Images are `{encoder.image_type} [N, C, H, W]`.{told}

The model was trained on images of this kind, of {show(tuple(config["image_size"]))} pixels. Features of images of
other sizes are not comparable: resize images first ({_reading(encoder.reading())}). Accuracy on other kinds
of images has not been measured{beyond}.
"""


def _rows(encoder: Encoder, classifier: Mapping[str, Any] | None, size: str) -> Iterator[tuple[str, str]]:
    config = encoder.config
    data = config["trained_on"]
    layers = ", ".join(f"{layer['filters']} filters of {show(layer['kernel'])} pixels" for layer in config["layers"])
    yield "encoder", f"{layers or 'no layers'}; {encoder.features([]).shape[1]} features"
    yield "trained on", f"{data['images']} images of {size}, hash `{data['sha256'][:12]}`"
    if classifier:
        test, validation = classifier["test"], classifier["validation"]
        yield (
            "classifier",
            f"{classifier['kind'].replace('_', ' ')}, {len(classifier['classes'])} classes{_of_code(classifier)}",
        )
        interval = f"95 % interval {100 * test['accuracy_low']:.2f} to {100 * test['accuracy_high']:.2f}"
        accuracy = f"test {100 * test['accuracy']:.2f} % ({interval}), validation {100 * validation['accuracy']:.2f} %"
        yield "accuracy", accuracy
        yield "other metrics", code(beside_accuracy(test)) if "balanced_accuracy" in test else "not measured"
    yield "versions", ", ".join(f"{name} {number}" for name, number in config["versions"].items())


def _of_code(classifier: Mapping[str, Any]) -> str:
    return ", reads the compact code" if classifier.get("reads") == "code" else ""


def _reading(reading: Reading) -> str:
    white = f", {reading.white_level} white where there are more than 8 bits" if reading.white_level else ""
    return f"fit by {reading.fit}{white}"
