import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convae.datasets import http
from convae.datasets.http import fetch
from convae.errors import ConvaeError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
LIMIT = 2_000_000


@pytest.fixture
def url(server: Any) -> str:
    server.files["file"] = CONTENT
    return str(server.url + "file")


def test_a_file_is_downloaded_completely_and_once(server: Any, url: str, tmp_path: Path) -> None:
    path = fetch(url, tmp_path / "new" / "file", MD5, LIMIT)
    assert path.read_bytes() == CONTENT
    fetch(url, path, MD5, LIMIT)
    assert server.log == [("file", None)]
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_an_interrupted_transfer_is_resumed(server: Any, url: str, tmp_path: Path) -> None:
    server.misbehave = lambda path, number: "die" if number <= 2 else ""
    assert fetch(url, tmp_path / "file", MD5, LIMIT).read_bytes() == CONTENT
    assert server.log == [("file", None), ("file", "bytes=500000-"), ("file", "bytes=750000-")]


def test_the_next_call_resumes_a_broken_transfer(server: Any, url: str, tmp_path: Path) -> None:
    server.misbehave = lambda path, number: "die" if number <= http.ATTEMPTS else ""
    with pytest.raises(ConvaeError, match="file: the connection ended after 937500 of 1000000 bytes"):
        fetch(url, tmp_path / "file", MD5, LIMIT)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:937_500]
    assert fetch(url, tmp_path / "file", MD5, LIMIT).read_bytes() == CONTENT
    assert server.log[-1] == ("file", "bytes=937500-")


def test_a_server_without_ranges_restarts_the_transfer(server: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    server.misbehave = lambda path, number: "no range"
    assert fetch(url, tmp_path / "file", MD5, LIMIT).read_bytes() == CONTENT
    assert server.log == [("file", "bytes=1000-")]


@pytest.mark.parametrize("part", [b"another file's start", CONTENT + b"more", b"x" * len(CONTENT)])
def test_an_inconsistent_partial_file_is_discarded(server: Any, url: str, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "file.part").write_bytes(part)
    assert fetch(url, tmp_path / "file", MD5, LIMIT).read_bytes() == CONTENT
    assert server.log[-1] == ("file", None)


def test_a_damaged_file_is_downloaded_again(server: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"damaged")
    assert fetch(url, tmp_path / "file", MD5, LIMIT).read_bytes() == CONTENT


def test_a_wrong_md5_leaves_no_file(server: Any, url: str, tmp_path: Path) -> None:
    server.misbehave = lambda path, number: "garbage"
    with pytest.raises(ConvaeError, match=rf"has MD5 .*, expected {MD5}"):
        fetch(url, tmp_path / "file", MD5, LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_error(server: Any, tmp_path: Path) -> None:
    with pytest.raises(ConvaeError, match="file: HTTP status 404"):
        fetch(server.url + "other", tmp_path / "file", MD5, LIMIT)


def test_a_server_that_never_answers_is_an_error(
    server: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.2)
    server.misbehave = lambda path, number: "hang"
    with pytest.raises(ConvaeError, match="file: "):
        fetch(url, tmp_path / "file", MD5, LIMIT)
    assert len(server.log) == 1


def test_a_refused_connection_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ConvaeError, match="file: "):
        fetch("http://127.0.0.1:9/file", tmp_path / "file", MD5, LIMIT)


def test_no_more_than_the_expected_size_is_stored(server: Any, url: str, tmp_path: Path) -> None:
    with pytest.raises(ConvaeError, match="larger than 500000 bytes"):
        fetch(url, tmp_path / "file", MD5, 500_000)
    assert list(tmp_path.iterdir()) == []
