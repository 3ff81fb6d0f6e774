"""Find images that occur twice: in two parts, or in two classes."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from convae.datasets.image_set import ImageSet
from convae.datasets.near_duplicates import Lookout, describe
from convae.files import row_chunks

ORDER = ("test", "validation", "train", "unlabelled")  # the first two are compared with all parts that follow them
EVALUATED = ORDER[:2]
EXAMPLES = 20
CHUNK_BYTES = 1 << 22


def find_duplicates(parts: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Find images of `test` and `validation` that also occur in other parts, and images that occur in two classes.

    Every image is read once.

    Returns:
        - `duplicates`: for `test` and `validation`, the number of `images` that occur pixel for pixel in a part that
          follows (validation, train, unlabelled), their number in each of these `parts`, and up to 20 `examples`:
          `[row, part, row there]`.
        - `near_duplicates`: for both, how many images were `looked_at`, how many `images` of these look nearly like
          one in a part that follows (see `near_duplicates.py`), and `examples`. Exact duplicates do not count.
        - `two_classes`: the number of `images` that occur pixel for pixel in another class, in any part, and
          `examples`: `[part, row, part, row]`.

    Example:
        >>> same = ImageSet(np.zeros((1, 1, 8, 8), np.uint8), labels=None, classes=(), sha256="")
        >>> find_duplicates(dict.fromkeys(ORDER, same))["duplicates"]["test"]["parts"]
        {'validation': 1, 'train': 1, 'unlabelled': 1}
    """
    hashes: dict[str, np.ndarray] = {}
    lookouts: dict[str, Lookout] = {}
    for name in ORDER:
        images = parts[name].images
        hashes[name] = np.empty(len(images), np.uint64)
        own = Lookout(len(images), sum(len(parts[other]) for other in _after(name))) if name in EVALUATED else None
        for rows in row_chunks(images, CHUNK_BYTES):
            chunk = images[rows]
            hashes[name][rows] = _hashes(chunk)
            scale = parts[name].scale
            descriptions = describe(scale.apply(chunk) if scale else chunk)
            if own:
                own.take(descriptions, rows.start)
            for lookout in lookouts.values():
                lookout.compare(descriptions, name, rows.start)
        if own:
            lookouts[name] = own
    exact = {name: _in_other_parts(name, hashes) for name in EVALUATED}
    rows_of = {name: {row for row, _, _ in pairs} for name, pairs in exact.items()}
    return {
        "duplicates": {
            name: {
                "images": len(rows_of[name]),
                "parts": {other: sum(part == other for _, part, _ in pairs) for other in _after(name)},
                "examples": [list(pair) for pair in pairs[:EXAMPLES]],
            }
            for name, pairs in exact.items()
        },
        "near_duplicates": {name: _near(lookout, rows_of[name]) for name, lookout in lookouts.items()},
        "two_classes": _in_two_classes({name: one for name, one in parts.items() if one.labels is not None}, hashes),
    }


def _after(name: str) -> tuple[str, ...]:
    return ORDER[ORDER.index(name) + 1 :]


def _hashes(images: np.ndarray) -> np.ndarray:
    """A hash of each image's pixels, `uint64 [N]`."""
    # Among a million images, two different ones have the same 64 bits with a probability of 3e-8.
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), np.uint64)


def _in_other_parts(name: str, hashes: Mapping[str, np.ndarray]) -> list[tuple[int, str, int]]:
    """Images of `name` in the parts that follow: the row in `name`, the other part, and the first row there."""
    pairs = []
    for part in _after(name):
        order = np.argsort(hashes[part], kind="stable")
        position = np.searchsorted(hashes[part][order], hashes[name])
        for row in np.flatnonzero(np.isin(hashes[name], hashes[part])):
            pairs.append((int(row), part, int(order[position[row]])))
    return sorted(pairs)


def _near(lookout: Lookout, exact: set[int]) -> dict[str, Any]:
    pairs = [list(pair) for pair in lookout.found() if pair[0] not in exact]
    return {"looked_at": len(lookout.rows), "images": len(pairs), "examples": pairs[:EXAMPLES]}


def _in_two_classes(parts: Mapping[str, ImageSet], hashes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if not parts:
        return {"images": 0, "examples": []}
    every = np.concatenate([hashes[name] for name in parts])
    labels = np.concatenate([image_set.labels for image_set in parts.values() if image_set.labels is not None])
    # Sorted by hash, then label: an image with two labels has two neighbours with the same hash and different labels.
    order = np.lexsort((labels, every))
    one, other = order[:-1], order[1:]
    pairs = np.flatnonzero((every[one] == every[other]) & (labels[one] != labels[other]))
    starts = np.cumsum([0, *map(len, parts.values())])

    def place(row: int) -> tuple[str, int]:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return list(parts)[part], int(row - starts[part])

    return {
        "images": int(np.isin(every, every[one[pairs]]).sum()),
        "examples": [[*place(one[pair]), *place(other[pair])] for pair in pairs[:EXAMPLES]],
    }
