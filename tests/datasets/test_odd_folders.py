"""Odd image folders: names are kept verbatim, or one line says why not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convae.datasets.download import download
from convae.datasets.image_folder import list_images
from convae.datasets.prepare import prepare
from convae.errors import ConvaeError
from convae.files import read_json
from convae.params import DataParams

Params = Callable[..., DataParams]
FOLDER = {"dataset": "image_folder", "image_size": (6, 4), "color": "grey", "test_size": 2, "validation_size": 2}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path)) + path.stem.encode()[0]).integers(0, 256, (6, 4), np.uint8)
    Image.fromarray(pixels).save(path)


def classes(root: Path, *names: str) -> Path:
    """Six pictures of each class in `train/`."""
    for name in names:
        for index in range(6):
            picture(root / "train" / name / f"{index}.png")
    return root


def run(data: DataParams, tmp_path: Path) -> None:
    download(data, tmp_path / "raw", tmp_path / "downloads")
    prepare(data, 0, tmp_path / "raw", tmp_path / "prepared")


ODD_NAMES = [
    "猫 é",
    "a b",
    "-rf",
    "a,b",
    'a"b',
    "'; DROP TABLE",
    "<script>alert(1)<!--",
    "<img src=x onerror=alert(1)>",
    "$\\frac{1}$",
    "NA",
    "1e5",
    "null",
    "{{ 7 * 7 }}",
    "\u202etxt",
    "\u2028",
    "c" * 200,
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_kept_verbatim(tmp_path: Path, data_params: Params, name: str) -> None:
    classes(tmp_path / "local", name, "other")
    picture(tmp_path / "local/train/other" / f"{name}.png")
    run(data_params(**FOLDER), tmp_path)
    description = read_json(tmp_path / "prepared/description.json")
    assert description["classes"] == sorted([name, "other"], key=str.encode)
    paths = [(tmp_path / f"prepared/{part}/paths.txt").read_text("utf-8") for part in ("train", "validation", "test")]
    lines = "".join(paths).split("\n")
    assert f"train/other/{name}.png" in lines
    assert sum(line.startswith(f"train/{name}/") for line in lines) == 6


def gif(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4)).save(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def circle(path: Path) -> None:
    path.symlink_to(path)


Damage = Callable[[Path], object]
LAYOUTS: dict[str, tuple[Damage, str]] = {
    "line break in a class": (lambda root: classes(root, "a\nb"), r"train/a\nb: class names must be UTF-8 without"),
    "escape in a class": (lambda root: classes(root, "\x1b[31m"), r"train/\x1b[31m: class names must be UTF-8"),
    "class of no encoding": (lambda root: classes(root, "\udcff"), r"train/\udcff: class names must be UTF-8"),
    "line break in a picture": (lambda root: picture(root / "train/a/1\n2.png"), r"train/a/1\n2.png (the name is not"),
    "a file called test": (lambda root: (root / "test").write_text(""), "test: not a folder, although its name"),
    "a link to nowhere called test": (lambda root: dangling(root / "test"), "test: not a folder, although its name"),
    "a circle called test": (lambda root: circle(root / "test"), "local/test: "),
    "test without pictures": (lambda root: (root / "test").mkdir(), "no image in the test part"),
    "test without pictures of a class": (lambda root: (root / "test/a").mkdir(parents=True), "no image in the test"),
    "test with another class": (lambda root: picture(root / "test/c/1.png"), "the test part has class 'c'"),
    "test without classes": (lambda root: picture(root / "test/1.png"), "the test part has images without class"),
    "class without pictures": (lambda root: (root / "train/c").mkdir(), "class folder 'c' of the train part has no"),
    "class of an empty picture": (
        lambda root: [(root / "train/c").mkdir(), (root / "train/c/1.png").touch()],
        "class folder 'c' of the train part has no image in it that can be read: train/c/1.png (empty file; get",
    ),
    "test of an empty picture": (
        lambda root: [(root / "test/a").mkdir(parents=True), (root / "test/a/1.png").touch()],
        "no image in the test part that can be read: test/a/1.png (empty file; get",
    ),
    "class of text": (lambda root: (root / "train/c").write_text("hello"), "train/c (not a PNG, JPEG"),
    "class that leads nowhere": (lambda root: dangling(root / "train/c"), "train/c: a link that leads nowhere"),
    "class in a circle": (lambda root: circle(root / "train/c"), "train/c: a link that leads nowhere"),
    "class that is all classes": (lambda root: (root / "train/c").symlink_to("."), "train/c: links to folders are not"),
    "part that looks like a class": (
        lambda root: (root / "train").rename(root / "Training"),
        "Training: rename it to train, validation or test; if it is a class, list the pictures in a table (data.table)",
    ),
    "class in a class": (lambda root: picture(root / "train/a/b/1.png"), "train/a/b: a folder inside a class folder;"),
    "one image": (
        lambda root: [shutil.rmtree(root / "train"), picture(root / "train/1.png")],
        "data.test_size = 2: 1 image(s) can't be split, at least 2 are needed",
    ),
    "class of GIFs": (
        lambda root: [gif(root / f"train/c/{index}.gif") for index in range(3)] + [(root / "train/c/3.gif").touch()],
        "class folder 'c' of the train part has no image in it that can be read: train/c/0.gif (a GIF; save it as PNG, "
        "as are 2 of the 3 other files)",
    ),
    "GIFs alone": (
        lambda root: [shutil.rmtree(root / "train"), gif(root / "train/1.gif")],
        "no image in the train part that can be read: train/1.gif (a GIF; save it as PNG)",
    ),
    "class of one picture": (lambda root: picture(root / "train/c/1.png"), "class 'c' has only one image to split"),
    "pipe": (lambda root: os.mkfifo(root / "train/a/1"), "train/a/1 (not a regular file)"),
    "device": (lambda root: (root / "train/a/1").symlink_to("/dev/zero"), "train/a/1 (a symbolic link that leads out"),
    "one class": (lambda root: shutil.rmtree(root / "train/b"), "'a' is the only class; at least two are needed"),
    "nothing": (shutil.rmtree, "no such folder; expected: train/<class>/<image>"),
    "four parts": (lambda root: picture(root / "valid/a/1.png"), "only validation/ and test/ are allowed next to"),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_mistakes_are_reported_in_one_line(tmp_path: Path, data_params: Params, case: str) -> None:
    damage, message = LAYOUTS[case]
    damage(classes(tmp_path / "local", "a", "b"))
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/description.json").write_text("earlier")
    with pytest.raises(ConvaeError) as mistake:
        run(data_params(**FOLDER), tmp_path)
    assert message in str(mistake.value)
    assert str(mistake.value).isprintable()
    assert (tmp_path / "prepared/description.json").read_text() == "earlier"
    assert not list(tmp_path.glob("*.partial"))


def linked(root: Path, target: Path) -> None:
    classes(target, "c")
    (root / "train/c").symlink_to(target / "train/c")


LEFT_OUT: dict[str, Damage] = {
    "class linked from inside": lambda root: (root / "train/c").symlink_to("a"),
    "class linked from outside": lambda root: linked(root, root.parent / "elsewhere"),
    "class that leads nowhere": lambda root: dangling(root / "train/c"),
    "part linked": lambda root: (root / "test").symlink_to("train"),
    "folder in a class": lambda root: (root / "train/a/more").mkdir(),
    "folder linked in a class": lambda root: (root / "train/a/more").symlink_to(root / "train/b"),
    "folder in a class of a part": lambda root: picture(root / "test/a/more/1.png"),
    "class of a part linked": lambda root: [picture(root / "test/a/1.png"), (root / "test/b").symlink_to("a")],
    "parts in capitals": lambda root: (root / "train").rename(root / "Train"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_folder_is_never_a_rejected_file(tmp_path: Path, data_params: Params, case: str) -> None:
    """No matter how many files may be rejected: rejecting a folder could lose a whole class."""
    LEFT_OUT[case](classes(tmp_path / "local", "a", "b"))
    with pytest.raises(
        ConvaeError, match=r"links? (that leads|to folders)|a folder inside a class folder|if it is a class, list"
    ) as refusal:
        run(data_params(**FOLDER, max_rejected=100), tmp_path)
    assert str(refusal.value).isprintable()


def test_dangling_links_next_to_unlabelled_pictures_are_rejected(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / f"train/{index}.png")
    dangling(tmp_path / "train/4.png")
    files, rejected = list_images(tmp_path)
    assert (len(files), [file.path for file in rejected]) == (3, ["train/4.png"])


@pytest.mark.parametrize("root", ["/dev/null", "a" * 300, "train/a/0.png"])
def test_a_root_that_is_not_a_folder_is_refused(
    tmp_path: Path, data_params: Params, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(classes(tmp_path / "local", "a", "b"))
    with pytest.raises(ConvaeError, match=f"^data.root = {root}: ") as refusal:
        run(data_params(**FOLDER, root=root), tmp_path)
    assert str(refusal.value).isprintable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["train/a/0.png", "train/a", "train"])
def test_unreadable_files_are_reported(tmp_path: Path, data_params: Params, name: str) -> None:
    path = classes(tmp_path / "local", "a", "b") / name
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with pytest.raises(ConvaeError, match=f"{path}: "):
            run(data_params(**FOLDER), tmp_path)
    finally:
        path.chmod(mode)


def many(root: Path, count: int) -> Path:
    """Make `count` hard links to pictures; a file system allows some ten thousand for each file."""
    folders = [root / "train" / name for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    for index in range(count):
        if index % 30_000 == 0:
            picture(original := root.parent / f"{index}.png")
        os.link(original, folders[index % 2] / f"{index}.png")
    return root


def test_tens_of_thousands_of_files_are_listed(tmp_path: Path) -> None:
    root = many(tmp_path / "many", 20_000)
    files, rejected = list_images(root)
    assert (len(files), rejected) == (20_000, [])
    shutil.rmtree(root)  # pytest would keep the files


def test_identical_pictures_are_prepared_and_counted(tmp_path: Path, data_params: Params) -> None:
    many(tmp_path / "local", 10_000)
    run(data_params(**FOLDER | {"test_size": 0.1}), tmp_path)
    duplicates = read_json(tmp_path / "prepared/description.json")["duplicates"]
    assert duplicates["test"]["images"] == 1000
    assert len(duplicates["test"]["examples"]) == 20
    shutil.rmtree(tmp_path / "local")
