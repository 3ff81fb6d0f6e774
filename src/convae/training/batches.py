"""Batches cut from an image set in memory, without per-image Python, or read piece by piece; and their augmentation."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from convae.datasets.shards import PIECE_BYTES, ShardedImages
from convae.models.shared_batch import SharedBatch
from convae.processes import ALONE, Processes

Batch = tuple[Tensor, Tensor | None]
WINDOW_BYTES = 1 << 27
READERS = 8


class Batches:
    """An image set in batches: images `uint8 [n, C, H, W]` and labels `int64 [n]` or None.

    Args:
        count: images in all, N.
        batch_size: images in a batch of all processes together; the last batch of an epoch may be smaller, and takes
            one image more rather than leave it alone, over which batch normalisation has no variance.
        labels: `int64 [N]`, or None.
        processes: each takes its share of every batch.
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
        """Images in batch `index` of an epoch, of all processes together."""
        return self.batch_size if index < len(self) - 1 else self.count - index * self.batch_size

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on.

        Their order depends on (seed, epoch) alone, so that a training resumed at any batch sees the same ones.
        """
        raise NotImplementedError

    def move_to(self, device: torch.device) -> None:
        """Keep the images on a GPU from now on, if they are all in memory and take less than half of its free one."""


class ImageBatches(Batches):
    """Batches of images `uint8 [N, C, H, W]`, memory-mapped or not.

    Args:
        images, batch_size, labels, processes: see `Batches`.
        seed: of the order; None keeps the images' own.
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
            if order is None:
                yield self.images[rows], None if self.labels is None else self.labels[rows]
            else:  # index_select takes a quarter of the time that indexing by a tensor takes
                chosen = order[rows]
                yield (
                    self.images.index_select(0, chosen),
                    None if self.labels is None else self.labels.index_select(0, chosen),
                )

    def move_to(self, device: torch.device) -> None:  # noqa: D102
        if device.type != "cuda" or self.images.device == device:
            return
        if self.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
            self.images = self.images.to(device)
            self.labels = None if self.labels is None else self.labels.to(device)


class StreamedBatches(Batches):
    """Batches of images that lie in pieces, in an order that needs few of them at once.

    An epoch takes the pieces in random order, as many at a time as fit into 128 MiB (a window), and the images of a
    window in random order. While one window is used, threads read the next one. Each process reads all windows.
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
        """Images in the epoch's order and their places in the image set, but for the first `skipped` ones."""
        pieces = torch.randperm(len(self.images.hashes), generator=self._generator(epoch))
        windows = [window.tolist() for window in pieces.split(max(1, WINDOW_BYTES // PIECE_BYTES))]
        first = 0
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


def random_seed(*position: int) -> int:
    """A seed for what is random at a position, such as (seed, epoch), unrelated to those of its neighbours."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)


def augment(images: Tensor, flip: bool, shift: int, batch: SharedBatch) -> Tensor:
    """Mirror images `[n, C, H, W]` left to right with probability one half, and move each by up to `shift` pixels.

    What comes in at the border repeats the outermost pixels. Draws from torch's global generator.
    """
    count, _, height, width = images.shape
    device = images.device
    offsets = batch.drawn(
        lambda number: torch.randint(-shift, shift + 1, (2, number, 1), device=device).movedim(1, 0), count
    )
    rows = (torch.arange(height, device=device) + offsets[:, 0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + offsets[:, 1]).clamp(0, width - 1)
    if flip:
        mirrored = batch.drawn(lambda number: torch.rand(number, 1, device=device), count) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count, device=device)[:, None, None]
    return images.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
