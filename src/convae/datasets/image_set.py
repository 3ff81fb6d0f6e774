"""The image set: a folder of memory-mapped images, labels and a description. The images may also be in shards."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convae.datasets.reading import Scale
from convae.datasets.shards import Shape, ShardedImages, open_shards, spread
from convae.errors import ConvaeError
from convae.files import array_sha256, new_array, read_json, row_chunks, save_array, write_json

SHARDS_FILE = "shards.json"
SAMPLE_BYTES = 1 << 27  # of images in shards
MOST_EXAMPLES = 10
PERCENTILE_VALUES = 1 << 24


@dataclass(frozen=True)
class ImageSet:
    """Images `uint8` or `float32 [N, C, H, W]` and, if known, labels `int64 [N]` that index `classes`.

    Numbers of `float32` are from 0 to 1, or else `scale` says how to get there.

    With `data.shards`, the training images are `ShardedImages`; slices and rows of these are NumPy arrays.

    Example:
        >>> len(ImageSet(np.zeros((5, 1, 28, 28), np.uint8), labels=None, classes=(), sha256=""))
        5
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    sha256: str
    scale: Scale | None = None

    def __len__(self) -> int:
        return len(self.images)

    def sample(self) -> np.ndarray:
        """All images; if they are in shards, about 128 MiB of them, from evenly spread pieces."""
        return self.images.sample(SAMPLE_BYTES) if isinstance(self.images, ShardedImages) else self.images

    def spread(self, count: int) -> np.ndarray:
        """Numbers `int64` of up to `count` images, evenly spread; if they are in shards, in few pieces."""
        if isinstance(self.images, ShardedImages):
            return self.images.spread(count, SAMPLE_BYTES)
        return spread(len(self), count)

    def examples(self) -> tuple[np.ndarray, list[str]]:
        """Rows of the first image of each of the first ten classes, or of the first ten images if there are no labels.

        Returns:
            The rows `int64 [n]`, and for each the name of its class, or the row itself if there are no labels.

        Example:
            >>> images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([1, 1, 0, 1])
            >>> rows, names = ImageSet(images, labels, ("cat", "dog"), sha256="").examples()
            >>> rows.tolist(), names
            ([2, 0], ['cat', 'dog'])
        """
        if self.labels is None:
            rows = np.arange(min(MOST_EXAMPLES, len(self)))
            return rows, [str(row) for row in rows]
        labels, first = np.unique(self.labels, return_index=True)
        return first[:MOST_EXAMPLES], [self.classes[label] for label in labels[:MOST_EXAMPLES]]

    @classmethod
    def load(cls, folder: Path) -> "ImageSet":
        """Open the image set in `folder` without reading its images into memory.

        Raises:
            ConvaeError: a file is missing or damaged, or images, labels and description differ in size.
        """
        try:
            description = read_json(folder / "description.json")
            if (folder / SHARDS_FILE).exists():
                shards = read_json(folder / SHARDS_FILE)
                index = np.load(folder / "index.npy", mmap_mode="r", allow_pickle=False)
                images = open_shards(shards["address"], index, shards["sha256_of_pieces"])
            else:
                # Mode "c", copy on write: torch warns about read-only memory, and writes must not reach the disk.
                images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
            labels_file = folder / "labels.npy"
            labels = np.load(labels_file, allow_pickle=False) if labels_file.exists() else None
            shape, classes, sha256 = (description[key] for key in ("shape", "classes", "sha256"))
            if list(images.shape) != shape or (labels is not None and labels.shape != images.shape[:1]):
                raise ConvaeError(f"{folder}: images, labels and description differ in size; rerun `dvc repro prepare`")
            scale = Scale(**description["scale"]) if "scale" in description else None
            return cls(images, labels, tuple(classes), sha256, scale)
        except ConvaeError:
            raise
        except Exception as error:  # a damaged header can make NumPy raise nearly anything
            reason = " ".join(str(error).split())
            raise ConvaeError(f"{folder}: not a readable image set ({reason}); rerun `dvc repro prepare`") from None


def write_image_set(
    folder: Path,
    shape: Shape,
    chunks: Iterable[np.ndarray],
    labels: np.ndarray | None,
    classes: Sequence[str],
    dtype: type[np.generic] = np.uint8,
) -> dict[str, Any]:
    """Write an image set chunk by chunk, so that memory does not grow with N.

    Args:
        folder: where to write.
        shape: shape `(N, C, H, W)` of all images together.
        chunks: images `[n, C, H, W]`.
        labels: `int64 [N]`, or None.
        classes: names of the labels.
        dtype: the type to store, `uint8` or `float32`.

    Returns:
        The description: shape, classes, images per class, mean and standard deviation per channel in [0, 1], the
        `levels` (0 to 255) below and above which lie a thousandth of the pixels each, SHA-256 of images and of labels,
        and one SHA-256 over both. Of `float32`, mean and deviation are in the images' units, and in place of levels
        come the `ranges` and `percentiles` (0.1 and 99.9) of each channel.

    Example:
        >>> images = np.zeros((2, 1, 8, 8), np.uint8)
        >>> description = write_image_set(Path("train"), images.shape, [images], np.array([1, 0]), ["cat", "dog"])
        >>> description["images_per_class"], ImageSet.load(Path("train")).labels.tolist()
        ({'cat': 1, 'dog': 1}, [1, 0])
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = new_array(folder / "images.npy", dtype, shape)
    start = 0
    for chunk in chunks:
        images[start : start + len(chunk)] = chunk
        start += len(chunk)
    assert start == len(images), f"{start} images came, {len(images)} were announced"
    images.flush()
    return _write_rest(folder, images, labels, classes)


def write_sharded_image_set(
    folder: Path, images: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]
) -> dict[str, Any]:
    """Write the address of sharded images, and everything that `write_image_set` writes except the images.

    Returns:
        The description, see `write_image_set`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    assert isinstance(images, ShardedImages)
    write_json(folder / SHARDS_FILE, {"address": images.address, "sha256_of_pieces": images.hashes})
    save_array(folder / "index.npy", images.index)
    return _write_rest(folder, images, labels, classes)


def _write_rest(folder: Path, images: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]) -> dict[str, Any]:
    """Write the labels, if there are any, and write and return the description."""
    if labels is not None:
        save_array(folder / "labels.npy", labels.astype(np.int64))
    description = describe(images, labels, classes)
    write_json(folder / "description.json", description)
    return description


def describe(images: np.ndarray, labels: np.ndarray | None, classes: Sequence[str]) -> dict[str, Any]:
    """Describe an image set; see `write_image_set` for the keys.

    Example:
        >>> description = describe(np.full((5, 1, 8, 8), 255, np.uint8), labels=None, classes=[])
        >>> description["shape"], description["mean"], description["standard_deviation"], description["levels"]
        ([5, 1, 8, 8], [1.0], [0.0], [255, 255])
    """
    hashes = {"images": array_sha256(images)}
    counts = None
    if labels is not None:
        hashes["labels"] = array_sha256(labels.astype(np.int64))
        counts = dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))
    return {
        "shape": list(images.shape),
        "classes": list(classes),
        "images_per_class": counts,
        **(_levels(images) if images.dtype == np.uint8 else _ranges(images)),
        "hashes": hashes,
        "sha256": array_sha256(np.frombuffer("".join(hashes.values()).encode(), np.uint8)),
    }


def _levels(images: np.ndarray) -> dict[str, Any]:
    # Counting each value is exact in any order of summation, and needs no large temporaries.
    histogram = np.zeros((images.shape[1], 256), np.int64)
    for rows in row_chunks(images, 1 << 20):
        for channel, values in enumerate(images[rows].swapaxes(0, 1)):
            histogram[channel] += np.bincount(values.ravel(), minlength=256)
    brightness = np.arange(256) / 255
    pixels = max(1, images.size // images.shape[1])
    mean = histogram @ brightness / pixels
    deviation = np.sqrt(np.maximum(histogram @ brightness**2 / pixels - mean**2, 0))
    below = histogram.sum(0).cumsum()
    levels = np.searchsorted(below, [0.001 * below[-1], 0.999 * below[-1]]).tolist()
    return {
        "mean": [round(float(value), 6) for value in mean],
        "standard_deviation": [round(float(value), 6) for value in deviation],
        "levels": levels,
    }


def _ranges(images: np.ndarray) -> dict[str, Any]:
    if not len(images):
        return {key: [] for key in ("mean", "standard_deviation", "ranges", "percentiles")}
    channels = images.shape[1]
    total, squares = np.zeros(channels), np.zeros(channels)
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    pixels = images.size // channels
    for rows in row_chunks(images, 1 << 20):
        total += images[rows].sum((0, 2, 3), dtype=np.float64)
        low = np.minimum(low, images[rows].min((0, 2, 3)))
        high = np.maximum(high, images[rows].max((0, 2, 3)))
    mean = total / pixels
    for rows in row_chunks(images, 1 << 20):
        squares += np.square(images[rows] - mean[:, None, None]).sum((0, 2, 3))
    # Of a sample, because exact percentiles would need all numbers in memory.
    sample = images[spread(len(images), max(1, PERCENTILE_VALUES // (images.size // len(images))))]
    return {
        "mean": mean.tolist(),
        "standard_deviation": np.sqrt(squares / pixels).tolist(),
        "ranges": np.stack([low, high], axis=1).tolist(),
        "percentiles": np.percentile(sample, [0.1, 99.9], axis=(0, 2, 3)).T.tolist(),
    }
