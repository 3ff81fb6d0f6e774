"""Bad input to the real stages: a clear message, exit code 1, no traceback, and earlier results unchanged.

They run in this process, which spares their imports; `test_runner.py` has how a process ends.
"""

import gzip
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from runpy import run_module
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from convae.datasets.catalogue import CATALOGUE


def picture(path: Path, size: tuple[int, int] = (10, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def folder(root: Path) -> Path:
    """Two classes of five pictures each."""
    for name in ("cat", "dog"):
        for index in range(5):
            picture(root / "train" / name / f"{index}.png")
    return root


def idx(path: Path, shape: tuple[int, ...], magic: int | None = None, count: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + len(shape)}I", magic or 0x800 + len(shape), count or shape[0], *shape[1:])
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header + bytes(int(np.prod(shape))))


def archives(root: Path) -> Path:
    for part, count in (("train", 60000), ("t10k", 10000)):
        idx(root / f"{part}-images-idx3-ubyte.gz", (count, 28, 28))
        idx(root / f"{part}-labels-idx1-ubyte.gz", (count,))
    return root


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def bomb(path: Path) -> None:
    """A picture whose header claims 20000×20000 pixels."""
    picture(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">2I", 20000, 20000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def linked(root: Path) -> None:
    picture(root.parent / "outside.png")
    (root / "train/cat/link.png").symlink_to(root.parent / "outside.png")


PARAMETERS = {
    "misspelt section": ("^seed:", "seeds:", "unknown key 'seeds'; the nearest known key is 'seed'"),
    "misspelt key": ("  batch_size:", "  batchsize:", "unknown key 'batchsize'; the nearest known key is 'batch_size'"),
    "text for a number": ("epochs: 1", "epochs: two", "train.epochs = 'two': must"),
    "not a number": ("learning_rate: 0.003", "learning_rate: .nan", "learning_rate = nan: must"),
    "huge number": ("seed: 0", "seed: 99999999999999999999", "seed = 99999999999999999999: must"),
    "unknown data set": ("dataset: fashion_mnist", "dataset: imagenet", "data.dataset = 'imagenet': must be"),
    "even kernel": ("kernel: 7 ", "kernel: 8 ", "'same' needs an odd kernel, found 8×8"),
    "impossible geometry": ("pool: null ", "pool: {kind: max, size: 99} ", "turns 28×28 into 0×0"),
    "layers of windows, end to end": (
        "order: greedy ",
        "order: end_to_end ",
        "model.layers[0].input can't be decoded; set order to greedy",
    ),
    "layer that is not there": (r"layers: \[-1\]", "layers: [3]", "features.layers = 3: model.layers has 2"),
    "empty file": (r"(?s).*", "", "must contain the sections"),
    "not YAML": ("seed: 0", "seed: [0", "not readable as YAML"),
}

IMAGES, TEST_IMAGES = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda root: remove(root / TEST_IMAGES), f"data/local lacks {TEST_IMAGES}"),
    "empty": (lambda root: (root / IMAGES).write_bytes(b""), f"{IMAGES}: begins with 0x,"),
    "not gzip": (lambda root: (root / IMAGES).write_bytes(b"hello"), f"{IMAGES}: begins with 0x68656c6c,"),
    "wrong magic": (lambda root: idx(root / IMAGES, (60000, 28, 28), magic=7), f"{IMAGES}: begins with 0x00000007,"),
    "other size": (lambda root: idx(root / IMAGES, (30, 28, 28)), f"{IMAGES}: the IDX header says (30, 28, 28)"),
    "lying size": (
        lambda root: idx(root / IMAGES, (30, 28, 28), count=60000),
        f"{IMAGES}: expected 47040000 bytes after the IDX header, found only 23520",
    ),
    "other images": (lambda root: None, f"{IMAGES} unpacks to MD5 "),
}

FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such folder": (remove, "no such folder; expected: train/<class>/<image>"),
    "empty folder": (lambda root: remove(root / "train"), "no image in the train part"),
    "empty class": (lambda root: (root / "train/empty").mkdir(), "class folder 'empty' of the train part has no image"),
    "single class": (lambda root: remove(root / "train/dog"), "'cat' is the only class; at least two are needed"),
    "class with one image": (lambda root: picture(root / "train/rare/0.png"), "class 'rare' has only one image"),
    "flat and classes": (lambda root: picture(root / "train/0.png"), "images both inside and outside class folders"),
    "class in test alone": (lambda root: picture(root / "test/bird/0.png"), "the test part has class 'bird'"),
    "zero bytes": (lambda root: (root / "train/cat/0.png").write_bytes(b""), "train/cat/0.png (empty file; get it"),
    "text": (lambda root: (root / "train/cat/0.png").write_text("hello"), "train/cat/0.png (not a PNG, JPEG"),
    "truncated": (
        lambda root: (root / "train/cat/0.png").write_bytes((root / "train/cat/0.png").read_bytes()[:200]),
        "train/cat/0.png (damaged, or it violates its format (",
    ),
    "not an image": (lambda root: (root / "train/cat/notes.txt").write_text("hello"), "train/cat/notes.txt (not a PNG"),
    "bomb": (
        lambda root: bomb(root / "train/cat/bomb.png"),
        "train/cat/bomb.png (too many pixels: ",
    ),
    "link out": (linked, "train/cat/link.png (a symbolic link that leads out of data.root)"),
}


@pytest.fixture
def workspace(repository, tmp_path, monkeypatch):
    """The current folder, with the shipped parameters and the results of an earlier run."""
    workspace = tmp_path / "workspace"
    (workspace / "reports").mkdir(parents=True)
    for name in ("data/prepared/description.json", "data/raw/fashion_mnist/x.npy", "reports/metrics.json"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text("earlier")
    shutil.copy(repository / "params.yaml", workspace)
    monkeypatch.chdir(workspace)
    return workspace


def change(workspace: Path, old: str, new: str) -> None:
    path = workspace / "params.yaml"
    text, count = re.subn(old, lambda match: new, path.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1, old
    path.write_text(text)


def run(*stages: str) -> None:
    for stage in stages:
        run_module(f"pipeline.{stage}", run_name="__main__")


@pytest.fixture
def refuse(workspace, capsys):
    """`refuse(message, "download", "prepare")`: run stages until one fails, and check its message."""

    def check(message, *stages):
        environment = {
            "CONVAE_TRACKING": "off",
            "http_proxy": "http://127.0.0.1:9",  # mirrors are unreachable, even with a network
            "https_proxy": "http://127.0.0.1:9",
            "PATH": "",  # nor is there apt-get
        }
        with patch.dict(os.environ, environment), pytest.raises(SystemExit) as end:
            run(*stages)
        assert isinstance(end.value.code, str)  # printed, and the process ends with 1
        assert message in capsys.readouterr().err + end.value.code
        assert not list(workspace.rglob("*.partial"))
        assert (workspace / "data/prepared/description.json").read_text() == "earlier"
        assert (workspace / "data/raw/fashion_mnist/x.npy").read_text() == "earlier"

    return check


@pytest.mark.parametrize("case", PARAMETERS)
def test_invalid_parameters_end_in_one_line(workspace, refuse, case):
    old, new, message = PARAMETERS[case]
    change(workspace, old, new)
    refuse(message, "validate")


@pytest.mark.parametrize("case", ARCHIVES)
def test_damaged_archives_end_in_one_line(workspace, refuse, monkeypatch, case):
    without_copy = replace(CATALOGUE["fashion_mnist"], system_folder="/nowhere")  # it would be used instead
    monkeypatch.setitem(CATALOGUE, "fashion_mnist", without_copy)
    damage, message = ARCHIVES[case]
    damage(archives(workspace / "data/local"))
    refuse(message, "download")


@pytest.mark.parametrize("case", FOLDERS)
def test_odd_folders_and_images_end_in_one_line(workspace, refuse, tmp_path, case):
    damage, message = FOLDERS[case]
    damage(folder(tmp_path / "pictures"))
    change(workspace, "dataset: fashion_mnist", "dataset: image_folder")
    change(workspace, "root: data/local", f"root: {tmp_path / 'pictures'}")
    change(workspace, "image_size: null", "image_size: 28")
    change(workspace, "validation_size: 0.1", "validation_size: 0.25")
    refuse(message, "download", "prepare")
