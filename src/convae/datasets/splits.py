"""Holding out a part of the images: stratified where there are labels, drawn by seed, order kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import train_test_split

from convae.datasets.image_folder import ImageFile
from convae.errors import ConvaeError


@dataclass(frozen=True)
class Part:
    """Some of the images of an array.

    Attributes:
        images, labels: `uint8 [N, C, H, W]` and, where known, `int64 [N]`: all of the array.
        index: `int64`, ascending: which of them the part has.
        files: all of them, where they were files.
    """

    images: np.ndarray
    labels: np.ndarray | None
    index: np.ndarray
    files: Iterable[ImageFile] = ()


def hold_out(part: Part, classes: Sequence[str], size: float | int, seed: int, key: str) -> tuple[Part, Part]:
    """Divide a part in two: what stays, and what is held out.

    Args:
        part: divided by its labels, so that each half has the same mixture of them, or at random without.
        classes: names of the labels.
        size: how much is held out: a number of images, or a part below 1.
        seed: determines the draw.
        key: the parameter that `size` came from, for messages.

    Raises:
        ConvaeError: a half would be empty, or too small to hold every class.
    """
    total = len(part.index)
    if total < 2:
        raise ConvaeError(
            f"{key} = {size}: {total} image(s) cannot be divided, at least 2 are needed; add some to the training part"
        )
    count = size if isinstance(size, int) else round(size * total)
    if not 0 < count < total:
        raise ConvaeError(f"{key} = {size}: would hold out {count} of {total} images; 1 to {total - 1} are possible")
    labels = None if part.labels is None else part.labels[part.index]
    if labels is not None:
        present, counts = np.unique(labels, return_counts=True)
        if counts.min() < 2:
            rare = classes[present[counts.argmin()]]
            raise ConvaeError(f"{key} = {size}: class '{rare}' has one image to divide; at least 2 are needed")
        if min(count, total - count) < len(present):
            raise ConvaeError(
                f"{key} = {size}: {count} and {total - count} images cannot each hold {len(present)} classes"
            )
    kept, held = train_test_split(part.index, test_size=count, random_state=seed, stratify=labels)
    return replace(part, index=np.sort(kept)), replace(part, index=np.sort(held))
