"""An index of the pictures in a folder: their features, kept in a file so that only new pictures are computed.

Needs pyarrow, and Pillow to read pictures.
"""

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convae.encoder import Encoder
from convae.errors import ConvaeError
from convae.evaluation.neighbors import directions, nearest
from convae.files import new_file
from convae.images import Images
from convae.named_pictures import Pictures, pictures_below
from convae.names import printable
from convae.remote import cache_folder

try:
    import pyarrow as pa
    from pyarrow import parquet
except ModuleNotFoundError:
    raise ConvaeError("the index of a folder's pictures needs pyarrow; run `pip install pyarrow`") from None

FORMAT = "2"
# A picture's name, size in bytes, and times of its last modification and last change of status (by which a file under
# another name is noticed) in nanoseconds.
Key = tuple[str, int, int, int]
COLUMNS = ("file", "size", "modified", "changed")


@dataclass(frozen=True)
class Index:
    """Features of pictures.

    Attributes:
        encoder: computes them: the compact code if it has one.
        files: the pictures.
        features: `float32 [N, d]`, of unit length, see `neighbors`.

    Example:
        >>> from convae.encoder import load_encoder
        >>> index = Index.of_folder(load_encoder("models/encoder"), ".", cache=Path("cache"))
        >>> index.similar("picture.png", k=1)
        [[('picture.png', 0.0)]]
    """

    encoder: Encoder
    files: list[str]
    features: np.ndarray

    @classmethod
    def of_folder(cls, encoder: Encoder, folder: str | Path, cache: Path | None = None) -> "Index":
        """Index every picture in a folder, at any depth.

        The index is kept in `cache` under the folder's and the encoder's name. Pictures of the same size in bytes and
        with the same times as before are not computed again; one that can't be read is reported and left out.

        Args:
            encoder: computes the features.
            folder: the folder.
            cache: where indexes are kept; by default `$XDG_CACHE_HOME/convae` or `~/.cache/convae`.

        Raises:
            ConvaeError: there is no picture that can be read.
        """
        path = (cache or cache_folder()) / f"{_name(Path(folder), encoder)}.parquet"
        keys = list(filter(None, map(_key, pictures_below(str(folder)))))
        if not keys:
            raise ConvaeError(f"{folder}: no usable picture in it")
        columns = _columns(keys)
        table = _read(path, encoder)
        if table is not None and table.select(list(columns)).equals(pa.table(columns)):  # nothing has changed
            return cls(encoder, [key[0] for key in keys], _features(table, encoder))
        known = _keys(table) if table is not None else []
        features = _features(table, encoder)
        places = {key: row for row, key in enumerate(known)}
        missing = [key for key in keys if key not in places]
        if missing:
            batches = [features] if len(features) else []
            pictures = Pictures([key[0] for key in missing], encoder, resize=True)
            try:
                for batch in encoder.feature_batches(pictures, code=encoder.code is not None):
                    batches.append(directions(batch))
            finally:  # an interrupted index is continued next time
                features = np.concatenate(batches) if batches else features
                stamps = {key[0]: key for key in missing}
                known += [stamps[file] for file in pictures.read[: len(features) - len(known)]]
                before, places = len(places), {key: row for row, key in enumerate(known)}
                if len(places) > before:  # not all that is missing can be read
                    kept = [key for key in keys if key in places]
                    _write(path, encoder, kept, features[[places[key] for key in kept]])
        usable = [key for key in keys if key in places]
        if not usable:
            raise ConvaeError(f"{folder}: no usable picture in it")
        rows = [places[key] for key in usable]
        return cls(encoder, [key[0] for key in usable], features[rows])

    def similar(self, images: Images, k: int = 5) -> list[list[tuple[str, float]]]:
        """For each image, the k most similar pictures and their distances from 0 to 2, the most similar first.

        Args:
            images: as in `Encoder.features`.
            k: number of pictures, 1 or more, or all if there are fewer.

        Raises:
            ConvaeError: k is less than 1; or see `Encoder.features`.
        """
        if k < 1:
            raise ConvaeError(f"k = {k}: 1 or more is needed")
        features = directions(self.encoder.features(images, code=self.encoder.code is not None))
        distances, rows = nearest(features, self.features, min(k, len(self.files)))
        return [
            [(self.files[row], float(distance)) for row, distance in zip(*pair, strict=True)]
            for pair in zip(rows, distances, strict=True)
        ]


def _key(file: str) -> Key | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - much faster
    except OSError as error:  # a link that leads nowhere, or a picture that was just removed
        print(f"convae: {printable(file)}: {error.strerror}", file=sys.stderr)
        return None
    return file, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _name(folder: Path, encoder: Encoder) -> str:
    about = os.fsencode(folder.resolve()) + b"\n" + os.fsencode(folder) + b"\n" + _about(encoder).encode()
    return hashlib.sha256(about).hexdigest()[:32]


def _columns(keys: list[Key]) -> dict[str, pa.Array]:
    """What an index keeps of each picture beside its features."""
    files, *numbers = zip(*keys, strict=True)
    return dict(zip(COLUMNS, (pa.array(map(os.fsencode, files), pa.binary()), *map(pa.array, numbers)), strict=True))


def _keys(table: pa.Table) -> list[Key]:
    files, *numbers = (table[name].to_pylist() for name in COLUMNS)
    return list(zip(map(os.fsdecode, files), *numbers, strict=True))


def _features(table: pa.Table | None, encoder: Encoder) -> np.ndarray:
    """The features of an index, `float32 [N, d]`; N is 0 without one."""
    dimension = encoder.features([], code=encoder.code is not None).shape[1]
    if table is None:
        return np.zeros((0, dimension), np.float32)
    content = table["features"].combine_chunks().buffers()[1]
    return np.frombuffer(content, "<f4").reshape(len(table), dimension)


def _read(path: Path, encoder: Encoder) -> pa.Table | None:
    """The table of an index, or None if it is missing, damaged or of another version."""
    try:
        table = parquet.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException):
        return None
    metadata, names = table.schema.metadata or {}, table.column_names
    known = metadata.get(b"convae") == _about(encoder).encode() and names == [*COLUMNS, "features"]
    return table.replace_schema_metadata() if known else None


def _write(path: Path, encoder: Encoder, keys: list[Key], features: np.ndarray) -> None:
    if not keys:
        return
    # Bytes, because Parquet would take ten times as long to read lists of numbers.
    content = pa.py_buffer(np.ascontiguousarray(features, "<f4"))
    vectors = pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * features.shape[1]), len(features), [None, content])
    table = pa.table({**_columns(keys), "features": vectors}).replace_schema_metadata({"convae": _about(encoder)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as scratch:
            parquet.write_table(table, scratch, compression="none", use_dictionary=False, write_page_checksum=True)
    except OSError as error:  # the result is there all the same
        print(f"convae: {path}: {error.strerror}; the index is not kept", file=sys.stderr)


def _about(encoder: Encoder) -> str:
    # An encoder that was never saved has no hash yet.
    return f"index {FORMAT} of {encoder.sha256 or encoder.serialize()[0]['sha256']}"
