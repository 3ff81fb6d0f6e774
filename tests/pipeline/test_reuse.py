"""The encoder and classifier of a finished pipeline, through each of their interfaces."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
from helpers import free_port, stop, wait_for
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from convae import CAEFeatures, load_encoder
from convae.classifier import load_image_classifier
from convae.cli import main
from convae.evaluation.saving import load_classifier, save_classifier
from convae.files import read_json

IMAGES = 20
CONVAE = ("python", "-m", "convae.cli")


@pytest.fixture(scope="module")
def published(finished):
    """A clone whose encoder and classifier are in MLflow's registry, and 20 test images as files in pictures/."""
    finished.run(*CONVAE, "publish")
    (finished.folder / "pictures").mkdir()
    for index, image in enumerate(images_of(finished)):
        Image.fromarray(image[0]).save(finished.folder / f"pictures/{index:02}.png")
    return finished


def images_of(repository):
    """Test images."""
    return np.load(repository.folder / "data/prepared/test/images.npy")[:IMAGES]


def uri(repository):
    return f"sqlite:///{repository.folder / 'mlflow.db'}"


@pytest.fixture
def client(published, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri(published))
    mlflow.set_tracking_uri(uri(published))
    yield MlflowClient()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def expected(published):
    """The features that `dvc repro` computed for these images."""
    return np.load(published.folder / "data/features/test.npy")[:IMAGES]


@pytest.fixture
def convae(published, monkeypatch, capsys):
    """`convae("info", "models/encoder")`: run a command in this process and return its output."""
    monkeypatch.chdir(published.folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convae", *arguments])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(convae):
    """`refused("info", "models:/nothing/1")`: the one line with which a command ends."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            convae(*arguments)
        assert "\n" not in end.value.code
        return end.value.code

    return run


def assert_same(found, expected):
    """Equal within 1e-4 of each row's length: a square root magnifies rounding errors near zero."""
    assert (np.linalg.norm(found - expected, axis=1) <= 1e-4 * np.linalg.norm(expected, axis=1)).all()


def test_python_gives_the_features_of_the_pipeline(published, expected):
    encoder = load_encoder(published.folder / "models/encoder")
    images = images_of(published)
    assert_same(encoder.features(images), expected)
    assert_same(encoder.features(images[:, 0] / 255), expected)
    assert_same(encoder.features(sorted((published.folder / "pictures").iterdir())), expected)


def test_scikit_learn_gives_the_features_of_the_pipeline(published, expected):
    images = images_of(published)
    features = CAEFeatures(published.folder / "models/encoder", value_range=(0, 255))
    assert_same(features.fit_transform(images), expected)
    assert_same(features.fit_transform(images.reshape(IMAGES, 64).astype(float)), expected)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_the_command_line_gives_the_features_of_the_pipeline(published, convae, expected, suffix):
    printed = convae("features", "pictures", "-o", f"build/f.{suffix}")
    files = [f"pictures/{index:02}.png" for index in range(IMAGES)]
    if suffix == "npy":
        assert_same(np.load(published.folder / "build/f.npy", allow_pickle=False), expected)
        assert printed.split() == files
    else:
        table = pd.read_parquet(published.folder / "build/f.parquet").set_index("file")
        assert list(table.index) == files
        assert_same(table.to_numpy(), expected)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_the_command_line_gives_the_code_of_the_pipeline(published, convae, suffix):
    code = np.load(published.folder / "data/features/test_code.npy")[:IMAGES]
    convae("features", "pictures", "--code", "-o", f"build/c.{suffix}")
    if suffix == "npy":
        assert_same(np.load(published.folder / "build/c.npy", allow_pickle=False), code)
    else:
        table = pd.read_parquet(published.folder / "build/c.parquet").set_index("file")
        assert list(table.columns) == [f"feature_{index}" for index in range(code.shape[1])]
        assert_same(table.to_numpy(), code)


def test_onnx_gives_the_features_of_the_pipeline_and_of_other_sizes(published, convae, expected):
    convae("export", "--onnx", "build/encoder.onnx")
    session = onnxruntime.InferenceSession(published.folder / "build/encoder.onnx")
    features, code = session.run(None, {"images": images_of(published)})
    assert_same(features, expected)
    encoder = load_encoder(published.folder / "models/encoder")
    assert_same(code, encoder.features(images_of(published), code=True))
    convae("export", "--any-size", "--onnx", "build/any.onnx")
    session = onnxruntime.InferenceSession(published.folder / "build/any.onnx")
    for shape in ((1, 1, 8, 8), (3, 1, 28, 28), (2, 1, 33, 70)):
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        assert_same(session.run(None, {"images": images})[0], encoder.features(images, resize=False))


def test_mlflow_gives_the_features_of_the_pipeline(published, client, expected):
    images = images_of(published)
    model = mlflow.pyfunc.load_model("models:/convae-encoder@champion")
    assert_same(model.predict(images), expected)
    code = load_encoder(published.folder / "models/encoder").features(images, code=True)
    assert_same(model.predict(images, params={"code": True}), code)
    assert_same(load_encoder("models:/convae-encoder@champion").features(images), expected)
    assert_same(CAEFeatures("models:/convae-encoder/1").fit_transform(images), expected)


def test_every_interface_gives_the_predictions_of_the_pipeline(published, convae, client):
    truth = pd.read_parquet(published.folder / "data/predictions/test.parquet")[:IMAGES]
    labels = [str(label) for label in truth["prediction"]]
    classifier = load_image_classifier(published.folder / "models")
    images = images_of(published)
    scores = classifier.scores(images)
    assert classifier.predict(images) == labels
    np.testing.assert_allclose(scores.max(axis=1), truth["confidence"], atol=1e-4)
    for model in ("models", "models:/convae-classifier@champion"):
        found = json.loads(convae("classify", "pictures", "--json", "--model", model))
        assert [one["label"] for one in found] == labels
        np.testing.assert_allclose([list(one["probabilities"].values()) for one in found], scores, atol=1e-4)
    table = mlflow.pyfunc.load_model("models:/convae-classifier@champion").predict(images)
    assert list(table["label"]) == labels
    np.testing.assert_allclose(table.drop(columns="label"), scores, atol=1e-4)


@pytest.mark.slow
def test_mlflow_serves_the_classifier_over_http(published, repository, client, tmp_path):
    """With the commands in docs/reuse.md, except curl."""
    page, port = (repository / "docs/reuse.md").read_text(), free_port()
    (command,) = re.findall(r"^mlflow models serve .*", page, re.MULTILINE)
    command = command.replace("5001", str(port))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command.split(), "--host", "127.0.0.1", "--workers", "1"],
            cwd=tmp_path,  # nothing of the repository on the path
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def answers():
        assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
        try:
            return urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200
        except OSError:
            return False

    def predictions(command, file):
        published.run("sh", "-c", *re.findall(command, page, re.MULTILINE))
        content = published.read(file)
        request = Request(f"http://127.0.0.1:{port}/invocations", content, {"Content-Type": "application/json"})
        return json.load(urlopen(request, timeout=60))["predictions"]

    shutil.copy(published.folder / "pictures/00.png", published.folder / "photo.png")
    try:
        wait_for(answers)
        rows = predictions(r"^python -c .* > body.json$", "body.json")
        picture = predictions(r"^printf .* > picture.json$", "picture.json")
        call = [str(repository / "examples/call_server.py"), "photo.png", "--url", f"http://127.0.0.1:{port}"]
        called = published.run("python", *call).stdout
    finally:
        stop(server)
    images, classifier = images_of(published)[:2], load_image_classifier(published.folder / "models")
    labels, scores = classifier.predict(images), classifier.scores(images)
    assert called.split()[:2] == ["photo.png", labels[0]]
    for answer in (rows, picture):
        assert [row.pop("label") for row in answer] == labels[: len(answer)]
        np.testing.assert_allclose([list(row.values()) for row in answer], scores[: len(answer)], atol=1e-4)


def test_a_published_model_describes_itself_and_contains_no_pickle(published, client, tmp_path):
    version = client.get_model_version_by_alias("convae-classifier", "champion")
    accuracy = read_json(published.folder / "reports/metrics.json")["test"]["accuracy"]
    assert f"test {100 * accuracy:.2f} %" in version.description
    assert "git checkout" in version.description
    assert client.get_run(version.run_id).data.tags["dvc.stage"] == "evaluate"
    folder = Path(mlflow.artifacts.download_artifacts("models:/convae-classifier@champion", dst_path=str(tmp_path)))
    model = mlflow.models.Model.load(str(folder))
    loaded = mlflow.pyfunc.load_model("models:/convae-classifier@champion")
    with pytest.raises(MlflowException, match="images have the shape"):  # features of other sizes are not comparable
        loaded.predict(np.zeros((1, 1, 16, 16), np.uint8))
    assert model.signature.outputs.input_names()[:2] == ["label", "probability 0"]
    assert model.load_input_example(str(folder)).shape == (2, 1, 8, 8)
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pickle", ".joblib", ".pt", ".bin")]
    requirements = (folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    assert any(line.startswith("torch==") for line in requirements)


def test_publishing_again_adds_nothing(convae, client):
    printed = convae("publish")
    assert "convae-encoder version 1 already" in printed
    assert "champion stays with version 1, this version" in printed
    assert len(client.search_model_versions("name = 'convae-classifier'")) == 1


@pytest.mark.slow
def test_missing_runs_are_added_to_the_store_before_publishing(published, tmp_path):
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert "champion is version 1" in published.run(*CONVAE, "publish", MLFLOW_TRACKING_URI=other).stdout
    version = MlflowClient(other).get_model_version_by_alias("convae-classifier", "champion")
    assert MlflowClient(other).get_run(version.run_id).data.tags["dvc.stage"] == "evaluate"


def test_models_absent_from_every_lock_are_not_published(published, refused, tmp_path):
    shutil.copytree(published.folder / "models", tmp_path / "models")
    estimator, about = load_classifier(tmp_path / "models/classifier")
    changed = {name: value for name, value in about.items() if name not in ("format", "sha256")} | {"settings": {}}
    save_classifier(tmp_path / "models/classifier", estimator, changed)
    line = refused("publish", "--model", str(tmp_path / "models"))
    assert "no dvc.lock in this repository has its content" in line


@pytest.mark.parametrize(
    "address", ["models:/convae-encoder@nobody", "models:/nothing/1", "runs:/0123456789abcdef0123456789abcdef/x"]
)
def test_an_address_without_a_model_is_refused_in_one_line(refused, address):
    assert refused("info", address).startswith(f"convae: {address}: ")


def test_an_address_without_a_store_creates_none(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "convae.cli", "info", "models:/convae-encoder/1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"there is no {tmp_path}/mlflow.db; set MLFLOW_TRACKING_URI to use another store" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "source", ["models/encoder", "models:/convae-classifier@champion", "models:/convae-encoder@champion"]
)
def test_info_describes_a_model_its_accuracy_and_its_origin(published, convae, source):
    text = convae("info", source)
    metrics = read_json(published.folder / "reports/metrics.json")
    for part in (
        "8 filters 7×7",
        "trained on 8×8",
        f"{metrics['features']['dimension']}",
        "16 filters 3×3",
        "of windows: normalised, whitened (denoising)",
        "32 (denoising)",
        "images of digits",
        f"{100 * metrics['test']['accuracy']:.2f} % (95 % interval",
        f"balanced {100 * metrics['test']['balanced_accuracy']:.2f} %",
        "convae lineage",
    ):
        assert part in text


def test_an_incompatible_initial_encoder_stops_training_and_keeps_results(published, tmp_path):
    """`test_the_commands_in_the_docs_run` uses a compatible one."""
    own = published.copy(tmp_path / "convae")
    encoder, initial = own.folder / "models/encoder", own.folder / "models/initial"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(encoder / name, initial / name)
    assert own.run("git", "status", "--porcelain", "--", "models").stdout == ""
    assert "models/initial" in own.run("dvc", "status").stdout
    own.set("preprocessing.local_contrast={window:3,floor:0.03}")
    refused = own.run("dvc", "repro", check=False)
    assert refused.returncode != 0
    assert "model.initialize_from: preprocessing.local_contrast is" in refused.stderr
    assert (encoder / "model.safetensors").read_bytes() == (initial / "model.safetensors").read_bytes()


@pytest.mark.parametrize("page", ["README.md", "docs/reuse.md"])
def test_the_python_in_the_docs_runs(published, repository, page):
    blocks = re.findall(r"^```python\n(.*?)^```$", (repository / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    shutil.copy(published.folder / "pictures/00.png", published.folder / "photo.png")
    printed = published.run("python", "-c", "\n".join(blocks)).stdout
    if page == "README.md":
        shown = re.findall(r"^```\n\n```\n(.*?)^```$", (repository / page).read_text(), re.DOTALL | re.MULTILINE)
        assert printed == shown[0]


@pytest.mark.slow
def test_the_commands_in_the_docs_run(published, repository, tmp_path):
    """Except the wheel and the server, which other tests cover; tests/test_pages.py checks README's."""
    page = (repository / "docs/reuse.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines()]
    commands = [line for line in lines if line.startswith(("convae", "cp", "dvc", "rm"))]
    assert len(commands) >= 8
    own = published.copy(tmp_path / "convae")
    shutil.copy(published.folder / "pictures/00.png", own.folder / "photo.png")
    before = load_encoder(published.folder / "models/encoder")
    script = "\n".join(['convae() { python -m convae.cli "$@"; }', *commands])
    own.run("sh", "-ec", script, CONVAE_TRACKING="off", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert (own.folder / "encoder.onnx").exists()
    assert (own.folder / "odd.png").exists()
    assert len(np.load(own.folder / "features.npy")) == len(np.load(own.folder / "fashion.npy")) == IMAGES
    assert pd.read_parquet(own.folder / "codes.parquet").shape == (IMAGES, 1 + 32)
    after = load_encoder(own.folder / "models/encoder")
    assert after.config["initialized_from"]["sha256"] == before.sha256
    np.testing.assert_array_equal(after.filters, before.filters)
    assert sorted(path.name for path in (own.folder / "models/initial").iterdir()) == ["README.md"]


def test_the_example_compares_three_classifiers(published, repository):
    example = repository / "examples/compare_classifiers.py"
    images, labels = (np.load(published.folder / f"data/prepared/train/{name}.npy") for name in ("images", "labels"))
    for index in range(200):
        folder = published.folder / f"folder/{labels[index]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index, 0]).save(folder / f"{index}.png")
    lines = published.run("python", str(example), "folder", "--encoder", "models/encoder").stdout.splitlines()
    names = ["the commonest class", "logistic regression", "nearest neighbours", "support vectors"]
    assert [line[:20].strip() for line in lines] == names
    assert float(lines[0].split()[-1]) == 0.1
    assert all(float(line[20:].split()[0]) > 0.6 for line in lines[1:])
