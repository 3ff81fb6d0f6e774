"""The compact code of the default: its fit against two matrix products, its classifier against that of the features."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmark.speed.experiments import params_of
from benchmark.speed.images import SCRATCH, fashion_mnist, untrained
from benchmark.speed.measuring import THREADS, Row, alternate, at_least, at_most, in_new_process, timed
from convae.evaluation.classifiers import fit_best
from convae.evaluation.evaluate import load_part
from convae.features.extract import CODE_IMAGES, extract_features
from convae.models.code import fit_code
from convae.models.windows import Moments
from convae.stages.runner import limit_threads

FEATURES = SCRATCH / "default"
IMAGES = 20_000
NOISE = 0.3  # deviation of the copies from the features, in units of the features' own


def rows() -> Iterator[Row]:
    """Seconds per fit."""
    fashion_mnist()
    in_new_process(make_features)
    seconds = alternate({"ours": code_fit, "limit": products}, 3)
    ratio = seconds["ours"] / seconds["limit"]
    yield at_most("fit of the code, s, to its two matrix products", 1.5, ratio, seconds["ours"], limit=seconds["limit"])
    seconds = alternate({"ours": partial(classifier_fit, True), "usual": partial(classifier_fit, False)}, 1)
    ratio = seconds["usual"] / seconds["ours"]
    yield at_least("classifier of the code, s, of that of the features", 10, ratio, **seconds, limit=None)


def code_fit() -> float:
    """Fit the code to features and copies that are in memory."""
    code = params_of("default").features.code
    assert code is not None
    features = _features()
    copies = features + NOISE * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))

    def fit() -> None:
        moments = Moments()
        for pair in zip(features.split(CODE_IMAGES), copies.split(CODE_IMAGES), strict=True):
            moments.add(*pair)
        fit_code(moments, code.components, code.ridge, code.scale)

    with limit_threads(THREADS):
        return timed(fit)


def products() -> float:
    """The sums of products alone: one of the features with themselves, and one of the copies."""
    features = _features().numpy()

    def multiply() -> None:
        total = np.zeros((features.shape[1],) * 2, np.float32)
        for _ in range(2):
            for start in range(0, IMAGES, CODE_IMAGES):
                rows_ = features[start : start + CODE_IMAGES]
                total += rows_.T @ rows_

    with limit_threads(THREADS):
        return timed(multiply)


def classifier_fit(code: bool) -> float:
    """Seconds in which the stage `evaluate` fits all candidates and chooses the best."""
    params = params_of("default")
    train, validation = (load_part(part, FEATURES, fashion_mnist()) for part in ("train", "validation"))
    if code:
        train, validation = train.of_code(), validation.of_code()
    arrays = train.features, train.labels, validation.features, validation.labels
    with limit_threads(THREADS):
        return timed(fit_best, params.classifier, *arrays, params.seed)


def make_features() -> None:
    """Write features and codes of the default, untrained."""
    params = params_of("default")
    with limit_threads(THREADS):
        extract_features(params, untrained(params), fashion_mnist(), FEATURES)


def _features() -> torch.Tensor:
    return torch.from_numpy(np.array(np.load(FEATURES / "train.npy", mmap_mode="r")[:IMAGES]))
