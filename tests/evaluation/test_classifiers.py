import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from convae.errors import ConvaeError
from convae.evaluation import logistic_regression
from convae.evaluation.classifiers import CLASSIFIERS, fit_best
from convae.evaluation.scores import class_scores, has_probabilities
from convae.params import ClassifierParams

SETTINGS = {
    "logistic_regression": {"C": [0.1, 0.001]},
    "linear_svm": {"C": [0.001, 0.01]},
    "ridge": {"alpha": [1.0, 100.0]},
    "k_nearest_neighbors": {"n_neighbors": [3, 150]},
    "rbf_svm": {"C": [1.0, 10.0]},
    "mlp": {"hidden_layer_sizes": [32], "alpha": [0.0001, 0.01]},
    "gradient_boosting": {"max_iter": [2, 5], "learning_rate": [0.5]},
}


CHOICE = {"class_weight": None, "select_by": "accuracy"}


def make_classifier_params(kind, choice=CHOICE, **settings):
    return ClassifierParams.model_validate(
        {"kind": kind, **choice, **SETTINGS} | ({kind: settings} if settings else {})
    )


def split(classes=10):
    digits = load_digits(n_class=classes)
    x = (digits.data.astype(np.float32) - 8) / 6
    y = digits.target.astype(np.int64)
    half = len(y) // 2
    return x[:half], y[:half], x[half:], y[half:]


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 10])
def test_every_kind_learns_digits(kind, classes):
    train, y, validation, y_validation = split(classes)
    estimator, candidates = fit_best(make_classifier_params(kind), train, y, validation, y_validation, 0)
    prediction = estimator.predict(validation)
    accuracy = accuracy_score(y_validation, prediction)
    assert accuracy > (0.95 if classes == 2 else 0.8)
    assert max(candidate["validation_accuracy"] for candidate in candidates) == round(accuracy, 6)
    scores = class_scores(estimator, validation, classes)
    assert np.array_equal(scores.argmax(axis=1), prediction)
    if has_probabilities(estimator):
        assert np.allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_every_candidate_is_tried_and_the_best_is_kept():
    train, y, validation, y_validation = split()
    params = make_classifier_params("k_nearest_neighbors")
    estimator, candidates = fit_best(params, train, y, validation, y_validation, 0)
    assert [candidate["n_neighbors"] for candidate in candidates] == [3, 150]
    assert candidates[0]["validation_accuracy"] > candidates[1]["validation_accuracy"]
    assert estimator.n_neighbors == 3


def test_ties_keep_the_first_candidate():
    train, y, validation, y_validation = split(2)
    params = make_classifier_params("ridge", alpha=[2.0, 1.0, 3.0])
    estimator, candidates = fit_best(params, train, y, validation, y_validation, 0)
    assert len({candidate["validation_accuracy"] for candidate in candidates}) == 1
    assert estimator.alpha == 2.0


def imbalanced():
    """300 noisy points around 0 and 15 around 1 that overlap: a training and a validation set."""
    generator = np.random.default_rng(0)
    y = np.repeat([0, 1], [300, 15])
    train, validation = ((generator.normal(size=(315, 4)) + y[:, None]).astype(np.float32) for _ in range(2))
    return train, y, validation, y


WEIGHTED = [kind for kind in CLASSIFIERS if kind not in ("k_nearest_neighbors", "mlp")]


@pytest.mark.parametrize("kind", WEIGHTED)
def test_balanced_weights_find_a_rare_class(kind):
    settings = {"C": [1.0]} if "C" in SETTINGS[kind] else {}
    recall = {}
    for weight in (None, "balanced"):
        params = make_classifier_params(kind, CHOICE | {"class_weight": weight}, **settings)
        estimator, _ = fit_best(params, *imbalanced(), 0)
        _, _, validation, y = imbalanced()
        recall[weight] = float(np.mean(estimator.predict(validation[y == 1]) == 1))
        assert estimator.class_weight == weight
    assert recall["balanced"] > recall[None] + 0.2


@pytest.mark.parametrize("figure", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_the_configured_metric_selects_the_settings(figure):
    candidates = [1e-4, 1e-2, 1.0]
    params = make_classifier_params("linear_svm", CHOICE | {"select_by": figure}, C=candidates)
    train, y, validation, _ = imbalanced()
    y = np.where(y == 1, 1, np.arange(len(y)) % 2 * 2)  # three classes, two of which can't be told apart
    estimator, tried = fit_best(params, train, y, validation, y, 0)
    score = {
        "accuracy": accuracy_score,
        "balanced_accuracy": balanced_accuracy_score,
        "macro_f1": lambda truth, found: f1_score(truth, found, average="macro", zero_division=0),
    }[figure]
    assert [set(one) for one in tried] == [{"C", f"validation_{figure}", "converged"}] * 3
    values = [one[f"validation_{figure}"] for one in tried]
    assert len(set(values)) == 3
    assert values.index(max(values)) == candidates.index(estimator.C)
    assert round(score(y, estimator.predict(validation)), 6) == max(values)


def test_logistic_regression_is_fitted_with_increasing_c_and_keeps_the_best():
    params = make_classifier_params("logistic_regression", C=[1.0, 1e-6, 0.01])
    estimator, candidates = fit_best(params, *split(), 0)
    assert [candidate["C"] for candidate in candidates] == [1e-6, 0.01, 1.0]
    assert all(candidate["converged"] for candidate in candidates)
    best = max(candidates, key=lambda candidate: candidate["validation_accuracy"])
    assert estimator.C == best["C"] != 1e-6


def test_the_same_seed_gives_the_same_mlp_regardless_of_validation_images():
    train, y, validation, y_validation = split()
    params = make_classifier_params("mlp")
    first, _ = fit_best(params, train, y, validation, y_validation, 0)
    again, _ = fit_best(params, train, y, validation[:50], y_validation[:50], 0)
    other, _ = fit_best(params, train, y, validation, y_validation, 1)
    if first.alpha == again.alpha:
        assert np.array_equal(first.coefs_[0], again.coefs_[0])
    assert not np.array_equal(first.coefs_[0], other.coefs_[0])


def test_a_solver_that_stops_early_is_flagged_without_a_warning(monkeypatch):
    monkeypatch.setattr(logistic_regression, "ITERATIONS", 3)
    train, y, validation, y_validation = split()
    params = make_classifier_params("logistic_regression", C=[1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, candidates = fit_best(params, train, y, validation, y_validation, 0)
    assert [candidate["converged"] for candidate in candidates] == [False]


@pytest.mark.parametrize("kind", ["logistic_regression", "ridge"])
def test_a_class_without_training_images_is_never_predicted(kind):
    train, y, validation, y_validation = split()
    kept = y != 4
    estimator, _ = fit_best(make_classifier_params(kind), train[kept], y[kept], validation, y_validation, 0)
    scores = class_scores(estimator, validation, 10)
    assert scores.shape == (len(validation), 10)
    assert not (scores.argmax(axis=1) == 4).any()
    assert np.array_equal(scores.argmax(axis=1), estimator.predict(validation))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_non_finite_features_are_refused(value, part):
    train, y, validation, y_validation = (array.copy() for array in split())
    (train if part == "training" else validation)[17, 3] = value
    with pytest.raises(ConvaeError, match=f"features of {part} image 17 hold NaN or infinity"):
        fit_best(make_classifier_params("ridge"), train, y, validation, y_validation, 0)


def test_constant_features_are_refused_only_if_all_are_constant():
    train, y, validation, y_validation = (array.copy() for array in split())
    train[:, :10] = 0
    fit_best(make_classifier_params("ridge"), train, y, validation, y_validation, 0)
    train[:] = train[0]
    with pytest.raises(ConvaeError, match="same features"):
        fit_best(make_classifier_params("ridge"), train, y, validation, y_validation, 0)


def test_a_single_class_is_refused():
    train, y, validation, y_validation = split()
    with pytest.raises(ConvaeError, match="at least two"):
        fit_best(make_classifier_params("ridge"), train, np.zeros_like(y), validation, y_validation, 0)
    with pytest.raises(ConvaeError, match="at least two"):  # a single image does not show whether filters are dead
        fit_best(make_classifier_params("ridge"), train[:1], y[:1], validation, y_validation, 0)


def test_a_setting_that_the_data_rule_out_is_refused_in_one_line():
    train, y, validation, y_validation = split()
    params = make_classifier_params("k_nearest_neighbors", n_neighbors=[10_000])
    with pytest.raises(ConvaeError, match="k_nearest_neighbors, n_neighbors = 10000: ") as caught:
        fit_best(params, train, y, validation, y_validation, 0)
    assert "\n" not in str(caught.value)


# 200 MB of private memory on top of what the libraries use, and 300 MB of features in a file.
BEYOND_MEMORY = """
import json, resource, sys
import numpy as np, psutil
from numpy.lib.format import open_memmap
from convae.evaluation import classifiers
from convae.params import ClassifierParams

path, kind, settings = sys.argv[1:]
classifiers.MOST_IN_MEMORY = 1 << 28
generator = np.random.default_rng(0)
x = open_memmap(path, mode="w+", dtype=np.float32, shape=(20_000, 3750))
x[:, :16] = generator.standard_normal((len(x), 16))
y = (x[:, 0] > 0).astype(np.int64)
x = np.load(path, mmap_mode="r")
params = ClassifierParams.model_validate({"kind": kind} | json.loads(settings))
classifiers.fit_best(params, x[:100], y[:100], x[:100], y[:100], 0)
limit = psutil.Process().memory_info().data + 200_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
_, tried = classifiers.fit_best(params, x, y, x[:1000], y[:1000], 0)
print(tried[0]["validation_accuracy"])
"""


def fit_beyond_memory(folder, kind):
    arguments = [str(folder / "features.npy"), kind, json.dumps(SETTINGS | CHOICE)]
    return subprocess.run([sys.executable, "-c", BEYOND_MEMORY, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_logistic_regression_does_not_load_all_features(tmp_path):
    done = fit_beyond_memory(tmp_path, "logistic_regression")
    assert not done.returncode, done.stderr
    assert float(done.stdout) > 0.99
    assert "0.3 GB of training features: logistic_regression reads them from disk in pieces" in done.stderr


def test_a_classifier_that_needs_all_features_in_memory_says_so(tmp_path):
    done = fit_beyond_memory(tmp_path, "ridge")
    assert "classifier.kind = ridge: needs 0.3 GB of training features in memory; logistic_regression" in done.stderr
