"""Find images that look nearly like another one: saved again, resized, blurred, brightened or slightly cropped.

The descriptor of an image is its brightness in 8×8 overlapping Gaussian cells, minus their mean and scaled to unit
length. Images of one kind are close anyway, and digits or trousers very close, so distance alone says little. An
image is a near-duplicate if its nearest neighbour is much nearer than the fifth nearest; or, since there may be many
copies, far nearer than about the thirtieth; or nearer than two different pictures ever are.

`python -m benchmark.near_duplicates` measured the percentage of training images whose altered copy is found, and the
percentage of test images reported to have a near-duplicate among the training images (60 000 of Fashion-MNIST, 40 000
of CIFAR-10, 1438 digits of 8×8):

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

Inspection of the last row's images showed the same picture twice in all cases for CIFAR-10, and the same product in two
shades in nearly all cases for Fashion-MNIST. An 8×8 image at half the size is another picture, and so is a 28×28 image
shifted by one pixel. Rendered shapes with few degrees of freedom have very near neighbours by chance: in a family with
four dimensions, 6 % would be reported.
"""

from collections.abc import Iterator

import numpy as np

CELLS = 8  # per side
WIDTH = 0.6  # standard deviation of a Gaussian cell, in cells
WEIGHT = 1 << 14  # sum of a cell's weights along a side; integer weights make sums exact in any order
LENGTH = 4000  # of a descriptor, also in integers: products stay below 2^24, hence exact in single precision
RATIO = 0.35  # of the distance to the fifth nearest
FIFTH = 5  # not larger, because a rare class may have only a few images
MANY_RATIO, MANY = 0.2, 32  # of the distance to the 32nd group: a picture may have more than five copies
SAME = 0.02  # of the length; a distance this small suffices by itself
GROUPS = 64  # the others are dealt out to these in turn, and the nearest of each is kept
MOST_IMAGES, MOST_PAIRS = 10_000, 1 << 30  # limits that keep the search to seconds
BLOCK = 512  # images compared at a time


class Lookout:
    """A search for near-duplicates of some images among others, which arrive a chunk at a time.

    Args:
        images: number of images; up to 10 000 of these, evenly spread, are looked up, fewer if there are many others.
        others: number of others that will arrive.

    Attributes:
        rows: rows of the images that are looked up, `int64`, ascending.

    Example:
        >>> pictures = np.random.default_rng(0).integers(256, size=(20, 1, 16, 16), dtype=np.uint8)
        >>> lookout = Lookout(images=1, others=20)
        >>> lookout.take(describe(pictures[7:8] // 2), 0)
        >>> lookout.compare(describe(pictures), "train", 0)
        >>> list(lookout.found())
        [(0, 'train', 7)]
    """

    def __init__(self, images: int, others: int) -> None:
        count = min(images, MOST_IMAGES, max(1, MOST_PAIRS // max(1, others)))
        self.rows = np.linspace(0, images - 1, count).round().astype(np.int64)
        self._sought = np.zeros((count, CELLS**2), np.float32)
        # The largest a·b - b·b/2 = (a·a - |a - b|²)/2 in each group: one matrix product instead of distances.
        self._best = np.full((GROUPS, count), -np.inf, np.float32)
        self._nearest: list[tuple[str, int]] = [("", 0)] * count

    def take(self, descriptions: np.ndarray, start: int) -> None:
        """Store the descriptors of the images from row `start` on."""
        first, end = np.searchsorted(self.rows, [start, start + len(descriptions)])
        self._sought[first:end] = descriptions[self.rows[first:end] - start]

    def compare(self, descriptions: np.ndarray, part: str, start: int) -> None:
        """Compare with the descriptors of others: the images of `part` from row `start` on."""
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
        self._best = np.roll(self._best, -rest, axis=0)  # row 0 is the group that is next in turn

    def found(self) -> Iterator[tuple[int, str, int]]:
        """Yield, for each image with a near-duplicate, its row, and the near-duplicate's part and row."""
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
    """Descriptors of images `[N, C, H, W]`: integers `float32 [N, 64]` of length 4000; zeros for a flat image.

    Example:
        >>> describe(np.zeros((2, 3, 32, 32), np.uint8)).shape
        (2, 64)
    """
    count, _, height, width = images.shape
    grey = images.sum(1, dtype=np.float32)
    across = (grey.reshape(-1, width) @ _cells(width).T).reshape(count, height, CELLS)
    values = (_cells(height).astype(np.float64) @ across).reshape(count, -1)
    values -= values.mean(1, keepdims=True)
    values[np.ptp(grey, (1, 2)) == 0] = 0  # the cells' rounded weights have different sums, so some contrast remains
    lengths = np.sqrt(np.square(values).sum(1, keepdims=True))
    whole: np.ndarray = np.rint(LENGTH * values / np.where(lengths > 0, lengths, 1))
    return whole.astype(np.float32)


def _cells(side: int) -> np.ndarray:
    """Weights of the pixels along a side in each cell, `float32 [8, side]`."""
    centres = (np.arange(CELLS) + 0.5) * side / CELLS - 0.5
    weights = np.exp(-0.5 * ((np.arange(side) - centres[:, None]) / (WIDTH * side / CELLS)) ** 2)
    whole: np.ndarray = np.rint(WEIGHT * weights / weights.sum(1, keepdims=True))
    return whole.astype(np.float32)
