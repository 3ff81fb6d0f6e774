"""Images as pieces of a Zarr array in a folder or an object store, read piece by piece as they are needed.

Zarr (https://zarr.dev) handles format and stores. This module adds a hash of each piece, so that reading the wrong
images is an error.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from math import prod
from typing import Any, cast

import numpy as np

from convae.errors import ConvaeError
from convae.files import array_sha256

PIECE_BYTES = 1 << 23  # large enough for an object store, small enough to read only what is needed

Shape = tuple[int, ...]


class ShardedImages:
    """Some rows of a Zarr array `uint8 [M, C, H, W]`, with the part of NumPy's interface that reads slices and rows.

    Args:
        address: a folder, or an fsspec address such as `s3://bucket/faces`.
        index: the rows, `int64 [N]`, ascending.
        hashes: `files.array_sha256` of each piece of the array.

    Attributes:
        shape: `(N, C, H, W)`.
        piece_rows: rows of the array in each piece; the last piece may have fewer.

    Raises:
        ConvaeError: there is no such array of images; or, while reading, a piece is missing or has changed.

    Example:
        >>> pictures = np.arange(4, dtype=np.uint8).repeat(64).reshape(4, 1, 8, 8)  # each of one grey
        >>> whole = write_shards("shards", pictures.shape, [pictures])
        >>> some = ShardedImages("shards", np.array([0, 2, 3]), whole.hashes)
        >>> some.shape, some[1:].max(axis=(1, 2, 3)).tolist()
        ((3, 1, 8, 8), [2, 3])
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, address: str, index: np.ndarray, hashes: list[str]) -> None:
        self.address, self.index, self.hashes = address, index, hashes
        with _one_line_errors(address):
            import zarr

            self._array = zarr.open_array(address, mode="r")
        if not _is_of_images(self._array):
            raise ConvaeError(f"{address}: not an array of images as `prepare` writes them")
        self.piece_rows = self._array.chunks[0]
        self.shape: Shape = (len(index), *self._array.shape[1:])
        # For consecutive slices, the piece where one ends and the next begins is read once.
        self._read_lately = lru_cache(maxsize=2)(self._read)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    nbytes = size

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Copy the images of a slice or of an array of rows."""
        wanted = self.index[rows]
        images = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        pieces = wanted // self.piece_rows
        for piece in np.unique(pieces).tolist():
            images[pieces == piece] = self._read_lately(piece)[wanted[pieces == piece] - piece * self.piece_rows]
        return images

    def rows_of(self, piece: int) -> slice:
        """Slice of the N images that are in a piece."""
        first, end = np.searchsorted(self.index, [piece * self.piece_rows, (piece + 1) * self.piece_rows])
        return slice(int(first), int(end))

    def images_of(self, piece: int) -> np.ndarray:
        """Read the images of `rows_of(piece)`; safe to call from several threads."""
        images, rows = self._read(piece), self.index[self.rows_of(piece)] - piece * self.piece_rows
        return images if len(rows) == len(images) else images[rows]

    def sample(self, size: int) -> np.ndarray:
        """Read evenly spread pieces of about `size` bytes in total, at least one, and return their images."""
        return np.concatenate([self.images_of(piece) for piece in self._some_pieces(size // PIECE_BYTES)])

    def spread(self, count: int, size: int) -> np.ndarray:
        """Numbers of up to `count` rows, evenly spread over pieces of `size` bytes in total, or more if needed."""
        pieces = self._some_pieces(max(size // PIECE_BYTES, -(-count // self.piece_rows)))
        rows = np.concatenate([np.arange(len(self))[self.rows_of(piece)] for piece in pieces])
        chosen: np.ndarray = rows[spread(len(rows), count)]
        return chosen

    def _some_pieces(self, count: int) -> list[int]:
        pieces: list[int] = spread(len(self.hashes), count).tolist()
        return pieces

    def _read(self, piece: int) -> np.ndarray:
        with _one_line_errors(self.address):
            images: np.ndarray = np.asarray(self._array[piece * self.piece_rows : (piece + 1) * self.piece_rows])
        if array_sha256(images) != self.hashes[piece]:
            raise ConvaeError(
                f"{self.address}: piece {piece} is missing or has changed; `dvc repro --force prepare` writes it again"
            )
        return images


def spread(total: int, count: int) -> np.ndarray:
    """Up to `count` of `total` row numbers, at least one, evenly spread, as image sets may be sorted by class.

    Example:
        >>> spread(9, 3).tolist(), spread(2, 3).tolist()
        ([0, 4, 8], [0, 1])
    """
    return np.linspace(0, total - 1, max(1, min(count, total))).round().astype(np.int64)


def open_shards(address: str, index: np.ndarray, hashes: list[str]) -> np.ndarray:
    """Open `ShardedImages`, typed as an array for callers that only read slices and rows."""
    return cast(np.ndarray, ShardedImages(address, index, hashes))


def create_shards(address: str, shape: Shape) -> None:
    """Create an array for images of this shape, unless there is one of the same shape and pieces already.

    An array of another shape is replaced.

    Raises:
        ConvaeError: the array can't be written.
    """
    chunks = (_piece_rows(shape), *shape[1:])
    with _one_line_errors(address):
        import zarr

        with suppress(FileNotFoundError):
            array = zarr.open_array(address, mode="r")
            if _is_of_images(array) and (array.shape, array.chunks) == (shape, chunks):
                return
        zarr.create_array(
            address, shape=shape, chunks=chunks, dtype="uint8", fill_value=0, compressors=None, overwrite=True
        )


def pieces_of(shape: Shape) -> int:
    """Number of pieces for images of shape `[M, C, H, W]`.

    Example:
        >>> pieces_of((20_000, 3, 64, 64))
        30
    """
    return -(-shape[0] // _piece_rows(shape))


class ShardWriter:
    """Fills some pieces of an array by `writer[row] = image` in ascending order of rows.

    Pieces that the array already has are not written again.

    Args:
        address: address of an existing array.
        pieces: the pieces to fill.

    Attributes:
        rows: the rows of the array that are in these pieces.
        shape: `(rows, C, H, W)` of these pieces; `row` counts from their first row.

    Example:
        >>> create_shards("shards", (2, 1, 8, 8))
        >>> writer = ShardWriter("shards", slice(0, 1))
        >>> writer[1] = np.full((1, 8, 8), 255, np.uint8)
        >>> open_shards("shards", np.arange(2), writer.close())[:].max(axis=(1, 2, 3)).tolist()
        [0, 255]
    """

    def __init__(self, address: str, pieces: slice) -> None:
        import zarr

        self._address = address
        self._array = zarr.open_array(address, mode="r+")
        self._size = self._array.chunks[0]
        self.rows = slice(pieces.start * self._size, min(pieces.stop * self._size, self._array.shape[0]))
        self.shape: Shape = (self.rows.stop - self.rows.start, *self._array.shape[1:])
        self._piece = np.zeros((self._size, *self.shape[1:]), np.uint8)
        self._start = 0
        self._hashes: list[str] = []

    def __setitem__(self, row: int, image: np.ndarray) -> None:
        while row >= self._start + self._size:
            self._flush()
        self._piece[row - self._start] = image

    def close(self) -> list[str]:
        """Write the remaining pieces, and return the hash of each piece. Rows without an image are black."""
        while self._start < self.shape[0]:
            self._flush()
        return self._hashes

    def _flush(self) -> None:
        piece = self._piece[: self.shape[0] - self._start]
        start = self.rows.start + self._start
        with _one_line_errors(self._address):
            # Unchanged pieces are left alone, because another run may be reading them.
            if not np.array_equal(self._array[start : start + len(piece)], piece):
                self._array[start : start + len(piece)] = piece
        self._hashes.append(array_sha256(piece))
        self._start += self._size
        self._piece[:] = 0


def write_shards(address: str, shape: Shape, chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Write the images in `chunks`, of `shape` together, to an array, and open it.

    Example:
        >>> pictures = np.zeros((5, 1, 8, 8), np.uint8)
        >>> write_shards("shards", pictures.shape, [pictures[:3], pictures[3:]]).shape
        (5, 1, 8, 8)
    """
    create_shards(address, shape)
    writer = ShardWriter(address, slice(0, pieces_of(shape)))
    for row, image in enumerate(chain.from_iterable(chunks)):
        writer[row] = image
    return open_shards(address, np.arange(shape[0]), writer.close())


def _is_of_images(array: Any) -> bool:
    """Whether this is an array of images in plain bytes. Other codecs are rejected: some would unpickle the content."""
    from zarr.codecs import BytesCodec

    codecs = [type(codec) for codec in getattr(array.metadata, "codecs", ())]
    return codecs == [BytesCodec] and array.dtype == np.uint8 and array.ndim == 4


def _piece_rows(shape: Shape) -> int:
    return max(1, PIECE_BYTES // prod(shape[1:]))


@contextmanager
def _one_line_errors(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # fsspec and the store's own library may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ModuleNotFoundError):  # fsspec itself names the library that a store needs
            reason += f"; pip install {error.name}"
        raise ConvaeError(f"data.shards: {address}: {reason}") from None
