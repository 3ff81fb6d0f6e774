"""Test images that are also among the images that one learns from."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from convae.files import row_chunks

EXAMPLES = 20


def find_duplicates(test: np.ndarray, others: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Look for images of `test` (`uint8 [N, C, H, W]`) whose every pixel occurs again in `others`, by part.

    Returns:
        `test_images`, how many they are, and up to 20 `examples`: `[index in test, part, index in part]`.
    """
    sought = _hashes(test)
    pairs: list[tuple[int, str, int]] = []
    for part, images in others.items():
        hashes = _hashes(images)
        order = np.argsort(hashes, kind="stable")
        position = np.searchsorted(hashes[order], sought)
        for index in np.flatnonzero(np.isin(sought, hashes)):
            pairs.append((int(index), part, int(order[position[index]])))
    return {
        "test_images": len({index for index, _, _ in pairs}),
        "examples": [list(pair) for pair in sorted(pairs)[:EXAMPLES]],
    }


def _hashes(images: np.ndarray) -> np.ndarray:
    """`uint64 [N]`, a hash of each image's pixels."""
    hashes = np.empty(len(images), np.uint64)
    for rows in row_chunks(images):
        digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images[rows])
        hashes[rows] = np.frombuffer(b"".join(digests), np.uint64)
    return hashes
