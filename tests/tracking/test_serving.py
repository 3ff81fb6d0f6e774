"""Models as MLflow serves them: which forms of images they take over HTTP, and how they refuse others."""

import base64
import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import ExifTags, Image
from saved_models import FEATURES, save_models
from served import save_served, serving

from convae import load_encoder, load_image_classifier
from convae.serving import MOST_BYTES
from convae.tracking.fetch import MODEL
from convae.tracking.registry import CLASSIFIER, ENCODER, _save


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with MLflow models of an encoder and a classifier, and pictures of several kinds."""
    folder = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_models()
        for name in (ENCODER, CLASSIFIER):
            save_served(Path(name), name)
    random = np.random.default_rng(0)
    photo, turned = Image.fromarray(random.integers(0, 256, (40, 30, 3), np.uint8)), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    photo.save(folder / "photo.jpg", exif=turned)
    photo.save(folder / "photo.png")
    Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(folder / "small.png")
    Image.fromarray(random.integers(0, 256, (9, 12, 4), np.uint8)).save(folder / "clear.png")
    return folder


@pytest.fixture(scope="module")
def encoder(home):
    return load_encoder(home / "models/encoder")


@pytest.fixture(scope="module")
def pictures(home):
    return sorted([*home.glob("*.png"), *home.glob("*.jpg")])


@pytest.fixture(scope="module")
def served(home):
    """`served(name, body)`: the status and the content of the answer of MLflow's server."""
    with serving(home / ENCODER) as encoder, serving(home / CLASSIFIER) as classifier:
        addresses = {ENCODER: encoder, CLASSIFIER: classifier}

        def ask(name, body, kind="application/json"):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            request = Request(f"{addresses[name]}/invocations", content, {"Content-Type": kind})
            try:
                with urlopen(request, timeout=60) as answer:
                    return answer.status, json.load(answer)
            except HTTPError as error:
                return error.code, json.load(error)

        yield ask


def in_base64(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_encoded_pictures_give_exactly_the_features_of_the_files(served, encoder, pictures):
    texts = list(map(in_base64, pictures))
    wrapped = [base64.encodebytes(path.read_bytes()).decode() for path in pictures]  # with line breaks
    expected = encoder.features(pictures)
    for body in (
        {"inputs": texts},
        {"inputs": wrapped},
        {"instances": texts},
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
        {"dataframe_records": [{"image": text} for text in texts]},
    ):
        status, answer = served(ENCODER, body)
        assert status == 200, answer
        np.testing.assert_array_equal(np.array(answer["predictions"], np.float32), expected)


def test_a_parquet_table_holds_the_bytes_themselves(served, encoder, pictures):
    stream = io.BytesIO()
    pd.DataFrame({"image": [path.read_bytes() for path in pictures]}).to_parquet(stream)
    status, answer = served(ENCODER, stream.getvalue(), "application/vnd.apache.parquet")
    assert status == 200, answer
    np.testing.assert_array_equal(np.array(answer["predictions"], np.float32), encoder.features(pictures))


def test_nested_lists_give_the_features_of_the_array(served, encoder):
    images = np.random.default_rng(1).integers(0, 256, (3, 1, 8, 8), np.uint8)
    status, answer = served(ENCODER, {"inputs": images.tolist()})
    assert status == 200, answer
    np.testing.assert_array_equal(np.array(answer["predictions"], np.float32), encoder.features(images))


def test_the_classifier_takes_pictures(served, home, pictures):
    status, answer = served(CLASSIFIER, {"inputs": list(map(in_base64, pictures))})
    assert status == 200, answer
    classifier = load_image_classifier(home / "models")
    assert [row.pop("label") for row in answer["predictions"]] == classifier.predict(pictures)
    np.testing.assert_array_equal([list(row.values()) for row in answer["predictions"]], classifier.scores(pictures))


def bomb(width, height):
    """A PNG of a few bytes that says it has width times height pixels."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return base64.b64encode(content).decode()


REFUSED = {
    "not base64": (["photo.png"], "images[0]: not base64"),
    "not ASCII": (["ü" * 4], "images[0]: not base64"),
    "no picture": ([base64.b64encode(b"hello, world").decode()], "images[0]: not a readable PNG"),
    "empty": ([""], "images[0]: empty file"),
    "a zip file": ([base64.b64encode(b"PK\x03\x04" + bytes(40)).decode()], "images[0]: a zip archive"),
    "a decompression bomb": ([bomb(50_000, 50_000)], "images[0]: too many pixels"),
    "a large picture": ([bomb(10_000, 9_999)], "images[0]: 10000×9999 pixels; at most"),
    "a huge file": (["A" * (MOST_BYTES * 3 // 2 + 1)], "images[0]: more than 64 MiB"),
    "a row without a picture": ([None], "images[0]: of type NoneType"),
    "numbers without rows": ([1, 2, 3], "images[0]: of type int"),
    "ragged": ([[[[0, 0], [0]]]], "images have the shape [1, 1, 2]"),
    "a list for a number": ([[[[[0, 0], *[0] * 7], *[[0] * 8] * 7]]], "images hold values that are not integers"),
    "another size": (
        np.zeros((1, 1, 9, 9), int).tolist(),
        "images have the shape [1, 1, 9, 9]; expected: [N, 1, 8, 8]",
    ),
    "fractions": ((np.zeros((1, 1, 8, 8)) + 0.5).tolist(), "images hold values that are not integers"),
    "truths": (np.zeros((1, 1, 8, 8), bool).tolist(), "images hold values that are not integers"),
    "too bright": ((np.zeros((1, 1, 8, 8), int) + 256).tolist(), "images have values from 256 to 256"),
    "negative": ((np.zeros((1, 1, 8, 8), int) - 1).tolist(), "images have values from -1 to -1"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_bad_images_are_refused_in_one_line(served, name):
    inputs, line = REFUSED[name]
    status, answer = served(CLASSIFIER, {"inputs": inputs})
    assert status == 400
    assert answer["message"].startswith(line)
    assert "\n" not in answer["message"]
    assert len(answer["message"]) < 300
    assert "stack_trace" not in answer


def test_the_second_picture_is_named_if_it_is_bad(served, home):
    content = in_base64(home / "photo.jpg")
    status, answer = served(ENCODER, {"inputs": [content, content[: len(content) // 2 // 4 * 4]]})
    assert status == 400
    assert answer["message"].startswith("images[1]: damaged")


def test_text_never_names_a_file_of_the_server(served, home, monkeypatch):
    monkeypatch.chdir(home)
    shutil.copy("small.png", "abcdefgh")  # a name that is also base64
    for text in ("small.png", "abcdefgh", str(home / "small.png")):
        status, answer = served(ENCODER, {"inputs": [text]})
        assert status == 400
        assert answer["message"].startswith("images[0]: not ")


def test_the_model_takes_the_same_forms_in_python(home, encoder, pictures):
    model = mlflow.pyfunc.load_model(str(home / ENCODER))
    expected, contents = encoder.features(pictures), [path.read_bytes() for path in pictures]
    for images in (
        np.array(contents, object),
        np.array([base64.b64encode(content).decode() for content in contents]),
        pd.DataFrame({"image": contents}),
        np.array([contents[0], base64.b64encode(contents[1]).decode(), *contents[2:]], object),
    ):
        np.testing.assert_array_equal(model.predict(images), expected)
    black = np.zeros((2, 1, 8, 8), np.uint8)
    for images in (black, black / 255, np.array(black.tolist(), object)):
        np.testing.assert_array_equal(model.predict(images), encoder.features(black))
    assert model.predict(np.array([], object)).shape == (0, FEATURES)
    with pytest.raises(MlflowException, match="NumPy has cut trailing zeros"):
        model.predict(np.array(contents))
    with pytest.raises(MlflowException, match="images are int64; uint8"):
        model.predict(black.astype(np.int64))


def test_a_published_array_signature_still_works(home, encoder, tmp_path):
    """Models of earlier versions name the shape and the type of the images."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(Schema([TensorSpec(np.dtype(np.uint8), (-1, 1, 8, 8))]))
    images = np.zeros((2, 1, 8, 8), np.uint8)
    _save(tmp_path / "model", home / ENCODER / "data" / MODEL, images, signature)
    np.testing.assert_array_equal(
        mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(images), encoder.features(images)
    )
