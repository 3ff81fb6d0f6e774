"""Images that look like another one: saved again, resized, blurred, brightened or cropped by very little.

An image is described by 8×8 overlapping Gaussian cells of its brightness, less their mean and of unit length. Images of
one kind lie near each other anyway, those of digits or trousers very near. So a distance says little by itself: an
image is a near-duplicate where its nearest neighbour is much nearer than the fifth nearest; or, as there may be many
copies, far nearer than about the thirtieth; or nearer than two different pictures ever are.

Measured by `python -m benchmark.near_duplicates`: the percentage of training images whose altered copy is found, and of
test images that are said to have a near-duplicate among the training images (60 000 of Fashion-MNIST, 40 000 of
CIFAR-10, 1438 digits of 8×8):

    copy                           Fashion-MNIST   CIFAR-10    digits
    JPEG of quality 90                 100           100        100
    JPEG of quality 75                  99.9         100        100
    JPEG of quality 50                  99.6         100         96.2
    half the size and back              95.1         100          0
    Gaussian blur of 1 pixel            79.0         100          0
    20 % brighter                       95.4          97.5       99.4
    20 % darker                        100           100        100
    2 % cropped on each side            15.1          98.1       97.2
    4 % cropped on each side             0.7          52.1       23.5
    none: test images as they are        0.31          1.12       0

Those in the last row were looked at: of CIFAR-10 all are the same picture twice, of Fashion-MNIST nearly all the same
product in two shades. Half of 8×8 pixels is another picture, and so are 28×28 pixels moved by one. Rendered shapes of
few degrees of freedom have very near neighbours by chance: of such a family in four dimensions 6 % would be found.
"""

from collections.abc import Iterator

import numpy as np

CELLS = 8  # a side
WIDTH = 0.6  # deviation of a Gaussian cell, in cells
WEIGHT = 1 << 14  # of a cell; with whole weights all sums are exact, whatever their order
LENGTH = 4000  # of a description, whole numbers as well: products stay below 2^24, and exact in single precision
RATIO = 0.35  # to the fifth nearest
FIFTH = 5  # a rare class has fewer images than that
MANY_RATIO, MANY = 0.2, 32  # to the nearest in this many groups: a picture may have five copies and more
SAME = 0.02  # of the length, whatever is near besides
GROUPS = 64  # of the others, dealt out in turn; the nearest of each is kept
MOST_IMAGES, MOST_PAIRS = 10_000, 1 << 30  # seconds
BLOCK = 512  # images compared at once


class Lookout:
    """Looks for near-duplicates of some images among others, which are shown a few at a time.

    Args:
        images: how many; up to 10 000 of them, evenly spread, are looked for, fewer where there are very many others.
        others: how many will be shown.
    """

    def __init__(self, images: int, others: int) -> None:
        count = min(images, MOST_IMAGES, max(1, MOST_PAIRS // max(1, others)))
        self.rows = np.linspace(0, images - 1, count).round().astype(np.int64)
        self._sought = np.zeros((count, CELLS**2), np.float32)
        # The largest of a·b - b·b/2 = (a·a - |a - b|²)/2 in each group, and whose it is.
        self._best = np.full((GROUPS, count), -np.inf, np.float32)
        self._nearest: list[tuple[str, int]] = [("", 0)] * count

    def take(self, descriptions: np.ndarray, start: int) -> None:
        """Note what `describe` says of the images from row `start` on."""
        first, end = np.searchsorted(self.rows, [start, start + len(descriptions)])
        self._sought[first:end] = descriptions[self.rows[first:end] - start]

    def compare(self, descriptions: np.ndarray, part: str, start: int) -> None:
        """Compare with others: those of `part` from row `start` on."""
        halves = np.square(descriptions).sum(1, keepdims=True) / 2
        rest = len(descriptions) % GROUPS
        whole = len(descriptions) - rest
        for first in range(0, len(self._sought), BLOCK):
            sought = slice(first, first + BLOCK)
            scores = descriptions @ self._sought[sought].T - halves
            best = self._best[:, sought]
            before = best.max(0)
            if whole:
                np.maximum(best, scores[:whole].reshape(-1, GROUPS, scores.shape[1]).max(0), out=best)
            np.maximum(best[:rest], scores[whole:], out=best[:rest])
            nearer = np.flatnonzero(best.max(0) > before)
            for column, row in zip(nearer.tolist(), scores[:, nearer].argmax(0).tolist(), strict=True):
                self._nearest[first + column] = (part, start + row)
        self._best = np.roll(self._best, -rest, axis=0)  # the group whose turn it is comes first

    def found(self) -> Iterator[tuple[int, str, int]]:
        """Each image that has a near-duplicate: its row, and the part and the row of that."""
        own = np.square(self._sought, dtype=np.float64).sum(1)
        distances = np.sort(own - 2 * self._best.astype(np.float64), axis=0)  # squares
        nearest = distances[0]
        near = nearest < (SAME * LENGTH) ** 2
        for ratio, place in ((RATIO, FIFTH), (MANY_RATIO, MANY)):
            other = distances[place - 1]
            near |= (nearest < ratio**2 * other) & np.isfinite(other)
        for index in np.flatnonzero(near & (own > 0)).tolist():
            yield (int(self.rows[index]), *self._nearest[index])


def describe(images: np.ndarray) -> np.ndarray:
    """Of images `uint8 [N, C, H, W]` whole numbers, `float32 [N, 64]`, of length 4000; zeros for a blank image."""
    count, _, height, width = images.shape
    grey = images.sum(1, dtype=np.float32)
    across = (grey.reshape(-1, width) @ _cells(width).T).reshape(count, height, CELLS)
    values = (_cells(height).astype(np.float64) @ across).reshape(count, -1)
    values -= values.mean(1, keepdims=True)
    lengths = np.sqrt(np.square(values).sum(1, keepdims=True))
    whole: np.ndarray = np.rint(LENGTH * values / np.where(lengths > 0, lengths, 1))
    return whole.astype(np.float32)


def _cells(side: int) -> np.ndarray:
    """Weights of the pixels along a side, `float32 [8, side]`."""
    centres = (np.arange(CELLS) + 0.5) * side / CELLS - 0.5
    weights = np.exp(-0.5 * ((np.arange(side) - centres[:, None]) / (WIDTH * side / CELLS)) ** 2)
    whole: np.ndarray = np.rint(WEIGHT * weights / weights.sum(1, keepdims=True))
    return whole.astype(np.float32)
