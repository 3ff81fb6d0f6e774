"""Reasons to doubt an experiment: its encoder, its numbers, and the images they were measured on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convae.names import printable

LEAST_RANK = 2  # effective rank below which features hardly tell images apart
AS_WELL = 1.1  # largest ratio of two errors that count as equal
FEW = 5  # images of a class: with fewer, its recall moves in steps of more than 20 points
NAMED = 3  # classes named in a sentence
MOST_CROPPED = 1 / 3  # of a picture's area
OFTEN = 0.01  # of the test images
FEW_LEVELS = 64  # a quarter of all grey levels, as from 14 bits stored in 16
PART_NAMES = {"train": "training", "validation": "validation", "test": "test", "unlabelled": "unlabelled"}
LACKING = {
    "train": "The classifier cannot learn a class from so few images; add more",
    "validation": "These classes hardly affect the choice of settings; a larger data.validation_size helps",
    "test": "The accuracy says next to nothing about these classes; a larger data.test_size helps",
}
FEWER_BITS = "If their files use fewer bits than they could, data.white_level (4095 for 12 bits in 16) stretches them."
FEW_OF_8_BITS = "data.scale: range stretches arrays; pictures must be saved with levels from 0 to 255."
MOSTLY = {
    "dead": "a smaller train.learning_rate or more winners (objective.sparsity) may keep them alive",
    "duplicates": "fewer filters, or winners that compete (objective.sparsity), would do",
}
EXAMPLES = "data/prepared/description.json has examples, by their rows."


def concerns(metrics: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """Reasons for doubt and what to do about them, a sentence or two each; empty if there are none.

    Args:
        metrics: the content of `metrics.json`.
        description: the content of `description.json` of the prepared images.

    Example:
        >>> part = {"images": 10, "images_per_class": {"cat": 8, "dog": 2}, "levels": [0, 255]}
        >>> description = {"parts": dict.fromkeys(PART_NAMES, part), "duplicates": {}, "near_duplicates": {}, "dim": 0}
        >>> description |= {"two_classes": {"images": 0}, "rejected": [], "cropped": 0}
        >>> health = {"filters": [], "effective_rank": 9, "copying": None}
        >>> concerns({"test": {}, "features": {}, "health": health}, description)[0]
        "Fewer than 5 training images of 'dog' (1 of 2 classes). The classifier cannot learn a class ..."
    """
    return [
        *_of_accuracy(metrics["test"]),
        *image_concerns(description),
        *_of_neighbors(metrics["features"].get("near_copies")),  # absent if too few numbers could tell
        *_of_encoder(metrics["health"]),
    ]


def image_concerns(description: Mapping[str, Any]) -> list[str]:
    """The concerns about the images alone; see `concerns`."""
    return [*_of_classes(description), *_of_copies(description), *_of_pixels(description)]


def beside_accuracy(test: Mapping[str, Any]) -> str:
    """The baselines to print next to the test accuracy.

    Example:
        >>> test = {"balanced_accuracy": 0.5, "worst_recall": 0, "worst_class": "cat", "majority_accuracy": 0.9}
        >>> beside_accuracy(test)
        'balanced 50.00 %, lowest recall 0.00 % (cat), always the commonest class 90.00 %'
    """
    return (
        f"balanced {_percent(test['balanced_accuracy'])}, lowest recall {_percent(test['worst_recall'])} "
        f"({printable(test['worst_class'])}), always the commonest class {_percent(test['majority_accuracy'])}"
    )


def _percent(fraction: float) -> str:
    """`92.41 %` for 0.9241."""
    return f"{100 * fraction:.2f} %"


def _of_accuracy(test: Mapping[str, Any]) -> Iterator[str]:
    if "accuracy" not in test:
        return
    advice = "classifier.class_weight: balanced, select_by: balanced_accuracy or more images of rare classes may help"
    if test["accuracy"] <= test["majority_accuracy"]:
        yield (
            f"The accuracy is no higher than by always guessing the commonest class: {_percent(test['accuracy'])} "
            f"against {_percent(test['majority_accuracy'])}. What the classifier reads says nothing about the "
            "classes, its penalty is too large, or it favours rare classes, as with classifier.class_weight: balanced."
        )
    if test["never_found"]:
        yield f"No test image of {_named(test['never_found'])} is recognised; {advice}."


def _of_classes(description: Mapping[str, Any]) -> Iterator[str]:
    """Parts with no images of a class, or few."""
    for part, what in LACKING.items():
        counts = description["parts"][part].get("images_per_class") or {}
        lacking = [name for name, count in counts.items() if count == 0]
        few = [name for name, count in counts.items() if 0 < count < FEW]
        for names, number in ((lacking, "No"), (few, f"Fewer than {FEW}")):
            if names:
                which = f"{_named(names)} ({len(names)} of {len(counts)} classes)"
                yield f"{number} {PART_NAMES[part]} image{'s' if names is few else ''} of {which}. {what}."


def _of_copies(description: Mapping[str, Any]) -> Iterator[str]:
    """Images that occur twice."""
    of = {part: about["images"] for part, about in description["parts"].items()}
    for part, found in description["duplicates"].items():
        if found["images"]:
            where = ", ".join(f"{count} in {PART_NAMES[name]}" for name, count in found["parts"].items() if count)
            yield (
                f"{PART_NAMES[part].capitalize()} images that another part has too, pixel for pixel: "
                f"{found['images']} of {of[part]} ({where}). Scores are too high: remove the copies from one of the "
                f"parts. {EXAMPLES}"
            )
    for part, found in description["near_duplicates"].items():
        if found["images"]:
            yield (
                f"{PART_NAMES[part].capitalize()} images that look like a copy of one in another part, re-saved, "
                f"resized or brightened: {found['images']} of {found['looked_at']}. If they are copies, scores are too "
                f"high. {EXAMPLES}"
            )
    if twice := description["two_classes"]["images"]:
        yield (
            f"Images that occur in two or more classes, pixel for pixel: {twice} of {sum(of.values())}. Some of their "
            f"labels are wrong. {EXAMPLES}"
        )


def _of_neighbors(found: Mapping[str, int] | None) -> Iterator[str]:
    """Test images that are nearly the same to the encoder as training images."""
    if found and found["images"] > OFTEN * found["looked_at"]:
        yield (
            "Test images that the encoder hardly tells from a training image: "
            f"{found['images']} of {found['looked_at']}. If they show the same thing, as frames of a film do, scores "
            "are too high: data.group, or the column group of a table, keeps such images together."
        )


def _of_pixels(description: Mapping[str, Any]) -> Iterator[str]:
    """Pictures that reading omitted, cropped or darkened."""
    if rejected := description["rejected"]:
        first = f"{rejected[0]['path']} ({rejected[0]['reason']})"
        yield f"Files that were skipped: {len(rejected)}, such as {first}. data/prepared/description.json lists them."
    if description["dim"]:
        total = sum(about["images"] for about in description["parts"].values())
        yield (
            "Pictures of more than 8 bits per channel that are nowhere brighter than a quarter of white: "
            f"{description['dim']} of {total}. {FEWER_BITS}"
        )
    if description["cropped"] > MOST_CROPPED:
        yield (
            f"Cropping removes {description['cropped']:.0%} of the area of the median picture. If it may remove what "
            "matters, data.fit: pad or stretch keeps it, and so does a data.image_size with the pictures' aspect ratio."
        )
    darkest, brightest = description["parts"]["train"].get("levels", (0, 255))
    if brightest - darkest <= FEW_LEVELS:
        remedy = FEWER_BITS if description["dim"] else FEW_OF_8_BITS
        yield f"The training images use only the levels {darkest} to {brightest} of 0 to 255. {remedy}"


def _named(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(f"'{printable(name)}'" for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _of_encoder(health: Mapping[str, Any]) -> Iterator[str]:
    for number, layer in enumerate(health["filters"], 1):
        for kind, advice in MOSTLY.items():
            if layer[kind] > layer["filters"] / 2:
                yield f"Layer {number}: {layer[kind]} of {layer['filters']} filters are {kind}; {advice}."
    if health["effective_rank"] < LEAST_RANK:
        yield "The features hardly vary from image to image: check whether training went well."
    copied = health["copying"]
    if copied and copied["reconstruction_mse"] >= copied["baseline_mse"]:
        yield "This encoder reconstructs no better than the mean image: train it longer or faster."
    elif copied and copied["twin_reconstruction_mse"] <= AS_WELL * copied["reconstruction_mse"]:
        yield (
            "The low reconstruction error says nothing about the filters: a random encoder with a trained decoder "
            "reconstructs just as well. An encoder with more activations than pixels can copy its input; winners "
            "(objective.sparsity) or masking (objective.corruption) prevent that."
        )
