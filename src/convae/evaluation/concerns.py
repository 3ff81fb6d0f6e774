"""What makes an experiment doubtful: its encoder, its numbers, and the images that they were measured on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from convae.names import printable

LEAST_RANK = 2  # of features that tell images apart
AS_WELL = 1.1  # times the error
FEW = 5  # images of a class: its recall goes by steps of 20 points, or more
NAMED = 3
MOST_CROPPED = 1 / 3
FEW_LEVELS = 64  # a quarter of them, as 14 of 16 bits give
PARTS = {"train": "training", "validation": "validation", "test": "test", "unlabelled": "unlabelled"}
LACKING = {
    "train": "The classifier cannot learn a class from so few images; add more",
    "validation": "These classes hardly affect the choice of settings; a larger data.validation_size helps",
    "test": "The accuracy says next to nothing about these classes; a larger data.test_size helps",
}
EXAMPLES = "data/prepared/description.json has examples, by their rows."


def concerns(metrics: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """What is doubtful and what to do about it, a sentence or two each; empty where all is sound.

    Args:
        metrics: what `metrics.json` holds.
        description: what `description.json` of the prepared images holds.
    """
    return [
        *_of_accuracy(metrics["test"]),
        *_of_classes(description),
        *_of_copies(description),
        *_of_pixels(description),
        *_of_encoder(metrics["health"]),
    ]


def beside_accuracy(test: Mapping[str, Any]) -> str:
    """The baselines to print beside the test accuracy."""
    return (
        f"balanced {_percent(test['balanced_accuracy'])}, lowest recall {_percent(test['worst_recall'])} "
        f"({printable(test['worst_class'])}), always the commonest class {_percent(test['majority_accuracy'])}"
    )


def _percent(part: float) -> str:
    """`92.41 %` of 0.9241."""
    return f"{100 * part:.2f} %"


def _of_accuracy(test: Mapping[str, Any]) -> Iterator[str]:
    if "accuracy" not in test:
        return
    advice = "classifier.class_weight: balanced, select_by: balanced_accuracy or more images of rare classes may help"
    if test["accuracy"] <= test["majority_accuracy"]:
        yield (
            f"The accuracy is no higher than that of always guessing the commonest class: {_percent(test['accuracy'])} "
            f"against {_percent(test['majority_accuracy'])}. The features say nothing about the classes, or the "
            "classifier favours rare ones, as with classifier.class_weight: balanced."
        )
    if test["never_found"]:
        yield f"No test image of {_named(test['never_found'])} is recognised; {advice}."


def _of_classes(description: Mapping[str, Any]) -> Iterator[str]:
    """Parts that lack a class, or nearly so."""
    for part, what in LACKING.items():
        counts = description["parts"][part].get("images_per_class") or {}
        lacking = [name for name, count in counts.items() if count == 0]
        few = [name for name, count in counts.items() if 0 < count < FEW]
        for names, number in ((lacking, "No"), (few, f"Fewer than {FEW}")):
            if names:
                which = f"{_named(names)} ({len(names)} of {len(counts)} classes)"
                yield f"{number} {PARTS[part]} image{'s' if names is few else ''} of {which}. {what}."


def _of_copies(description: Mapping[str, Any]) -> Iterator[str]:
    """Pictures that are there twice."""
    of = {part: about["images"] for part, about in description["parts"].items()}
    for part, found in description["duplicates"].items():
        if found["images"]:
            where = ", ".join(f"{count} in {PARTS[name]}" for name, count in found["parts"].items() if count)
            yield (
                f"{PARTS[part].capitalize()} images that another part has too, pixel for pixel: "
                f"{found['images']} of {of[part]} ({where}). Scores are too high: remove them from one of the parts. "
                f"{EXAMPLES}"
            )
    for part, found in description["near_duplicates"].items():
        if found["images"]:
            yield (
                f"{PARTS[part].capitalize()} images that look like a copy of one in another part, re-saved, resized "
                f"or brightened: {found['images']} of {found['looked_at']}. If they are copies, scores are too "
                f"high. {EXAMPLES}"
            )
    twice = description["two_classes"]["images"]
    if twice:
        yield (
            f"Images that occur in two or more classes, pixel for pixel: {twice} of {sum(of.values())}. Some of their "
            f"labels are wrong. {EXAMPLES}"
        )


def _of_pixels(description: Mapping[str, Any]) -> Iterator[str]:
    """Pictures of which little or nothing is left."""
    rejected = description["rejected"]
    if rejected:
        first = f"{rejected[0]['path']} ({rejected[0]['reason']})"
        yield f"Files that are left out: {len(rejected)}, such as {first}. data/prepared/description.json lists them."
    if description["dim"]:
        total = sum(about["images"] for about in description["parts"].values())
        yield (
            "Pictures of more than 8 bits per channel that are nowhere brighter than a quarter of white: "
            f"{description['dim']} of {total}. If their files "
            "hold fewer bits than they have room for, data.white_level (4095 for 12 bits in 16) spreads them."
        )
    if description["cropped"] > MOST_CROPPED:
        yield (
            f"Cropping takes {description['cropped']:.0%} of its area from the median picture. If what counts may lie "
            "there, data.fit: pad or stretch keeps it, and so does a data.image_size of the pictures' own ratio."
        )
    darkest, brightest = description["parts"]["train"]["levels"]
    if brightest - darkest <= FEW_LEVELS:
        yield (
            f"The training images use only the levels {darkest} to {brightest} of 0 to 255. If their files hold fewer "
            "bits than they have room for, data.white_level (4095 for 12 bits in 16) spreads them."
        )


def _named(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(f"'{printable(name)}'" for name in names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _of_encoder(health: Mapping[str, Any]) -> Iterator[str]:
    for number, layer in enumerate(health["filters"], 1):
        for kind, advice in (
            ("dead", "a smaller train.learning_rate or a larger objective.sparsity.lifetime may keep them alive"),
            ("duplicates", "fewer filters, or winners that compete (objective.sparsity), would do"),
        ):
            if layer[kind] > layer["filters"] / 2:
                yield f"Layer {number}: {layer[kind]} of {layer['filters']} filters are {kind}; {advice}."
    if health["effective_rank"] < LEAST_RANK:
        yield "The features hardly vary from image to image: see whether the training went well."
    copied = health["copying"]
    if copied and copied["reconstruction_mse"] >= copied["baseline_mse"]:
        yield "This encoder reconstructs no better than the mean image: train it longer or faster."
    elif copied and copied["twin_reconstruction_mse"] <= AS_WELL * copied["reconstruction_mse"]:
        yield (
            "The low reconstruction error says nothing about the filters: a random encoder with a trained decoder "
            "reconstructs as well. Where there are more activations than pixels the input can be copied; winners "
            "(objective.sparsity) or masking (objective.corruption) prevent that."
        )
