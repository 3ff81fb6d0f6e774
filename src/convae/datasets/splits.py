"""Hold out some of the images: drawn by seed, stratified if there are labels, in their original order.

Images of a group, such as the frames of a film, stay together; the split is then as nearly stratified, and as near to
the size asked for, as the groups allow.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from convae.datasets.image_folder import ImageFile
from convae.errors import ConvaeError

FOLDS = 20  # of groups, from which about as many are held out as the size asks for


@dataclass(frozen=True)
class Part:
    """Some of the images of an array.

    Attributes:
        images, labels: the whole array `uint8 [N, C, H, W]` and, if known, its labels `int64 [N]`.
        index: the rows that belong to the part, `int64`, ascending.
        files: the files of all rows, if the images come from files.
        groups: number of the group of each row, `int64 [N]`; None if images belong to none.

    Example:
        >>> part = Part(np.zeros((3, 1, 28, 28), np.uint8), np.array([1, 0, 1]), index=np.array([0, 2]))
        >>> part.images[part.index].shape, part.labels[part.index].tolist()
        ((2, 1, 28, 28), [1, 1])
    """

    images: np.ndarray
    labels: np.ndarray | None
    index: np.ndarray
    files: Iterable[ImageFile] = ()
    groups: np.ndarray | None = None


def hold_out(part: Part, classes: Sequence[str], size: float | int, seed: int, key: str) -> tuple[Part, Part]:
    """Split a part in two: the images that stay, and those that are held out.

    Args:
        part: the part to split. Both halves have the same proportions of labels, if there are labels.
        classes: names of the labels.
        size: how much to hold out: a number of images, or a fraction below 1.
        seed: seed of the draw.
        key: the parameter that holds `size`, for messages.

    Raises:
        ConvaeError: a half would be empty, or too small to hold every class; or all images are of one group.

    Example:
        >>> part = Part(np.zeros((8, 1, 28, 28), np.uint8), np.array([0, 1] * 4), np.arange(8))
        >>> kept, held = hold_out(part, ["cat", "dog"], size=0.25, seed=0, key="data.test_size")
        >>> len(kept.index), sorted(part.labels[held.index].tolist())
        (6, [0, 1])
    """
    total = len(part.index)
    if total < 2:
        raise ConvaeError(
            f"{key} = {size}: {total} image(s) can't be split, at least 2 are needed; add some to the training part"
        )
    count = size if isinstance(size, int) else round(size * total)
    if not 0 < count < total:
        raise ConvaeError(f"{key} = {size}: would hold out {count} of {total} images; 1 to {total - 1} are allowed")
    labels = None if part.labels is None else part.labels[part.index]
    if labels is not None:
        present, counts = np.unique(labels, return_counts=True)
        if counts.min() < 2:
            rare = classes[present[counts.argmin()]]
            raise ConvaeError(f"{key} = {size}: class '{rare}' has only one image to split; at least 2 are needed")
        if min(count, total - count) < len(present):
            raise ConvaeError(
                f"{key} = {size}: {count} and {total - count} images cannot each hold {len(present)} classes"
            )
    if part.groups is None:
        kept, held = train_test_split(part.index, test_size=count, random_state=seed, stratify=labels)
    else:
        groups = part.groups[part.index]
        if len(np.unique(groups)) < 2:
            raise ConvaeError(f"{key} = {size}: all {total} images are of one group, which can't be divided")
        chosen = _hold_out_groups(np.zeros(total, np.int64) if labels is None else labels, groups, count, seed)
        if labels is not None and len(lost := np.setdiff1d(labels, labels[~chosen])):
            raise ConvaeError(f"{key} = {size}: class '{classes[lost[0]]}' has too few groups to be in both halves")
        kept, held = part.index[~chosen], part.index[chosen]
    return replace(part, index=np.sort(kept)), replace(part, index=np.sort(held))


def _hold_out_groups(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which images to hold out, `bool [N]`: whole groups, about `count` images of all classes."""
    fraction, classes = count / len(labels), len(np.unique(labels))
    finest = max(FOLDS, round(1 / min(fraction, 1 - fraction)))
    folds = min(finest, len(np.unique(groups)), int(np.bincount(labels).max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has fewer images than there are folds
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        fold_of = np.empty(len(labels), np.int64)
        for number, (_, fold) in enumerate(splitter.split(labels, labels, groups)):
            fold_of[fold] = number
    some = np.arange(min(max(1, round(fraction * folds)), folds - 1))

    def flaws(held: np.ndarray) -> tuple[int, int, int]:
        lacking = [classes - len(np.unique(labels[half])) for half in (~held, held)]
        return lacking[0], lacking[1], abs(int(held.sum()) - count)

    return min((np.isin(fold_of, (first + some) % folds) for first in range(folds)), key=flaws)
