"""The report: an HTML file that needs neither server nor internet, and its figures as PNG files."""

import platform
from itertools import chain
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
from convae.reporting.drawing import Paint, save_figure, style
from convae.reporting.figures import (
    MOST_FILTERS,
    activation_figures,
    example_images,
    filters_figure,
    linear_reconstructions_figure,
    reconstructions_figure,
    strongest_patches_figure,
)
from convae.reporting.page import Exhibit, embed, write_page
from convae.reporting.space import (
    embed_in_plane,
    embedding_figure,
    neighbors_figure,
    picture_map_figure,
    strangest_figure,
)

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
    params: Params,
    encoder: Encoder,
    prepared: Path,
    *,
    classifier: Path,
    predictions: Path,
    reports: Path,
) -> None:
    """Draw the figures and write the report.

    Args:
        params: the experiment.
        encoder: the trained encoder.
        prepared: folder with the image sets and their `description.json`.
        classifier: folder of the fitted classifier; only `classifier.json` is read.
        predictions: Parquet file with a row for each test image, next to the arrays that `evaluate` writes.
        reports: folder with `training.csv`, `metrics.json` and `per_class.csv`; `report.html` and `figures/*.png` are
            written to it.
    """
    validation = ImageSet.load(prepared / "validation")
    metrics, description = read_json(reports / "metrics.json"), read_json(prepared / "description.json")
    history = pd.read_csv(reports / "training.csv")
    paint = Paint.of(validation, encoder.scale, params.report.channels)
    with style(), new_folder(reports / "figures") as scratch:
        sections = {
            "What the encoder learned": [
                *_layer_pictures(encoder, validation, paint),
                _reconstructions(encoder, prepared, predictions, metrics, paint),
                *_learning_curves(history),
            ],
            "Where images lie": [
                *_maps(params, prepared, predictions, paint),
                _neighbors(prepared, predictions, metrics, paint),
                _strangest(encoder, prepared, predictions, paint),
            ],
            "What the classifier confuses": _test_pictures(prepared, predictions, paint),
        }
        for picture in chain(*sections.values()):
            save_figure(picture.figure, scratch / f"{picture.name}.png")
    write_page(
        reports / "report.html",
        TEMPLATE,
        description=description,
        metrics=metrics,
        concerns=concerns(metrics, description),
        classifier=read_json(classifier / "classifier.json"),
        per_class=_read_table(reports / "per_class.csv").to_dict("records"),
        is_rgb=not params.data.any_depth,
        origin=_origin(params, history["epoch"].nunique(), encoder.config.get("initialized_from")),
        first_layer=_first_layer(encoder),
        parameters=_parameters(params),
        versions={"python": platform.python_version(), **versions(LIBRARIES)},
        # The page embeds the files' bytes, so it shows exactly what lies in figures/.
        sections={
            title: [(one, *embed((reports / f"figures/{one.name}.png").read_bytes())) for one in pictures]
            for title, pictures in sections.items()
            if pictures
        },
    )


UNTRAINED = {
    "normal": "The encoder was not trained: its filters are as they were drawn at random.",
    "patches": "The encoder was not trained: its filters are patches of the preprocessed training images.",
    "kmeans": "The encoder was not trained by gradient: its filters are what k-means found among image patches.",
    "filter_bank": "The encoder was not trained: the filters of its first layer are made by hand.",
}


def _origin(params: Params, epochs: int, saved: object) -> str:
    """A sentence on the origin of the filters; `saved` describes the saved encoder that they started from, if any."""
    objective = params.objective
    if not params.model.layers:
        return "There are no filters: the features are the preprocessed pixels."
    if objective.kind == "none":
        if saved:
            return f"The encoder was not trained: its first filters come from {params.model.initialize_from}."
        return UNTRAINED[params.model.initialization]
    labels = "without labels" if objective.kind == "reconstruct" else "with labels"
    if objective.kind == "classify" and objective.pretraining:
        labels = "first without and then with labels,"
    trained = f"The encoder was trained {labels} for {epochs} epoch{'' if epochs == 1 else 's'}"
    begun = f"{trained}, starting from the filters in {params.model.initialize_from}," if saved else f"{trained},"
    return f"{begun} then frozen."


def _read_table(path: Path) -> pd.DataFrame:
    """Read a table whose first column holds class names, even names like `1`, `NA` or `true`."""
    first = path.read_text("utf-8").split(",", 1)[0].strip()
    return pd.read_csv(path, dtype={first: str}, keep_default_na=False)


def _first_layer(encoder: Encoder) -> dict[str, Any] | None:
    """Parameter counts of the first convolution and of a dense layer with as many units; None without layers.

    Returns:
        `filters`, n; `incoming`, the shape `[D, H, W]` of their input; `convolution`, n·(k_h·k_w·D + 1), or n·q for
        filters of windows that are whitened to q values, independent of the image size; `dense`, n·(H·W·D + 1), for the
        image size trained on and for twice the side; `is_dense`, whether the kernel is as large as the image.
    """
    layers = encoder.autoencoder.layers
    if not len(layers):
        return None
    filters, depth, *kernel = layers[0].folded()[0].shape
    height, width = encoder.config["image_size"]
    parameters = sum(parameter.numel() for parameter in layers[0].convolution.parameters())
    return {
        "filters": filters,
        "incoming": [depth, height, width],
        "convolution": parameters,
        "dense": [filters * (side**2 * height * width * depth + 1) for side in (1, 2)],
        "is_dense": kernel == [height, width],
    }


def _layer_pictures(encoder: Encoder, validation: ImageSet, paint: Paint) -> list[Exhibit]:
    """The filters, what later layers respond to, and activation maps; empty without layers."""
    layers = encoder.config["layers"]
    if not layers:
        return []
    filters = encoder.filters
    shown = f"The first {MOST_FILTERS} of {len(filters)}" if len(filters) > MOST_FILTERS else f"All {len(filters)}"
    colours = "mid-grey is zero" if filters.shape[1] == 3 else "white is zero, blue positive, red negative"
    caption = f"{shown} filters of the first layer, each scaled by its own largest weight; {colours}."
    if layers[0].get("input"):
        caption += " Each is combined with the whitening of the windows, as it is applied to the image."
    pictures = [Exhibit("filters", filters_figure(filters), "Filters", caption)]
    for layer in range(1, len(layers)):
        caption = (
            f"Each square belongs to one map of layer {layer + 1}: the nine parts of validation images to which it "
            "responds most strongly, each from another image, and black beyond the image's border."
        )
        figure = strongest_patches_figure(encoder, validation.images, layer, paint)
        pictures.append(Exhibit(f"responses_{layer + 1}", figure, f"What layer {layer + 1} responds to", caption))
    caption = (
        "Some activation maps of validation images, one image per row. White is zero, blue positive, red negative; "
        "each column has its own scale."
    )
    images, names = example_images(validation)
    figures = activation_figures(encoder, images, names, paint)
    for number, figure in enumerate(figures, start=1):
        name, title = (f"_{number}", f", layer {number}") if len(figures) > 1 else ("", "")
        pictures.append(Exhibit(f"activation_maps{name}", figure, f"Activation maps{title}", caption))
    return pictures


def _reconstructions(
    encoder: Encoder, prepared: Path, predictions: Path, metrics: dict[str, Any], paint: Paint
) -> Exhibit:
    """Reconstructions by the encoder's decoder or, if it has none, by a linear map."""
    if encoder.has_decoder:
        caption = (
            "Validation images, the same after preprocessing, and what the decoder makes of their activation maps. "
            "It reconstructs the preprocessed image; without preprocessing, that row is left out."
        )
        figure = reconstructions_figure(encoder, *example_images(ImageSet.load(prepared / "validation")), paint)
        return Exhibit("reconstructions", figure, "Reconstructions", caption)
    sources = [(metrics["features"]["dimension"], metrics["test"]["linear_reconstruction_mse"], "all features")]
    if code := metrics.get("code"):
        sources.insert(0, (code["dimension"], code["linear_reconstruction_mse"], "the compact code"))
    errors = " and ".join(f"{error:.4f} from {name} ({size} numbers)" for size, error, name in sources)
    caption = (
        "Test images, and what a linear map reconstructs from the numbers that describe them, fitted to training "
        f"images. Mean squared error on test images, with pixels from 0 to 1: {errors}."
    )
    _, names = ImageSet.load(prepared / "test").examples()
    pictures = np.load(predictions.with_name("reconstructions.npy"), allow_pickle=False)
    figure = linear_reconstructions_figure(pictures, [size for size, _, _ in sources], names, paint)
    return Exhibit("reconstructions", figure, "Linear reconstructions", caption)


def _learning_curves(history: pd.DataFrame) -> list[Exhibit]:
    """The learning curves; empty without training."""
    if history.empty:
        return []
    caption = "Loss on training images and on some validation images. The circle marks the epoch that was kept."
    if history["phase"].any():
        caption += " Dotted lines separate phases; each starts from the epoch kept in the one before."
    if history["probe_accuracy"].notna().any():
        caption += (
            " The probe classifies validation images by averaged maps of the layer that learns: if the loss falls "
            "but the probe does not rise, better reconstructions are not better features."
        )
    return [Exhibit("learning_curves", learning_curves_figure(history), "Learning curves", caption)]


def _maps(params: Params, prepared: Path, predictions: Path, paint: Paint) -> list[Exhibit]:
    """Test images in the plane, as points and as pictures."""
    test, kind = ImageSet.load(prepared / "test"), params.report.embedding
    components = np.load(predictions.with_name("components.npy"), allow_pickle=False)
    shown = test.spread(len(components))
    positions = embed_in_plane(components, kind)
    how = {
        "pca": "in the plane of the two directions in which their features vary most (PCA)",
        "tsne": "so that images with similar features lie together (t-SNE; distances between groups mean little)",
    }[kind]
    count = f"{len(shown)} of {len(test)} test images" if len(shown) < len(test) else "The test images"
    caption = f"{count}, placed {how}."
    labels = None
    if test.labels is not None:
        labels = test.labels[shown]
        caption += " Each colour is a class."
    if kind == "pca":
        caption += " Images far apart have different features; close ones may still differ in other directions."
    points = embedding_figure(positions, labels, test.classes)
    pictures = picture_map_figure(positions, test.images[shown], paint)
    beside = "The same map: each picture is the image nearest to its place."
    return [
        Exhibit("embedding", points, "Map of the test images", caption),
        Exhibit("embedding_pictures", pictures, "The map with pictures", beside),
    ]


def _neighbors(prepared: Path, predictions: Path, metrics: dict[str, Any], paint: Paint) -> Exhibit:
    """Test images with the training images nearest to them."""
    test, train = ImageSet.load(prepared / "test"), ImageSet.load(prepared / "train")
    rows, names = test.examples()
    found = np.load(predictions.with_name("neighbors.npy"), allow_pickle=False).T
    other_class = np.zeros(found.shape, bool)
    measured = metrics["neighbors"]
    some = f"{measured['among']} of the {len(train)}" if measured["among"] < len(train) else "the"
    compared = "codes" if "code" in metrics else "features"
    caption = f"Test images, and below each those of {some} training images whose {compared} are nearest to its own."
    if test.labels is not None and train.labels is not None:
        other_class = train.labels[found] != test.labels[rows]
        caption += (
            f" A red frame marks another class. The commonest class of the {measured['k']} nearest is right for "
            f"{100 * measured['accuracy']:.1f} % of {measured['looked_at']} test images."
        )
    pictures = np.stack([train.images[rank] for rank in found])
    figure = neighbors_figure(test.images[rows], names, pictures, other_class, paint)
    return Exhibit("neighbors", figure, "Nearest neighbours", caption)


def _strangest(encoder: Encoder, prepared: Path, predictions: Path, paint: Paint) -> Exhibit:
    """The most unusual test images."""
    test, rows = ImageSet.load(prepared / "test"), pd.read_parquet(predictions)
    names = [test.classes[label] for label in test.labels] if test.labels is not None else None
    compared = "features" if encoder.code is None else "codes"
    caption = (
        f"Test images whose {compared} are farthest from those of the nearest among a sample of training images. Above "
        "each: by how many standard deviations that distance exceeds the mean distance between training images. Below: "
        f"its {'class' if names else 'row'}."
    )
    if encoder.has_decoder:
        caption += " To the right of each, in red: where the decoder's error is large."
    figure = strangest_figure(test.images, rows["anomaly"].to_numpy(), names, encoder, paint)
    return Exhibit("strangest", figure, "The most unusual images", caption)


def _test_pictures(prepared: Path, predictions: Path, paint: Paint) -> list[Exhibit]:
    """Pictures of the classifier's predictions; empty if there were no labels."""
    rows = pd.read_parquet(predictions)
    if "prediction" not in rows:
        return []
    test = ImageSet.load(prepared / "test")
    counts = pd.crosstab(rows["truth"], rows["prediction"])
    counts = counts.reindex(index=test.classes, columns=test.classes, fill_value=0)
    caption = (
        "Test images: a row for each true class, a column for each prediction. The darker a cell, the larger its "
        "share of the row (on a square-root scale, so that small shares are visible)."
    )
    figure = confusion_figure(counts.to_numpy(), test.classes)
    pictures = [Exhibit("confusion_matrix", figure, "Confusion matrix", caption)]
    mistakes = mistakes_figure(test.images, rows, paint)
    if mistakes is not None:
        certainty = "its probability" if "confidence" in rows else "the lead of its score over the second best"
        caption = f"Above each test image: the wrong prediction and {certainty}. Below: the true class."
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
