"""Where models come from other than a folder: the package itself, MLflow, the Hugging Face Hub, or a URL."""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from convae.errors import ConvaeError

PRETRAINED = Path(__file__).with_name("pretrained")


def is_address(source: object) -> bool:
    """Whether `source` is an address rather than a folder.

    Example:
        >>> is_address("models:/convae-encoder@champion"), is_address("models/encoder")
        (True, False)
    """
    # At least two letters before the colon: a single letter is a Windows drive.
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+:/", source) is not None


def pretrained() -> list[str]:
    """Names of the models that the package carries.

    Example:
        >>> pretrained()
        ['cifar10', 'fashion_mnist']
    """
    return sorted(folder.parent.name for folder in PRETRAINED.glob("*/encoder"))


def needs_fetching(source: object) -> bool:
    """Whether `source` is an address, or the name of a model that the package carries. A folder of that name wins.

    Example:
        >>> needs_fetching("fashion_mnist"), needs_fetching("models")
        (True, False)
    """
    return is_address(source) or (isinstance(source, str) and source in pretrained() and not Path(source).exists())


def fetched(source: str) -> AbstractContextManager[Path]:
    """Get a model that is elsewhere, for the duration of the block.

    Yields:
        A folder with `encoder/`, `README.md`, and `classifier/` if there is one.

    Raises:
        ConvaeError: there is no such model, it can't be downloaded, or a package is missing that this takes.

    Example:
        >>> with fetched("fashion_mnist") as folder:
        ...     sorted(path.name for path in folder.iterdir())
        ['README.md', 'classifier', 'encoder']
    """
    if not is_address(source):
        return nullcontext(PRETRAINED / source)
    try:
        if source.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
            from convae.tracking.fetch import downloaded

            return downloaded(source)
        from convae.remote import cached

        return nullcontext(cached(source))
    except ImportError as error:
        extras = {"models": "pipeline", "runs": "pipeline", "mlflow-artifacts": "pipeline", "hf": "hub"}
        extra = extras.get(source.partition(":")[0])
        remedy = f"; install convae[{extra}]" if extra else "; install fsspec, and its package for this scheme"
        raise ConvaeError(f"{source}: {error}{remedy}") from None
