"""The whole pipeline under the real DVC, on the embedded digits and on folders of pictures."""

import json
import re
from contextlib import chdir
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dvc.repo import Repo
from onnxruntime import InferenceSession
from PIL import Image
from saved_models import ending

from convae import load_encoder
from convae.classifier import load_image_classifier

ELSEWHERE = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "7", "LOGNAME": "other", "HOME": "/nowhere"}
NO_SERVER = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
UP_TO_DATE = "Data and pipelines are up to date."


def stages_to_compute(repository, *changes):
    """Stages that these changes to params.yaml make stale; the changes are reverted."""
    before = repository.read("params.yaml")
    repository.set(*changes)
    with chdir(repository.folder), Repo() as repo:
        status = repo.status()
    (repository.folder / "params.yaml").write_bytes(before)
    changed = {name for name, entries in status.items() if any("changed deps" in entry for entry in entries)}
    return changed - {"validate"}


def test_every_result_exists_and_a_second_repro_runs_nothing(finished):
    metrics = json.loads(finished.read("reports/metrics.json"))
    assert metrics["test"]["accuracy_low"] < metrics["test"]["accuracy"] < metrics["test"]["accuracy_high"]
    assert metrics["test"]["accuracy"] > 0.9
    assert {"macro_f1", "log_loss", "linear_reconstruction_mse"} <= metrics["test"].keys()
    assert {"accuracy", "linear_reconstruction_mse"} <= metrics["validation"].keys()
    assert metrics["features"]["dimension"] == 16 * 2 * 4 * 4
    assert metrics["encoder"]["parameters"] == 8 * 49 + 16 * 64
    assert metrics["code"]["dimension"] == 32
    assert metrics["code"]["accuracy"] > 0.85
    assert metrics["test"]["linear_reconstruction_mse"] < metrics["code"]["linear_reconstruction_mse"] < 0.05
    assert [(layer["filters"], layer["dead"]) for layer in metrics["health"]["filters"]] == [(8, 0), (16, 0)]
    assert metrics["health"]["copying"] is None
    figures = {path.stem for path in (finished.folder / "reports/figures").iterdir()}
    assert {"filters", "responses_2", "activation_maps_1", "activation_maps_2", "reconstructions"} <= figures
    assert UP_TO_DATE in finished.run("dvc", "status").stdout
    assert UP_TO_DATE in finished.run("dvc", "repro").stdout
    summary = finished.run("python", "-m", "pipeline.summary").stdout
    assert f"{metrics['test']['accuracy']:.2%}" in summary
    assert "reports/report.html" in summary
    assert finished.run("git", "status", "--porcelain", "--", "data", "models", "src").stdout == ""


def test_predictions_match_the_accuracy(finished):
    predictions = pd.read_parquet(finished.folder / "data/predictions/test.parquet")
    metrics = json.loads(finished.read("reports/metrics.json"))
    assert (predictions["truth"] == predictions["prediction"]).mean() == pytest.approx(
        metrics["test"]["accuracy"], abs=1e-6
    )


def test_the_saved_encoder_reproduces_the_evaluated_features(finished):
    encoder = load_encoder(finished.folder / "models/encoder")
    images = np.load(finished.folder / "data/prepared/test/images.npy")
    features = np.load(finished.folder / "data/features/test.npy")
    np.testing.assert_allclose(encoder.features(images), features, rtol=1e-4, atol=1e-4)
    code = np.load(finished.folder / "data/features/test_code.npy")
    np.testing.assert_allclose(encoder.features(images, code=True), code, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("classifier.kind=ridge", {"evaluate", "report"}),
        ("features.power=1.0", {"features", "report"}),
        ("features.code.ridge=0.1", {"features", "report"}),
        ("train.places=16", {"train", "report"}),
        ("train.epochs=3", {"train", "report"}),
        ("data.validation_size=0.2", {"prepare", "report"}),
        ("train.devices=2", set()),
        ("train.nodes=2", set()),
        ("train.accelerator=cpu", set()),
        ("tracking.uri=http://127.0.0.1:9", set()),
        ("tracking.enabled=false", set()),
    ],
)
def test_a_parameter_reruns_the_stages_that_read_it(finished, change, stages):
    assert stages_to_compute(finished, change) == stages


def test_verify_in_another_environment_is_identical(finished):
    database = (finished.folder / "mlflow.db").stat().st_mtime_ns
    before = finished.run("git", "status", "--porcelain").stdout
    done = finished.run("python", "-m", "convae.cli", "verify", **ELSEWHERE)
    assert done.stdout.endswith("\nverdict: identical\n")
    assert "differs" not in done.stdout
    assert finished.run("git", "status", "--porcelain").stdout == before
    assert (finished.folder / "mlflow.db").stat().st_mtime_ns == database
    assert not (finished.folder / ".convae/verify").exists()


@pytest.mark.slow
def test_a_forced_repro_without_a_server_gives_the_same_bits(finished):
    reports = sorted(path for path in (finished.folder / "reports").rglob("*") if path.is_file())
    before = {path: path.read_bytes() for path in [finished.folder / "dvc.lock", *reports]}
    for stage in ("evaluate", "report"):
        done = finished.run("dvc", "repro", "--force", "--single-item", stage, **NO_SERVER)
        assert done.stderr.count("no longer recorded in MLflow (http://127.0.0.1:9: ") == 1
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_the_readmes_commands_compare_experiments_and_restore_the_committed_one(finished, repository, tmp_path):
    section = (repository / "README.md").read_text("utf-8").split("## Change and compare")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    *commands, restore = [line for line in block.splitlines() if not line.startswith("make")]
    own = finished.copy(tmp_path / "convae")
    reports = [path for path in (own.folder / "reports").rglob("*") if path.is_file()]
    files = ["params.yaml", "dvc.lock", "models/encoder/config.json", *reports]
    before = {name: own.read(name) for name in files}
    shown = own.run("sh", "-ec", "\n".join(commands), CONVAE_TRACKING="off").stdout
    assert "classifier.kind" in shown
    assert own.read("dvc.lock") != before["dvc.lock"]
    own.run("sh", "-ec", restore)
    assert {name: own.read(name) for name in files} == before
    assert UP_TO_DATE in own.run("dvc", "status").stdout


def test_a_mistake_in_the_parameters_stops_at_once_and_keeps_results(finished):
    results = ["dvc.lock", "reports/metrics.json", "models/classifier/classifier.json", "data/features/test.npy"]
    before = {name: finished.read(name) for name in ["params.yaml", *results]}
    finished.set("classifier.logistic_regression.C=[-1]", "model.layers.0.kernel=40", "train.epochs=5")
    failed = finished.run("dvc", "repro", check=False)
    (finished.folder / "params.yaml").write_bytes(before["params.yaml"])
    text = failed.stdout + failed.stderr
    assert failed.returncode != 0
    assert "classifier.logistic_regression.C[0] = -1: must be greater than 0" in text
    assert "Traceback" not in text
    assert {name: finished.read(name) for name in before} == before
    assert "Running stage" not in finished.run("dvc", "repro").stdout


def paint(path: Path, red: bool, seed: int) -> None:
    """A picture of 40×50 pixels, reddish or bluish, with some texture."""
    pixels = np.random.default_rng(seed).integers(0, 120, (40, 50, 3), dtype=np.uint8)
    pixels[..., 0 if red else 2] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def colours(clone, tmp_path):
    """`colours("red", "blue")`: a clone for 60 reddish and bluish images in these folders."""

    def make(*folders):
        repository = clone()
        for index in range(60):
            folder = tmp_path / "pictures/train" / folders[index % 2]
            paint(folder / f"{index:03}.{'jpg' if index % 3 else 'png'}", index % 2 == 0, index)
        repository.set(
            "data.dataset=image_folder",
            f"data.root={tmp_path / 'pictures'}",
            "data.image_size=[16,20]",
            "classifier.kind=ridge",
        )
        return repository

    return make


def check_report(repository, pictures):
    page = repository.read("reports/report.html")
    assert b"data:image/png;base64" in page
    assert str(pictures).encode() not in page


@pytest.mark.slow
def test_colour_images_in_class_folders(colours, tmp_path):
    repository = colours("red", "blue")
    repository.run("dvc", "repro", CONVAE_TRACKING="off")
    metrics = json.loads(repository.read("reports/metrics.json"))
    assert metrics["test"]["accuracy"] == 1.0
    assert 0 < metrics["test"]["linear_reconstruction_mse"] < 0.1
    check_report(repository, tmp_path / "pictures")
    assert UP_TO_DATE in repository.run("dvc", "status").stdout

    paint(tmp_path / "pictures/train/red/new.png", True, 999)
    assert "download" in repository.run("dvc", "status").stdout


STAGES = """
from runpy import run_module
for stage in ("validate", "download", "prepare", "train", "features", "evaluate", "report"):
    run_module(f"pipeline.{stage}", run_name="__main__")
"""


@pytest.mark.slow
def test_colour_images_without_classes(colours, tmp_path):
    """In one process, which spares most of the imports."""
    repository = colours("", "")
    repository.run("python", "-c", STAGES, PYTHONPATH="src", CONVAE_TRACKING="off")
    metrics = json.loads(repository.read("reports/metrics.json"))
    assert "accuracy" not in metrics["test"]
    assert 0 < metrics["test"]["linear_reconstruction_mse"] < 0.1
    check_report(repository, tmp_path / "pictures")


@pytest.fixture(scope="module")
def measured(clone, tmp_path_factory):
    """A clone after all stages on 90 images of five channels in different units, and the images with their labels."""
    random, labels = np.random.default_rng(0), np.arange(90) % 3
    images = random.normal(size=(90, 5, 12, 16)).astype(np.float32)
    images[:, 1] += 3 * np.sin(np.arange(16) * (1 + labels[:, None, None]))
    images = images * np.array([1, 10, 0.01, 1000, 5], np.float32)[:, None, None] - 7
    stack = tmp_path_factory.mktemp("measured") / "stack.npz"
    np.savez(stack, images=images, labels=labels)
    repository = clone()
    repository.set(
        "data.dataset=arrays",
        f"data.root={stack}",
        "data.image_size=[12,16]",
        "data.channels=5",
        "data.scale=percentile",
        "train.epochs=20",
        "report.channels=[3,1,0]",
        "classifier.kind=logistic_regression",
        "classifier.logistic_regression.C=[0.01]",
    )
    repository.run("python", "-c", STAGES, PYTHONPATH="src", CONVAE_TRACKING="off")
    return repository, images, labels


@pytest.mark.slow
def test_five_channels_in_units_of_their_own_run_from_end_to_end(measured):
    repository, images, labels = measured
    metrics = json.loads(repository.read("reports/metrics.json"))
    assert metrics["test"]["accuracy"] > 0.6  # one in three by chance
    encoder = load_encoder(repository.folder / "models/encoder")
    assert encoder.config["channels"] == 5
    # Filters of whitened windows: as many weights as the window has values.
    assert encoder.parameter_count == 8 * 7 * 7 * 5 + 16 * 64
    test = np.load(repository.folder / "data/prepared/test/images.npy")
    stored = np.load(repository.folder / "data/features/test.npy")
    np.testing.assert_allclose(encoder.features(test), stored, atol=1e-5)
    rows = [int((images == image).all((1, 2, 3)).argmax()) for image in test]
    classifier = load_image_classifier(repository.folder / "models")
    right = np.mean(np.array(classifier.predict(images[rows])) == labels[rows].astype(str))
    assert right == pytest.approx(metrics["test"]["accuracy"])
    assert "Linear reconstructions" in repository.read("reports/report.html").decode()


@pytest.mark.slow
def test_arrays_pass_through_every_door(measured, tmp_path, monkeypatch, capsys):
    repository, images, _ = measured
    monkeypatch.chdir(repository.folder)
    np.save(tmp_path / "stack.npy", images[:4])
    expected = load_encoder("models/encoder").features(images[:4])
    source, target = str(tmp_path / "stack.npy"), str(tmp_path / "features.npy")
    assert ending(monkeypatch, "features", source, "-o", target) == ""
    assert capsys.readouterr().out.splitlines() == [f"{source}[{row}]" for row in range(4)]
    np.testing.assert_allclose(np.load(target), expected, atol=1e-5)
    assert ending(monkeypatch, "classify", source) == ""
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert ending(monkeypatch, "export", "--onnx", str(tmp_path / "encoder.onnx")) == ""
    session = InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(float)"
    np.testing.assert_allclose(session.run(None, {"images": images[:4]})[0], expected, atol=1e-3)
    assert ending(monkeypatch, "info") == ""
    assert "in the units trained on" in capsys.readouterr().out
    paint(tmp_path / "photo.png", True, 1)
    assert ending(monkeypatch, "features", str(tmp_path / "photo.png"), "-o", "f.npy").endswith("pictures were skipped")
    assert "photo.png: a picture has 1 or 3 channels; an array of 5 is needed" in capsys.readouterr().err
    assert ending(monkeypatch, "features", source, "-o", "f.npy", "--original-size") == ""
    np.save(tmp_path / "small.npy", images[:4, :, :8])
    assert ending(monkeypatch, "features", str(tmp_path / "small.npy"), "-o", "f.npy", "--force").endswith("skipped")
    assert "8×16 pixels, not 12×16; arrays are not resized" in capsys.readouterr().err
