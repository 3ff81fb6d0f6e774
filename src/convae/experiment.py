"""Check an experiment as a whole: its parameters, and whether its images fit through its layers."""

from math import prod
from pathlib import Path

from convae.datasets.catalogue import CATALOGUE, image_shape
from convae.errors import ConvaeError
from convae.files import read_json
from convae.models.compatibility import check_source
from convae.models.geometry import (
    GeometryError,
    LayerGeometry,
    Size,
    check_filter_bank,
    layer_sizes,
    resolve_kernels,
    show,
)
from convae.params import PARAMS_FILE, Params, parse_sections, read_text

MOST_VALUES = 2**28  # of four bytes: 1 GiB


def load_experiment(path: Path = PARAMS_FILE, text: str | None = None) -> Params:
    """Read `params.yaml` and check it against the images: layers, memory, corruption, batches and the readout's grid.

    Args:
        path: the file.
        text: its content, if it has been read already.

    Raises:
        ConvaeError: one line for each mistake.
    """
    params = parse_sections(path, read_text(path) if text is None else text, Params)
    _check_sizes(path, params)
    try:
        maps = map_sizes(params)
        _check_filter_bank(params)
    except GeometryError as error:
        _, height, width = image_shape(params.data)
        raise ConvaeError(f"{path}: {error} (images are {show((height, width))})") from None
    _check_memory(path, params)
    _check_corruption(path, params)
    _check_batch(path, params)
    _check_source(path, params)
    grid = params.features.grid
    for layer in params.features.layers:
        size = maps[layer]
        if grid[0] > size[0] or grid[1] > size[1]:
            raise ConvaeError(
                f"{path}: features.grid = {show(grid)}: layer {layer} has maps of {show(size)}, "
                "and a grid can't have more cells than that"
            )
    return params


def map_sizes(params: Params) -> list[Size]:
    """Height and width of each layer's activation maps; without layers, those of the image.

    Raises:
        GeometryError: names the layer that does not fit.
    """
    _, height, width = image_shape(params.data)
    sizes = layer_sizes((height, width), _geometry(params), params.model.stacked_on)
    return [maps for _, maps in sizes] or [(height, width)]


def _check_source(path: Path, params: Params) -> None:
    """Check that training can start from the encoder in `model.initialize_from`, if there is one."""
    config = Path(params.model.initialize_from) / "config.json"
    try:
        if not config.exists():
            return
    except OSError as error:  # for example, the name is too long
        raise ConvaeError(f"{path}: model.initialize_from: {error.strerror}") from None
    channels, *size = image_shape(params.data)
    layers = [layer.model_dump(mode="json") for layer in params.model.layers]
    target = {
        "channels": channels,
        "preprocessing": params.preprocessing.model_dump(mode="json"),
        "stacked_on": params.model.stacked_on,
        "layers": resolve_kernels((size[0], size[1]), layers, params.model.stacked_on),
    }
    try:
        check_source(read_json(config), target)
    except ConvaeError as error:
        raise ConvaeError(f"{path}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConvaeError(f"{path}: model.initialize_from: {config} does not describe an encoder ({error})") from None


def _geometry(params: Params) -> list[LayerGeometry]:
    _, height, width = image_shape(params.data)
    layers = [layer.model_dump() for layer in params.model.layers]
    return [LayerGeometry.of(layer) for layer in resolve_kernels((height, width), layers, params.model.stacked_on)]


def _check_filter_bank(params: Params) -> None:
    if params.model.layers and params.model.initialization == "filter_bank":
        check_filter_bank(params.model.layers[0].filters, _geometry(params)[0].kernel)


def _check_sizes(path: Path, params: Params) -> None:
    """Check that training images are left once test and validation images are held out."""
    if params.data.dataset == "image_folder":  # of unknown size until `download` has listed it
        return
    images = CATALOGUE[params.data.dataset].images
    left = images["train"]
    for part in ("test", "validation"):
        if part in images:
            continue
        size = getattr(params.data, f"{part}_size")
        count = size if isinstance(size, int) else round(size * left)
        if not 0 < count < left:
            raise ConvaeError(
                f"{path}: data.{part}_size = {size}: {params.data.dataset} has {left} training images, "
                f"so 1 to {left - 1} can be held out"
            )
        left -= count


def _check_memory(path: Path, params: Params) -> None:
    """Check that one image, each layer's filters and its maps of one image fit into 1 GiB each."""
    channels, *size = image_shape(params.data)
    _check_values(f"{path}: data.image_size: an image", channels * size[0] * size[1])
    whitening = params.preprocessing.whitening
    incoming = channels * whitening.window**2 if whitening and whitening.kind == "pca" else channels
    sizes = layer_sizes((size[0], size[1]), _geometry(params), params.model.stacked_on)
    for index, (layer, geometry, (below, _)) in enumerate(
        zip(params.model.layers, _geometry(params), sizes, strict=True)
    ):
        _check_values(f"{path}: model.layers[{index}]: its filters", layer.filters * incoming * prod(geometry.kernel))
        _check_values(f"{path}: model.layers[{index}]: its maps", layer.filters * prod(geometry.convolved(below)))
        incoming = layer.filters if params.model.stacked_on == "maps" else channels


def _check_corruption(path: Path, params: Params) -> None:
    corruption, (_, height, width) = params.objective.corruption, image_shape(params.data)
    if corruption and (corruption.block[0] > height or corruption.block[1] > width):
        raise ConvaeError(
            f"{path}: objective.corruption.block = {show(corruption.block)}: images are {show((height, width))}, "
            "and a block can't be larger"
        )


def _check_batch(path: Path, params: Params) -> None:
    """Check that batch normalisation has more than one value per map to learn from."""
    if params.train.batch_size > 1 or params.objective.kind == "none":
        return
    _, *size = image_shape(params.data)
    sizes = layer_sizes((size[0], size[1]), _geometry(params), params.model.stacked_on)
    single = [
        f"model.layers[{index}]"
        for index, (geometry, (below, _)) in enumerate(zip(_geometry(params), sizes, strict=True))
        if index >= params.frozen_layers
        and params.model.layers[index].batch_norm
        and geometry.convolved(below) == (1, 1)
    ]
    if params.objective.kind == "classify":
        single.append("objective.kind = classify")
    if single:
        raise ConvaeError(
            f"{path}: train.batch_size = 1: {single[0]} normalises over a batch, and one image gives a single value; "
            "at least 2 are needed"
        )


def _check_values(what: str, values: int) -> None:
    if values > MOST_VALUES:
        raise ConvaeError(f"{what} would take {4 * values / 2**30:.1f} GiB; at most 1 GiB is allowed")
