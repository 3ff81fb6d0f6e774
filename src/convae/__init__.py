"""Convolutional autoencoders: learn filters from images without labels, then reuse them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convae.classifier import ImageClassifier, load_image_classifier
    from convae.encoder import Encoder, load_encoder
    from convae.errors import ConvaeError
    from convae.estimators import CAEFeatures, ConvolutionalAutoencoderFeatures

__version__ = "0.1.0"
__all__ = [
    "CAEFeatures",
    "ConvaeError",
    "ConvolutionalAutoencoderFeatures",
    "Encoder",
    "ImageClassifier",
    "load_encoder",
    "load_image_classifier",
]
_ELSEWHERE = {
    "CAEFeatures": "estimators",
    "ConvaeError": "errors",
    "ConvolutionalAutoencoderFeatures": "estimators",
    "ImageClassifier": "classifier",
    "load_image_classifier": "classifier",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, because importing torch takes seconds.
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"convae.{_ELSEWHERE.get(name, 'encoder')}"), name)
    raise AttributeError(f"module 'convae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
