"""Undoing what training changes in the process around it."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def state_as_before() -> Iterator[None]:
    """Restore what the block changes: warning filters, existing loggers, environment, torch's flags and random state.

    Loggers of modules that the block imports stay as these modules set them up. NumPy's global generator is not
    restored, because scikit-learn draws from it without a random_state.

    Example:
        >>> with state_as_before():
        ...     os.environ["CONVAE_EXAMPLE"] = "set in the block"
        >>> "CONVAE_EXAMPLE" in os.environ
        False
    """
    loggers = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    levels = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in (logging.root, *loggers)]
    environment = dict(os.environ)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    details: Any = torch.utils.deterministic
    fill, benchmark = details.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    try:
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # looking would initialise them
        with warnings.catch_warnings(), torch.random.fork_rng(gpus):
            yield
    finally:
        for logger, level, handlers, propagate in levels:
            logger.setLevel(level)
            logger.handlers[:], logger.propagate = handlers, propagate
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        details.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advertisements and notes on its own internals; warnings about the training remain."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore",
                message=".*LeafSpec|Checkpoint directory|Found .* in eval mode|.*not resumable",
                module="pytorch_lightning",
            )
            # With one channel both layouts of the filters are the same in memory.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        logger.setLevel(level)
