import math

import pytest

from benchmark.ladder.statistics import (
    accuracy_interval,
    cells_table,
    compare,
    curve,
    differences,
    few_labels_accuracy,
    student_interval,
    systems_table,
)
from convae.evaluation.metrics import wilson_interval


def cell(system, seed, accuracy, **more):
    return {"dataset": "d", "protocol": "p", "system": system, "seed": seed, "objective": "none",
            "test_accuracy": accuracy, "test_images": 10000, **more}  # fmt: skip


def cells(*rows):
    return cells_table(rows)


def control(system, seed, accuracy, **more):
    return cell(system, seed, accuracy, **{"control_of": "cae", "control": "twin"} | more)


def test_the_interval_of_one_seed_is_wilsons():
    assert accuracy_interval([0.9241], 10000) == wilson_interval(9241, 10000)
    assert accuracy_interval([0.9, 0.9, 0.9], 1000) == wilson_interval(900, 1000)
    assert accuracy_interval([1.0, 1.0], 100)[0] < 0.97


def test_the_interval_of_seeds_adds_their_variance_to_that_of_the_images():
    # p = 0.91; images 0.91 × 0.09 / 1000 = 8.19e-5; seeds s²/k = 1e-4 / 3; their sum 1.152333e-4;
    # freedom 2 (1.152333e-4 / 3.333333e-5)² = 23.9017, of which Student's quantile is 2.06430
    low, high = accuracy_interval([0.90, 0.91, 0.92], 1000)
    half = 2.06430 * math.sqrt(1.152333e-4)
    assert (low, high) == pytest.approx((0.91 - half, 0.91 + half), abs=1e-6)


def test_students_interval():
    # mean 2, s = 1, t(2 degrees of freedom) = 4.302653
    assert student_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert all(map(math.isnan, student_interval([1.0])))


def test_systems_are_sorted_by_their_mean_and_say_what_is_known():
    table = systems_table(
        cells(
            cell("b", 0, 0.80, knn_accuracy=0.7, dimension=64),
            cell("b", 1, 0.84, knn_accuracy=0.8, dimension=64, note="short"),
            cell("a", 0, 0.82, encoder_parameters=3200, test_images=None),
            cell("c", 0, 0.90, objective="classify", initialized_by="b"),
            cell("c", 1, 0.92, objective="classify", initialized_by="b"),
        )
    ).set_index("system")
    assert list(table.index) == ["c", "a", "b"]  # equal means by name
    assert table["accuracy"].tolist() == pytest.approx([0.91, 0.82, 0.82])
    assert table["seeds"].tolist() == [2, 1, 2]
    assert table.loc["b", "fine_tuned"] == pytest.approx([0.91])
    assert table.loc["a", "fine_tuned"] == []
    assert table.loc["b", "knn_accuracy"] == pytest.approx(0.75)
    assert table.loc["b", ["dimension", "note"]].tolist() == [64, "short"]
    assert table.loc["a", "encoder_parameters"] == 3200
    assert table.loc[["a", "c"], "low"].isna().tolist() == [True, False]


def test_differences_are_paired_over_the_seeds_that_both_have():
    own = cells(
        *(cell("cae", seed, accuracy) for seed, accuracy in enumerate([0.90, 0.92, 0.94, 0.99])),
        *(control("weak", seed, accuracy) for seed, accuracy in enumerate([0.89, 0.90, 0.91])),
        control("strong", 1, 0.93),
        control("lonely", 7, 0.10),
        control("of_another", 0, 0.5, control_of="absent"),
    )
    table = differences(own, own["test_accuracy"]).set_index("system")
    assert list(table.index) == ["strong", "weak"]  # without a common seed there is nothing to say
    assert table["strongest"].tolist() == [True, False]
    assert table["difference"].tolist() == pytest.approx([-0.01, 0.02])
    assert table["seeds"].tolist() == [1, 3]
    assert math.isnan(table.loc["strong", "low"])
    # differences 0.01, 0.02, 0.03: s = 0.01
    half = 4.302653 * 0.01 / 3**0.5
    assert table.loc["weak", ["low", "high"]].tolist() == pytest.approx([0.02 - half, 0.02 + half])


def draws(**accuracies):
    return [
        {"labels_per_class": int(count[1:]), "draw": draw, "test_accuracy": accuracy}
        for count, found in accuracies.items()
        for draw, accuracy in enumerate(found)
    ]


def test_draws_are_averaged_before_seeds():
    own = cells(
        cell("a", 0, 0.9, by_labels=draws(_1=[0.4, 0.6], _10=[0.8])),
        cell("a", 1, 0.9, by_labels=draws(_1=[0.2])),
        cell("b", 0, 0.9),
    )
    assert few_labels_accuracy(own, 1).tolist()[:2] == pytest.approx([0.5, 0.2])
    assert few_labels_accuracy(own, 1).isna().tolist() == [False, False, True]
    points = curve(own, "by_labels", "labels_per_class")
    assert points["labels_per_class"].tolist() == [1, 10]
    assert points[["accuracy", "low", "high"]].to_numpy().ravel() == pytest.approx([0.35, 0.2, 0.6, 0.8, 0.8, 0.8])
    assert points["seeds"].tolist() == [2, 1]


def test_data_sets_and_protocols_are_never_mixed():
    found = compare(
        cells(
            cell("cae", 0, 0.9),
            control("twin", 0, 0.8, protocol="other"),
            control("twin", 0, 0.7, dataset="e"),
            cell("cae", 1, None),
            cell("cae", 0, 0.6, dataset="e", protocol=None),
        )
    )
    assert [(one.dataset, one.protocol) for one in found] == [
        ("d", "p"),
        ("d", "other"),
        ("e", "p"),
        ("e", "not stated"),
    ]
    assert all(one.differences.empty and one.by_labels.empty for one in found)
    assert [one.systems["seeds"].tolist() for one in found] == [[1]] * 4


def test_nothing_measured_is_nothing_to_compare():
    assert compare(cells_table([])) == []
    assert compare(cells_table([{"dataset": "d"}])) == []
