import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sklearn
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from convae.errors import ConvaeError
from convae.evaluation.classifiers import CLASSIFIERS, make_classifier
from convae.evaluation.saving import load_classifier, load_scores, save_classifier
from convae.evaluation.scores import LogisticScores
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
def test_a_loaded_classifier_predicts_and_saves_identically(saved, kind, tmp_path):
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
    """Forge a classifier: other bytes, and a description with their hash."""
    (folder / "classifier.skops").write_bytes(content)
    description = read_json(folder / "classifier.json")
    del description["sha256"]
    write_json(folder / "classifier.json", {**description, "sha256": content_sha256(description, content)})


def test_unknown_types_are_refused(tmp_path):
    save_classifier(tmp_path / "c", {"function": os.system}, {"kind": "ridge"})
    with pytest.raises(ConvaeError, match=r"refused, it holds .*system"):
        load_classifier(tmp_path / "c")


def test_an_estimator_of_another_type_than_described_is_refused(tmp_path):
    save_classifier(tmp_path / "c", PCA(), {"kind": "ridge"})
    with pytest.raises(ConvaeError, match="a PCA, described as ridge"):
        load_classifier(tmp_path / "c")


def test_trees_with_out_of_range_nodes_are_refused(tmp_path):
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


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("support_", np.s_[:1]),
        ("support_vectors_", np.s_[:1]),
        ("support_vectors_", np.s_[:, :3]),
        ("_n_support", np.s_[:1]),
        ("_dual_coef_", np.s_[:, :1]),
        ("_intercept_", np.s_[:1]),
    ],
)
def test_missing_support_vectors_are_refused(tmp_path, name, part):
    x, y = digits()
    estimator = make_classifier("rbf_svm", 0).fit(x[:300], y[:300])
    setattr(estimator, name, getattr(estimator, name)[part].copy())
    save_classifier(tmp_path / "c", estimator, {"kind": "rbf_svm"})
    with pytest.raises(ConvaeError, match=r"has the shape|do not add up"):
        load_classifier(tmp_path / "c")


@pytest.mark.parametrize("numbers", [[-5, 10**9, 5], [10**6] * 3])
def test_inconsistent_support_vector_counts_are_refused(tmp_path, numbers):
    x, y = digits()
    estimator = make_classifier("rbf_svm", 0).fit(x[:300], y[:300] % 3)
    estimator._n_support = np.array(numbers, np.int32)
    save_classifier(tmp_path / "c", estimator, {"kind": "rbf_svm"})
    with pytest.raises(ConvaeError, match="do not add up"):
        load_classifier(tmp_path / "c")


def test_damaged_truncated_newer_and_missing_files_are_refused_in_one_line(tmp_path):
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


def archive(*entries, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as target:
        for name, content in entries:
            target.writestr(name, content)
    return stream.getvalue()


def entries_of(folder):
    with zipfile.ZipFile(folder / "classifier.skops") as source:
        return {name: source.read(name) for name in source.namelist()}


def lying(content):
    """The directory says that the last entry, which is compressed, is stored and small."""
    start = content.rindex(b"PK\1\2")
    changed = struct.pack("<H", 0) + content[start + 12 : start + 20] + struct.pack("<II", 9, 9)
    return content[: start + 10] + changed + content[start + 28 :]


def overlapping(content, times):
    """Many names for the same bytes."""
    start = content.rindex(b"PK\1\2")
    end = content.rindex(b"PK\5\6")
    entry = content[start:end]
    first = content.index(b"PK\1\2")
    directory = content[first:end] + entry * times
    count = content[first:end].count(b"PK\1\2") + times
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), first, 0)
    return content[:first] + directory + tail


def header(shape, dtype="<f8"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + bytes(8)


def nested(depth):
    """Nested lists that hold the same list twice: few objects, but 2 to the power of the depth visits."""
    about = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode"}
    node = about | {"__id__": 1, "content": []}
    for index in range(2, depth):
        node = about | {"__id__": index, "content": [node, about | {"__id__": index - 1}]}
    return node | {"protocol": 1, "_skops_version": "0.13"}


UNREADABLE = r"c/classifier\.skops: not readable: "
FORGED = {
    "compressed": (
        lambda entries: archive(*entries.items(), ("x.npy", bytes(1 << 20)), compression=zipfile.ZIP_DEFLATED),
        "it is compressed",
    ),
    "nested archive": (
        lambda entries: archive(*entries.items(), ("x.npy", archive(("y", bytes(1 << 20)), compression=8))),
        UNREADABLE,
    ),
    "lying directory": (
        lambda entries: lying(archive(("x.npy", bytes(1 << 20)), compression=zipfile.ZIP_DEFLATED)),
        UNREADABLE,
    ),
    "overlapping": (lambda entries: overlapping(archive(*entries.items()), 5000), "it would unpack to more than its"),
    "claims a terabyte": (
        lambda entries: archive(*entries.items(), ("x.npy", header("(1000000000000,)"))),
        "an array does not have the size in its header",
    ),
    "claims large items": (
        lambda entries: archive(*entries.items(), ("x.npy", header("(1,)", "|V2000000000"))),
        "an array does not have the size in its header",
    ),
    "read again and again": (
        lambda entries: archive(
            *(entries | {"schema.json": json.dumps(sorted(entries, key=lambda name: len(entries[name])) * 99)}).items()
        ),
        "its arrays are read again and again",
    ),
    "shared objects": (
        lambda entries: archive(*(entries | {"schema.json": json.dumps(nested(60))}).items()),
        "its objects are shared",
    ),
    "deep": (
        lambda entries: archive(*(entries | {"schema.json": '{"content":' * 99999 + "0" + "}" * 99999}).items()),
        UNREADABLE,
    ),
    "without schema": (lambda entries: archive(("x.npy", header("(1,)"))), UNREADABLE),
    "not stored by us": (
        lambda entries: archive(*entries.items(), ("x.bin", b"1234567890")),
        UNREADABLE,
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_an_archive_that_expands_too_far_is_refused(tmp_path, case):
    forge, message = FORGED[case]
    x, y = digits()
    save_classifier(tmp_path / "c", make_classifier("ridge", 0).fit(x, y), {"kind": "ridge"})
    replace_content(tmp_path / "c", forge(entries_of(tmp_path / "c")))
    tracemalloc.start()
    with pytest.raises(ConvaeError, match=message) as refusal:
        load_classifier(tmp_path / "c")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 25
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", ["classifier.json", "classifier.skops"])
@pytest.mark.parametrize("replace", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(tmp_path, name, replace):
    save_classifier(tmp_path / "c", make_classifier("ridge", 0), {"kind": "ridge"})
    (tmp_path / "c" / name).unlink()
    replace(tmp_path / "c" / name)
    with pytest.raises(ConvaeError, match=f"not a classifier: there is no file {name}"):
        load_classifier(tmp_path / "c")


def test_an_absurd_number_of_classes_is_refused(tmp_path):
    save_classifier(tmp_path / "c", make_classifier("ridge", 0), {"kind": "ridge", "classes": ["a"] * 100_000})
    with pytest.raises(ConvaeError, match=r"classifier.json: more than 65536 classes"):
        load_classifier(tmp_path / "c")


def test_a_classifier_that_reads_something_unknown_is_refused(tmp_path):
    save_classifier(tmp_path / "c", make_classifier("ridge", 0), {"kind": "ridge", "reads": "pixels"})
    with pytest.raises(ConvaeError, match=r"classifier.json: reads pixels; features or code is allowed"):
        load_classifier(tmp_path / "c")


def other_version(folder, **attributes):
    """A classifier as saved by another scikit-learn, without some attributes."""
    x, y = digits()
    estimator = make_classifier("ridge", 0).fit(x, y)
    for name in attributes:
        delattr(estimator, name)
    save_classifier(folder, estimator, {"kind": "ridge", "scikit_learn": "1.4.2"})


ANOTHER = (
    rf"; it was saved by scikit-learn 1\.4\.2, and {sklearn.__version__} is installed: install the former, or fit it"
)


def test_the_scikit_learn_version_is_recorded(saved):
    assert read_json(saved[0] / "ridge/classifier.json")["scikit_learn"] == sklearn.__version__


def test_a_classifier_from_another_scikit_learn_works_or_is_refused(tmp_path):
    other_version(tmp_path / "works")
    assert load_classifier(tmp_path / "works")[1]["kind"] == "ridge"
    other_version(tmp_path / "lacks", coef_=None)
    with pytest.raises(ConvaeError, match=f"RidgeClassifier.*{ANOTHER}"):
        load_classifier(tmp_path / "lacks")
    other_version(tmp_path / "gone")
    content = (tmp_path / "gone/classifier.skops").read_bytes()
    replace_content(tmp_path / "gone", content.replace(b"sklearn.linear_model._ridge", b"sklearn.linear_model.__gone"))
    with pytest.raises(ConvaeError, match=ANOTHER):
        load_classifier(tmp_path / "gone")


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistic_regression_without_scikit_learn_gives_its_bits(tmp_path, classes, dtype):
    x, y = digits()
    x, y = x[y < classes].astype(dtype), 2 * y[y < classes]
    fitted = make_classifier("logistic_regression", 0).fit(x, y)
    save_classifier(tmp_path / "c", fitted, {"kind": "logistic_regression"})
    scores, about = load_scores(tmp_path / "c")
    assert type(scores) is LogisticScores
    assert about == load_classifier(tmp_path / "c")[1]
    np.testing.assert_array_equal(scores.classes_, fitted.classes_)
    np.testing.assert_array_equal(scores.predict_proba(x), fitted.predict_proba(x), strict=True)


def test_other_kinds_are_loaded_by_scikit_learn(saved):
    assert type(load_scores(saved[0] / "ridge")[0]).__name__ == "RidgeClassifier"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes_": [0, 1, 1]}, "classes_ are not ascending labels"),
        ({"classes_": [-1, 0, 1]}, "classes_ are not ascending labels"),
        ({"classes_": [5, 2**63 - 1, -(2**63)]}, "classes_ are not ascending labels"),
        ({"classes_": [0.0, 1.0, 2.0]}, "classes_ are not labels"),
        ({"classes_": [1]}, "classes_ are not labels"),
        ({"classes_": [[0, 1, 2]]}, "classes_ are not labels"),
        ({"classes_": [[0], [1], [2]]}, "classes_ are not labels"),
        ({"classes_": [0, 1]}, r"coef_ \(3, 64\) and intercept_ \(3,\) of 2 classes"),
        ({"coef_": [1.0, 2.0, 3.0]}, r"coef_ \(3,\)"),
        ({"intercept_": [[1.0, 2.0, 3.0]]}, r"intercept_ \(1, 3\)"),
        ({"coef_": [[1], [2], [3]]}, "not floating-point numbers"),
    ],
)
def test_a_forged_logistic_regression_is_refused(tmp_path, changes, message):
    x, y = digits()
    fitted = make_classifier("logistic_regression", 0).fit(x[y < 3], y[y < 3])
    for name, value in changes.items():
        setattr(fitted, name, np.array(value))
    save_classifier(tmp_path / "c", fitted, {"kind": "logistic_regression"})
    with pytest.raises(ConvaeError, match=f"classifier.skops: not readable: .*{message}"):
        load_scores(tmp_path / "c")


def test_another_kind_described_as_logistic_regression_is_refused(tmp_path):
    x, y = digits()
    save_classifier(tmp_path / "c", make_classifier("ridge", 0).fit(x, y), {"kind": "logistic_regression"})
    with pytest.raises(ConvaeError, match="a RidgeClassifier, described as logistic_regression"):
        load_scores(tmp_path / "c")


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
