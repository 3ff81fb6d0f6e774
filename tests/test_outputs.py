"""Outputs and messages of commands: other files are never touched, and any terminal can show the messages."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from saved_models import ABOUT, fitted, sha256

from convae.evaluation.saving import save_classifier

Convae = Callable[..., str]


@pytest.fixture
def pictures(convae: Convae) -> Convae:
    for name in ("pictures/0.png", "pictures/1.png"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy("picture.png", name)
    return convae


@pytest.mark.parametrize(
    ("command", "taken"),
    [
        (["features", "pictures", "-o", "f.npy"], "f.npy"),
        (["features", "pictures", "-o", "f.npy"], "f.npy.partial"),
        (["features", "pictures", "-o", "f.parquet"], "f.parquet"),
        (["reconstruct", "pictures/1.png", "pictures/0.png", "-o", "made"], "made/0.png"),
        (["reconstruct", "pictures/0.png", "pictures/0.png", "-o", "made"], "made/0-2.png"),
        (["export", "--onnx", "e.onnx"], "e.onnx"),
    ],
)
def test_an_existing_file_is_overwritten_only_with_force(pictures: Convae, command: list[str], taken: str) -> None:
    Path("made").mkdir()
    if not Path(taken).exists():
        Path(taken).write_bytes(b"precious")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    advice = "exists; name another file, or overwrite it with --force"
    assert pictures(*command) == f"convae: {taken}: {advice}"
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert pictures(*command, "--force") == ""
    assert not Path(taken).exists() or Path(taken).read_bytes() != before[Path(taken)]


def test_reconstructions_can_be_written_to_a_linked_folder(pictures: Convae) -> None:
    Path("elsewhere").mkdir()
    Path("made").symlink_to("elsewhere")
    Path("lost").symlink_to("nowhere")
    assert pictures("reconstruct", "pictures", "-o", "made") == ""
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == ["0.png", "1.png"]
    nowhere, file = "a link that leads nowhere; name a folder", "a file; name a folder"
    assert pictures("reconstruct", "pictures", "-o", "lost") == f"convae: lost: {nowhere}"
    assert pictures("reconstruct", "pictures", "-o", "picture.png") == f"convae: picture.png: {file}"


def test_no_source_is_overwritten_even_with_force(pictures: Convae) -> None:
    before = Path("pictures/0.png").read_bytes()
    for folder in ("pictures", "link"):
        if folder == "link":
            Path("link").symlink_to("pictures")
        said = pictures("reconstruct", "pictures", "-o", folder, "--force")
        assert said == f"convae: {folder}/0.png: is one of the pictures to read; choose another folder"
        assert Path("pictures/0.png").read_bytes() == before


def test_a_linked_folder_is_not_silently_skipped(pictures: Convae) -> None:
    Path("elsewhere").mkdir()
    Path("pictures/more").symlink_to(Path("elsewhere").absolute())
    said = "links to folders are not followed; name the linked folder, or remove the link"
    assert pictures("classify", "pictures") == f"convae: pictures/more: {said}"


def test_a_folder_without_pictures_is_reported_with_its_content(
    pictures: Convae, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    nothing = "convae: empty: no PNG, JPEG, WebP, BMP or TIFF file in it"
    assert pictures("classify", "empty") == nothing
    Image.new("L", (8, 8)).save("empty/a.gif")
    assert pictures("classify", "empty") == f"{nothing}, only 1 with another suffix, such as a.gif"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert pictures("classify", "-") == "convae: no pictures: standard input is empty"


def test_files_with_other_suffixes_are_counted(pictures: Convae, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pictures/more.gif").write_bytes(b"GIF89a")
    assert pictures("classify", "pictures") == ""
    said = capsys.readouterr()
    assert said.out.count("\n") == 2
    assert said.err == "convae: pictures: reading 2 files, skipping 1 with another suffix, such as more.gif\n"


@pytest.mark.parametrize("command", ["features", "classify", "reconstruct", "info", "export"])
def test_without_an_encoder_the_message_says_how_to_get_one(convae: Convae, command: str) -> None:
    shutil.rmtree("models")
    arguments = {
        "features": ["picture.png", "-o", "f.npy"],
        "classify": ["picture.png"],
        "reconstruct": ["picture.png", "-o", "made"],
        "info": ["models/encoder"],
        "export": ["--onnx", "e.onnx"],
    }
    said = convae(command, *arguments[command])
    lack = "not an encoder: there is no file config.json; train one with `make run`, or name one of the package"
    assert said == f"convae: models/encoder: {lack}: cifar10, fashion_mnist"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_terminal_encoding_works(convae: Convae, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    classes = ["シャツ", "パンツ", "靴"]
    save_classifier(Path("models/classifier"), fitted(), ABOUT | {"classes": classes, "encoder": sha256()})
    shutil.copy("picture.png", "日本.png")
    terminal = io.BytesIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(terminal, encoding, write_through=True))
    for command in (
        ["info"],
        ["classify", "日本.png"],
        ["classify", "日本.png", "--json"],
        ["features", "日本.png", "-o", "f.npy"],
        ["reconstruct", "日本.png", "-o", "日本"],
    ):
        assert convae(*command) == ""
    assert "無い.png" not in convae("classify", "無い.png", "日本.png")
    said = terminal.getvalue().decode(encoding)
    assert "\\u30b7\\u30e3\\u30c4" in said
    assert "convae: \\u7121\\u3044.png: " in said
    assert json.loads(said[said.index("[\n") : said.index("\n]") + 2])[0]["file"] == "日本.png"
    assert np.load("f.npy").shape == (1, 16)
