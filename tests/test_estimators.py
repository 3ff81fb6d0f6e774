"""The transformers as scikit-learn's users see them."""

import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import convae
from convae import CAEFeatures, ConvolutionalAutoencoderFeatures, load_encoder
from convae.datasets.image_set import ImageSet
from convae.errors import ConvaeError
from convae.features.extract import fit_compact_code

DIGITS, LABELS = load_digits(return_X_y=True)  # 0 to 16
IMAGES = np.round(DIGITS * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
SMALL = {"filters": (8,), "kernel": 3, "random_state": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder of grey images."""
    path = tmp_path_factory.mktemp("encoder") / "encoder"
    ConvolutionalAutoencoderFeatures(**SMALL | {"random_state": 2}).fit(IMAGES[:300]).encoder_.save(path)
    return path


def test_scikit_learns_estimator_checks_pass(folder):
    """Treat their tables of any width as images with one row."""
    for estimator in (
        CAEFeatures(folder, image_shape=(1, -1), value_range=(-1e4, 1e4)),
        ConvolutionalAutoencoderFeatures((4,), kernel=3, image_shape=(1, -1)),
    ):
        results = check_estimator(estimator, on_skip=None)
        skipped = {result["check_name"] for result in results if result["status"] != "passed"}
        assert skipped <= {"check_array_api_input"}
        assert len(results) > 40


def test_every_kind_of_array_and_files_give_the_same_features(folder, tmp_path):
    expected = load_encoder(folder).features(IMAGES[:5])
    files = [tmp_path / f"{index}.png" for index in range(5)]
    for file, image in zip(files, IMAGES, strict=False):
        Image.fromarray(image).save(file)
    for images in (
        IMAGES[:5],
        IMAGES[:5, None],
        IMAGES[:5, ..., None],
        IMAGES[:5].reshape(5, 64),
        files,
        list(IMAGES[:5]),
    ):
        np.testing.assert_allclose(CAEFeatures(folder).fit_transform(images), expected, rtol=1e-5, atol=1e-5)
    floats = CAEFeatures(folder, value_range=(0, 255)).fit_transform(IMAGES[:5].astype(float))
    np.testing.assert_allclose(floats, expected, rtol=1e-4, atol=1e-4)


def test_the_compact_code_is_an_option(folder):
    encoder = load_encoder(folder)
    with pytest.raises(ConvaeError, match="made without a compact code"):
        CAEFeatures(encoder, code=True).fit(IMAGES[:5])
    code = {"kind": "pca", "components": 6, "corruption": None, "ridge": 1e-6, "scale": "equal", "images": None}
    images = ImageSet(IMAGES[:50, None], None, (), "")
    fit_compact_code(encoder, code, images, encoder.features(IMAGES[:50]), seed=0, progress=False)
    features = CAEFeatures(encoder, code=True).fit(IMAGES[:5])
    np.testing.assert_array_equal(features.transform(IMAGES[:5]), encoder.features(IMAGES[:5], code=True))
    assert len(features.get_feature_names_out()) == 6


def test_an_encoder_in_memory_is_used_unchanged(folder):
    encoder = load_encoder(folder)
    features = CAEFeatures(encoder).fit(IMAGES[:5])
    assert features.encoder_ is encoder


def test_a_pipeline_can_be_searched_cloned_and_stored(folder, tmp_path):
    pipeline = make_pipeline(CAEFeatures(folder), LogisticRegression(max_iter=1000))
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 0.1]}, cv=2, n_jobs=2)
    search.fit(IMAGES[:200], LABELS[:200])
    assert search.best_score_ > 0.8
    joblib.dump(search, tmp_path / "search")
    loaded = joblib.load(tmp_path / "search")
    np.testing.assert_array_equal(loaded.predict(IMAGES[200:300]), search.predict(IMAGES[200:300]))
    assert clone(pipeline).get_params()["caefeatures__encoder"] == folder


def test_features_have_names_and_can_be_a_table(folder):
    features = CAEFeatures(folder).set_output(transform="pandas")
    table = features.fit_transform(IMAGES[:3])
    names = [f"caefeatures{index}" for index in range(8 * 2 * 16)]
    assert list(table) == names == list(features.get_feature_names_out())


def test_a_fitted_encoder_beats_pixels_and_can_be_shared(tmp_path):
    few, rest = slice(0, 1000), slice(1000, None)
    own = make_pipeline(
        ConvolutionalAutoencoderFeatures(**SMALL | {"filters": (16,)}), LogisticRegression(C=0.1, max_iter=1000)
    )
    accuracy = own.fit(DIGITS[few], LABELS[few]).score(DIGITS[rest], LABELS[rest])
    pixels = LogisticRegression(max_iter=1000).fit(DIGITS[few], LABELS[few]).score(DIGITS[rest], LABELS[rest])
    assert accuracy > pixels
    own[0].encoder_.save(tmp_path / "encoder")
    shared = CAEFeatures(tmp_path / "encoder", value_range=own[0].value_range_).fit_transform(DIGITS[rest])
    np.testing.assert_allclose(shared, own[0].transform(DIGITS[rest]), rtol=1e-5, atol=1e-5)


def test_the_same_random_state_gives_the_same_bits_and_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, again, other = (
        ConvolutionalAutoencoderFeatures((4, 6), kernel=3, random_state=state).fit_transform(IMAGES[:100])
        for state in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape == (100, (4 + 6) * 2 * 16)
    assert list(tmp_path.iterdir()) == []


# Prints what a fit changed, in a fresh process whose first fit does the imports.
UNCHANGED = """
import logging, os, random, sys, warnings
import numpy as np
import rich.style  # draws from Python's generator when Lightning or scikit-learn first import it
import torch
from sklearn.datasets import load_digits
from convae import ConvolutionalAutoencoderFeatures
from convae.errors import ConvaeError
from convae.training.module import TrainingModule

end = TrainingModule.on_train_epoch_end

def fail(module):
    raise ConvaeError("the loss is not finite")

LOGGERS = [logging.getLogger(name) for name in (None, "pytorch_lightning", "pytorch_lightning.utilities.rank_zero")]

def state():
    deterministic = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    return {
        "filters": list(warnings.filters),
        "loggers": [(logger.level, list(logger.handlers), logger.propagate) for logger in LOGGERS],
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warning": torch.is_deterministic_algorithms_warn_only_enabled(),
        "deterministic": deterministic,
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
    }

def check(fails):
    before = state()
    TrainingModule.on_train_epoch_end = fail if fails else end
    try:
        ConvolutionalAutoencoderFeatures((4,), kernel=3, epochs=3, random_state=0).fit(images)
        assert not fails
    except ConvaeError:
        assert fails
    after = state()
    print([name for name in before if before[name] != after[name]])

images = (load_digits().images[:64] * 15).astype(np.uint8)
check(False)
check(True)
torch.use_deterministic_algorithms(True)
torch.backends.cudnn.benchmark = True
torch.set_num_threads(1)
LOGGERS[2].setLevel(logging.ERROR)
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
check(False)
"""


def test_fitting_does_not_change_global_state():
    done = subprocess.run([sys.executable, "-c", UNCHANGED], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n[]\n[]\n", "")


def test_fitting_without_a_random_state_draws_from_the_global_one():
    first, second = (ConvolutionalAutoencoderFeatures((4,), kernel=3).fit_transform(IMAGES[:20]) for _ in range(2))
    assert not np.array_equal(first, second)


def test_colour_images_in_either_layout():
    colour = np.random.default_rng(0).integers(0, 256, (40, 3, 12, 10), np.uint8)
    features = ConvolutionalAutoencoderFeatures(**SMALL).fit(colour)
    np.testing.assert_array_equal(features.transform(colour), features.transform(colour.transpose(0, 2, 3, 1)))
    assert features.transform(colour[:2, :, :9]).shape == (2, 8 * 2 * 16)  # another size


def test_images_of_any_depth_keep_their_precision():
    images = np.random.default_rng(0).normal(size=(40, 5, 12, 10)).astype(np.float32)
    images[:, 2] *= 1e-4  # would be lost in eight bits
    model = ConvolutionalAutoencoderFeatures(**SMALL).fit(images)
    assert model.encoder_.config["channels"] == 5
    assert model.encoder_.image_type == np.float32
    expected = model.transform(images)
    for same in (images.transpose(0, 2, 3, 1), list(images), images.reshape(40, -1)):
        found = model.set_params(image_shape=(12, 10)).transform(same)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    lost = images.copy()
    lost[:, 2] = 0
    assert np.abs(model.transform(lost) - expected).max() > 1e-3


def test_files_can_be_fitted_too(tmp_path):
    names = [str(tmp_path / f"{index}.png") for index in range(40)]
    for name, image in zip(names, IMAGES, strict=False):
        Image.fromarray(image).save(name)
    model = ConvolutionalAutoencoderFeatures(**SMALL).fit(names)
    expected = ConvolutionalAutoencoderFeatures(**SMALL).fit_transform(IMAGES[:40])
    for same in (names, pd.DataFrame({"path": names}), pd.Series(names), np.array(names)):
        np.testing.assert_array_equal(model.transform(same), expected)
    colour = IMAGES[:40, :, :, None] // np.array([1, 2, 3], np.uint8)
    for name, image in zip(names, colour, strict=True):
        Image.fromarray(image).resize((20, 10)).save(name)
    sized = ConvolutionalAutoencoderFeatures(**SMALL, image_shape=(8, 8)).fit(names)
    assert (sized.encoder_.config["channels"], sized.encoder_.config["image_size"]) == (3, [8, 8])


def test_arrays_and_pictures_are_not_mixed():
    for mixed in ([IMAGES[0], IMAGES[1] / 255], [IMAGES[0], IMAGES[1][:7]], [IMAGES[0], Image.fromarray(IMAGES[1])]):
        with pytest.raises(ConvaeError, match="of several shapes or types, or of arrays and pictures; pass one kind"):
            ConvolutionalAutoencoderFeatures(**SMALL).fit(mixed * 10)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda folder: CAEFeatures(folder).fit(np.zeros((2, 3, 8, 8))), r"the shape \[1, 3, 8, 8\]"),
        (lambda folder: CAEFeatures(folder).fit_transform(DIGITS), "values from 0 to 1[56]"),
        (lambda folder: CAEFeatures(folder).fit(np.zeros((2, 65))), "X has 65 columns, which are not a square image"),
        (lambda folder: CAEFeatures("nowhere").fit(IMAGES), "nowhere: not an encoder"),
        (
            lambda folder: ConvolutionalAutoencoderFeatures().fit(["a.png"]),
            "a.png: No such file or directory",
        ),
        (lambda folder: ConvolutionalAutoencoderFeatures().fit(np.zeros((9, 2, 8, 8))), "all windows are flat"),
        (lambda folder: ConvolutionalAutoencoderFeatures(kernel=4).fit(IMAGES[:9]), "needs an odd kernel"),
    ],
)
def test_mistakes_are_refused_in_one_line(folder, fit, message):
    with pytest.raises(ConvaeError, match=message) as refusal:
        fit(folder)
    assert "\n" not in str(refusal.value)


def test_neither_dvc_nor_mlflow_is_needed_to_train():
    code = (
        "import sys, numpy as np; from convae import ConvolutionalAutoencoderFeatures as F;"
        "F((2,), kernel=3).fit(np.random.default_rng(0).integers(0, 256, (4, 8, 8), np.uint8));"
        "print({'dvc', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert done.stderr == ""


def test_all_public_names_exist():
    assert all(getattr(convae, name) for name in convae.__all__)


def test_a_data_type_that_fit_did_not_see_is_refused():
    own = ConvolutionalAutoencoderFeatures(**SMALL).fit(IMAGES[:100])
    with pytest.raises(ConvaeError, match=r"X is float64, but fit saw uint8; set value_range=\(black, white\)"):
        own.transform(IMAGES[:5] / 255)
    own = ConvolutionalAutoencoderFeatures(**SMALL, value_range=(0, 255)).fit(IMAGES[:100])
    np.testing.assert_allclose(own.transform(IMAGES[:5].astype(float)), own.transform(IMAGES[:5]), rtol=1e-4, atol=1e-4)


def test_bytes_are_not_mistaken_for_another_value_range():
    own = ConvolutionalAutoencoderFeatures(**SMALL).fit(DIGITS[:100])
    with pytest.raises(ConvaeError, match="X is uint8, but fit saw numbers from 0 to 16; pass the same kind"):
        own.transform(DIGITS[:5].astype(np.uint8))
    own = ConvolutionalAutoencoderFeatures(**SMALL).fit(IMAGES[:100] / 255)
    np.testing.assert_allclose(own.transform(IMAGES[:5]), own.transform(IMAGES[:5] / 255), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", [IMAGES[:100, ..., None][0], IMAGES[:100, :, :3], IMAGES[:100, :, :4]])
def test_fit_does_not_mistake_a_single_image_for_many(images):
    with pytest.raises(ConvaeError, match="for a single image, pass images"):
        ConvolutionalAutoencoderFeatures(**SMALL).fit(images)


@pytest.mark.parametrize("shape", [(12, 5, 5), (12, 8, 8), (12, 5, 9), (2, 8, 8), (1, 8, 8)])
@pytest.mark.parametrize("filters", [(1,), (4, 300), (2, 2)])
def test_tiny_images_and_few_or_many_filters(shape, filters):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    own = ConvolutionalAutoencoderFeatures(filters, random_state=0)
    features = own.fit_transform(images)
    assert len(features) == len(images)
    assert np.isfinite(features).all()
    layers = own.encoder_.config["layers"]
    assert [bool(layer["output"]) for layer in layers] == [True] * (len(layers) - 1) + [False]
    assert [layer["kernel"] for layer in layers] == [[7, 7], [3, 3]][: len(layers)]


def test_numbers_of_numpy_are_numbers():
    images = np.random.default_rng(0).integers(256, size=(20, 8, 8), dtype=np.uint8)
    plain = {"filters": (4,), "kernel": 3, "epochs": 1, "batch_size": 8, "grid": 2, "learning_rate": 0.01}
    numpy = {name: np.asarray(value)[()] for name, value in plain.items()} | {"grid": (np.int64(2), np.int64(2))}
    one, other = (ConvolutionalAutoencoderFeatures(**own, random_state=0).fit(images) for own in (plain, numpy))
    np.testing.assert_array_equal(one.transform(images), other.transform(images))


def test_a_window_of_one_value_is_refused_in_one_line():
    images = np.random.default_rng(0).integers(256, size=(20, 8, 8), dtype=np.uint8)
    with pytest.raises(
        ConvaeError, match="all windows are flat; one value is, once it is centred; choose a larger kernel"
    ):
        ConvolutionalAutoencoderFeatures(filters=(4,), kernel=1).fit(images)


def test_too_many_layers_for_the_images_are_refused_in_one_line():
    with pytest.raises(ConvaeError, match=r"model\.layers\[\d\]: pooling over 2×2") as refusal:
        ConvolutionalAutoencoderFeatures((4,) * 6).fit(IMAGES[:20])
    assert "\n" not in str(refusal.value)


def test_blank_images_are_refused_in_one_line():
    with pytest.raises(ConvaeError, match="all windows are flat; are the training images blank"):
        ConvolutionalAutoencoderFeatures((4,)).fit(np.zeros((20, 8, 8)))
