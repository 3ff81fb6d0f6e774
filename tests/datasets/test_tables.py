"""`data.table` and `data.group`: pictures that no layout of folders describes."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from convae.datasets.download import download
from convae.datasets.image_set import ImageSet
from convae.datasets.listing import ListedFiles
from convae.datasets.prepare import prepare
from convae.errors import ConvaeError
from convae.names import PARTS
from convae.params import DataParams

FILMS = 12  # of four frames each


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A folder of frames at two depths; the brightness of a frame tells its film and number."""
    root = tmp_path / "films"
    for film in range(FILMS):
        for frame in range(4):
            path = root / f"{film % 3}/day/film{film}_frame{frame}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), film * 10 + frame).save(path)
    return root


def frames(**columns: Callable[[int, int], str]) -> list[dict[str, str]]:
    """A row per frame; each column is a function of film and frame."""
    return [
        {"path": f"{film % 3}/day/film{film}_frame{frame}.png"}
        | {name: value(film, frame) for name, value in columns.items()}
        for film in range(FILMS)
        for frame in range(4)
    ]


def write(path: Path, rows: list[dict[str, str]], separator: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def listed(tmp_path: Path, films: Path, data_params: Callable[..., DataParams]) -> Callable[..., Path]:
    """`listed(file="labels.csv")` runs download and returns its output."""

    def run(group: str | None = None, seed: int = 0, shards: str | None = None, **table: Any) -> Path:
        changes: dict[str, Any] = {"dataset": "image_folder", "root": str(films), "image_size": 8, "color": "grey"}
        data = data_params(**changes, table=table or None, group=group, shards=shards)
        raw, prepared = tmp_path / "raw", tmp_path / "prepared"
        download(data, raw, tmp_path / "downloads")
        prepare(data, seed, raw, prepared)
        return prepared

    return run


def films_of(prepared: Path, part: str) -> set[int]:
    return {value // 10 for value in np.unique(ImageSet.load(prepared / part).images).tolist()}


def label(film: int, frame: int) -> str:
    return "odd" if film % 2 else "even"


def film_name(film: int, frame: int) -> str:
    return f"film {film}"


@pytest.mark.parametrize("kind", ["csv", "semicolons", "parquet"])
def test_a_table_says_part_and_class(films: Path, listed: Callable[..., Path], kind: str) -> None:
    rows = frames(
        kind=label, split=lambda film, frame: "test" if film > 8 else "validation" if film > 6 else "", note=film_name
    )
    if kind == "parquet":
        pd.DataFrame(rows).to_parquet(films / "labels.parquet")
    else:
        write(films / "labels.csv", rows, ";" if kind == "semicolons" else ",")
    prepared = listed(file="labels.parquet" if kind == "parquet" else "labels.csv", label="kind")
    assert [films_of(prepared, part) for part in PARTS] == [set(range(7)), {7, 8}, {9, 10, 11}]
    train = ImageSet.load(prepared / "train")
    assert train.classes == ("even", "odd")
    assert train.labels is not None
    np.testing.assert_array_equal(train.labels, np.asarray(train.images)[:, 0, 0, 0] // 10 % 2)
    paths = (prepared / "train/paths.txt").read_text().splitlines()
    assert paths == [row["path"] for row in rows[:28]]  # in the table's order


def test_missing_values_of_a_parquet_file_are_no_labels(films: Path, listed: Callable[..., Path]) -> None:
    frame = pd.DataFrame(frames()).assign(label=[None if row % 2 else row % 4 // 2 for row in range(4 * FILMS)])
    frame = frame.astype({"label": "Int64"})
    frame.to_parquet(films / "labels.parquet")
    prepared = listed(file="labels.parquet")
    assert ImageSet.load(prepared / "train").classes == ("0", "1")  # and not 0.0


def test_pictures_without_a_label_become_the_unlabelled_part(films: Path, listed: Callable[..., Path]) -> None:
    write(films / "labels.csv", frames(label=lambda film, frame: label(film, frame) if film < 8 else ""))
    prepared = listed(file="labels.csv")
    sets = {part: ImageSet.load(prepared / part) for part in (*PARTS, "unlabelled")}
    assert sum(len(sets[part]) for part in PARTS) == 32
    assert sets["unlabelled"].labels is None
    # The encoder learns from this part alone: it has the labelled training pictures, too, but none that are held out.
    values = {part: np.asarray(images.images)[:, 0, 0, 0].tolist() for part, images in sets.items()}
    assert values["unlabelled"] == [10 * film + frame for film in range(8, 12) for frame in range(4)] + values["train"]
    assert not set(values["unlabelled"]) & {*values["test"], *values["validation"]}
    assert len((prepared / "unlabelled/paths.txt").read_text().splitlines()) == len(sets["unlabelled"])


def test_unlabelled_pictures_of_a_group_that_is_held_out_are_left_out(films: Path, listed: Callable[..., Path]) -> None:
    rows = frames(label=lambda film, frame: label(film, frame) if frame else "", group=film_name)
    write(films / "labels.csv", rows)
    prepared = listed(file="labels.csv")
    held = films_of(prepared, "test") | films_of(prepared, "validation")
    assert held
    assert films_of(prepared, "unlabelled") == set(range(FILMS)) - held


def test_missing_labels_and_shards_exclude_each_other(films: Path, listed: Callable[..., Path], tmp_path: Path) -> None:
    write(films / "labels.csv", frames(label=lambda film, frame: label(film, frame) if film < 8 else ""))
    with pytest.raises(ConvaeError, match=r"data.shards: all training pictures need a label, or none"):
        listed(shards=str(tmp_path / "shards"), file="labels.csv")


def test_paths_are_relative_to_the_table_and_links_inside_the_root_count(
    films: Path, listed: Callable[..., Path]
) -> None:
    (films / "tables").mkdir()
    (films / "more").symlink_to(films / "1")
    rows = frames()
    for row in rows:
        row["path"] = "../" + row["path"].replace("1/day", "more/day", 1)
    write(films / "tables/all.csv", rows)
    raw = listed(file="tables/all.csv").parent / "raw"
    assert [file.path for file in ListedFiles(raw, "train")][4] == "more/day/film1_frame0.png"


@pytest.mark.parametrize("through", ["linked", "films"])
def test_absolute_paths_may_lead_through_a_link(
    films: Path, tmp_path: Path, data_params: Callable[..., DataParams], through: str
) -> None:
    root = tmp_path / "linked"
    root.symlink_to(films)
    rows = frames()
    for row in rows:
        row["path"] = str(tmp_path / through / row["path"])
    write(films / "labels.csv", rows)
    folder: dict[str, Any] = {"dataset": "image_folder", "image_size": 8, "color": "grey"}
    download(data_params(**folder, root=str(root), table={"file": "labels.csv"}), tmp_path / "raw", tmp_path)
    assert next(iter(ListedFiles(tmp_path / "raw", "train"))).path == "0/day/film0_frame0.png"


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_group_never_lies_in_two_parts(films: Path, listed: Callable[..., Path], labelled: bool, seed: int) -> None:
    columns = {"group": film_name} | ({"label": label} if labelled else {})
    write(films / "labels.csv", frames(**columns))
    prepared = listed(file="labels.csv", seed=seed)
    parts = [films_of(prepared, part) for part in PARTS]
    assert sum(map(len, parts)) == FILMS
    assert set.union(*parts) == set(range(FILMS))
    assert all(parts)
    if labelled:
        assert all(len({film % 2 for film in part}) == 2 for part in parts[::2])  # of two classes each


def test_a_pattern_names_the_groups(listed: Callable[..., Path], films: Path) -> None:
    for path in films.rglob("*.png"):
        path.rename(films / path.name)
    for folder in "012":
        (films / folder / "day").rmdir()
        (films / folder).rmdir()
    parts = [films_of(listed(group=r"^(film\d+)_frame"), part) for part in PARTS]
    assert sum(map(len, parts)) == FILMS


def test_rows_that_point_nowhere_are_rejected_with_their_number(films: Path, listed: Callable[..., Path]) -> None:
    rows = frames()
    rows[7]["path"] = "0/day/film99.png"
    write(films / "labels.csv", rows)
    with pytest.raises(ConvaeError, match=r"1 files in .* cannot be used: 0/day/film99.png \(row 9: .*No such file"):
        listed(file="labels.csv")


Rows = list[dict[str, str]]


def changed(row: int, **values: str) -> Callable[[Rows], object]:
    return lambda rows: rows[row].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(5, path="0/day/../day/film0_frame0.png"), "row 7: the same picture as in row 2: 0/day/film0"),
        (changed(5, path=""), "row 7: it names no picture"),
        (changed(5, path="../secret.png"), "row 7: ../secret.png leads out of data.root"),
        (changed(5, path="/etc/hostname"), "row 7: /etc/hostname leads out of data.root"),
        (changed(5, path="."), "row 7: . leads out of data.root"),
        (changed(5, split="val"), "row 7: split 'val'; train, validation, test or nothing is allowed"),
        (changed(5, label="a\x1bb"), "row 7: labels and groups must be UTF-8 without control characters"),
        (changed(5, split="test", label="strange"), "the test part has class 'strange', but the training part"),
        (changed(5, split="test", label=""), "the test part has pictures without a label, but"),
        (changed(5, group=""), "groups: 1/day/film1_frame1.png belongs to none; each picture needs one"),
        (changed(5, split="test"), r"groups: 'film 1' lies in two parts \(1/day/film1_frame0.png in train, "),
        (lambda rows: [row.update(label="even") for row in rows], "'even' is the only class; at least two are needed"),
        (lambda rows: [row.update(group=row["path"]) for row in rows], "groups: each of the 48 pictures is one by"),
        (lambda rows: [row.update(group="all") for row in rows], "all 48 images are of one group, which can't"),
        (lambda rows: rows.clear(), "it has no rows"),
    ],
)  # fmt: skip
def test_an_ambiguous_table_is_one_line(
    films: Path, listed: Callable[..., Path], change: Callable[[Rows], object], message: str
) -> None:
    rows = frames(label=label, split=lambda film, frame: "", group=film_name)
    header = list(rows[0])
    change(rows)
    pd.DataFrame(rows, columns=header).to_csv(films / "labels.csv", index=False)
    with pytest.raises(ConvaeError, match=message) as error:
        listed(file="labels.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "table", "message"),
    [
        ("file\na.png\n", {}, r"no column 'path', only file; set data.table.path to one of these"),
        ("path,kind\na.png,x\n", {"label": "Kind"}, "no column 'Kind', only path, kind; set data.table.label"),
        ("path,path\na.png,x\n", {}, "two columns are called 'path'"),
        ("path,label\na.png\n", {}, "row 2: 1 values for 2 columns"),
        ("path,label\na,b.png,cat\n", {}, "row 2: 3 values for 2 columns"),
        ('path,label\na.png,"17 inch\nb.png,cat\nc.png,cat\n', {}, r"not a readable table \(unexpected end of data\)"),
        ("", {}, "labels.csv: it has no header"),
        ("path\n\xff", {}, r"not UTF-8 \(.*\); save it as CSV in UTF-8"),
        (None, {}, "labels.csv: No such file or directory"),
        ("path\na.png\n", {"file": "../labels.csv"}, "labels.csv: No such file or directory"),
        ("not parquet", {"file": "labels.parquet"}, r"labels.parquet: not a readable table \(.*Parquet magic bytes"),
    ],
)
def test_an_unreadable_table_is_one_line(
    films: Path, listed: Callable[..., Path], content: str | None, table: dict[str, str], message: str
) -> None:
    table = {"file": "labels.csv"} | table
    if content is not None:
        (films / Path(table["file"]).name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ConvaeError, match=message) as error:
        listed(**table)
    assert "\n" not in str(error.value)


def test_a_table_outside_the_root_is_refused(films: Path, listed: Callable[..., Path]) -> None:
    write(films.parent / "labels.csv", frames())
    with pytest.raises(ConvaeError, match=r"data.table.file = ../labels.csv: it leads out of data.root"):
        listed(file="../labels.csv")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digits", "group": "(a)"}, "group must be null for digits"),
        ({"dataset": "digits", "table": {"file": "a.csv"}}, "table must be null for digits"),
        ({"group": "("}, "no regular expression"),
        ({"group": "film"}, "one pair of parentheses is needed"),
        ({"group": "(a)", "table": {"file": "a.csv", "group": "b"}}, "both name the groups"),
        ({"table": {"file": "~/a.csv"}}, "not expanded"),
    ],
)
def test_impossible_parameters(data_params: Callable[..., DataParams], changes: dict[str, Any], message: str) -> None:
    folder = {"dataset": "image_folder", "image_size": 8}
    with pytest.raises(ValueError, match=message):
        data_params(**({} if "dataset" in changes else folder) | changes)
