"""The examples in docstrings run, in a folder with `models/` and `picture.png`; so do the scripts in `examples/`."""

import doctest
import re
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from helpers import REPOSITORY
from PIL import Image
from saved_models import save_models

from convae import load_encoder, load_image_classifier

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCE, EXAMPLES = REPOSITORY / "src", REPOSITORY / "examples"
# Modules without an example are not imported: Lightning and MLflow take seconds.
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if ">>> " in path.read_text("utf-8")
)


@pytest.mark.usefixtures("convae")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried
    assert not failed


class Ended(NamedTuple):
    """How a script ended, and what it printed."""

    said: str
    out: str
    err: str


Example = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    """`run("finetune", "pictures")`: run a script in this process, which has imported torch."""

    def run(name: str, *arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        capsys.readouterr()
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            return Ended(str(end.code), *capsys.readouterr())
        return Ended("", *capsys.readouterr())

    return run


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files in `pictures/`, stripes and noise, in a folder with `models/` and `picture.png`."""
    monkeypatch.chdir(tmp_path)
    save_models()
    random = np.random.default_rng(0)
    for index in range(24):
        name = ("noise", "stripes")[index % 2]
        path = Path("pictures", name, f"{index:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        light = np.tile([[195], [0]], (4, 8)) if name == "stripes" else 0
        Image.fromarray((light + random.integers(0, 60, (8, 8))).astype(np.uint8)).save(path)
    return sorted(map(str, Path("pictures").rglob("*.png")))


@pytest.mark.usefixtures("pictures")
def test_grid_search_finds_a_classifier(run: Example) -> None:
    done = run("grid_search", "pictures", "--encoder", "models/encoder")
    chosen, accuracies = done.out.splitlines()
    assert chosen.startswith(("LogisticRegression(", "SVC(", "KNeighborsClassifier("))
    assert accuracies == "cross-validation 1.000, held-out pictures 1.000"


@pytest.mark.usefixtures("pictures")
def test_fine_tuning_lowers_the_loss(run: Example) -> None:
    done = run("finetune", "pictures", "--encoder", "models/encoder", "--epochs", "40")
    losses = [float(loss) for loss in re.findall(r"loss (\S+),", done.out)]
    assert len(losses) == 40
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("pictures")
def test_gradients_reach_every_filter() -> None:
    encoder = load_encoder("models/encoder")
    model = runpy.run_path(str(EXAMPLES / "finetune.py"))["Classifier"](encoder, classes=2)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), np.uint8))
    assert torch.equal(model(images), model.head(torch.from_numpy(encoder.features(images))))
    model(images).square().sum().backward()
    for layer in encoder.autoencoder.layers:
        assert (layer.convolution.weight.grad.abs().flatten(1).sum(1) > 0).all()


def test_a_folder_is_scored_to_a_table(run: Example, pictures: list[str]) -> None:
    Path("pictures/noise/bad.png").write_bytes(b"no picture")
    done = run("score_folder", "pictures", "scores.parquet", "--model", "models")
    assert done.err.startswith("pictures/noise/bad.png: not a readable PNG")
    table, classifier = parquet.read_table("scores.parquet"), load_image_classifier("models")
    assert table.column_names == ["path", "label", "score a", "score b", "score c"]
    paths = table["path"].to_pylist()
    assert sorted(paths) == pictures
    assert table["label"].to_pylist() == classifier.predict(paths)
    scores = np.stack([column.to_numpy() for column in table.columns[2:]], axis=1)
    np.testing.assert_allclose(scores, classifier.scores(paths), rtol=1e-5, atol=1e-5)


def test_a_served_classifier_is_called(run: Example, pictures: list[str]) -> None:
    from served import save_served, serving

    from convae.tracking.registry import CLASSIFIER

    save_served(Path("served"), CLASSIFIER)
    Path("bad.png").write_bytes(b"no picture")
    with serving(Path("served")) as address:
        done = run("call_server", *pictures, "--url", address)
        refused = run("call_server", "picture.png", "bad.png", "--url", address)
    labels = load_image_classifier("models").predict(pictures)
    assert [tuple(line.split()[:2]) for line in done.out.splitlines()] == list(zip(pictures, labels, strict=True))
    assert refused.said == "picture.png and 1 more: images[1]: not a readable PNG, JPEG, WebP, BMP or TIFF image"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_every_script_is_short_and_has_help(run: Example, name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) <= 70
    assert run(name, "--help").out.startswith(f"usage: {name}.py")


def outputs(notebook: "NotebookNode") -> list[str]:
    """What each code cell printed."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(out.text for out in cell.outputs if out.output_type == "stream") for cell in cells]


@pytest.mark.slow
def test_the_tour_runs_and_gives_the_committed_numbers(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    path = EXAMPLES / "tour.ipynb"
    assert path.stat().st_size < 1e6
    notebook = nbformat.read(path, as_version=4)
    committed = outputs(notebook)
    assert sum(map(bool, committed)) >= 6
    client = NotebookClient(
        notebook,
        timeout=600,  # of a cell
        startup_timeout=600,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": tmp_path}},
    )
    client.execute()  # raises an error that a cell raises
    notebook.metadata.language_info = {"name": "python"}  # not its version
    (REPOSITORY / "build").mkdir(exist_ok=True)
    nbformat.write(notebook, REPOSITORY / "build/tour.ipynb")  # to commit, if the outputs are meant to change
    assert not any(out.get("name") == "stderr" for cell in notebook.cells for out in cell.get("outputs", []))
    for before, now in zip(committed, outputs(notebook), strict=True):
        number = r"\d+(?:\.\d+)?"
        assert re.sub(number, "#", now) == re.sub(number, "#", before)
        # Percentages; another processor rounds otherwise.
        assert [float(text) for text in re.findall(number, now)] == pytest.approx(
            [float(text) for text in re.findall(number, before)], abs=1.0
        )
