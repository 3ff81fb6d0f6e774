"""`convae check`: what it says of pictures is what a run does with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers import REPOSITORY
from PIL import Image

from convae.checking import survey
from convae.experiment import load_experiment
from convae.params import load_params

Command = Callable[..., str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 noisy colour pictures, 40×30, in two films per class."""
    random = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / f"photos/{'cat' if number < 20 else 'dog'}/film{number // 10}_frame{number % 10}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(30, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_a_tidy_folder_is_described_and_gets_parameters(photos: Path) -> None:
    found = survey(photos)
    assert found["refused"] == ""
    assert found["sizes"] == {"40×30": 40}
    assert found["modes"] == {"RGB": 40}
    parts = found["description"]["parts"]
    assert {name: part["images"] for name, part in parts.items()} == {
        "train": 29,
        "validation": 3,
        "test": 8,
        "unlabelled": 0,
    }
    assert parts["test"]["images_per_class"] == {"cat": 4, "dog": 4}
    assert found["params"] == {
        "data.dataset": "image_folder",
        "data.root": str(photos),
        "data.table": None,
        "data.group": None,
        "data.image_size": [30, 40],
        "data.fit": "crop",
        "data.color": "rgb",
        "train.epochs": 663,  # 29 images in batches of 64: 300 steps
    }
    assert found["disk_gb"] == 0.01  # 2 * 40 * (3 * 30 * 40 + 4 * 9408) bytes, rounded up


@pytest.mark.parametrize(("shape", "size"), [((300, 400), [55, 74]), ((64, 128), [64, 128]), ((8, 8), [8, 8])])
def test_the_suggested_size_keeps_the_aspect_ratio(tmp_path: Path, shape: tuple[int, int], size: list[int]) -> None:
    for number in range(10):
        Image.new("L", shape[::-1], number * 20).save(tmp_path / f"{number}.png")
    params = survey(tmp_path)["params"]
    assert (params["data.image_size"], params["data.color"]) == (size, "grey")


def test_pictures_too_small_for_the_default_are_refused(tmp_path: Path) -> None:
    for number in range(10):
        Image.new("L", (500, 1), number * 20).save(tmp_path / f"{number}.png")
    assert survey(tmp_path)["refused"].startswith("model.layers[0]: pooling over 2×2 turns 1×500 into 0×250")


def test_pictures_of_very_different_shapes_are_padded(tmp_path: Path) -> None:
    for number in range(20):
        Image.new("L", (40, 10) if number % 2 else (10, 40), number * 10).save(tmp_path / f"{number}.png")
    assert survey(tmp_path)["params"]["data.fit"] == "pad"


def test_twelve_bits_get_their_white_level(tmp_path: Path) -> None:
    for number in range(10):
        Image.fromarray(np.full((9, 9), 300 * number, np.uint16)).save(tmp_path / f"{number}.png")
    assert survey(tmp_path)["params"]["data.white_level"] == 4095


def test_a_damaged_picture_is_counted_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(4096, size=(2, 90, 90), dtype=np.uint16)
    for name, pixels in zip("ab", noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:9000])
    assert survey(tmp_path)["modes"] == {"I;16": 1, "unreadable": 1}


def test_one_odd_stack_does_not_decide_for_all(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1 << 16, size=(12, 5, 9, 9), dtype=np.uint16)
    for number, stack in enumerate(values):
        tifffile.imwrite(tmp_path / f"{number:02}.tif", stack[: 4 if number == 0 else 5], photometric="minisblack")
    found = survey(tmp_path)
    assert found["params"]["data.channels"] == 5
    assert found["refused"] == "files that can't be used: 1; remove them, or raise data.max_rejected"
    assert [file["path"] for file in found["description"]["rejected"]] == ["00.tif"]
    assert not any("skipped" in concern for concern in found["concerns"])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.full((4, 9, 9), 7, np.uint16), {"data.color": "bands", "data.channels": 4, "data.scale": "percentile"}),
        (np.full((3, 9, 9), 7, np.uint8), {"data.color": "bands", "data.channels": 3, "data.scale": None}),
        (np.full((9, 9), 7, np.int16), {"data.color": "bands", "data.channels": 1, "data.scale": "percentile"}),
        (np.full((9, 9), 7, np.uint8), {"data.color": "grey"}),
        (np.full((9, 9, 3), (7, 8, 9), np.uint8), {"data.color": "rgb"}),
    ],
)
def test_what_can_be_no_picture_is_read_as_bands(tmp_path: Path, values: np.ndarray, found: dict[str, Any]) -> None:
    photometric: Any = "rgb" if values.shape[-1] == 3 else "minisblack"
    for number in range(10):
        tifffile.imwrite(tmp_path / f"{number}.tif", values + number, photometric=photometric)
    params = survey(tmp_path)["params"]
    assert {key: params.get(key) for key in found} == found


def test_a_table_that_is_not_used_is_pointed_out(photos: Path) -> None:
    (photos / "labels.csv").write_text("path,label\ncat/film0_frame0.png,cat\n")
    assert "labels.csv is not read. If it lists the pictures, use --table." in survey(photos)["concerns"]
    assert not any("--table" in concern for concern in survey(photos, table="labels.csv")["concerns"])


def test_if_no_file_can_be_used_the_first_says_why(tmp_path: Path) -> None:
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.zeros((5, 9, 9)), photometric="minisblack")
    assert "0.tif: float64; save it as uint8, uint16, int16 or float32" in survey(tmp_path)["refused"]


def test_a_mistake_in_an_option_names_it(photos: Path) -> None:
    assert survey(photos, group="film")["refused"].startswith("data.group: found 'film'; one pair of parentheses")


def test_groups_stay_together(photos: Path) -> None:
    found = survey(photos, group=r"(film\d+)_")
    groups = {name: part.get("groups") for name, part in found["description"]["parts"].items()}
    assert found["refused"] == ""
    assert sum(count for count in groups.values() if count) == 4
    assert found["params"]["data.group"] == r"(film\d+)_"


def test_what_would_stop_a_run_is_exit_code_1(photos: Path, convae: Command) -> None:
    (photos / "cat/notes.txt").write_text("a cat")
    (photos / "dog/cut.png").write_bytes((photos / "dog/film2_frame0.png").read_bytes()[:500])
    found = survey(photos)
    assert {file["path"] for file in found["description"]["rejected"]} == {"cat/notes.txt", "dog/cut.png"}
    assert found["refused"] == "files that can't be used: 2; remove them, or raise data.max_rejected"
    assert convae("check", str(photos)) == f"convae: a run would stop: {found['refused']}"
    assert survey(photos / "cat" / "film0_frame0.png")["refused"].startswith("data.root = ")


def test_the_command_prints_a_page_or_an_object(
    photos: Path, convae: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "cat/film0_frame0.png", photos / "dog/copy.png")
    assert convae("check", str(photos)) == ""
    page = capsys.readouterr().out
    assert "held out; cat 4, dog 4" in page
    assert "Images that occur in two or more classes, pixel for pixel: 2 of 41" in page
    assert len(page.splitlines()) < 30
    (photos / "labels.csv").write_text(
        "path,note\n" + "".join(f"{path.relative_to(photos)},new\n" for path in photos.rglob("*.png"))
    )
    assert convae("check", str(photos), "--json", "--table", "labels.csv") == ""
    out, err = capsys.readouterr()
    assert json.loads(out) == survey(photos, "labels.csv")
    assert "columns that are not used: note" in err


def test_the_suggested_parameters_are_written_and_valid(
    photos: Path, convae: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (REPOSITORY / "params.yaml").read_text("utf-8")
    Path("params.yaml").write_text(before, "utf-8")
    (photos / "labels.csv").write_text(
        "path,label\n" + "".join(f"{path.relative_to(photos)},{path.parent.name}\n" for path in photos.rglob("*.png"))
    )
    assert convae("check", str(photos), "--table", "labels.csv", "--write") == ""
    after = Path("params.yaml").read_text("utf-8")
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert len(changed) <= 7
    data = load_experiment().data
    assert (data.dataset, data.root, data.image_size) == ("image_folder", str(photos), (30, 40))
    assert data.table
    assert data.table.file == "labels.csv"
    default = load_params(REPOSITORY / "params.yaml")
    assert load_params(Path("params.yaml")).model == default.model


def test_parameters_of_other_images_are_reset(photos: Path, convae: Command, tmp_path: Path) -> None:
    Path("params.yaml").write_text((REPOSITORY / "params.yaml").read_text("utf-8"), "utf-8")
    np.savez(tmp_path / "s.npz", images=np.random.default_rng(0).normal(size=(50, 5, 12, 10)).astype(np.float32))
    assert convae("check", str(tmp_path / "s.npz"), "--write") == ""
    assert load_experiment().data.channels == 5
    assert convae("check", str(photos), "--write") == ""
    assert load_experiment().data.channels is None
    Path("params.yaml").write_text("data: [")
    assert "params.yaml" in convae("check", str(photos), "--write")


def test_without_params_yaml_nothing_is_written(photos: Path, convae: Command) -> None:
    assert "params.yaml: no such file" in convae("check", str(photos), "--write")


def test_arrays_get_parameters_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "stack.npz", images=random.normal(size=(50, 12, 10, 4)).astype(np.float32), labels=[0, 1] * 25)
    found = survey(tmp_path / "stack.npz")
    assert found["refused"] == ""
    assert found["modes"] == {"float32, 4 channels": 50}
    expected = {"dataset": "arrays", "image_size": [12, 10], "channels": 4, "layout": "channels_last"}
    assert {key: found["params"][f"data.{key}"] for key in expected} == expected
    assert found["params"]["data.scale"] == "percentile"
    np.savez(tmp_path / "deep.npz", images=random.random((50, 9, 9, 40), np.float32))
    params = survey(tmp_path / "deep.npz")["params"]  # 40 channels, although 9 are fewer
    assert (params["data.channels"], params["data.image_size"], params["data.scale"]) == (40, [9, 9], None)
    np.save(tmp_path / "one.npy", np.zeros((5, 3)))
    assert "an array images [N, C, H, W] is needed" in survey(tmp_path / "one.npy")["refused"]
