"""The report: an HTML file that needs neither server nor internet, and its figures as PNG files."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder
from convae.environment import LIBRARIES, versions
from convae.evaluation.concerns import concerns
from convae.files import new_folder, read_json
from convae.names import flatten
from convae.params import Params
from convae.reporting.charts import confusion_figure, learning_curves_figure, mistakes_figure
from convae.reporting.drawing import save_figure, style
from convae.reporting.figures import (
    MOST_FILTERS,
    activation_figures,
    example_images,
    filters_figure,
    reconstructions_figure,
)
from convae.reporting.page import Exhibit, embed, write_page

TEMPLATE = Path(__file__).with_name("report.html")
# Parameters that do not affect the results, such as folders, devices and addresses: the report is the same for all.
LEFT_OUT = (
    "data.root",
    "data.shards",
    "tracking.",
    "train.accelerator",
    "train.devices",
    "train.nodes",
    "train.strategy",
    "train.checkpoint_minutes",
)


def write_report(
    params: Params, encoder: Encoder, prepared: Path, *, classifier: Path, predictions: Path, reports: Path
) -> None:
    """Draw the figures and write the report.

    Args:
        params: the experiment.
        encoder: the trained encoder.
        prepared: folder with the image sets and their `description.json`.
        classifier: folder of the fitted classifier; only `classifier.json` is read.
        predictions: Parquet file with a row for each test image.
        reports: folder with `training.csv`, `metrics.json` and `per_class.csv`; `report.html` and `figures/*.png` are
            written to it.
    """
    with style(), new_folder(reports / "figures") as scratch:
        pictures = _encoder_pictures(encoder, prepared, reports) + _test_pictures(prepared, predictions)
        for picture in pictures:
            save_figure(picture.figure, scratch / f"{picture.name}.png")
    # The page embeds the files' bytes, so it shows exactly what lies in figures/.
    files = [reports / "figures" / f"{picture.name}.png" for picture in pictures]
    metrics, description = read_json(reports / "metrics.json"), read_json(prepared / "description.json")
    write_page(
        reports / "report.html",
        TEMPLATE,
        description=description,
        metrics=metrics,
        concerns=concerns(metrics, description),
        classifier=read_json(classifier / "classifier.json"),
        per_class=_read_table(reports / "per_class.csv").to_dict("records"),
        origin=_origin(params, len(pd.read_csv(reports / "training.csv"))),
        first_layer=_first_layer(encoder),
        parameters=_parameters(params),
        versions={"python": platform.python_version(), **versions(LIBRARIES)},
        pictures=[(picture, *embed(file.read_bytes())) for picture, file in zip(pictures, files, strict=True)],
    )


UNTRAINED = {
    "normal": "The encoder was not trained: its filters are as they were drawn at random.",
    "patches": "The encoder was not trained: its filters are patches of the preprocessed training images.",
    "kmeans": "The encoder was not trained by gradient: its filters are what k-means found among image patches.",
    "filter_bank": "The encoder was not trained: its filters are made by hand.",
}


def _origin(params: Params, epochs: int) -> str:
    """A sentence on the origin of the filters."""
    objective = params.objective
    if not params.model.layers:
        return "There are no filters: the preprocessed pixels themselves are read."
    if objective.kind == "none":
        return UNTRAINED[params.model.initialization]
    labels = "without labels" if objective.kind == "reconstruct" else "with labels"
    if objective.kind == "classify" and objective.pretraining:
        labels = "first without and then with labels,"
    trained = f"The encoder was trained {labels} for {epochs} epoch{'' if epochs == 1 else 's'}"
    return f"{trained}, then frozen."


def _read_table(path: Path) -> pd.DataFrame:
    """Read a table whose first column holds class names, even names like `1`, `NA` or `true`."""
    first = path.read_text("utf-8").split(",", 1)[0].strip()
    return pd.read_csv(path, dtype={first: str}, keep_default_na=False)


def _first_layer(encoder: Encoder) -> dict[str, Any] | None:
    """Parameter counts of the first convolution and of a dense layer with as many units; None without layers.

    Returns:
        `filters`, n; `incoming`, the shape `[D, H, W]` of their input; `convolution`, n·(k_h·k_w·D + 1), independent of
        the image size; `dense`, n·(H·W·D + 1), for the image size trained on and for twice the side; `is_dense`,
        whether the kernel is as large as the image.
    """
    layers = encoder.autoencoder.layers
    if not len(layers):
        return None
    filters, depth, *kernel = layers[0].convolution.weight.shape
    height, width = encoder.config["image_size"]
    return {
        "filters": filters,
        "incoming": [depth, height, width],
        "convolution": filters * (kernel[0] * kernel[1] * depth + 1),
        "dense": [filters * (side**2 * height * width * depth + 1) for side in (1, 2)],
        "is_dense": kernel == [height, width],
    }


def _encoder_pictures(encoder: Encoder, prepared: Path, reports: Path) -> list[Exhibit]:
    """Pictures of the encoder: its filters, and its output for validation images."""
    validation = ImageSet.load(prepared / "validation")
    images, names = example_images(validation)
    pictures = _layer_pictures(encoder, images, names) if encoder.config["layers"] else []
    caption = "Validation images as they are, and after preprocessing as the first layer sees them."
    if encoder.has_decoder:
        caption = (
            "Validation images as they are, after preprocessing, and as the decoder gives them back. It is "
            "the preprocessed image that is reconstructed; where there is no preprocessing, it has no row."
        )
    pictures.append(Exhibit("reconstructions", reconstructions_figure(encoder, images, names), "Images", caption))
    history = pd.read_csv(reports / "training.csv")
    if len(history):
        caption = "Loss on training and validation images after each epoch; the encoder is that of the marked one."
        if history["phase"].any():
            caption += " Dotted lines part the phases, each of which goes on from the marked epoch of the one before."
        pictures.append(Exhibit("learning_curves", learning_curves_figure(history), "Learning curves", caption))
    return pictures


def _layer_pictures(encoder: Encoder, images: np.ndarray, names: list[str]) -> list[Exhibit]:
    filters = encoder.filters
    shown = f"The first {MOST_FILTERS} of {len(filters)}" if len(filters) > MOST_FILTERS else f"All {len(filters)}"
    colours = "mid-grey is zero" if filters.shape[1] == 3 else "white is zero, blue positive, red negative"
    caption = f"{shown} filters of the first layer, each scaled by its own largest weight; {colours}."
    pictures = [Exhibit("filters", filters_figure(filters), "Filters", caption)]
    caption = (
        "What some of the filters answer to validation images, one image a row. White is zero, blue positive, red "
        "negative; each column has its own scale."
    )
    figures = activation_figures(encoder, images, names)
    for layer, figure in enumerate(figures, start=1):
        name, title = (f"_{layer}", f", layer {layer}") if len(figures) > 1 else ("", "")
        pictures.append(Exhibit(f"activation_maps{name}", figure, f"Activation maps{title}", caption))
    return pictures


def _test_pictures(prepared: Path, predictions: Path) -> list[Exhibit]:
    """Pictures of the classifier's predictions; empty if there were no labels."""
    rows = pd.read_parquet(predictions)
    if "prediction" not in rows:
        return []
    test = ImageSet.load(prepared / "test")
    counts = pd.crosstab(rows["truth"], rows["prediction"])
    counts = counts.reindex(index=test.classes, columns=test.classes, fill_value=0)
    caption = (
        "Test images: a row for each true class, a column for each prediction. The larger a part of its row, the "
        "darker the field (by the square root, so that small parts are seen)."
    )
    figure = confusion_figure(counts.to_numpy(), test.classes)
    pictures = [Exhibit("confusion_matrix", figure, "Confusion matrix", caption)]
    mistakes = mistakes_figure(test.images, rows)
    if mistakes is not None:
        certainty = "its probability" if "confidence" in rows else "by how much its score exceeds the second"
        caption = f"Above each test image the wrong prediction and {certainty}, below it the true class."
        pictures.append(Exhibit("mistakes", mistakes, "The most confident mistakes", caption))
    return pictures


def _parameters(params: Params) -> dict[str, dict[str, Any]]:
    """Parameters by section and dotted name; of the classifiers, only the chosen one."""
    chosen = f"classifier.{params.classifier.kind}."
    others = {f"classifier.{name}." for name in type(params.classifier).model_fields} - {chosen}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in flatten(params.model_dump(mode="json")).items():
        if name.startswith((*LEFT_OUT, *others)):
            continue
        section, _, key = name.replace(chosen, "classifier.").partition(".")
        shown = "none" if value is None else str(value).lower() if isinstance(value, bool) else value
        if isinstance(value, list):
            shown = ", ".join(map(str, value))
        sections.setdefault(section, {})[key or section] = shown
    return sections
