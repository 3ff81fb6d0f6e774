"""Batches of images, cut from memory without per-image Python or streamed from pieces on disk."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter, methodcaller

import numpy as np
import torch
from torch import Tensor

from convae.datasets.shards import PIECE_BYTES, ShardedImages
from convae.models.draws import random_seed
from convae.processes import ALONE, Processes

Batch = tuple[Tensor, Tensor | None]
WINDOW_BYTES = 1 << 27
READERS = 8


class Batches:
    """An image set in batches: images `[n, C, H, W]` and labels `int64 [n]` or None.

    Args:
        count: number of images, N.
        batch_size: images per batch over all processes. The last batch of an epoch may be smaller. A single image at
            the end joins the batch before it, because batch normalisation has no variance over one image.
        labels: `int64 [N]`, or None.
        processes: each takes its share of every batch.

    Example:
        >>> batches = Batches(count=9, batch_size=4, labels=None, processes=ALONE)
        >>> [batches.size(index) for index in range(len(batches))]  # not 4, 4, 1
        [4, 5]
    """

    def __init__(self, count: int, batch_size: int, labels: np.ndarray | None, processes: Processes) -> None:
        self.count = count
        self.batch_size = batch_size
        self.labels = None if labels is None else torch.from_numpy(labels)
        self.processes = processes

    def __len__(self) -> int:
        whole, left = divmod(self.count, self.batch_size)
        return whole + (left > (1 if whole else 0))

    def size(self, index: int) -> int:
        """Images in batch `index` of an epoch, over all processes."""
        return self.batch_size if index < len(self) - 1 else self.count - index * self.batch_size

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, starting with number `first`.

        Their order depends only on (seed, epoch), so training sees the same batches after resuming at any of them.
        """
        raise NotImplementedError

    def move_to(self, device: torch.device) -> None:
        """Move the images to a GPU, if they are all in memory and take less than half of the GPU's free memory."""


class ImageBatches(Batches):
    """Batches of images `[N, C, H, W]` in one array, memory-mapped or not.

    Args:
        images, batch_size, labels, processes: see `Batches`.
        seed: seeds the order of the images; None keeps the order of the array.

    Example:
        >>> batches = ImageBatches(np.zeros((5, 1, 8, 8), np.uint8), batch_size=2)
        >>> [tuple(images.shape) for images, labels in batches.of_epoch(0)]  # no batch of one image
        [(2, 1, 8, 8), (3, 1, 8, 8)]
    """

    def __init__(
        self,
        images: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        labels: np.ndarray | None = None,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(len(images), batch_size, labels, processes)
        self.images = torch.from_numpy(images)
        self.seed = seed

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:  # noqa: D102
        order = None
        if self.seed is not None:
            generator = torch.Generator().manual_seed(random_seed(self.seed, epoch))
            order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        for index in range(first, len(self)):
            start, share = index * self.batch_size, self.processes.share_of(self.size(index))
            rows = slice(start + share.start, start + share.stop)
            # index_select is four times as fast as indexing by a tensor.
            take = itemgetter(rows) if order is None else methodcaller("index_select", 0, order[rows])
            yield take(self.images), None if self.labels is None else take(self.labels)

    def move_to(self, device: torch.device) -> None:  # noqa: D102
        if device.type != "cuda" or self.images.device == device:
            return
        # The other half is for the network and its activation maps.
        if self.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
            self.images = self.images.to(device)
            self.labels = None if self.labels is None else self.labels.to(device)


class StreamedBatches(Batches):
    """Batches of images stored in pieces, shuffled without holding more than two windows of pieces in memory.

    An epoch takes the pieces in random order, as many at a time as fit into 128 MiB (a *window*), and shuffles the
    images within each window. Threads read the next window while one is in use. Each process reads all windows.

    Args:
        images: the pieces.
        batch_size, labels, processes: see `Batches`.
        seed: seeds the order of pieces and images.
    """

    def __init__(
        self,
        images: ShardedImages,
        batch_size: int,
        seed: int,
        labels: np.ndarray | None = None,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(len(images), batch_size, labels, processes)
        self.images = images
        self.seed = seed

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:  # noqa: D102
        windows = self._windows(epoch, first * self.batch_size)
        images, places = torch.empty(0), torch.empty(0)
        for index in range(first, len(self)):
            wanted, parts = self.size(index), []
            while wanted:
                if not len(places):
                    images, places = next(windows)
                parts.append((images[:wanted], places[:wanted]))
                images, places = images[wanted:], places[wanted:]
                wanted -= len(parts[-1][1])
            pixels, rows = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
            share = self.processes.share_of(len(rows))
            yield pixels[share], None if self.labels is None else self.labels[rows[share]]

    def _windows(self, epoch: int, skipped: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images in the epoch's order, and their places in the image set, without the first `skipped` images."""
        pieces = torch.randperm(len(self.images.hashes), generator=self._generator(epoch))
        windows = [window.tolist() for window in pieces.split(max(1, WINDOW_BYTES // PIECE_BYTES))]
        first = 0  # resuming within an epoch skips the windows it has used up, without reading them
        while skipped >= (count := sum(map(len, self._places(windows[first])))):
            skipped -= count
            first += 1
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(READERS) as readers:
            coming = ahead.submit(self._read, epoch, first, windows[first], readers)
            for number in range(first, len(windows)):
                images, places = coming.result()
                if number + 1 < len(windows):
                    coming = ahead.submit(self._read, epoch, number + 1, windows[number + 1], readers)
                yield images[skipped:], places[skipped:]
                skipped = 0

    def _read(self, epoch: int, number: int, pieces: list[int], readers: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
        places = self._places(pieces)
        targets = torch.randperm(sum(map(len, places)), generator=self._generator(epoch, 1 + number))
        # Each piece goes straight to its shuffled rows, so that the window is not copied again.
        images = np.empty((len(targets), *self.images.shape[1:]), np.uint8)

        def put(piece: int, rows: Tensor) -> None:
            images[rows.numpy()] = self.images.images_of(piece)

        for _ in readers.map(put, pieces, targets.split([len(one) for one in places])):
            pass
        return torch.from_numpy(images), torch.cat(places)[targets.argsort()]

    def _places(self, pieces: list[int]) -> list[Tensor]:
        return [torch.arange(rows.start, rows.stop) for rows in map(self.images.rows_of, pieces)]

    def _generator(self, *position: int) -> torch.Generator:
        return torch.Generator().manual_seed(random_seed(self.seed, *position))
