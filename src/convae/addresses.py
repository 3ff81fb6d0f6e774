"""Addresses of models in MLflow's registry or in a run."""

import re
from contextlib import AbstractContextManager
from pathlib import Path

from convae.errors import ConvaeError


def is_address(source: object) -> bool:
    """Whether `source` is an address rather than a folder.

    Example:
        >>> is_address("models:/convae-encoder@champion"), is_address("models/encoder")
        (True, False)
    """
    # At least two letters before the colon: a single letter is a Windows drive.
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+:/", source) is not None


def fetched(address: str) -> AbstractContextManager[Path]:
    """Download a model for the duration of the block.

    Yields:
        A folder with what `convae publish` wrote: `encoder/`, and `classifier/` if there is one.

    Raises:
        ConvaeError: `address` is not an MLflow address, MLflow is not installed, or it has no such model.

    Example:
        >>> fetched("s3://bucket/encoder")
        Traceback (most recent call last):
        convae.errors.ConvaeError: s3://bucket/encoder: neither a folder nor an MLflow address such as models:/...; ...
    """
    if not address.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        raise ConvaeError(f"{address}: neither a folder nor an MLflow address such as models:/...; download it first")
    try:
        from convae.tracking.fetch import downloaded
    except ImportError as error:
        raise ConvaeError(f"{address}: {error}; install convae[pipeline]") from None
    return downloaded(address)
