"""The encoders that the package carries, and their format as docs/encoder-format.md describes it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import REPOSITORY
from safetensors.numpy import load_file
from saved_models import ending
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from convae import load_encoder, load_image_classifier
from convae.addresses import PRETRAINED, pretrained
from convae.environment import environment
from convae.errors import ConvaeError
from convae.files import read_json
from pipeline.encoders import SYSTEMS

MOST_BYTES = 3_000_000  # of each, with its classifier
MADE_WITH = "AMD EPYC", "AVX2"  # the processor that made the encoders, and its instructions
LOSSES = [0.209771, 0.723792]  # of Fashion-MNIST's, on validation images at the end of each phase
SHOE = REPOSITORY / "examples/shoe.png"


@pytest.fixture(params=list(SYSTEMS))
def name(request):
    return request.param


def photos(encoder):
    """Parts of photos, as the encoder's images: `uint8 [N, C, H, W]`."""
    photo = torch.tensor(load_sample_images().images[0].transpose(2, 0, 1).copy()).float()
    tiles = F.unfold(photo[None], 64, stride=64)[0].T.reshape(-1, 3, 64, 64)[:20]
    tiles = F.interpolate(tiles, tuple(encoder.config["image_size"]), mode="area")
    if encoder.config["channels"] == 1:
        tiles = tiles.mean(1, keepdim=True)
    return tiles.round().byte().numpy()


def test_they_load_by_name_and_are_small(name):
    assert pretrained() == sorted(SYSTEMS)
    classifier = load_image_classifier(name)
    images = photos(classifier.encoder)
    scores = classifier.scores(images)
    np.testing.assert_array_equal(
        load_encoder(name).features(images), load_encoder(PRETRAINED / name / "encoder").features(images)
    )
    assert scores.shape == (20, 10)
    assert np.isfinite(scores).all()
    assert sum(path.stat().st_size for path in (PRETRAINED / name).rglob("*")) < MOST_BYTES


def test_the_card_has_the_classifier_s_figures_and_a_commit_of_this_repository(name):
    card = (PRETRAINED / name / "README.md").read_text()
    accuracy = read_json(PRETRAINED / name / "classifier/classifier.json")["test"]["accuracy"]
    assert f"test {100 * accuracy:.2f} %" in card
    (commit,) = re.findall(r"from commit ([0-9a-f]{7})", card)
    assert str(SYSTEMS[name]) in card
    shallow = ["git", "-C", REPOSITORY, "rev-parse", "--is-shallow-repository"]
    if subprocess.run(shallow, capture_output=True, text=True, check=False).stdout.strip() == "false":
        subprocess.run(["git", "-C", REPOSITORY, "cat-file", "-e", f"{commit}^{{commit}}"], check=True)


@pytest.mark.slow
def test_todays_code_trains_the_encoder_of_fashion_mnist(tmp_path):
    shutil.copy(REPOSITORY / SYSTEMS["fashion_mnist"], tmp_path / "params.yaml")
    path = os.pathsep.join((str(REPOSITORY / "src"), str(REPOSITORY)))
    variables = os.environ | {"CONVAE_TRACKING": "off", "PYTHONPATH": path}
    for stage in ("download", "prepare", "train"):
        command = [sys.executable, "-m", f"pipeline.{stage}"]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        if "no source has it" in done.stderr:
            pytest.skip("Fashion-MNIST is not on this machine")
        assert done.returncode == 0, done.stderr
    file = "encoder/model.safetensors"
    shipped = {
        name: array
        for name, array in load_file(PRETRAINED / "fashion_mnist" / file).items()
        if name.startswith("autoencoder.")
    }
    trained = load_file(tmp_path / "models/autoencoder/model.safetensors")
    assert shipped.keys() == trained.keys()
    deviations = {name: float(abs(trained[name] - array).max() / abs(array).max()) for name, array in shipped.items()}
    found = environment()
    if (found["processor"], found["instructions"]) == MADE_WITH:
        assert not any(deviations.values()), deviations
        return
    # Another kind of processor rounds differently, which training amplifies. What is fitted in closed form to images
    # stays close, and so does the loss.
    closed = {name: value for name, value in deviations.items() if name.startswith("autoencoder.layers.0.input.")}
    assert closed
    assert max(closed.values()) < 1e-3, deviations
    losses = pd.read_csv(tmp_path / "reports/training.csv").groupby("phase").validation_loss.last()
    np.testing.assert_allclose(losses, LOSSES, rtol=0.01, err_msg=str(deviations))


def test_a_shoe_is_classified_as_one_without_scikit_learn():
    code = "import sys; sys.modules['sklearn'] = sys.modules['skops'] = None; from convae.cli import main; main()"
    command = [sys.executable, "-c", code, "classify", SHOE, "--model", "fashion_mnist"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Ankle boot")


def test_info_lists_them(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert not ending(monkeypatch, "info")
    listed = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in listed] == pretrained()
    assert not ending(monkeypatch, "info", "cifar10")
    assert "from commit" in capsys.readouterr().out


def test_a_folder_of_the_same_name_wins(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("fashion_mnist").mkdir()
    with pytest.raises(ConvaeError, match="fashion_mnist: not an encoder"):
        load_encoder("fashion_mnist")


READ = """
import sys
import numpy as np
exec(sys.stdin.read())
np.save("features.npy", features(sys.argv[1], np.load("images.npy")))
assert not {"torch", "convae"} & set(sys.modules)
"""


def test_the_reader_of_the_documentation_needs_neither_torch_nor_this_package(name, tmp_path):
    (reader,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/encoder-format.md").read_text(), re.DOTALL)
    encoder = load_encoder(name)
    images = photos(encoder)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", READ, PRETRAINED / name / "encoder"]
    subprocess.run(command, input=reader, text=True, cwd=tmp_path, check=True)
    expected = encoder.features(images)
    distances = np.linalg.norm(np.load(tmp_path / "features.npy") - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.median(distances) < 1e-4
    assert distances.max() < 1e-3
