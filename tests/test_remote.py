"""Models from URLs: what is taken from an archive, and what is refused."""

import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from saved_models import ending, save_models

import convae.remote as remote
from convae import ConvaeError, load_encoder, load_image_classifier
from convae.remote import cached


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """`models/` in the current folder, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_models()
    return tmp_path


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def files(prefix: str = "models/") -> dict[str, bytes]:
    return {
        prefix + path.relative_to("models").as_posix(): path.read_bytes()
        for path in Path("models").rglob("*")
        if path.is_file()
    }


def packed_zip(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


ARCHIVES = {
    "models.tar": lambda: tar(files()),
    "models.tar.gz": lambda: tar(files("./"), "w:gz"),
    "models.tgz": lambda: tar(files("a/b/models/") | {"a/b/models/autoencoder/config.json": b"{}"}, "w:gz"),
    "models.zip": lambda: packed_zip(files()),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_model_from_a_url_is_the_model_on_disk(server, name):
    server.files[name] = ARCHIVES[name]()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    here, there = load_image_classifier("models"), load_image_classifier(server.url + name)
    np.testing.assert_array_equal(there.scores(images), here.scores(images))
    np.testing.assert_array_equal(load_encoder(server.url + name).features(images), here.encoder.features(images))
    assert server.log == [(name, None)]  # the second time, it comes from the cache


def test_an_archive_of_the_encoder_alone(server):
    server.files["encoder.tar"] = tar(
        {Path(name).name: content for name, content in files("").items() if "enc" in name}
    )
    assert load_encoder(server.url + "encoder.tar").sha256 == load_encoder("models/encoder").sha256


def test_any_scheme_of_fsspec():
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/models.tar", tar(files()))
    expected = load_encoder("models/encoder").sha256
    assert load_encoder("memory://bucket/models.tar").sha256 == expected
    memory.rm("/bucket", recursive=True)
    assert load_encoder("memory://bucket/models.tar").sha256 == expected  # from the cache
    with pytest.raises(ConvaeError, match=re.escape("nothing.tar")):
        load_encoder("memory://bucket/nothing.tar")
    with pytest.raises(ConvaeError, match="Protocol not known: carrier"):
        load_encoder("carrier://pigeon/models.tar")
    with pytest.raises(ConvaeError, match="unpack it, and name the folder"):
        load_encoder("file:///models.tar")


def test_a_pinned_hash_is_checked_even_if_the_cache_has_the_url(server):
    content = tar(files())
    server.files["models.tar"] = content
    address = server.url + "models.tar"
    load_encoder(address)
    load_encoder(f"{address}#sha256={hashlib.sha256(content).hexdigest()}")
    with pytest.raises(ConvaeError, match=f"expected {'0' * 64}"):
        load_encoder(f"{address}#sha256={'0' * 64}")
    with pytest.raises(ConvaeError, match="64 hexadecimal digits"):
        load_encoder(f"{address}#md5=1")


OUTSIDE = "../../../../escaped"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tar", lambda: tar({"params.yaml": b"x"}), "holds no encoders"),
        ("a.tar", lambda: tar(files("one/") | files("two/")), "holds 2 encoders"),
        ("a.tar", lambda: b"not an archive", "not a readable archive"),
        ("a.tar", lambda: tar(files())[:2000], "not a readable archive"),
        ("a.tar.gz", lambda: tar(files(), "w:gz")[:-300], "not a readable archive"),
        ("a.zip", lambda: packed_zip(files())[:-50], "not a readable archive"),
        ("a.zip", lambda: b"PK", "not a readable archive"),
        ("missing.tar", lambda: None, "HTTP status 404"),
        ("a.txt", lambda: b"x", "no address of a model"),
        ("a.tar", lambda: tar({"encoder/config.json": b"{}"}), "there is no encoder/model.safetensors"),
        ("a.tar", lambda: tar({name: content[:-1] for name, content in files().items()}), "damaged"),
        ("a.tar", lambda: b"\xfd7zXZ\x00" + bytes(100), "not a readable archive"),
        ("a.tar", lambda: tar({f"{number}": b"" for number in range(10_001)}), "more than 10000 files"),
        ("a.zip", lambda: packed_zip({f"{number}": b"" for number in range(10_001)}), "more than 10000 files"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line_and_not_kept(server, monkeypatch, name, content, words):
    made = content()
    if made is not None:
        server.files[name] = made
    said = ending(monkeypatch, "info", server.url + name)
    assert words in said
    assert server.url + name in said
    assert not list(Path("cache").rglob("*.json"))


def test_nothing_is_written_outside_the_cache(server, models):
    hostile = {name.replace("models/", f"{OUTSIDE}/"): content for name, content in files().items()}
    server.files["a.tar"] = tar(hostile | {f"{OUTSIDE}/evil": b"x", "/etc/evil": b"x"})
    server.files["a.zip"] = packed_zip(hostile | {f"{OUTSIDE}/evil": b"x"})
    before = {path for path in models.parent.rglob("*") if "cache" not in path.parts}
    for name in ("a.tar", "a.zip"):
        folder = cached(server.url + name)
        assert sorted(path.name for path in folder.rglob("*.*")) == [
            "classifier.json", "classifier.skops", "config.json", "model.safetensors",
        ]  # fmt: skip
    assert {path for path in models.parent.rglob("*") if "cache" not in path.parts} == before


def test_links_in_an_archive_are_not_followed(server):
    packed = io.BytesIO(tar({"encoder/model.safetensors": b""}))
    with tarfile.open(fileobj=packed, mode="a") as archive:
        link = tarfile.TarInfo("encoder/config.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    server.files["a.tar"] = packed.getvalue()
    with pytest.raises(ConvaeError, match="holds no encoders"):
        cached(server.url + "a.tar")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_bomb_is_refused_before_it_is_unpacked(server, monkeypatch, name):
    monkeypatch.setattr(remote, "MOST_BYTES", 100_000)
    members = {"x": bytes(1_000_000)} if name == "a.tar.gz" else {"encoder/model.safetensors": bytes(1_000_000)}
    pack = {"a.tar.gz": lambda: tar(members | files(""), "w:gz"), "a.zip": lambda: packed_zip(files("") | members)}
    server.files[name] = pack[name]()
    with pytest.raises(ConvaeError, match="more than 100000 bytes"):
        cached(server.url + name)
    server.files["large.tar"] = bytes(200_000)
    with pytest.raises(ConvaeError, match="larger than 100000 bytes"):
        cached(server.url + "large.tar")


def test_a_name_that_fills_the_memory_is_refused(server):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("x")
        entry.pax_headers = {"comment": "x" * 100_000}
        archive.addfile(entry)
    server.files["a.tar"] = packed.getvalue()
    with pytest.raises(ConvaeError, match="a name of more than 65536 bytes"):
        cached(server.url + "a.tar")


@pytest.mark.parametrize("address", ["https://[bad/x.tar", "http://127.0.0.1:9/x.tar", "http://127.0.0.1:9/\u00e9.tar"])
def test_unusable_urls_are_told_in_one_line(monkeypatch, address):
    assert address in ending(monkeypatch, "info", address)


def test_a_card_that_is_too_long_is_left_out(server, monkeypatch, capsys):
    server.files["a.tar"] = tar(files() | {"models/README.md": b"x" * (1 << 21)})
    assert not ending(monkeypatch, "info", server.url + "a.tar")
    assert "README.md is larger than" in capsys.readouterr().out


def test_a_damaged_encoder_is_told_by_its_hash(server):
    members = files()
    members["models/encoder/model.safetensors"] = members["models/encoder/model.safetensors"][:-1] + b"\1"
    server.files["a.tar"] = tar(members)
    with pytest.raises(ConvaeError, match="damaged"):
        load_encoder(server.url + "a.tar")
    server.files["a.tar"] = tar(files())
    load_encoder(server.url + "a.tar")  # the damaged one was not kept


def test_a_broken_transfer_is_resumed(server):
    server.files["models.tar"] = tar(files())
    server.misbehave = lambda path, number: "die" if number == 1 else ""
    load_encoder(server.url + "models.tar")
    assert len(server.log) == 2
    assert server.log[1][1].startswith("bytes=")
