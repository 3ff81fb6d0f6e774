import gzip
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convae.datasets import catalogue
from convae.datasets.download import download
from convae.errors import ConvaeError
from convae.files import file_sha256
from convae.params import DataParams

Params = Callable[..., DataParams]


def hashes(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(folder.rglob("*.*"))}


@pytest.fixture
def from_mirror(tiny: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    server.files = tiny.files
    dataset = replace(tiny.dataset, mirrors=(server.url,))
    monkeypatch.setitem(catalogue.CATALOGUE, "fashion_mnist", dataset)  # type: ignore[arg-type]
    return server


def test_every_source_leaves_the_same_bytes(tmp_path: Path, tiny: Any, from_mirror: Any, data_params: Params) -> None:
    local, system = tmp_path / "local", tmp_path / "system"
    found = []
    for number, folder in enumerate([local, local / "fashion_mnist", local, system, None]):
        if folder:
            tiny.write(folder, compressed=number != 2)
        found.append(download(data_params(), tmp_path / f"raw{number}", tmp_path / "downloads"))
        shutil.rmtree(local, ignore_errors=True)
        shutil.rmtree(system, ignore_errors=True)
    assert found == [*[f"data.root = {local}"] * 3, str(system), from_mirror.url]
    written = [hashes(tmp_path / f"raw{number}") for number in range(5)]
    assert written == [written[0]] * 5
    assert list(written[0]) == ["test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]
    images = np.load(tmp_path / "raw4/train_images.npy", allow_pickle=False)
    assert (images.dtype, images.shape) == (np.uint8, (40, 1, 6, 5))
    assert np.load(tmp_path / "raw4/test_labels.npy").tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_wrong_data_falls_back_to_the_next_source(
    tmp_path: Path, tiny: Any, from_mirror: Any, data_params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    local = tiny.write(tmp_path / "local")
    pixels = bytearray(gzip.decompress(tiny.files["train-images-idx3-ubyte.gz"]))
    pixels[100] ^= 1
    (local / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(pixels)))
    tiny.write(tmp_path / "system")
    (tmp_path / "system/t10k-labels-idx1-ubyte.gz").unlink()
    assert download(data_params(), tmp_path / "raw", tmp_path / "downloads") == from_mirror.url
    said = capsys.readouterr().err
    assert "train images differ from the catalogue's: SHA-256" in said
    assert f"{tmp_path / 'system'}: {tmp_path / 'system'} lacks t10k-labels-idx1-ubyte.gz" in said


def test_if_every_source_fails_one_message_says_why_and_what_to_do(
    tmp_path: Path, tiny: Any, from_mirror: Any, data_params: Params
) -> None:
    from_mirror.files = {}
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/earlier.npy").write_bytes(b"result")
    with pytest.raises(ConvaeError) as caught:
        download(data_params(), tmp_path / "raw", tmp_path / "downloads")
    first, local, system, mirror, remedy = str(caught.value).splitlines()
    names = ", ".join(tiny.files)
    assert first == "data.dataset = fashion_mnist: no source has it"
    assert local == f"  data.root = {tmp_path / 'local'}: no such folder"
    assert system == f"  {tmp_path / 'system'}: no such folder"
    assert mirror.startswith(f"  {from_mirror.url}: train-images-idx3-ubyte.gz: HTTP status 404")
    assert remedy == (
        f"  Possible remedies: put {names} into {tmp_path / 'local'}, or set data.root to their folder; "
        "or set data.dataset to digits, which needs no download"
    )
    assert hashes(tmp_path) == {"raw/earlier.npy": file_sha256(tmp_path / "raw/earlier.npy")}


def _program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def debian(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Debian's programs, which need the network; each test writes what they do."""
    dataset = replace(tiny.dataset, package="dataset-tiny", system_folder="/nowhere/tiny")
    monkeypatch.setitem(catalogue.CATALOGUE, "fashion_mnist", dataset)  # type: ignore[arg-type]
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    tiny.write(tmp_path / "package/nowhere/tiny")
    _program(tmp_path / "bin", "apt-get", "touch dataset-tiny_1_all.deb")
    _program(tmp_path / "bin", "dpkg-deb", f'test "$2" = dataset-tiny_1_all.deb && cp -r {tmp_path}/package "$3"')
    return tmp_path / "bin"


def test_debians_archive_is_used(tmp_path: Path, tiny: Any, debian: Path, data_params: Params) -> None:
    assert download(data_params(), tmp_path / "raw", tmp_path / "downloads") == "Debian's archive"
    tiny.write(tmp_path / "local")
    download(data_params(), tmp_path / "from local", tmp_path / "downloads")
    assert hashes(tmp_path / "raw") == hashes(tmp_path / "from local")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'E: Unable to locate package dataset-tiny' >&2; exit 100",
            "apt-get: E: Unable to locate package",
        ),
        ("exit 3", "apt-get: exit status 3"),
        ("exit 0", "apt-get download dataset-tiny left no file"),
    ],
)
def test_a_failure_of_debians_archive_is_reported(
    tmp_path: Path, debian: Path, data_params: Params, script: str, reason: str
) -> None:
    _program(debian, "apt-get", script)
    with pytest.raises(ConvaeError, match=f"Debian's archive: {reason}") as caught:
        download(data_params(), tmp_path / "raw", tmp_path / "downloads")
    assert "apt-get install dataset-tiny; or set data.dataset" in str(caught.value)


def test_missing_debian_tools_are_reported(
    tmp_path: Path, debian: Path, data_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConvaeError, match="Debian's archive: apt-get and dpkg-deb are not installed"):
        download(data_params(), tmp_path / "raw", tmp_path / "downloads")


def test_digits_need_no_download_and_are_reproducible(tmp_path: Path, data_params: Params) -> None:
    for name in ("one", "two"):
        assert download(data_params(dataset="digits"), tmp_path / name, tmp_path / "downloads") == "scikit-learn"
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert list(hashes(tmp_path / "one")) == ["train_images.npy", "train_labels.npy"]
    assert not (tmp_path / "downloads").exists()
