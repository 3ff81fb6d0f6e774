"""Fixtures: a tiny data set, and a server that misbehaves on request."""

import gzip
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convae.datasets import catalogue
from convae.datasets.catalogue import Dataset
from convae.files import array_sha256
from convae.params import DataParams


@pytest.fixture
def data_params(tmp_path: Path) -> Callable[..., DataParams]:
    """`data_params(dataset="digits")`: parameters with `root` at `tmp_path / "local"`."""

    def build(**changes: Any) -> DataParams:
        content: dict[str, Any] = {
            "dataset": "fashion_mnist",
            "root": str(tmp_path / "local"),
            "trust": False,
            "image_size": None,
            "color": "rgb",
            "validation_size": 0.1,
            "test_size": 0.2,
            "max_rejected": 0,
            "shards": None,
        }
        return DataParams(**content | changes)

    return build


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@dataclass
class Tiny:
    """An IDX data set of 40 + 10 images, 6×5 pixels, 3 classes."""

    dataset: Dataset
    files: dict[str, bytes]

    def write(self, folder: Path, compressed: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            target = folder / (name if compressed else name.removesuffix(".gz"))
            target.write_bytes(content if compressed else gzip.decompress(content))
        return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tiny:
    """Stands in for Fashion-MNIST in the catalogue, with a system folder in `tmp_path` and no mirror."""
    random = np.random.default_rng(0)
    files, hashes = {}, {}
    for split, prefix, count in (("train", "train", 40), ("test", "t10k", 10)):
        images = random.integers(0, 256, (count, 6, 5), np.uint8)
        labels = np.arange(count) % 3
        hashes[f"{split}_images"] = array_sha256(images[:, None])
        hashes[f"{split}_labels"] = array_sha256(labels.astype(np.int64))
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(images), mtime=0)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels), mtime=0)
    dataset = Dataset(
        reader="idx",
        shape=(1, 6, 5),
        classes=("a", "b", "c"),
        images={"train": 40, "test": 10},
        archives={name: hashlib.md5(content).hexdigest() for name, content in files.items()},
        system_folder=str(tmp_path / "system"),
        sha256=hashes,
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "fashion_mnist", dataset)  # type: ignore[arg-type]
    return Tiny(dataset, files)
