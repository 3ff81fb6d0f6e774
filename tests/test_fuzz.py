"""Valid input with random damage: a result or the documented error, and nothing else, in bounded time.

The examples are always the same, so that failures are reproducible.
"""

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import CHANGES, EDITS, Edit, changed, damaged, fuzz, one_line
from helpers import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML
from saved_models import CONFIG, save_models

from convae.addresses import PRETRAINED
from convae.datasets.catalogue import CATALOGUE
from convae.datasets.image_folder import list_images
from convae.datasets.image_set import ImageSet, write_image_set
from convae.datasets.listing import ListedFiles, read_rejected, write_listing
from convae.datasets.pictures import UnusableError, decode
from convae.datasets.readers import read, read_idx
from convae.datasets.reading import Reading
from convae.encoder import load_encoder
from convae.errors import ConvaeError
from convae.evaluation.saving import load_scores
from convae.experiment import load_experiment
from convae.files import content_sha256


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


IDX = bytes([0, 0, 8, 2, 0, 0, 0, 9, 0, 0, 0, 40]) + bytes(range(120)) * 3


@given(st.sampled_from([IDX, gzip.compress(IDX, mtime=0)]), EDITS)
@fuzz(400)
def test_fuzzed_idx(content: bytes, edits: list[Edit]) -> None:
    Path("file").write_bytes(damaged(content, edits))
    with one_line():
        assert read_idx(Path("file"), (9, 40)).shape == (9, 40)


def stl10() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, size in {"train_X": 27648, "train_y": 1, "test_X": 27648, "test_y": 1, "unlabeled_X": 27648}.items():
            member = tarfile.TarInfo(f"stl10_binary/{name}.bin")
            member.size = size
            tar.addfile(member, io.BytesIO(bytes([1]) * size))
    return gzip.decompress(stream.getvalue())


STL10 = stl10()


@given(EDITS, EDITS, st.booleans())
@fuzz(150)
def test_fuzzed_archives(inner: list[Edit], outer: list[Edit], damage_gzip: bool) -> None:
    """Pretend that the damaged archive has the published MD5; otherwise nothing would be unpacked."""
    content = gzip.compress(damaged(STL10, inner), 1, mtime=0)
    content = damaged(content, outer) if damage_gzip else content
    path = Path("archive.tar.gz")
    path.write_bytes(content)
    dataset = replace(
        CATALOGUE["stl10"],
        archives={path.name: hashlib.md5(content).hexdigest()},
        images={"train": 1, "test": 1, "unlabelled": 1},
    )
    with tempfile.TemporaryDirectory() as scratch, one_line():
        assert len(list(read(dataset, {path.name: path}, Path(scratch)))) == 3


def pictures() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {}
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16"):
            stream = io.BytesIO()
            image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).convert(mode)
            with contextlib.suppress(OSError):  # not every kind has every mode
                image.save(stream, kind, **({} if kind == "BMP" else {"exif": exif}))
                found[f"{kind} {mode}"] = stream.getvalue()
    return found


PICTURES = pictures()


@given(st.sampled_from(list(PICTURES.values())), EDITS, st.sampled_from([1, 3]))
@fuzz(600)
def test_fuzzed_pictures(content: bytes, edits: list[Edit], channels: int) -> None:
    with warnings.catch_warnings(), one_line(UnusableError):
        warnings.simplefilter("ignore")
        assert decode(damaged(content, edits), Reading(channels, (5, 4))).pixels.shape == (channels, 5, 4)


@given(st.lists(st.tuples(st.sampled_from(["", "train", "test", "a", "b", "é\n"]), st.text(max_size=6)), max_size=6))
@fuzz(100)
def test_fuzzed_image_folders(files: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        for label, stem in files:
            with contextlib.suppress(OSError, ValueError):  # names that no file can have
                path = root / "train" / label / f"{stem.replace('/', '')}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(PICTURES["PNG L"])
        with one_line():
            found, rejected = list_images(root)
            write_listing(Path(), found, rejected)
            assert list(ListedFiles(Path(), "train")) == found
            assert read_rejected(Path()) == rejected


@given(EDITS)
@fuzz(150)
def test_fuzzed_listings(edits: list[Edit]) -> None:
    good = b'part,class,path,bytes,sha256\ntrain,"a, b","train/a, b/1.png",70,00ff\ntrain,c,train/c/1.png,70,00ff\n'
    Path("files.csv").write_bytes(damaged(good, edits))
    with one_line():
        list(ListedFiles(Path(), "train"))


SHIPPED = YAML(typ="safe", pure=True).load((REPOSITORY / "params.yaml").read_text("utf-8"))


@given(CHANGES)
@fuzz(400)
def test_fuzzed_parameters(changes: list[tuple[float, Any]]) -> None:
    tree = changed(SHIPPED, changes)
    path = Path("params.yaml")
    path.write_text(json.dumps(tree), "utf-8")  # JSON is YAML, except for NaN
    check_params(path)


@given(st.sampled_from(sorted((REPOSITORY / "systems").glob("*.yaml"))), EDITS)
@fuzz(150)
def test_fuzzed_parameter_files(system: Path, edits: list[Edit]) -> None:
    Path("params.yaml").write_bytes(damaged(system.read_bytes(), edits))
    check_params(Path("params.yaml"))


def check_params(path: Path) -> None:
    try:
        load_experiment(path)
    except ConvaeError as mistake:
        for line in str(mistake).splitlines():
            assert line.startswith(f"{path}: ")
            assert len(line) < 2000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`models/` with an encoder and a classifier."""
    folder = tmp_path_factory.mktemp("saved")
    with contextlib.chdir(folder):
        save_models()
    return folder / "models"


@given(CHANGES)
@fuzz(300)
def test_fuzzed_encoder_configurations(models: Path, changes: list[tuple[float, Any]]) -> None:
    """Forged: changed, with the hash updated."""
    weights = (models / "encoder/model.safetensors").read_bytes()
    config = {"format": 3, **changed(CONFIG, changes)}
    Path("model.safetensors").write_bytes(weights)
    Path("config.json").write_text(json.dumps(config | {"sha256": content_sha256(config, weights)}))
    with one_line(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = load_encoder(Path())
        image = np.zeros((1, encoder.config["channels"], *encoder.config["image_size"]), np.uint8)
        for use in (encoder.features, encoder.reconstruct):  # if it loads, it works
            with one_line():  # unless it lacks the part
                use(image)


@given(EDITS)
@fuzz(200)
def test_fuzzed_encoder_weights(models: Path, edits: list[Edit]) -> None:
    weights = damaged((models / "encoder/model.safetensors").read_bytes(), edits)
    config = {"format": 3, **CONFIG}
    Path("model.safetensors").write_bytes(weights)
    Path("config.json").write_text(json.dumps(config | {"sha256": content_sha256(config, weights)}))
    with one_line():
        load_encoder(Path())


@given(EDITS, st.sampled_from(["ridge", "logistic_regression"]))
@fuzz(150)
def test_fuzzed_classifiers(models: Path, edits: list[Edit], kind: str) -> None:
    saved = {"ridge": models, "logistic_regression": PRETRAINED / "fashion_mnist"}[kind]
    content = damaged((saved / "classifier/classifier.skops").read_bytes(), edits)
    about = {"format": 2, "kind": kind}
    Path("classifier.skops").write_bytes(content)
    Path("classifier.json").write_text(json.dumps(about | {"sha256": content_sha256(about, content)}))
    with one_line():
        load_scores(Path())


@given(st.sampled_from(["images.npy", "labels.npy", "description.json"]), EDITS)
@fuzz(200)
def test_fuzzed_image_sets(name: str, edits: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 1, 3, 4)
        write_image_set(Path(folder), images.shape, [images], np.arange(5) % 2, ["a", "b"])
        path = Path(folder, name)
        path.write_bytes(damaged(path.read_bytes(), edits))
        with one_line():
            ImageSet.load(Path(folder))
