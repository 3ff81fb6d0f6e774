import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from convae.evaluation import logistic_regression
from convae.evaluation.logistic_regression import fit_path


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


def digits(classes=10):
    x, y = load_digits(n_class=classes, return_X_y=True)
    return ((x - 8) / 6).astype(np.float32), y.astype(np.int64)


def few_of_some(classes=10):
    """The digits, each class with half as many images as the previous one."""
    x, y = digits(classes)
    kept = np.concatenate([np.flatnonzero(y == label)[: max(3, 160 >> label)] for label in range(classes)])
    return x[kept], y[kept]


def objective(estimator, x, y):
    """The equation of `fit_path`; for two classes, of the score difference, as in scikit-learn."""
    scores = x.astype(float) @ estimator.coef_.T + estimator.intercept_
    scores = np.column_stack([np.zeros(len(x)), scores]) if scores.shape[1] == 1 else scores
    target = np.searchsorted(estimator.classes_, y)
    classes = estimator.classes_
    weights = compute_class_weight(estimator.class_weight, classes=classes, y=y)[target]
    fit = -(weights * log_softmax(scores, axis=1)[np.arange(len(y)), target]).mean()
    return fit + np.sum(estimator.coef_.astype(float) ** 2) / (2 * estimator.C * len(y))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("c", [0.0001, 0.01, 1.0])
def test_the_optimum_equals_scikit_learns(classes, c, monkeypatch):
    monkeypatch.setattr(logistic_regression, "TOLERANCE", 1e-5)
    x, y = digits(classes)
    ((ours, _),) = fit_path(x, y, [c])
    theirs = LogisticRegression(C=c, tol=1e-6, max_iter=2000).fit(x.astype(float), y)
    assert objective(ours, x, y) == pytest.approx(objective(theirs, x, y), rel=1e-5)
    assert np.abs(ours.predict_proba(x) - theirs.predict_proba(x)).max() < 0.002
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.coef_.dtype == np.float32


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("c", [0.0001, 0.01, 1.0])
def test_the_optimum_with_balanced_classes_equals_scikit_learns(classes, c, monkeypatch):
    monkeypatch.setattr(logistic_regression, "TOLERANCE", 1e-5)
    x, y = few_of_some(classes)
    ((ours, _),) = fit_path(x, y, [c], "balanced")
    theirs = LogisticRegression(C=c, class_weight="balanced", tol=1e-7, max_iter=5000).fit(x.astype(float), y)
    assert objective(ours, x, y) == pytest.approx(objective(theirs, x, y), rel=2e-5)
    assert np.abs(ours.predict_proba(x) - theirs.predict_proba(x)).max() < 0.002
    ((plain, _),) = fit_path(x, y, [c])
    assert np.abs(plain.predict_proba(x) - theirs.predict_proba(x)).max() > 0.005
    assert (ours.class_weight, plain.class_weight) == ("balanced", None)


def test_balancing_equal_classes_changes_nothing(monkeypatch):
    monkeypatch.setattr(logistic_regression, "TOLERANCE", 1e-5)
    x, y = digits()
    kept = np.concatenate([np.flatnonzero(y == label)[:100] for label in range(10)])
    (plain, _), (balanced, _) = (next(fit_path(x[kept], y[kept], [0.1], weight)) for weight in (None, "balanced"))
    assert np.array_equal(plain.coef_, balanced.coef_)


def test_balanced_features_in_pieces_have_the_same_optimum(monkeypatch):
    monkeypatch.setattr(logistic_regression, "TOLERANCE", 1e-4)
    x, y = few_of_some()
    ((whole, _),) = fit_path(x, y, [0.1], "balanced")
    monkeypatch.setattr(logistic_regression, "row_chunks", lambda x: (slice(i, i + 100) for i in range(0, len(x), 100)))
    ((other, _),) = fit_path(x, y, [0.1], "balanced")
    assert objective(other, x, y) == pytest.approx(objective(whole, x, y), rel=1e-3)


def test_with_defaults_it_is_as_accurate_as_scikit_learn():
    x, y = digits()
    ((ours, _),) = fit_path(x, y, [0.01])
    theirs = LogisticRegression(C=0.01).fit(x, y)
    assert objective(ours, x, y) < 1.001 * objective(theirs, x, y)
    assert ours.score(x, y) == pytest.approx(theirs.score(x, y), abs=0.001)


def test_low_rank_features_in_pieces_have_the_same_optimum(monkeypatch):
    monkeypatch.setattr(logistic_regression, "TOLERANCE", 1e-4)
    x, y = digits()
    ((whole, _),) = fit_path(x, y, [0.1])
    monkeypatch.setattr(logistic_regression, "DIRECTIONS", 5)
    monkeypatch.setattr(logistic_regression, "IMAGES", 100)
    monkeypatch.setattr(logistic_regression, "row_chunks", lambda x: (slice(i, i + 100) for i in range(0, len(x), 100)))
    ((other, _),) = fit_path(x, y, [0.1])
    assert objective(other, x, y) == pytest.approx(objective(whole, x, y), rel=1e-3)
    assert not np.array_equal(other.coef_, whole.coef_)


def test_a_warm_started_path_ends_where_single_fits_do(monkeypatch):
    monkeypatch.setattr(logistic_regression, "TOLERANCE", 1e-4)
    x, y = digits()
    *_, (last, _) = fit_path(x, y, [0.01, 0.03, 0.1])
    ((alone, _),) = fit_path(x, y, [0.1])
    assert objective(last, x, y) == pytest.approx(objective(alone, x, y), rel=1e-3)
    assert last.n_iter_[0] < alone.n_iter_[0]


def test_the_same_features_in_memory_or_a_file_give_the_same_bits(tmp_path):
    x, y = digits()
    np.save(tmp_path / "x.npy", x)
    ((first, _),) = fit_path(x, y, [0.1])
    ((again, _),) = fit_path(np.load(tmp_path / "x.npy", mmap_mode="r"), y, [0.1])
    assert np.array_equal(first.coef_, again.coef_)
    assert np.array_equal(first.intercept_, again.intercept_)


def test_any_integer_labels_and_one_image_per_class_are_enough():
    x, y = digits()
    rows = [int(np.flatnonzero(y == label)[0]) for label in (3, 7)]
    ((estimator, _),) = fit_path(x[rows], y[rows], [1.0])
    assert estimator.classes_.tolist() == [3, 7]
    assert estimator.predict(x[rows]).tolist() == [3, 7]


def test_only_the_optimum_counts_as_converged(monkeypatch):
    x, y = digits()
    assert [converged for _, converged in fit_path(x, y, [0.01, 0.1])] == [True, True]
    monkeypatch.setattr(logistic_regression, "TOLERANCE", 0)  # the steps become too small to continue
    ((estimator, converged),) = fit_path(x, y, [0.01])
    assert estimator.n_iter_[0] < estimator.max_iter
    assert not converged


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_features_of_any_scale_and_constant_features_are_fitted(scale):
    x, y = digits()
    x = (8 + x) * np.float32(scale)  # not standardised, and some pixels are constant
    ((estimator, _),) = fit_path(x, y, [1 / scale**2])
    assert estimator.score(x, y) > 0.95


def test_sorted_rows_still_sample_every_class(monkeypatch):
    monkeypatch.setattr(logistic_regression, "IMAGES", 1000)
    seen = []

    def look(some, *arguments, **settings):
        seen.append(some)
        return randomized_svd(some, *arguments, **settings)

    monkeypatch.setattr(logistic_regression, "randomized_svd", look)
    x, y = digits()
    order = np.argsort(y, kind="stable")
    next(fit_path(x[order], y[order], [0.1]))
    assert len(seen[0]) == 1000
    np.testing.assert_array_equal(seen[0][-1], x[order][-1])
