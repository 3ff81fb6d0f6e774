"""What a training changes in the process around it, and how that is undone."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def state_as_before() -> Iterator[None]:
    """Put back what the block changes: warning filters, loggers that were there, environment, torch's flags and state.

    Loggers of modules that the block imports first stay as these set them up. NumPy's global generator goes on: it is
    what scikit-learn draws from without a random_state.
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
        with warnings.catch_warnings(), torch.random.fork_rng():
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
    """Keep Lightning's advertisements and notes on its own internals to itself; warnings about the training stay."""
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
            # Of filters over one channel: alike.
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        logger.setLevel(level)
