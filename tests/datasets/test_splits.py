import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convae.datasets.splits import Part, hold_out
from convae.errors import ConvaeError

CLASSES = ("a", "b", "c", "d")


def part(labels: np.ndarray | None, count: int = 0, index: np.ndarray | None = None) -> Part:
    total = count if labels is None else len(labels)
    images = np.zeros((total, 1, 1, 1), np.uint8)
    return Part(images, labels, np.arange(total) if index is None else index)


def test_splits_are_stratified() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [100, 200, 300, 400]))
    kept, held = hold_out(part(labels), CLASSES, 0.1, 0, "data.test_size")
    assert np.bincount(labels[held.index]).tolist() == [10, 20, 30, 40]
    assert np.bincount(labels[kept.index]).tolist() == [90, 180, 270, 360]


def test_the_split_depends_only_on_the_seed_and_keeps_the_order() -> None:
    labels = np.arange(200) % 4
    draws = [hold_out(part(labels), CLASSES, 40, seed, "data.test_size")[1].index for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert (np.diff(draws[0]) > 0).all()


def test_without_labels_the_split_is_random() -> None:
    kept, held = hold_out(part(None, 100), (), 0.25, 0, "data.test_size")
    assert len(held.index) == 25
    assert np.union1d(kept.index, held.index).tolist() == list(range(100))


def test_only_the_images_of_the_part_are_split() -> None:
    index = np.arange(1, 200, 2)
    kept, held = hold_out(part(np.arange(200) // 50, index=index), CLASSES, 20, 3, "data.test_size")
    np.testing.assert_array_equal(np.union1d(kept.index, held.index), index)


@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=4),
    st.one_of(st.floats(0.001, 0.999), st.integers(1, 100)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_halves_are_disjoint_complete_and_of_the_right_size(counts: list[int], size: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    try:
        kept, held = hold_out(part(labels), CLASSES, size, seed, "data.test_size")
    except ConvaeError:  # asked for the impossible
        return
    assert len(held.index) == (size if isinstance(size, int) else round(size * len(labels)))
    np.testing.assert_array_equal(np.sort(np.concatenate([kept.index, held.index])), np.arange(len(labels)))


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        ([0, 0, 1, 1], 0.1, "would hold out 0 of 4 images; 1 to 3 are allowed"),
        ([0, 0, 1, 1], 0.9, "would hold out 4 of 4 images"),
        ([0, 0, 1, 1], 5000, "would hold out 5000 of 4 images"),
        ([0, 0, 0, 1, 1, 2], 3, "class 'c' has only one image to split; at least 2 are needed"),
        ([0, 0, 1, 1, 2, 2], 2, "2 and 4 images cannot each hold 3 classes"),
        ([0, 0, 1, 1, 2, 2], 4, "4 and 2 images cannot each hold 3 classes"),
        ([], 1, r"0 image\(s\) can't be split, at least 2 are needed"),
    ],
)
def test_impossible_splits_name_the_parameter(labels: list[int], size: float, message: str) -> None:
    with pytest.raises(ConvaeError, match=f"data.validation_size = {size}: {message}"):
        hold_out(part(np.array(labels, np.int64)), CLASSES, size, 0, "data.validation_size")


def grouped(labels: np.ndarray | None, groups: np.ndarray) -> Part:
    return Part(np.zeros((len(groups), 1, 1, 1), np.uint8), labels, np.arange(len(groups)), groups=groups)


@pytest.mark.parametrize("size", [0.05, 0.1, 0.3, 0.4, 0.45, 0.7, 30])
def test_groups_stay_whole_near_the_size_and_the_proportions(size: float) -> None:
    groups = np.repeat(np.arange(60), 5)
    labels = groups % 3
    kept, held = hold_out(grouped(labels, groups), CLASSES, size, 0, "data.test_size")
    assert not set(groups[kept.index]) & set(groups[held.index])
    wanted = size if isinstance(size, int) else size * 300
    assert abs(len(held.index) - wanted) <= 15
    counts = np.bincount(labels[held.index], minlength=3)
    assert counts.max() - counts.min() <= 5
    assert hold_out(grouped(labels, groups), CLASSES, size, 0, "")[1].index.tolist() == held.index.tolist()


def test_groups_of_unlike_sizes() -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 40)
    groups = np.repeat(np.arange(40), sizes)
    _, held = hold_out(grouped(None, groups), (), 0.25, 0, "data.test_size")
    assert abs(len(held.index) / len(groups) - 0.25) < 0.05


def test_a_class_of_one_group_cant_be_held_out() -> None:
    labels = np.repeat([0, 1, 2], 20)
    with pytest.raises(ConvaeError, match=r"class '[abc]' has too few groups to be in both halves"):
        hold_out(grouped(labels, labels), CLASSES, 0.3, 0, "data.test_size")
