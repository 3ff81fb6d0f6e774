"""`convae features`, `classify`, `reconstruct` and `info` on everyday files."""

import io
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from pyarrow.parquet import ParquetFile

import convae.encoder as convae_encoder
from convae import load_encoder
from convae.cli import _parser, main
from convae.evaluation.evaluate import evaluate
from convae.evaluation.saving import load_classifier, save_classifier
from convae.features.extract import extract_features
from convae.training.train import train_encoder


@pytest.fixture
def models(experiment, digits, train_set, validation_set, tmp_path, monkeypatch):
    """`models/` with encoder and classifier of the digits, in the current folder; `pictures/` with some of these."""
    monkeypatch.chdir(tmp_path)
    params = experiment(train={"epochs": 1})
    encoder, _, _ = train_encoder(params, train_set, validation_set, lambda row: None)
    encoder.save(Path("trained"))
    extract_features(params, Path("trained"), digits, Path("features")).save(Path("models/encoder"))
    paths = {"predictions": Path("p.parquet"), "reports": Path("reports")}
    paths |= {name: Path("models") / name for name in ("classifier", "reference")}
    evaluate(params, load_encoder("models/encoder"), Path("features"), digits, **paths)
    for index in range(10):
        path = Path(f"pictures/{'ab'[index % 2]}/{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(train_set.images[index, 0]).save(path)
    return tmp_path


@pytest.fixture
def here(models, monkeypatch, capsys):
    """Run `convae` in this process, which has imported torch, and return its standard output."""

    def run(*arguments, text=""):
        monkeypatch.setattr(sys, "argv", ["convae", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(here, capsys):
    """Run a `convae` that must fail in this process, and return what it prints to standard output and error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            here(*arguments)
        assert isinstance(end.value.code, str)  # Python prints it, and the process ends with 1
        printed = capsys.readouterr()
        return printed.out, f"{printed.err}{end.value.code}\n"

    return run


def test_pictures_come_from_files_folders_patterns_and_standard_input(here):
    Path("pictures/.hidden").mkdir()
    for name in ("pictures/.hidden/x.png", "pictures/notes.txt", "pictures/a/UPPER.PNG"):
        Path(name).write_bytes(Path("pictures/a/0.png").read_bytes())
    all_files = [f"pictures/a/{index}.png" for index in (0, 2, 4, 6, 8)] + ["pictures/a/UPPER.PNG"]
    all_files += [f"pictures/b/{index}.png" for index in (1, 3, 5, 7, 9)]
    for arguments, text, expected in (
        (["pictures"], "", all_files),
        (["pictures/b/3.png", "pictures/a/0.png"], "", ["pictures/b/3.png", "pictures/a/0.png"]),
        (["pictures/**/[0-3].png"], "", [f"pictures/{name}.png" for name in ("a/0", "a/2", "b/1", "b/3")]),
        (["-"], "pictures/a/4.png\n\npictures/b/5.png\n", ["pictures/a/4.png", "pictures/b/5.png"]),
        (["pictures/**"], "", sorted(["pictures/notes.txt", *all_files])),  # without the folders
        (["pictures/notes.txt"], "", ["pictures/notes.txt"]),  # named explicitly, it is used
    ):
        assert here("features", *arguments, "-o", "f.npy", "--force", text=text).split() == expected
        images = [np.asarray(Image.open(file)) for file in expected]
        np.testing.assert_allclose(
            np.load("f.npy"), load_encoder("models/encoder").features(images), rtol=1e-5, atol=1e-5
        )


def test_a_bad_picture_is_reported_and_skipped(refused):
    Path("pictures/a/2.png").write_bytes(b"no picture")
    Path("pictures/a/4.png").write_bytes(Path("pictures/a/0.png").read_bytes()[:60])
    for command, kept in (
        (["features", "-o", "f.npy"], lambda printed: len(np.load("f.npy"))),
        (["features", "-o", "f.parquet"], lambda printed: len(pd.read_parquet("f.parquet"))),
        (["classify", "--json"], lambda printed: len(json.loads(printed))),
        (["reconstruct", "-o", "made"], lambda printed: len(list(Path("made").iterdir()))),
    ):
        printed, errors = refused(*command, "pictures", "missing.png")
        assert kept(printed) == 8
        lines = errors.splitlines()
        assert len(lines) == 4
        assert lines[0].startswith("convae: pictures/a/2.png: not a readable PNG")
        assert lines[2].startswith("convae: missing.png: ")
        assert lines[3] == "convae: 3 of 11 pictures were skipped"


def test_a_picture_that_is_too_large_is_skipped_too(models, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convae", "features", "pictures", "--original-size", "-o", "f.npy"])
    monkeypatch.setattr(convae_encoder, "MOST_MAP_BYTES", 4 * 4 * 100 * 100)
    Image.new("L", (200, 200)).save("pictures/large.png")
    with pytest.raises(SystemExit, match="1 of 11 pictures were skipped"):
        main()
    said = capsys.readouterr().err
    assert "convae: pictures/large.png: images of 200×200 pixels are too large" in said
    assert "omit --original-size" in said
    assert len(np.load("f.npy")) == 10


def test_names_from_standard_input_need_not_be_text(models):
    shutil.copy("pictures/a/0.png", b"pictures/\xe4.png")
    done = subprocess.run(
        [sys.executable, "-m", "convae.cli", "features", "-", "-o", "f.npy"],
        input=b"pictures/\xe4.png\n",
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(np.load("f.npy")) == 1


def test_pictures_are_resized_as_in_the_pipeline_or_keep_their_size(here):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    large.save("large.png")
    encoder = load_encoder("models/encoder")
    here("features", "large.png", "--original-size", "-o", "native.npy")
    native = encoder.features(np.asarray(large.convert("L"))[None], resize=False)
    np.testing.assert_allclose(np.load("native.npy"), native, rtol=1e-5, atol=1e-5)
    here("features", "large.png", "-o", "resized.npy")
    cropped = ImageOps.fit(large.convert("L"), (8, 8), Image.Resampling.BILINEAR)
    resized = encoder.features(np.asarray(cropped)[None])
    np.testing.assert_allclose(np.load("resized.npy"), resized, rtol=1e-5, atol=1e-5)
    assert np.abs(resized - native).max() > 0.1
    label = here("classify", "large.png").split()[0]
    cropped.save("cropped.png")
    assert here("classify", "cropped.png").split()[0] == label


def test_classes_and_probabilities(here):
    lines = here("classify", "pictures").splitlines()
    assert len(lines) == 10
    label, probability, file = lines[0].split()
    assert (label in "0123456789", file) == (True, "pictures/a/0.png")
    assert 10 < float(probability.rstrip("%")) <= 100
    found = json.loads(here("classify", "pictures", "--json"))
    assert [(one["file"], one["label"]) for one in found] == [(line.split()[-1], line.split()[0]) for line in lines]
    assert all(abs(sum(one["probabilities"].values()) - 1) < 1e-5 for one in found)
    assert all(one["probability"] == max(one["probabilities"].values()) for one in found)


def test_a_classifier_of_another_encoder_is_refused(refused):
    estimator, about = load_classifier(Path("models/classifier"))
    about = {name: value for name, value in about.items() if name not in ("format", "sha256")}
    save_classifier(Path("models/classifier"), estimator, about | {"encoder": "0" * 64})
    _, errors = refused("classify", "pictures")
    assert "classifier/ was fitted on the features of another encoder" in errors


def test_reconstructions_are_drawn_next_to_the_encoders_input(here):
    printed = here("reconstruct", "pictures/a/0.png", "pictures/a/0.png", "-o", "made")
    assert sorted(path.name for path in Path("made").iterdir()) == ["0-2.png", "0.png"]
    encoder, image = load_encoder("models/encoder"), Image.open("pictures/a/0.png")
    error = np.mean((encoder.preprocess(image) - encoder.reconstruct(image)) ** 2)
    assert float(printed.split()[0]) == pytest.approx(error, abs=1e-6)
    assert Image.open("made/0.png").size == (16, 8)


def test_a_closed_pipe_ends_the_command_quietly(models):
    command = f"{sys.executable} -m convae.cli classify {'pictures ' * 200} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=models)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["features", "pictures", "-o", "f.csv"], "f.csv: the suffix must be .parquet or .npy"),
        (["features", "pictures", "--encoder", "nowhere", "-o", "f.npy"], "nowhere: not an encoder"),
        (["classify", "pictures", "--model", "nowhere"], "nowhere/encoder: not an encoder"),
        (["info", "models/classifier"], "models/classifier: not an encoder"),
        (["features", "pictures", "--encoder", "trained", "-o", "f.npy"], "this encoder has no readout"),
        (["features", "pictures", "-o", "folder.npy"], "folder.npy: a folder; name a file"),
        (["export", "--onnx", "."], ".: a folder; name a file"),
        (["features", "pictures", "-o", "models/encoder/config.json/f.npy"], "models/encoder/config.json: "),
    ],
)
def test_mistakes_are_refused_in_one_line(refused, arguments, message):
    Path("folder.npy").mkdir()
    printed, errors = refused(*arguments)
    assert printed == ""
    assert errors.startswith("convae: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not Path("f.npy").exists()


def test_every_command_exists_and_has_help(repository):
    (commands,) = (action for action in _parser()[0]._actions if isinstance(action.choices, dict))
    assert sorted(commands.choices) == sorted(
        [
            "check",
            "features",
            "classify",
            "reconstruct",
            "similar",
            "anomalies",
            "export",
            "info",
            "publish",
            "push",
            "ui",
            "sync",
            "lineage",
            "verify",
            "search",
        ]
    )
    for name, parser in commands.choices.items():
        module, _, function = parser.get_default("command").partition(":")
        assert callable(getattr(import_module(f"convae.{module}"), function))
        assert f"convae {name} " in parser.format_usage()
        assert "example" in parser.format_help()


def test_pictures_of_many_sizes_share_one_row_group(here):
    for index in range(100):
        Image.new("L", (8 + index % 7, 8 + index % 5)).save(f"{index:02}.png")
    here("features", "[0-9][0-9].png", "-o", "f.parquet")
    assert ParquetFile("f.parquet").metadata.num_row_groups == 1
    assert len(pd.read_parquet("f.parquet")) == 100


def test_without_pyarrow_npy_is_still_written(models):
    code = "import sys; sys.modules['pyarrow'] = None; from convae.cli import main; main()"
    for suffix, status in (("parquet", 1), ("npy", 0)):
        command = [sys.executable, "-c", code, "features", "pictures", "-o", f"f.{suffix}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=models, env=os.environ)
        assert done.returncode == status
        assert ("Parquet needs pyarrow" in done.stderr) == (suffix == "parquet")
    command = [sys.executable, "-c", code, "similar", "pictures/a/0.png", "pictures"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=models, check=False)
    assert done.stderr == "convae: the index of a folder's pictures needs pyarrow; run `pip install pyarrow`\n"
    assert len(np.load("f.npy")) == 10
