import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits

from convae.datasets import near_duplicates
from convae.datasets.duplicates import find_duplicates
from convae.datasets.image_set import ImageSet
from convae.datasets.near_duplicates import describe
from convae.datasets.shards import ShardedImages, write_shards


def scenes(count: int, seed: int, side: int = 32, channels: int = 3) -> np.ndarray:
    """Pictures of a few large and some small ellipses, all different."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    images = np.empty((count, channels, side, side))
    for image in images:
        image[:] = generator.uniform(0, 255, (channels, 1, 1))
        for size in (0.5, 0.4, 0.3, 0.2, 0.2, 0.1, 0.1):
            (top, left), (height, width) = generator.uniform(0, 1, 2), generator.uniform(0.3, 1, 2) * size
            inside = ((y - top) / height) ** 2 + ((x - left) / width) ** 2 < 1
            image[:, inside] = generator.uniform(0, 255, (channels, 1))
    return images.round().astype(np.uint8)


def image_sets(
    test: np.ndarray,
    validation: np.ndarray | None = None,
    train: np.ndarray | None = None,
    unlabelled: np.ndarray | None = None,
) -> dict[str, ImageSet]:
    """Image sets without labels; parts not given are empty."""
    parts = {"test": test, "validation": validation, "train": train, "unlabelled": unlabelled}
    return {name: ImageSet(test[:0] if images is None else images, None, (), "") for name, images in parts.items()}


def changed(image: np.ndarray, change: str) -> np.ndarray:
    picture = Image.fromarray(image.transpose(1, 2, 0))
    width, height = picture.size
    if change.startswith("JPEG"):
        picture.save(stream := io.BytesIO(), "JPEG", quality=int(change[5:]))
        picture = Image.open(stream)
    elif change == "half":
        picture = picture.resize((width // 2, height // 2)).resize((width, height))
    elif change == "blur":
        picture = picture.filter(ImageFilter.GaussianBlur(1))
    elif change == "crop":
        picture = picture.resize((width, height), box=(0.02 * width, 0.02 * height, 0.98 * width, 0.98 * height))
    elif change == "shade":
        picture = ImageEnhance.Brightness(picture).enhance(0.8)
    return np.asarray(picture).transpose(2, 0, 1)


def test_duplicates_are_found_in_every_later_part() -> None:
    random = np.random.default_rng(0)
    test, train, validation, more = (random.integers(0, 256, (n, 1, 4, 4), np.uint8) for n in (50, 200, 20, 30))
    train[[7, 9]] = test[3]  # twice: the first counts
    validation[5] = test[3]
    train[11] = test[40]
    more[29] = validation[0]
    found = find_duplicates(image_sets(test, validation, train, more))["duplicates"]
    assert found["test"] == {
        "images": 2,
        "parts": {"validation": 1, "train": 2, "unlabelled": 0},
        "examples": [[3, "train", 7], [3, "validation", 5], [40, "train", 11]],
    }
    assert found["validation"] == {
        "images": 2,
        "parts": {"train": 1, "unlabelled": 1},
        "examples": [[0, "unlabelled", 29], [5, "train", 7]],
    }
    many = find_duplicates(image_sets(test, train=test))["duplicates"]["test"]
    assert (many["images"], len(many["examples"])) == (50, 20)


def test_the_same_picture_in_two_classes_is_found_within_and_across_parts() -> None:
    random = np.random.default_rng(0)
    test, train = (random.integers(0, 256, (n, 1, 4, 4), np.uint8) for n in (10, 40))
    parts = image_sets(test, test[:0], train)
    labels = {"test": np.arange(10) % 3, "validation": np.zeros(0, np.int64), "train": np.arange(40) % 3}
    train[3] = train[0]  # both are of class 0
    train[7] = train[5]  # 1 and 2
    train[20] = test[4]  # 2 and 1
    labelled = {name: replace(one, labels=labels.get(name), classes=("a", "b", "c")) for name, one in parts.items()}
    found = find_duplicates(labelled)["two_classes"]
    assert found["images"] == 4
    assert sorted(sorted([row[:2], row[2:]]) for row in found["examples"]) == [
        [["test", 4], ["train", 20]],
        [["train", 5], ["train", 7]],
    ]
    assert find_duplicates(parts)["two_classes"] == {"images": 0, "examples": []}


@pytest.mark.parametrize("change", ["JPEG 90", "JPEG 75", "JPEG 50", "half", "blur", "crop", "shade"])
def test_altered_copies_are_found_and_nothing_else(change: str) -> None:
    train, test = scenes(300, 0), scenes(60, 1)
    copied = np.arange(0, 60, 3)
    test[copied] = [changed(train[5 * index], change) for index in copied]
    found = find_duplicates(image_sets(test, test[:0], train))
    assert found["duplicates"]["test"]["images"] == 0
    assert found["near_duplicates"]["test"] == {
        "looked_at": 60,
        "images": 20,
        "examples": [[index, "train", 5 * index] for index in copied.tolist()],
    }


@pytest.mark.parametrize("copies", [1, 4, 5, 6, 10, 20])
def test_many_copies_of_a_picture_do_not_hide_each_other(copies: int) -> None:
    """As in an augmented data set, or frames of a film."""
    train, test = scenes(500, 0), scenes(10, 1)
    generator = np.random.default_rng(2)
    shades = test[:5, None] * generator.uniform(0.8, 1, (5, copies, 1, 1, 1))
    noisy = shades + generator.normal(0, 2, (5, copies, *test.shape[1:]))
    like = noisy.clip(0, 255).astype(np.uint8).reshape(-1, *test.shape[1:])
    found = find_duplicates(image_sets(test, test[:0], np.concatenate([train, like])))
    assert [pair[0] for pair in found["near_duplicates"]["test"]["examples"]] == [0, 1, 2, 3, 4]


def test_similar_images_are_not_copies() -> None:
    """Any two digits look similar."""
    digits = load_digits().images.round().astype(np.uint8)[:, None] * 15
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(digits))
        found = find_duplicates(image_sets(digits[order[:400]], train=digits[order[400:]]))
        assert found["near_duplicates"]["test"]["images"] <= 1


@pytest.mark.parametrize("shape", [(1, 5, 5), (1, 32, 32), (3, 28, 30)])
def test_flat_images_have_no_near_duplicates(shape: tuple[int, int, int]) -> None:
    flat = np.full((8, *shape), np.array([0, 1, 90, 255, 2, 88, 200, 254], np.uint8)[:, None, None, None])
    assert not describe(flat).any()
    assert find_duplicates(image_sets(flat[:4], train=flat[4:]))["near_duplicates"]["test"]["images"] == 0
    flat[:, :, 1, 2] ^= 1
    assert describe(flat).any(axis=1).all()


def test_a_rare_class_of_similar_images_is_not_mistaken_for_copies() -> None:
    """Five similar images among many others: the nearest is no nearer than the fifth."""
    train, test = scenes(200, 0, channels=1), scenes(20, 1, channels=1)
    rare = (0.7 * scenes(1, 2, channels=1) + 0.3 * scenes(6, 3, channels=1)).astype(np.uint8)
    train[50:55], test[0] = rare[:5], rare[5]
    assert find_duplicates(image_sets(test, train=train))["near_duplicates"]["test"]["images"] == 0


def test_copies_of_validation_images_are_found_even_among_few_images() -> None:
    images = scenes(6, 0)
    validation = np.stack([changed(image, "JPEG 90") for image in images[:2]])
    found = find_duplicates(image_sets(images[:1], validation, images))["near_duplicates"]
    assert found["validation"]["examples"] == [[0, "train", 0], [1, "train", 1]]
    assert found["test"]["images"] == 0  # pixel for pixel
    assert find_duplicates(image_sets(images[:1], validation[:1]))["near_duplicates"]["test"]["images"] == 1
    assert find_duplicates(image_sets(images[:1], images[1:2]))["near_duplicates"]["test"]["images"] == 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (3, 2, 3), (1, 300, 5)])
def test_image_descriptors_are_exact_integers_for_any_size(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, *shape), np.uint8)
    found = describe(images)
    assert np.array_equal(found, found.round())
    lengths = np.linalg.norm(found.astype(np.float64), axis=1)
    assert (lengths < 2**12).all()  # products below 2^24
    assert (lengths > 3990).all() or shape == (1, 1, 1)


def test_of_very_many_images_a_sample_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "MOST_PAIRS", 2000)
    train = scenes(200, 0)
    test = np.stack([changed(image, "JPEG 90") for image in train[:100]])
    found = find_duplicates(image_sets(test, train=train))["near_duplicates"]["test"]
    assert (found["looked_at"], found["images"]) == (10, 10)
    assert found["examples"][-1] == [99, "train", 99]


def test_each_piece_of_the_images_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convae.datasets.shards.PIECE_BYTES", 20 * 3 * 32 * 32)
    train = scenes(200, 0)
    sharded = write_shards(str(tmp_path / "shards"), train.shape, [train])
    assert isinstance(sharded, ShardedImages)
    read: list[int] = []
    inner = sharded._read
    monkeypatch.setattr(sharded, "_read_lately", lambda piece: read.append(piece) or inner(piece))
    test = np.stack([changed(train[index], "JPEG 90") for index in (190, 3)])
    found = find_duplicates(image_sets(test, train=sharded))
    assert found["near_duplicates"]["test"]["examples"] == [[0, "train", 190], [1, "train", 3]]
    assert read == list(range(10))
