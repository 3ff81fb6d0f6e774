import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from convae.datasets.download import download
from convae.datasets.image_folder import classes_of, list_images
from convae.datasets.listing import ListedFiles, read_rejected, write_listing
from convae.errors import ConvaeError
from convae.files import file_sha256
from convae.names import PARTS
from convae.params import DataParams


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path)
    return path


def build(root: Path, *paths: str) -> Path:
    root.mkdir(exist_ok=True)
    for path in paths:
        picture(root / path)
    return root


def listed(root: Path) -> list[tuple[str, str, str]]:
    return [(file.part, file.label, file.path) for file in list_images(root)[0]]


def test_parts_and_classes(tmp_path: Path) -> None:
    names = ["train/b/1.png", "train/a/2.png", "train/a/10.png", "test/b/1.png", "validation/a/1.png"]
    files, rejected = list_images(build(tmp_path, *names))
    assert [(file.part, file.label, file.path) for file in files] == [
        ("train", "a", "train/a/10.png"),
        ("train", "a", "train/a/2.png"),
        ("train", "b", "train/b/1.png"),
        ("validation", "a", "validation/a/1.png"),
        ("test", "b", "test/b/1.png"),
    ]
    first = tmp_path / files[0].path
    assert (files[0].bytes, files[0].sha256) == (first.stat().st_size, file_sha256(first))
    assert classes_of(files) == ("a", "b")
    assert rejected == []


def test_without_train_the_root_is_the_training_part(tmp_path: Path) -> None:
    root = build(tmp_path, "a/1.png", "b/1.png", "test/a/1.png")
    assert listed(root) == [
        ("train", "a", "a/1.png"),
        ("train", "b", "b/1.png"),
        ("test", "a", "test/a/1.png"),
    ]


def test_flat_folders_have_no_labels(tmp_path: Path) -> None:
    files, _ = list_images(build(tmp_path, "train/2.png", "train/1.png", "test/1.png"))
    assert [file.path for file in files] == ["train/1.png", "train/2.png", "test/1.png"]
    assert classes_of(files) == ()


def test_names_are_sorted_bytewise_and_may_contain_unicode_and_spaces(tmp_path: Path) -> None:
    names = ["Zebra/1.png", "é t é/1.png", "猫/ein Bild.png", "a b/1.png", "a/1.png", "a/B.png", "a/ä.png"]
    root = build(tmp_path, *names)
    paths = [path for _, _, path in listed(root)]
    expected = ["Zebra/1.png", "a/1.png", "a/B.png", "a/ä.png", "a b/1.png", "é t é/1.png", "猫/ein Bild.png"]
    assert paths == expected


def test_hidden_entries_and_litter_are_ignored(tmp_path: Path) -> None:
    root = build(tmp_path, "train/a/1.png", "train/b/1.png", "train/.hidden/1.png", "train/a/.thumb.png")
    for folder in (root, root / "train", root / "train/a"):
        for name in (".DS_Store", "._1.png", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "Icon\r"):
            (folder / name).write_bytes(b"x")
        for name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"):
            picture(folder / name / "train/a/1.png")
    files, rejected = list_images(root)
    assert [file.path for file in files] == ["train/a/1.png", "train/b/1.png"]
    assert rejected == []


def test_files_that_are_not_pictures_are_rejected_with_a_reason(tmp_path: Path) -> None:
    root = build(tmp_path / "root", "train/a/1.png", "train/b/1.png")
    folder = root / "train/a"
    outside = picture(tmp_path / "outside.png")
    (folder / "README.txt").write_text("about these pictures")
    (folder / "text.png").write_text("text")
    (folder / "empty.png").write_bytes(b"")
    os.mkfifo(folder / "pipe.png")
    (folder / "escape.png").symlink_to(outside)
    (folder / "dotted.png").symlink_to("../../../outside.png")
    (folder / "broken.png").symlink_to("nothing")
    (folder / "circle.png").symlink_to("circle.png")
    picture(folder / "new\nline.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/latin\xe9.png")).write_bytes(outside.read_bytes())
    _, rejected = list_images(root)
    assert {file.path: file.reason for file in rejected} == {
        "train/a/README.txt": "not a PNG, JPEG, WebP, BMP or TIFF image",
        "train/a/broken.png": f"cannot be read: {os.strerror(errno.ENOENT)}",
        "train/a/circle.png": "cannot be read: a symbolic link in a circle",
        "train/a/dotted.png": "a symbolic link that leads out of data.root",
        "train/a/empty.png": "empty file; get it again",
        "train/a/escape.png": "a symbolic link that leads out of data.root",
        "train/a/latin\\udce9.png": "the name is not UTF-8 or holds control characters",
        "train/a/new\\nline.png": "the name is not UTF-8 or holds control characters",
        "train/a/pipe.png": "not a regular file",
        "train/a/text.png": "not a PNG, JPEG, WebP, BMP or TIFF image",
    }
    assert len({file.path for file in rejected}) == len(rejected)


def test_a_link_within_the_folder_is_a_picture(tmp_path: Path) -> None:
    root = build(tmp_path, "a/1.png", "b/1.png")
    (root / "a/2.png").symlink_to(root / "b/1.png")
    assert [path for _, _, path in listed(root)] == ["a/1.png", "a/2.png", "b/1.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no image in the train part; expected: train/<class>/<image>"),
        (["test/a/1.png"], "no image in the train part"),
        (["train/a/1.png", "train/b/"], "class folder 'b' of the train part has no image in it"),
        (["train/a/1.png", "train/b/1.png", "test/"], "no image in the test part"),
        (["train/a/1.png", "train/b/1.png", "test/a/"], "no image in the test part"),
        (["train/a/1.png", "train/1.png"], "the train part has images both inside and outside class folders"),
        (["train/a/1.png"], "'a' is the only class; at least two are needed, or no class folders at all"),
        (
            ["train/a/1.png", "train/b/1.png", "test/c/1.png"],
            "the test part has class 'c', but the training part has a, b",
        ),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "the test part has images without class folders"),
        (
            ["train/1.png", "validation/a/1.png"],
            "the validation part has class 'a', but the training part has no class",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png"],
            "val: only validation/ and test/ are allowed next to",
        ),
        (["train/a\tb/1.png", "train/b/1.png"], r"train/a\\tb: class names must be UTF-8 without control"),
    ],
)
def test_an_ambiguous_layout_is_an_error(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir(parents=True)
        else:
            picture(tmp_path / name)
    with pytest.raises(ConvaeError, match=message):
        list_images(tmp_path)


def test_a_part_must_not_be_a_link(tmp_path: Path) -> None:
    build(tmp_path / "elsewhere", "a/1.png", "b/1.png")
    root = build(tmp_path / "root")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConvaeError, match="train: links to folders are not followed"):
        list_images(root)


def test_download_lists_and_copies_nothing(tmp_path: Path, data_params: Callable[..., DataParams]) -> None:
    root = build(tmp_path / "local", "train/a, b/1.png", "train/c/1.png", 'test/c/"quoted".png')
    (root / "train/c/notes.txt").write_text("notes")
    data = data_params(dataset="image_folder", image_size=(4, 4))
    for name in ("one", "two"):
        assert download(data, tmp_path / name, tmp_path / "downloads") == f"data.root = {root}"
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["files.csv", "rejected.csv"]
    for name in ("files.csv", "rejected.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert str(tmp_path) not in (tmp_path / "one" / name).read_text()
    size, sha256 = (root / "train/c/1.png").stat().st_size, file_sha256(root / "train/c/1.png")
    assert (tmp_path / "one/files.csv").read_text("utf-8").splitlines() == [
        "part,class,path,bytes,sha256,group",
        f'train,"a, b","train/a, b/1.png",{size},{sha256},',
        f"train,c,train/c/1.png,{size},{sha256},",
        f'test,c,"test/c/""quoted"".png",{size},{sha256},',
    ]
    files, rejected = list_images(root)
    assert [file for part in PARTS for file in ListedFiles(tmp_path / "one", part)] == files
    assert read_rejected(tmp_path / "one") == rejected


def test_a_missing_root_is_an_error_that_shows_the_layout(
    tmp_path: Path, data_params: Callable[..., DataParams]
) -> None:
    data = data_params(dataset="image_folder", image_size=(4, 4))
    with pytest.raises(ConvaeError, match=r"local: no such folder; expected: train/<class>/<image> or"):
        download(data, tmp_path / "raw", tmp_path / "downloads")
    assert not (tmp_path / "raw").exists()


def test_a_damaged_listing_is_an_error(tmp_path: Path) -> None:
    root = build(tmp_path / "root", "a/1.png", "b/1.png")
    write_listing(tmp_path, *list_images(root))
    text = (tmp_path / "files.csv").read_text("utf-8")
    for damaged in (
        "",
        text.replace("sha256", "md5"),
        text[: text.rindex(",")],
        text.replace("part", '"part'),
    ):
        (tmp_path / "files.csv").write_text(damaged)
        with pytest.raises(ConvaeError, match="not a readable listing"):
            list(ListedFiles(tmp_path, "train"))
