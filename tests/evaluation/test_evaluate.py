import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from convae.classifier import load_image_classifier
from convae.errors import ConvaeError
from convae.evaluation import evaluate as module
from convae.evaluation.anomalies import load_reference
from convae.evaluation.evaluate import evaluate
from convae.evaluation.principal_components import principal_components
from convae.evaluation.saving import load_classifier
from convae.features.extract import extract_features
from convae.tracking.registry import ENCODER, _signature

RECONSTRUCTION = {"reconstruction_mse", "linear_reconstruction_mse"}


@pytest.fixture
def run(params, encoder, digits, tmp_path):
    """Evaluate into `tmp_path / name` and return the metrics and that folder."""

    def run(name="out", params=params):
        out = tmp_path / name
        paths = {
            "classifier": out / "classifier",
            "reference": out / "reference",
            "predictions": out / "test.parquet",
            "reports": out / "reports",
        }
        return evaluate(params, encoder, tmp_path / "features", digits, **paths), out

    return run


def test_every_metric_follows_from_the_predictions(run, encoder, digits):
    metrics, out = run()
    truth = np.load(digits / "test/labels.npy")
    table = pd.read_parquet(out / "test.parquet")
    prediction = table["prediction"].astype(int).to_numpy()
    assert table["index"].tolist() == list(range(100))
    assert np.array_equal(table["truth"].astype(int), truth)
    assert metrics == json.loads((out / "reports/metrics.json").read_text())
    assert metrics["test"]["accuracy"] == accuracy_score(truth, prediction) > 0.5
    assert metrics["test"]["accuracy_low"] < metrics["test"]["accuracy"] < metrics["test"]["accuracy_high"]
    assert metrics["test"]["macro_f1"] == round(f1_score(truth, prediction, average="macro"), 6)
    recalls = [np.mean(prediction[truth == digit] == digit) for digit in range(10)]
    assert metrics["test"]["balanced_accuracy"] == round(float(np.mean(recalls)), 6)
    assert metrics["test"]["worst_recall"] == round(float(min(recalls)), 6)
    assert recalls[int(metrics["test"]["worst_class"])] == min(recalls)
    assert metrics["test"]["never_found"] == [str(digit) for digit in range(10) if recalls[digit] == 0]
    commonest = np.bincount(np.load(digits / "train/labels.npy")).argmax()
    assert metrics["test"]["majority_accuracy"] == round(float(np.mean(truth == commonest)), 6) < 0.2
    every = {"accuracy", "majority_accuracy", "balanced_accuracy", "worst_recall", "macro_f1", "log_loss"}
    assert set(metrics["validation"]) == every | RECONSTRUCTION
    assert metrics["features"]["dimension"] == 4 * 2 * 4  # filters, signs, cells
    assert metrics["encoder"]["parameters"] == encoder.parameter_count == 4 * (9 + 1)
    assert metrics["classifier"] == {"kind": "logistic_regression", "C": 0.003}
    assert pd.read_csv(out / "reports/per_class.csv")["support"].sum() == 100


def test_near_copies_are_counted_only_among_vectors_long_enough_to_tell(run, monkeypatch):
    assert "near_copies" not in run()[0]["features"]  # of 32 numbers
    monkeypatch.setattr(module, "TELLING", 32)
    assert run("again")[0]["features"]["near_copies"]["looked_at"] == 100


def test_neighbors_and_anomalies_follow_from_the_features(run, encoder, digits, tmp_path):
    metrics, out = run()
    train, test = (np.load(tmp_path / f"features/{part}.npy") for part in ("train", "test"))
    one, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (test, train))
    distances = np.linalg.norm(one[:, None].astype(np.float64) - other, axis=2)
    order = np.argsort(distances, axis=1, kind="stable")
    truth = np.load(digits / "test/labels.npy")
    examples = [int(np.flatnonzero(truth == digit)[0]) for digit in range(10)]
    np.testing.assert_array_equal(np.load(out / "neighbors.npy"), order[examples, :5])
    voters = np.load(digits / "train/labels.npy")[order[:, :5]]
    right = [np.bincount(row).argmax() == label for row, label in zip(voters, truth, strict=True)]
    assert metrics["neighbors"] == {"k": 5, "looked_at": 100, "among": 400, "accuracy": np.mean(right)}
    reference = load_reference(out / "reference", encoder)
    expected = (np.sort(distances, axis=1)[:, :5].mean(axis=1) - reference.mean) / reference.deviation
    np.testing.assert_allclose(pd.read_parquet(out / "test.parquet")["anomaly"], expected, atol=1e-5)
    np.testing.assert_array_equal(np.load(out / "components.npy"), principal_components(test))


def test_the_saved_classifier_reproduces_the_reported_predictions(run, tmp_path, experiment):
    _, out = run()
    estimator, description = load_classifier(out / "classifier")
    prediction = estimator.predict(np.load(tmp_path / "features/test.npy"))
    assert np.array_equal(prediction, pd.read_parquet(out / "test.parquet")["prediction"].astype(int))
    assert description["settings"]["C"] in experiment().classifier.logistic_regression.C
    candidates = experiment().classifier.logistic_regression.C
    assert [candidate["C"] for candidate in description["candidates"]] == candidates
    assert description["classes"] == [str(digit) for digit in range(10)]


def test_two_runs_write_the_same_bytes(run):
    (_, first), (_, second) = run("first"), run("second")
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert [str(name) for name in names] == [
        "classifier/classifier.json",
        "classifier/classifier.skops",
        "components.npy",
        "neighbors.npy",
        "reconstructions.npy",
        "reference/features.safetensors",
        "reference/reference.json",
        "reports/metrics.json",
        "reports/per_class.csv",
        "test.parquet",
    ]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_test_images_are_predicted_once_and_never_used_for_selection(run, digits, tmp_path, monkeypatch):
    _, out = run("first")
    seen = []
    score = module.class_scores
    monkeypatch.setattr(module, "class_scores", lambda e, f, c: seen.append(len(f)) or score(e, f, c))
    features, labels = tmp_path / "features/test.npy", np.load(digits / "test/labels.npy")
    np.save(features, np.load(features)[::-1])
    for folder in (digits / "test/labels.npy", tmp_path / "features/test_labels.npy"):
        np.save(folder, (labels + 1) % 10)
    _, other = run("second")
    assert seen == [100, 100]  # validation and test images, 100 of each
    name = "classifier/classifier.skops"
    assert (out / name).read_bytes() == (other / name).read_bytes()


def test_a_classifier_without_probabilities_reports_a_margin(run, experiment):
    metrics, out = run(params=experiment(classifier={"kind": "linear_svm"}))
    assert list(pd.read_parquet(out / "test.parquet")) == ["index", "truth", "prediction", "margin", "anomaly"]
    assert "log_loss" not in metrics["test"]
    assert metrics["test"]["accuracy"] > 0.5


def test_a_class_without_correct_predictions_is_named(run, digits, tmp_path):
    for folder in (digits / "train", tmp_path / "features"):
        name = "labels.npy" if folder.name == "train" else "train_labels.npy"
        labels = np.load(folder / name)
        np.save(folder / name, np.where(labels > 7, 0, labels))
    metrics, out = run()
    table = pd.read_csv(out / "reports/per_class.csv", dtype={"class": str})
    assert metrics["test"]["never_found"] == table["class"][table["recall"] == 0].tolist()
    assert metrics["test"]["never_found"][-2:] == ["8", "9"]
    assert (metrics["test"]["worst_class"], metrics["test"]["worst_recall"]) == (metrics["test"]["never_found"][0], 0)
    described = json.loads((out / "classifier/classifier.json").read_text())
    assert {name: metrics["test"][name] for name in described["test"]} == described["test"]
    assert {"balanced_accuracy", "majority_accuracy", "worst_recall", "worst_class"} <= described["test"].keys()


def test_without_labels_there_are_only_reconstructions(run, unlabelled, tmp_path):
    for labels in (tmp_path / "features").glob("*_labels.npy"):
        labels.unlink()
    metrics, out = run()
    assert metrics["test"].keys() == metrics["validation"].keys() == RECONSTRUCTION
    assert metrics.keys() == {"test", "validation", "features", "encoder", "neighbors", "health"}
    assert metrics["neighbors"] == {"k": 5, "looked_at": 100, "among": 400}
    assert (out / "reports/per_class.csv").read_text() == "class,precision,recall,f1,support\n"
    table = pd.read_parquet(out / "test.parquet")
    assert list(table) == ["index", "anomaly"]
    assert table["index"].tolist() == list(range(100))
    with pytest.raises(ConvaeError, match="no labels"):
        load_classifier(out / "classifier")


def test_features_from_other_images_are_refused(run, digits, tmp_path):
    features = tmp_path / "features"
    labels = np.load(features / "test_labels.npy")
    np.save(features / "test_labels.npy", labels[::-1])
    with pytest.raises(ConvaeError, match=r"test_labels.npy: not the labels"):
        run()
    np.save(features / "test_labels.npy", labels)
    np.save(features / "train.npy", np.load(features / "validation.npy"))
    with pytest.raises(ConvaeError, match=r"train.npy: shape \[100, 32\] for 400 images"):
        run()
    np.save(features / "train.npy", np.zeros((400, 32), np.float32))
    description = json.loads((digits / "train/description.json").read_text())
    (digits / "train/description.json").write_text(json.dumps(description | {"sha256": "0"}))
    with pytest.raises(ConvaeError, match=r"train.npy: not the features of the images in .*prepared/train"):
        run()
    (digits / "train/description.json").write_text(json.dumps(description))
    (features / "train.npy").unlink()
    with pytest.raises(ConvaeError, match="not readable features"):
        run()


def test_features_from_another_encoder_are_refused(run, encoder):
    encoder.sha256 = "0"
    with pytest.raises(ConvaeError, match="features: not the features of this encoder; rerun `dvc repro features`"):
        run()


def test_labels_in_some_parts_only_are_refused(run, digits, tmp_path):
    (digits / "test/labels.npy").unlink()
    (tmp_path / "features/test_labels.npy").unlink()
    with pytest.raises(ConvaeError, match=r"prepared/test: has no labels"):
        run()


def test_a_failed_evaluation_keeps_earlier_results(run, tmp_path):
    _, out = run()
    before = shutil.copytree(out, tmp_path / "before")
    features = np.load(tmp_path / "features/test.npy")
    features[5, 0] = np.nan
    np.save(tmp_path / "features/test.npy", features)
    with pytest.raises(ConvaeError, match="test image 5"):
        run()
    for path in before.rglob("*"):
        assert path.is_dir() or (out / path.relative_to(before)).read_bytes() == path.read_bytes()


def test_a_code_is_measured_and_reconstructed(run, digits, tmp_path):
    generator = np.random.default_rng(0)
    projection = generator.normal(size=(32, 5)).astype(np.float32)
    for part in ("train", "validation", "test"):
        np.save(tmp_path / f"features/{part}_code.npy", np.load(tmp_path / f"features/{part}.npy") @ projection)
    metrics, out = run()
    code = metrics["code"]
    assert code["dimension"] == 5
    assert 0.2 < code["accuracy"] < metrics["test"]["accuracy"]
    assert metrics["test"]["linear_reconstruction_mse"] < code["linear_reconstruction_mse"]
    images = np.load(digits / "test/images.npy")
    pictures = np.load(out / "reconstructions.npy")
    assert pictures.shape == (3, 10, 1, 8, 8)
    labels = np.load(digits / "test/labels.npy")
    assert np.array_equal(pictures[0], images[[int(np.argmax(labels == digit)) for digit in range(10)]])
    errors = [np.square((one.astype(float) - pictures[0]) / 255).mean() for one in pictures[1:]]
    assert errors[0] > errors[1]


def test_a_classifier_that_reads_the_code_is_measured_and_saved_as_one(run, experiment, encoder, digits, tmp_path):
    code = {"kind": "pca", "components": 12, "corruption": None, "ridge": 0.1, "scale": "equal"}
    plain = {"local_contrast": None, "whitening": None}
    params = experiment(preprocessing=plain, features={"code": code}, classifier={"kind": "rbf_svm", "reads": "code"})
    coded = extract_features(params, tmp_path / "trained", digits, tmp_path / "features")
    encoder.sha256 = coded.sha256
    metrics, out = run(params=params)
    assert (metrics["features"]["dimension"], metrics["code"]["dimension"]) == (32, 12)
    for part, name in (("test", "accuracy"), ("validation", "validation_accuracy")):
        assert metrics["code"][name] == metrics[part]["accuracy"] > 0.5
    coded.save(out / "encoder")
    signature = _signature(load_image_classifier(out), ENCODER)
    assert [one.shape for one in signature.outputs] == [(-1, 32)]  # of the features, which the encoder returns
    found = load_image_classifier(out).predict(np.load(digits / "test/images.npy"))
    assert found == pd.read_parquet(out / "test.parquet")["prediction"].astype(str).tolist()


def test_a_code_that_was_never_computed_is_refused(run, experiment):
    code = {"kind": "pca", "components": 4, "corruption": None, "ridge": 0.1, "scale": "equal"}
    with pytest.raises(ConvaeError, match="no compact code beside them; rerun `dvc repro features`"):
        run(params=experiment(features={"code": code}, classifier={"reads": "code"}))


def test_a_damaged_code_is_refused(run, tmp_path):
    for part in ("train", "validation", "test"):
        np.save(tmp_path / f"features/{part}_code.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(ConvaeError, match=r"train_code\.npy: not the codes of 400 images"):
        run()
