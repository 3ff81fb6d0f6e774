"""Models that lie elsewhere: in MLflow's registry or in a run."""

import re
from contextlib import AbstractContextManager
from pathlib import Path

from convae.errors import ConvaeError


def is_address(source: object) -> bool:
    """Whether this is an address such as `models:/convae-encoder@champion`, and no folder."""
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+:/", source) is not None


def fetched(address: str) -> AbstractContextManager[Path]:
    """A folder, for as long as the block lasts, with what `convae publish` put there: `encoder/`, perhaps
    `classifier/`.

    Raises:
        ConvaeError: MLflow is not installed, or has no such model.
    """
    if not address.startswith(("models:/", "runs:/", "mlflow-artifacts:/")):
        raise ConvaeError(f"{address}: neither a folder nor an address of MLflow, such as models:/; download it first")
    try:
        from convae.tracking.fetch import downloaded
    except ImportError as error:
        raise ConvaeError(f"{address}: {error}; install convae[pipeline]") from None
    return downloaded(address)
