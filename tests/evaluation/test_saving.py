import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from convae.errors import ConvaeError
from convae.evaluation.classifiers import CLASSIFIERS, make_classifier
from convae.evaluation.saving import load_classifier, save_classifier
from convae.files import content_sha256, read_json, write_json

SCRIPT = """
import sys, numpy as np
from pathlib import Path
from sklearn.datasets import load_digits
from convae.evaluation.classifiers import CLASSIFIERS, make_classifier
from convae.evaluation.saving import save_classifier
x, y = load_digits(return_X_y=True)
x = x[:300].astype(np.float32) / 16
for kind in CLASSIFIERS:
    estimator = make_classifier(kind, 0)
    if kind == "gradient_boosting":
        estimator.set_params(max_iter=3)
    save_classifier(Path(sys.argv[1]) / kind, estimator.fit(x, y[:300]), {"kind": kind})
"""


def digits():
    x, y = load_digits(return_X_y=True)
    return x.astype(np.float32) / 16, y


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """All seven classifiers, fitted and saved by two processes that hash strings differently."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for seed, folder in enumerate(folders, start=1):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
        subprocess.run(command, env=environment, check=True)
    return folders


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_two_processes_write_the_same_bytes(saved, kind):
    for name in ("classifier.skops", "classifier.json"):
        assert (saved[0] / kind / name).read_bytes() == (saved[1] / kind / name).read_bytes()


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_loaded_classifier_predicts_the_same_and_is_saved_as_the_same_bytes(saved, kind, tmp_path):
    estimator, description = load_classifier(saved[0] / kind)
    x, y = digits()
    fitted = make_classifier(kind, 0)
    if kind == "gradient_boosting":
        fitted.set_params(max_iter=3)
    with threadpool_limits(1):
        fitted.fit(x[:300], y[:300])
    assert description["kind"] == kind
    assert np.array_equal(estimator.predict(x), fitted.predict(x))
    if hasattr(fitted, "predict_proba"):
        assert np.array_equal(estimator.predict_proba(x), fitted.predict_proba(x))
    save_classifier(tmp_path / kind, estimator, {"kind": kind})
    assert (tmp_path / kind / "classifier.skops").read_bytes() == (saved[0] / kind / "classifier.skops").read_bytes()


def replace_content(folder, content):
    """What a forger would do: other bytes, and a description that vouches for them."""
    (folder / "classifier.skops").write_bytes(content)
    description = read_json(folder / "classifier.json")
    del description["sha256"]
    write_json(folder / "classifier.json", {**description, "sha256": content_sha256(description, content)})


def test_foreign_types_are_refused(tmp_path):
    save_classifier(tmp_path / "c", make_classifier("ridge", 0), {"kind": "ridge"})
    replace_content(tmp_path / "c", skops.io.dumps({"function": os.system}))
    with pytest.raises(ConvaeError, match=r"refused, it holds .*system"):
        load_classifier(tmp_path / "c")


def test_another_estimator_than_described_is_refused(tmp_path):
    save_classifier(tmp_path / "c", PCA(), {"kind": "ridge"})
    with pytest.raises(ConvaeError, match="a PCA, described as ridge"):
        load_classifier(tmp_path / "c")


def test_trees_that_point_outside_themselves_are_refused(tmp_path):
    x, y = digits()
    estimator = make_classifier("gradient_boosting", 0).set_params(max_iter=1).fit(x[:300], y[:300])
    for field, value in (("left", 10**6), ("right", 0), ("feature_idx", 64)):
        nodes = estimator._predictors[0][0].nodes
        before = nodes[field][0]
        nodes[field][0] = value
        save_classifier(tmp_path / "c", estimator, {"kind": "gradient_boosting"})
        nodes[field][0] = before
        with pytest.raises(ConvaeError, match="a tree"):
            load_classifier(tmp_path / "c")


def test_damaged_truncated_newer_and_missing_files_are_one_line_each(tmp_path):
    folder = tmp_path / "c"
    x, y = digits()
    save_classifier(folder, make_classifier("ridge", 0).fit(x, y), {"kind": "ridge"})
    content = (folder / "classifier.skops").read_bytes()
    (folder / "classifier.skops").write_bytes(content[:-1])
    with pytest.raises(ConvaeError, match="damaged"):
        load_classifier(folder)
    replace_content(folder, content[:1000])
    with pytest.raises(ConvaeError, match="not readable"):
        load_classifier(folder)
    description = read_json(folder / "classifier.json")
    write_json(folder / "classifier.json", {**description, "format": 3})
    with pytest.raises(ConvaeError, match="format 2"):
        load_classifier(folder)
    (folder / "classifier.json").write_text("[]")
    with pytest.raises(ConvaeError, match="not a classifier"):
        load_classifier(folder)
    with pytest.raises(ConvaeError, match="not a classifier"):
        load_classifier(tmp_path / "nowhere")


def test_without_labels_the_folder_says_so(tmp_path):
    save_classifier(tmp_path / "c", None, {"kind": None, "reason": "the images have no labels"})
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["classifier.json"]
    assert json.loads((tmp_path / "c/classifier.json").read_text())["reason"] == "the images have no labels"
    with pytest.raises(ConvaeError, match="no labels"):
        load_classifier(tmp_path / "c")


def test_the_archive_holds_neither_dates_nor_addresses(saved):
    with zipfile.ZipFile(saved[0] / "mlp/classifier.skops") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert "__id__" not in archive.read("schema.json").decode()
