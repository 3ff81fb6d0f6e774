"""Images kept in pieces, in a folder or an object store, as a Zarr array: read as they are needed, never whole.

Zarr (https://zarr.dev) knows the format and the stores. Ours is what a reader has to rely on: the pieces' hashes.
"""

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from math import prod
from typing import Any, cast

import numpy as np

from convae.errors import ConvaeError
from convae.files import array_sha256

PIECE_BYTES = 1 << 23

Shape = tuple[int, ...]


class ShardedImages:
    """Some rows of a Zarr array `uint8 [M, C, H, W]`; who reads slices and rows can take it for a NumPy array.

    Args:
        address: a folder, or what fsspec opens: `s3://bucket/faces`.
        index: `int64 [N]`, ascending: which rows.
        hashes: `files.array_sha256` of each piece of the array.

    Raises:
        ConvaeError: there is no such array of images; when it is read, a piece is missing or another than was written.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, address: str, index: np.ndarray, hashes: list[str]) -> None:
        self.address, self.index, self.hashes = address, index, hashes
        try:
            import zarr

            self._array = zarr.open_array(address, mode="r")
        except Exception as error:  # whatever fsspec and the store's own library raise
            raise _unreadable(address, error) from None
        if not _is_of_images(self._array):
            raise ConvaeError(f"{address}: not an array of images as `prepare` writes them")
        self.piece_rows = self._array.chunks[0]
        self.shape: Shape = (len(index), *self._array.shape[1:])
        self._read_lately = lru_cache(maxsize=2)(self._read)  # of slices in order, each begins where the last one ended

    def __len__(self) -> int:
        return len(self.index)

    @property
    def size(self) -> int:
        """Values in all."""
        return prod(self.shape)

    nbytes = size

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """A copy of these images."""
        wanted = self.index[rows]
        images = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        pieces = wanted // self.piece_rows
        for piece in np.unique(pieces).tolist():
            images[pieces == piece] = self._read_lately(piece)[wanted[pieces == piece] - piece * self.piece_rows]
        return images

    def rows_of(self, piece: int) -> slice:
        """Which of the N images lie in a piece."""
        first, end = np.searchsorted(self.index, [piece * self.piece_rows, (piece + 1) * self.piece_rows])
        return slice(int(first), int(end))

    def images_of(self, piece: int) -> np.ndarray:
        """These images; several threads may ask for some at once."""
        images, rows = self._read(piece), self.index[self.rows_of(piece)] - piece * self.piece_rows
        return images if len(rows) == len(images) else images[rows]

    def sample(self, size: int) -> np.ndarray:
        """The images of pieces evenly spread, of about `size` bytes in all, but of one piece at least."""
        count = min(len(self.hashes), max(1, size // PIECE_BYTES))
        pieces = np.linspace(0, len(self.hashes) - 1, count).round().astype(int)
        return np.concatenate([self.images_of(piece) for piece in pieces.tolist()])

    def _read(self, piece: int) -> np.ndarray:
        try:
            images: np.ndarray = np.asarray(self._array[piece * self.piece_rows : (piece + 1) * self.piece_rows])
        except Exception as error:
            raise _unreadable(self.address, error) from None
        if array_sha256(images) != self.hashes[piece]:
            raise ConvaeError(
                f"{self.address}: piece {piece} is missing or has changed; `dvc repro --force prepare` writes it again"
            )
        return images


def open_shards(address: str, index: np.ndarray, hashes: list[str]) -> np.ndarray:
    """`ShardedImages`, for those who take them for an array."""
    return cast(np.ndarray, ShardedImages(address, index, hashes))


def create_shards(address: str, shape: Shape) -> None:
    """An array for images of this shape: the one that is there if it is alike, else a new one in its place.

    Raises:
        ConvaeError: it can't be written.
    """
    chunks = (_piece_rows(shape), *shape[1:])
    try:
        import zarr

        with suppress(FileNotFoundError):
            array = zarr.open_array(address, mode="r")
            if _is_of_images(array) and (array.shape, array.chunks) == (shape, chunks):
                return
        zarr.create_array(
            address, shape=shape, chunks=chunks, dtype="uint8", fill_value=0, compressors=None, overwrite=True
        )
    except Exception as error:
        raise _unreadable(address, error) from None


def pieces_of(shape: Shape) -> int:
    """How many pieces images `[M, C, H, W]` make."""
    return -(-shape[0] // _piece_rows(shape))


class ShardWriter:
    """Fills some pieces of an array: takes `writer[row] = image` in ascending order, and writes what is not there.

    Args:
        address: of an array that is there.
        pieces: which ones.

    Attributes:
        rows: of the array, those in these pieces.
        shape: of what is assigned to.
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
        """Write what is left; gives the hash of each piece. Images that never came are black."""
        while self._start < self.shape[0]:
            self._flush()
        return self._hashes

    def _flush(self) -> None:
        piece = self._piece[: self.shape[0] - self._start]
        start = self.rows.start + self._start
        try:
            # Others may be reading what is there, such as those who made it and are being verified.
            if not np.array_equal(self._array[start : start + len(piece)], piece):
                self._array[start : start + len(piece)] = piece
        except Exception as error:
            raise _unreadable(self._address, error) from None
        self._hashes.append(array_sha256(piece))
        self._start += self._size
        self._piece[:] = 0


def write_shards(address: str, shape: Shape, chunks: Iterable[np.ndarray]) -> np.ndarray:
    """A new array of the images in `chunks`, in all `shape`."""
    create_shards(address, shape)
    writer = ShardWriter(address, slice(0, pieces_of(shape)))
    row = 0
    for chunk in chunks:
        for image in chunk:
            writer[row] = image
            row += 1
    return open_shards(address, np.arange(row), writer.close())


def _is_of_images(array: Any) -> bool:
    """Whether it holds the bytes as they are: what else it may ask for, such as to unpickle them, we do not do."""
    from zarr.codecs import BytesCodec

    codecs = [type(codec) for codec in getattr(array.metadata, "codecs", ())]
    return codecs == [BytesCodec] and array.dtype == np.uint8 and array.ndim == 4


def _piece_rows(shape: Shape) -> int:
    return max(1, PIECE_BYTES // prod(shape[1:]))


def _unreadable(address: str, error: Exception) -> ConvaeError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):  # fsspec says by itself which library a store needs
        reason += f"; pip install {error.name}"
    return ConvaeError(f"data.shards: {address}: {reason}")
