import pytest

from convae.evaluation.concerns import beside_accuracy, concerns

HEALTH = {
    "filters": [{"filters": 8, "dead": 0, "duplicates": 0}],
    "effective_rank": 100.0,
    "copying": {"reconstruction_mse": 0.2, "twin_reconstruction_mse": 0.35, "baseline_mse": 0.55},
}
TEST = {"accuracy": 0.92, "majority_accuracy": 0.5, "never_found": []}
COPIES = {
    "duplicates": {
        "test": {"images": 0, "parts": {"validation": 0, "train": 0, "unlabelled": 0}, "examples": []},
        "validation": {"images": 0, "parts": {"train": 0, "unlabelled": 0}, "examples": []},
    },
    "near_duplicates": {part: {"looked_at": 40, "images": 0, "examples": []} for part in ("test", "validation")},
    "two_classes": {"images": 0, "examples": []},
}


def describe(
    train=(50, 50), validation=(5, 5), test=(20, 20), cropped=0.0, levels=(0, 255), dim=0, rejected=(), **copies
):
    """A `description.json` with classes `a`, `b` ... of these image counts, or with sets without labels."""
    parts = {"train": train, "validation": validation, "test": test, "unlabelled": None}
    return {
        "parts": {
            name: {
                "images": sum(counts or (7,)),
                "levels": list(levels),
                "images_per_class": counts and dict(zip("abcdefgh", counts, strict=False)),
            }
            for name, counts in parts.items()
        },
        "cropped": cropped,
        "dim": dim,
        "rejected": list(rejected),
        **{key: COPIES[key] | copies.get(key, {}) for key in COPIES},
    }


def found(metrics=TEST, health=HEALTH, features=None, **description):
    return concerns({"test": metrics, "features": features or {}, "health": health}, describe(**description))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"filters": [{"filters": 8, "dead": 4, "duplicates": 4}]}, []),
        ({"filters": [{"filters": 8, "dead": 5, "duplicates": 0}]}, ["Layer 1: 5 of 8 filters are dead; a smaller"]),
        ({"filters": [{"filters": 8, "dead": 0, "duplicates": 5}]}, ["Layer 1: 5 of 8 filters are duplicates; fewer"]),
        ({"effective_rank": 1.0}, ["The features hardly vary"]),
        ({"copying": None}, []),
        ({"copying": HEALTH["copying"] | {"twin_reconstruction_mse": 0.21}}, ["a random encoder with a trained"]),
        ({"copying": HEALTH["copying"] | {"reconstruction_mse": 0.6}}, ["no better than the mean image"]),
    ],
)
def test_doubts_about_an_encoder_are_reported(changes, words):
    texts = found(health=HEALTH | changes)
    assert len(texts) == len(words)
    assert all(word in text for word, text in zip(words, texts, strict=True))


def test_heavily_cropped_pictures_are_reported():
    assert found(cropped=1 / 3, levels=(100, 165)) == []
    (text,) = found(cropped=0.8)
    assert text.startswith(
        "Cropping removes 80% of the area of the median picture. If it may remove what matters, data.fit"
    )
    (text,) = found(levels=(0, 15))
    assert text.startswith("The training images use only the levels 0 to 15 of 0 to 255. data.scale: range stretches")
    _, levels = found(levels=(0, 15), dim=6)
    assert levels.startswith(
        "The training images use only the levels 0 to 15 of 0 to 255. If their files use fewer bits"
    )


def test_skipped_and_dark_files_are_reported():
    (text,) = found(rejected=[{"path": "train/a/x.jpg", "reason": "an HEIC photo; save it as PNG"}] * 2)
    assert text.startswith("Files that were skipped: 2, such as train/a/x.jpg (an HEIC photo; save it as PNG). data")
    (text,) = found(dim=6)
    assert "brighter than a quarter of white: 6 of 157. If their files use fewer" in text


def test_an_accuracy_no_better_than_the_majority_is_reported():
    for accuracy, count in ((0.99, 1), (0.98, 1), (0.991, 0)):
        texts = found(TEST | {"accuracy": accuracy, "majority_accuracy": 0.99})
        assert len(texts) == count
    (text,) = found(TEST | {"accuracy": 0.99, "majority_accuracy": 0.99})
    assert "always guessing the commonest class: 99.00 % against 99.00 %" in text
    assert "class_weight: balanced" in text


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["b"], "'b'"),
        (["a", "b", "c"], "'a', 'b', 'c'"),
        (["a", "b\n\x1b[2J", "c", "d", "e"], r"'a', 'b\n\x1b[2J', 'c' and 2 more"),
    ],
)
def test_classes_that_are_never_predicted_right_are_named(names, shown):
    (text,) = found(TEST | {"never_found": names})
    assert text.startswith(f"No test image of {shown} is recognised; ")


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_missing_and_rare_classes_in_a_part_are_reported(part):
    name = "training" if part == "train" else part
    assert found(**{part: (5, 9)}) == []
    (lacking,) = found(**{part: (0, 9)})
    assert lacking.startswith(f"No {name} image of 'a' (1 of 2 classes). ")
    lacking, few = found(**{part: (0, 9, 4, 1, 1, 3)})
    assert lacking.startswith(f"No {name} image of 'a' (1 of 6 classes). ")
    assert few.startswith(f"Fewer than 5 {name} images of 'c', 'd', 'e' and 1 more (4 of 6 classes). ")


def test_copies_are_reported_with_the_total():
    test = {"images": 3, "parts": {"validation": 1, "train": 2, "unlabelled": 0}}
    (text,) = found(duplicates={"test": test})
    assert text.startswith(
        "Test images that another part has too, pixel for pixel: 3 of 40 (1 in validation, 2 in training). "
    )
    (text,) = found(duplicates={"validation": {"images": 10, "parts": {"train": 0, "unlabelled": 10}}})
    assert text.startswith("Validation images that another part has too, pixel for pixel: 10 of 10 (10 in unlabelled).")
    (text,) = found(near_duplicates={"test": {"looked_at": 30, "images": 4}})
    assert text.startswith("Test images that look like a copy of one in another part, ")
    assert ": 4 of 30. " in text
    (text,) = found(two_classes={"images": 2})
    assert text.startswith("Images that occur in two or more classes, pixel for pixel: 2 of 157. ")


def test_concerns_cover_unlabelled_images():
    assert found({}, train=None, validation=None, test=None) == []
    (text,) = found({}, train=None, validation=None, test=None, near_duplicates={"test": {"looked_at": 7, "images": 7}})
    assert ": 7 of 7. " in text


def test_the_baselines_of_an_accuracy_fit_on_one_line():
    test = {"balanced_accuracy": 0.5, "worst_recall": 0.0, "majority_accuracy": 0.99, "worst_class": "a\nb"}
    assert beside_accuracy(test) == (
        r"balanced 50.00 %, lowest recall 0.00 % (a\nb), always the commonest class 99.00 %"
    )


@pytest.mark.parametrize(("images", "words"), [(20, []), (21, ["hardly tells from a training image: 21 of 2000"])])
def test_test_images_that_nearly_equal_training_images_are_reported(images, words):
    texts = found(features={"near_copies": {"looked_at": 2000, "images": images}})
    assert len(texts) == len(words)
    assert all(word in text for word, text in zip(words, texts, strict=True))
