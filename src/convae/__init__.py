"""Convolutional autoencoders: learn filters from images without labels, then reuse them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convae.encoder import Encoder, load_encoder
    from convae.estimators import CAEFeatures, ConvolutionalAutoencoderFeatures

__version__ = "0.1.0"
__all__ = ["CAEFeatures", "ConvolutionalAutoencoderFeatures", "Encoder", "load_encoder"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import convae` does not wait for torch.
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("convae.estimators" if name.endswith("Features") else "convae.encoder"), name)
    raise AttributeError(f"module 'convae' has no attribute {name!r}")
