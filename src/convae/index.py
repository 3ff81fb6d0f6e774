"""An index of the pictures in a folder: their features, kept in a file so that only new pictures are computed.

Needs pyarrow, and Pillow to read pictures.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from convae.commands import Pictures, pictures_below
from convae.encoder import Encoder
from convae.evaluation.neighbors import directions, nearest
from convae.files import new_file
from convae.images import Images

FORMAT = "1"


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
        modification time as before are not computed again; one that can't be read is reported and left out.

        Args:
            encoder: computes the features.
            folder: the folder.
            cache: where indexes are kept; by default `$XDG_CACHE_HOME/convae` or `~/.cache/convae`.

        Raises:
            ConvaeError: there are no pictures.
        """
        files = pictures_below(str(folder))
        stamps = {file: (status.st_size, status.st_mtime_ns) for file, status in _statuses(files)}
        path = (cache or _cache()) / f"{_name(Path(folder), encoder)}.parquet"
        known = dict(_read(path, encoder))
        vectors = {key: vector for key, vector in known.items() if stamps.get(key[0]) == key[1:]}
        missing = [file for file in files if (file, *stamps[file]) not in vectors]
        if missing:
            pictures = Pictures(missing, encoder, resize=True)
            done = 0
            try:
                for batch in encoder.feature_batches(pictures, code=encoder.code is not None):
                    for vector in directions(batch):
                        file = pictures.read[done]
                        vectors[(file, *stamps[file])] = vector
                        done += 1
            finally:  # an interrupted index is continued next time
                _write(path, encoder, vectors)
        elif len(vectors) < len(known):
            _write(path, encoder, vectors)
        usable = [file for file in files if (file, *stamps[file]) in vectors]
        dimension = encoder.features([], code=encoder.code is not None).shape[1]
        rows = [vectors[(file, *stamps[file])] for file in usable]
        return cls(encoder, usable, np.stack(rows) if rows else np.zeros((0, dimension), np.float32))

    def similar(self, images: Images, k: int = 5) -> list[list[tuple[str, float]]]:
        """For each image, the k most similar pictures and their distances from 0 to 2, the most similar first.

        Args:
            images: as in `Encoder.features`.
            k: number of pictures, or all if there are fewer.
        """
        features = directions(self.encoder.features(images, code=self.encoder.code is not None))
        distances, rows = nearest(features, self.features, min(k, len(self.files)))
        return [
            [(self.files[row], float(distance)) for row, distance in zip(*pair, strict=True)]
            for pair in zip(rows, distances, strict=True)
        ]


Key = tuple[str, int, int]  # a picture's name, size in bytes and modification time in nanoseconds


def _statuses(files: Iterable[str]) -> Iterator[tuple[str, os.stat_result]]:
    for file in files:
        yield file, Path(file).stat()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convae"


def _name(folder: Path, encoder: Encoder) -> str:
    about = os.fsencode(folder.resolve()) + b"\n" + os.fsencode(folder) + b"\n" + encoder.sha256.encode()
    return hashlib.sha256(about).hexdigest()[:32]


def _read(path: Path, encoder: Encoder) -> Iterator[tuple[Key, np.ndarray]]:
    """Yield the rows of an index; none if it is missing, damaged or of another version."""
    try:
        table = parquet.read_table(path, page_checksum_verification=True)
        if (table.schema.metadata or {}).get(b"convae") != _about(encoder).encode():
            return
        column = table["features"].combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(table), -1)
        names = map(os.fsdecode, table["file"].to_pylist())
        keys = zip(names, *(table[name].to_pylist() for name in ("size", "changed")), strict=True)
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return
    yield from zip(keys, vectors, strict=True)


def _write(path: Path, encoder: Encoder, vectors: dict[Key, np.ndarray]) -> None:
    if not vectors:
        return
    files, sizes, changed = zip(*vectors, strict=True)
    flat = np.concatenate(list(vectors.values()))
    features = pa.FixedSizeListArray.from_arrays(pa.array(flat), len(flat) // len(vectors))
    columns = {
        "file": pa.array(map(os.fsencode, files), pa.binary()),
        "size": pa.array(sizes),
        "changed": pa.array(changed),
        "features": features,
    }
    table = pa.table(columns).replace_schema_metadata({"convae": _about(encoder)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as scratch:
            parquet.write_table(table, scratch, compression="none", use_dictionary=False, write_page_checksum=True)
    except OSError as error:  # the result is there all the same
        print(f"convae: {path}: {error.strerror}; the index is not kept", file=sys.stderr)


def _about(encoder: Encoder) -> str:
    return f"index {FORMAT} of {encoder.sha256}"
