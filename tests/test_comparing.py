"""The commands `similar` and `anomalies`, and the index of a folder behind the former."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from saved_models import save_models
from sklearn.datasets import load_digits

from convae import named_pictures
from convae.cli import main
from convae.encoder import load_encoder
from convae.evaluation.anomalies import Reference
from convae.index import Index

DIGITS = np.round(load_digits().images * 255 / 16).astype(np.uint8)
LABELS = load_digits().target


@pytest.fixture
def pictures(monkeypatch, tmp_path):
    """A folder with 40 digits, next to `models/`."""
    monkeypatch.chdir(tmp_path)
    save_models()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path("pictures")
    for number, image in enumerate(DIGITS[:40]):
        path = folder / f"{'even' if number % 2 == 0 else 'odd'}/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["convae", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return capsys.readouterr().out, str(end.code)
    return capsys.readouterr().out, ""


def number_of(file):
    return int(Path(file).stem)


def expected_order(encoder, query):
    features = encoder.features(np.concatenate([DIGITS[:40], DIGITS[query : query + 1]])).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(features[:40] - features[40], axis=1)
    return distances, np.argsort(distances, kind="stable")


def test_the_most_similar_pictures_are_printed_with_their_distances(pictures, monkeypatch, capsys):
    Image.fromarray(DIGITS[100]).save("query.png")
    distances, order = expected_order(load_encoder("models/encoder"), 100)
    out, error = run(monkeypatch, capsys, "similar", "query.png", pictures, "-k", 3)
    assert error == ""
    lines = [line.split() for line in out.splitlines()]
    assert [number_of(file) for _, file in lines] == order[:3].tolist()
    assert [float(distance) for distance, _ in lines] == pytest.approx(distances[order[:3]], abs=1e-4)
    table = json.loads(run(monkeypatch, capsys, "similar", "query.png", pictures, "-k", 99, "--json")[0])
    assert [row["file"] for row in table] == ["query.png"]
    assert [number_of(row["file"]) for row in table[0]["similar"]] == order.tolist()


def test_several_queries_are_named_and_a_sheet_is_drawn(pictures, monkeypatch, capsys):
    for number in (100, 101):
        Image.fromarray(DIGITS[number]).save(f"{number}.png")
    command = ["similar", "100.png", "101.png", pictures, "-k", 2, "--sheet", "sheet.png"]
    out, error = run(monkeypatch, capsys, *command)
    assert error == ""
    assert out.splitlines()[::3] == ["100.png", "101.png"]
    width, height = Image.open("sheet.png").size
    assert width / height == pytest.approx(3 * 1.25 / (2 * 1.8), rel=0.1)  # two rows of three pictures
    assert "exists" in run(monkeypatch, capsys, *command)[1]
    assert run(monkeypatch, capsys, *command, "--force")[1] == ""


def test_only_new_and_changed_pictures_are_computed(pictures, monkeypatch):
    encoder = load_encoder("models/encoder")
    computed = []
    read = named_pictures.read_picture
    monkeypatch.setattr(
        named_pictures, "read_picture", lambda file, *more: computed.append(number_of(file)) or read(file, *more)
    )
    first = Index.of_folder(encoder, pictures)
    assert sorted(computed) == list(range(40))
    computed.clear()
    again = Index.of_folder(encoder, pictures)
    assert computed == []
    assert again.files == first.files
    np.testing.assert_array_equal(again.features, first.features)
    Image.fromarray(DIGITS[50]).save(pictures / "odd/50.png")
    Image.fromarray(DIGITS[60]).save(pictures / "even/04.png")
    os.utime(pictures / "even/04.png", ns=(1, 1))
    (pictures / "odd/07.png").unlink()
    changed = Index.of_folder(encoder, pictures)
    assert sorted(computed) == [4, 50]
    assert len(changed.files) == 40
    by_number = {number_of(file): row for file, row in zip(changed.files, changed.features, strict=True)}
    new = encoder.features(DIGITS[60:61])[0]
    np.testing.assert_allclose(by_number[4], new / np.linalg.norm(new), rtol=1e-5)
    assert 7 not in by_number


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", None])
def test_a_damaged_index_is_made_anew(pictures, content):
    encoder = load_encoder("models/encoder")
    first = Index.of_folder(encoder, pictures)
    (file,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.parquet")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged) if content is None else content)
    again = Index.of_folder(encoder, pictures)
    np.testing.assert_array_equal(again.features, first.features)


def test_an_interrupted_index_is_continued(pictures, monkeypatch):
    encoder = load_encoder("models/encoder")
    monkeypatch.setattr(type(encoder), "batch_size", lambda self, size: 8)
    read = named_pictures.read_picture

    def stop(file, *more):
        if number_of(file) == 33:
            raise KeyboardInterrupt
        return read(file, *more)

    monkeypatch.setattr(named_pictures, "read_picture", stop)
    with pytest.raises(KeyboardInterrupt):
        Index.of_folder(encoder, pictures)
    computed = []
    monkeypatch.setattr(named_pictures, "read_picture", lambda file, *more: computed.append(file) or read(file, *more))
    assert len(Index.of_folder(encoder, pictures).files) == 40
    assert 0 < len(computed) < 40


def test_another_encoder_has_its_own_index(pictures):
    encoder = load_encoder("models/encoder")
    Index.of_folder(encoder, pictures)
    other = load_encoder("models/encoder")
    other.sha256 = "another"
    Index.of_folder(other, pictures)
    assert len(list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.parquet"))) == 2


def test_unreadable_pictures_are_left_out(pictures, monkeypatch, capsys):
    (pictures / "odd/broken.png").write_bytes(b"no picture")
    Image.fromarray(DIGITS[100]).save("query.png")
    out, error = run(monkeypatch, capsys, "similar", "query.png", pictures, "-k", 99)
    assert error == ""
    assert len(out.splitlines()) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["similar", "query.png", "nowhere"], "nowhere: not a folder"),
        (["similar", "query.png", "empty"], "no PNG"),
        (["similar", "query.png", "pictures", "-k", "0"], "-k: 1 or more"),
        (["similar", "query.png", "pictures", "--sheet", "sheet.jpg"], "the suffix must be .png"),
        (["similar", "missing.png", "pictures"], "skipped"),
        (["anomalies", "pictures"], "models/reference: not a reference for anomalies"),
        (["anomalies", "pictures", "--threshold", "nan"], "--threshold: a number"),
        (["anomalies", "pictures", "--sheet", "query.png/odd.png"], "query.png: a file; name a folder"),
        (["anomalies", "pictures", "--model", "nowhere"], "nowhere/encoder: not an encoder"),
    ],
)
def test_mistakes_are_reported_in_one_line(pictures, monkeypatch, capsys, arguments, message):
    Image.fromarray(DIGITS[100]).save("query.png")
    Path("empty").mkdir()
    _, error = run(monkeypatch, capsys, *arguments)
    assert message in error
    assert "\n" not in error


@pytest.fixture
def reference(pictures):
    encoder = load_encoder("models/encoder")
    zeros = DIGITS[LABELS == 0][:60]
    Reference.fit(encoder.features(zeros), encoder.sha256, code=False).save(Path("models/reference"))
    return encoder


def test_pictures_of_another_kind_come_first(reference, monkeypatch, capsys):
    out, error = run(monkeypatch, capsys, "anomalies", "pictures")
    assert error == ""
    lines = [line.split() for line in out.splitlines()]
    scores = [float(score) for score, _ in lines]
    assert scores == sorted(scores, reverse=True)
    assert [LABELS[number_of(file)] for _, file in lines[-4:]] == [0, 0, 0, 0]
    every = json.loads(run(monkeypatch, capsys, "anomalies", "pictures", "--json")[0])
    assert [row["score"] for row in every] == pytest.approx(scores, abs=0.01)
    threshold = every[9]["score"]
    some = json.loads(run(monkeypatch, capsys, "anomalies", "pictures", "--json", "--threshold", threshold)[0])
    assert some == every[:10]


def test_the_sheet_of_an_encoder_with_a_decoder_shows_its_error(reference, monkeypatch, capsys):
    assert reference.has_decoder
    assert run(monkeypatch, capsys, "anomalies", "pictures", "--sheet", "odd.png")[1] == ""
    colours = np.asarray(Image.open("odd.png").convert("RGB")).astype(int)
    red = (colours[..., 0] > 120) & (colours[..., 2] < 60)
    assert red.mean() > 0.005
    nothing = ["anomalies", "pictures", "--threshold", "1e9", "--sheet", "none.png"]
    out, _ = run(monkeypatch, capsys, *nothing, "--json")
    assert json.loads(out) == []
    assert not Path("none.png").exists()


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_arrays_and_their_sheets(reference, monkeypatch, capsys, kind):
    stack = DIGITS[:30] if kind is np.uint8 else (DIGITS[:30] / 255).astype(kind)
    np.savez("stack.npz", images=stack[:, None])
    Path("models/encoder/config.json").exists()
    out, error = run(monkeypatch, capsys, "anomalies", "stack.npz", "--sheet", "odd.png")
    assert error == ""
    assert {line.split()[1] for line in out.splitlines()} == {f"stack.npz[{row}]" for row in range(30)}
    assert np.asarray(Image.open("odd.png").convert("L")).std() > 10
    out, error = run(monkeypatch, capsys, "similar", "stack.npz", "pictures", "-k", 1, "--sheet", "similar.png")
    assert error == ""
    found = [line.split()[1] for line in out.splitlines()[1::2]]
    assert [number_of(file) for file in found] == list(range(30))


def test_names_in_any_encoding_are_indexed(pictures, monkeypatch):
    name = os.fsdecode(b"pictures/\xff.png")
    Image.fromarray(DIGITS[99]).save(name)
    encoder = load_encoder("models/encoder")
    for _ in range(2):
        assert Index.of_folder(encoder, pictures).similar(DIGITS[99:100], k=1)[0][0][0] == name


def test_an_index_that_can_not_be_kept_is_used_all_the_same(pictures, monkeypatch, capsys, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    assert len(Index.of_folder(load_encoder("models/encoder"), pictures).files) == 40
    assert "the index is not kept" in capsys.readouterr().err


def test_an_encoder_that_was_never_saved_has_an_index_of_its_own(pictures, tmp_path):
    saved, other = load_encoder("models/encoder"), load_encoder("models/encoder")
    saved.sha256 = other.sha256 = ""
    other.autoencoder.layers[0].convolution.weight *= -1
    first, second = (Index.of_folder(encoder, pictures, tmp_path / "cache") for encoder in (saved, other))
    assert not np.allclose(first.features, second.features)
    np.testing.assert_array_equal(Index.of_folder(saved, pictures, tmp_path / "cache").features, first.features)


def test_pictures_that_swapped_their_names_are_computed_again(pictures):
    one, other = (pictures / name for name in ("even/00.png", "even/02.png"))
    size = max(path.stat().st_size for path in (one, other))
    for path in (one, other):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, ns=(0, 0))
    encoder = load_encoder("models/encoder")
    before = Index.of_folder(encoder, pictures).features[[0, 1]]
    one.rename("moved")
    other.rename(one)
    Path("moved").rename(other)
    np.testing.assert_array_equal(Index.of_folder(encoder, pictures).features[[1, 0]], before)


def test_broken_links_and_pipes_are_reported_and_left_out(pictures, monkeypatch, capsys):
    (pictures / "even/broken.png").symlink_to("nothing.png")
    os.mkfifo(pictures / "even/pipe.png")
    index = Index.of_folder(load_encoder("models/encoder"), pictures)
    assert len(index.files) == 40
    told = capsys.readouterr().err
    assert "broken.png: No such file" in told
    assert "pipe.png: a pipe or a device" in told


def test_an_index_of_another_shape_is_made_anew(pictures):
    from pyarrow import parquet

    encoder = load_encoder("models/encoder")
    expected = Index.of_folder(encoder, pictures).features
    (file,) = Path("cache/convae").iterdir()
    table = parquet.read_table(file)
    parquet.write_table(table.rename_columns([*table.column_names[:-1], "Features"]), file)
    np.testing.assert_array_equal(Index.of_folder(encoder, pictures).features, expected)


def test_fractions_and_files_are_alike_on_a_sheet(reference, monkeypatch, capsys):
    np.save("fractions.npy", DIGITS[:2, None].astype(np.float32) / 255)
    np.save("bytes.npy", DIGITS[:2, None])
    Image.fromarray(DIGITS[2]).save("digit.png")
    sheets = []
    for name in ("fractions", "bytes"):
        command = ["anomalies", f"{name}.npy", "digit.png", "--sheet", "sheet.png", "--force"]
        assert run(monkeypatch, capsys, *command)[1] == ""
        sheets.append(np.asarray(Image.open("sheet.png").convert("L"))[:120])
    assert (sheets[0].mean(axis=0) == sheets[1].mean(axis=0)).mean() > 0.9  # all but the names


def test_a_sheet_of_many_neighbors_shows_the_first(pictures, monkeypatch, capsys):
    Image.fromarray(DIGITS[100]).save("query.png")
    out, error = run(monkeypatch, capsys, "similar", "query.png", pictures, "-k", 40, "--sheet", "sheet.png")
    assert error == ""
    assert len(out.splitlines()) == 40
    width, height = Image.open("sheet.png").size
    assert width / height == pytest.approx(10 * 1.25 / 1.8, rel=0.15)


def test_json_has_names_as_they_are(reference, monkeypatch, capsys):
    name = os.fsdecode(b"new\nline\xff.png")
    Image.fromarray(DIGITS[0]).save(name)
    out, error = run(monkeypatch, capsys, "anomalies", name, "--json", "--sheet", "sheet.png")
    assert error == ""
    assert json.loads(out)[0]["file"] == name
