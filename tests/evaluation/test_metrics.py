import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from convae.evaluation.metrics import (
    balanced_accuracy,
    classification_metrics,
    per_class_table,
    predictions_table,
    reconstruction_mse,
    wilson_interval,
)

TRUTH = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PREDICTION = np.array([0, 0, 0, 1, 1, 0, 2, 2])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),  # 1 minus the interval of 0 of 29
    ],
)
def test_wilson_interval_matches_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_agrees_with_scipy():
    from scipy.stats import binomtest

    for successes, trials in [(0, 1), (1, 1), (9132, 10000), (5, 9), (500, 500)]:
        expected = binomtest(successes, trials).proportion_ci(0.95, "wilson")
        assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_metrics_computed_by_hand():
    # Class 0: 3 hits, 1 missed, 1 false: 6/8. Class 1: 1 hit, 1 missed, 1 false: 2/4. Class 2: perfect.
    assert classification_metrics(TRUTH, PREDICTION, None, 1) == {
        "accuracy": 0.75,
        "majority_accuracy": 0.25,
        "balanced_accuracy": 0.75,
        "worst_recall": 0.5,
        "macro_f1": round((0.75 + 0.5 + 1) / 3, 6),
    }


def test_always_predicting_the_commonest_class_has_balanced_accuracy_of_chance():
    truth = np.array([0] * 98 + [1, 3])  # none of class 2
    assert classification_metrics(truth, np.zeros(100, np.int64), None, 0) == {
        "accuracy": 0.98,
        "majority_accuracy": 0.98,
        "balanced_accuracy": 0.333333,
        "worst_recall": 0.0,
        "macro_f1": round(2 * 0.98 / 1.98 / 3, 6),
    }


def test_balanced_accuracy_equals_scikit_learns():
    generator = np.random.default_rng(0)
    for classes in (2, 5, 30):
        truth, prediction = generator.integers(0, classes, (2, 40))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns of predictions that never occur
            expected = balanced_accuracy_score(truth, prediction)
        assert balanced_accuracy(truth, prediction) == pytest.approx(expected)


def test_log_loss_computed_by_hand():
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    metrics = classification_metrics(np.array([0, 2]), np.array([0, 1]), probabilities, 0)
    assert metrics["log_loss"] == round(float(-np.log([0.5, 0.1]).mean()), 6)


def test_log_loss_is_finite_for_a_class_that_was_never_trained_on():
    metrics = classification_metrics(np.array([2, 1]), np.array([1, 1]), np.array([[0.0, 1, 0], [0, 1, 0]]), 1)
    assert 1 < metrics["log_loss"] < 100


def test_per_class_table():
    table = per_class_table(TRUTH, PREDICTION, ["a", "b", "c", "never seen"])
    assert list(table.columns) == ["class", "precision", "recall", "f1", "support"]
    assert table.set_index("class").loc["b"].tolist() == [0.5, 0.5, 0.5, 2]
    assert table.set_index("class").loc["a"].tolist() == [0.75, 0.75, 0.75, 4]
    assert table.set_index("class").loc["never seen"].tolist() == [0, 0, 0, 0]


def test_predictions_hold_names_and_the_highest_probability():
    scores = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    table = predictions_table(np.array([1, 2]), scores, True, ["a", "b", "c"])
    assert table.to_dict("list") == {
        "index": [0, 1],
        "truth": ["b", "c"],
        "prediction": ["b", "a"],
        "confidence": [0.7, 0.6],
    }


def test_without_probabilities_the_margin_is_reported_by_name():
    table = predictions_table(np.array([1, 0]), np.array([[-3.0, 2, 1.5], [0, -1, -np.inf]]), False, list("abc"))
    assert table["margin"].tolist() == [0.5, 1.0]
    assert "confidence" not in table


def test_reconstruction_mse_does_not_depend_on_batches(encoder, digits):
    images = np.load(digits / "test/images.npy")
    expected = np.square(encoder.reconstruct(images) - encoder.preprocess(images)).mean()
    assert expected > 0
    for batch in (7, 100, 1000):
        assert reconstruction_mse(encoder, images, batch) == pytest.approx(expected, abs=1e-6)


def test_without_decoder_there_is_no_reconstruction_error(encoder):
    encoder.config["decoder"] = False
    assert reconstruction_mse(encoder, np.zeros((2, 1, 8, 8), np.uint8)) is None
