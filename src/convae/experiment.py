"""An experiment checked as a whole: its parameters, and whether its images fit through its layers."""

from pathlib import Path

from convae.datasets.catalogue import CATALOGUE, image_shape
from convae.errors import ConvaeError
from convae.files import read_json
from convae.models.geometry import (
    GeometryError,
    LayerGeometry,
    Size,
    check_filter_bank,
    layer_sizes,
    resolve_kernels,
    show,
)
from convae.models.transfer import check_source
from convae.params import PARAMS_FILE, Params, load_params


def load_experiment(path: Path = PARAMS_FILE) -> Params:
    """Read `params.yaml` and check that every layer leaves maps that the readout's grid can divide.

    Raises:
        ConvaeError: one line for each mistake.
    """
    params = load_params(path)
    _check_sizes(path, params)
    try:
        maps = map_sizes(params)
        _check_filter_bank(params)
    except GeometryError as error:
        _, height, width = image_shape(params.data)
        raise ConvaeError(f"{path}: {error} (images are {show((height, width))})") from None
    _check_source(path, params)
    grid = params.features.grid
    for layer in params.features.layers:
        size = maps[layer]
        if grid[0] > size[0] or grid[1] > size[1]:
            raise ConvaeError(
                f"{path}: features.grid = {show(grid)}: layer {layer} has maps of {show(size)}, "
                "and a grid has at most as many cells"
            )
    return params


def map_sizes(params: Params) -> list[Size]:
    """Height and width of what each layer gives; without layers those of the image.

    Raises:
        GeometryError: names the layer that does not fit.
    """
    _, height, width = image_shape(params.data)
    sizes = layer_sizes((height, width), _geometry(params), params.model.stacked_on)
    return [maps for _, maps in sizes] or [(height, width)]


def _check_source(path: Path, params: Params) -> None:
    """Whether the encoder to start from suits, where there is one."""
    config = Path(params.model.initialize_from) / "config.json"
    if not config.exists():
        return
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
    except (ValueError, KeyError, TypeError) as error:
        raise ConvaeError(f"{path}: model.initialize_from: {config} describes no encoder ({error})") from None


def _geometry(params: Params) -> list[LayerGeometry]:
    _, height, width = image_shape(params.data)
    layers = [layer.model_dump() for layer in params.model.layers]
    return [LayerGeometry.of(layer) for layer in resolve_kernels((height, width), layers, params.model.stacked_on)]


def _check_filter_bank(params: Params) -> None:
    if params.model.layers and params.model.initialization == "filter_bank":
        check_filter_bank(params.model.layers[0].filters, _geometry(params)[0].kernel)


def _check_sizes(path: Path, params: Params) -> None:
    if params.data.dataset == "image_folder":  # counted by `download`
        return
    images = CATALOGUE[params.data.dataset].images["train"]
    for key in ("validation_size", "test_size"):
        size = getattr(params.data, key)
        if size >= images:
            raise ConvaeError(
                f"{path}: data.{key} = {size}: {params.data.dataset} has {images} training images, "
                "and some have to be left to learn from"
            )
