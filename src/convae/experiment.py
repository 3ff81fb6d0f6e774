"""An experiment checked as a whole: its parameters, and whether its images fit through its layers."""

from pathlib import Path

from convae.datasets.catalogue import CATALOGUE, image_shape
from convae.errors import ConvaeError
from convae.models.geometry import GeometryError, LayerGeometry, input_sizes, show
from convae.params import PARAMS_FILE, Params, load_params


def load_experiment(path: Path = PARAMS_FILE) -> Params:
    """Read `params.yaml` and check that every layer leaves maps that the readout's grid can divide.

    Raises:
        ConvaeError: one line for each mistake.
    """
    params = load_params(path)
    _check_sizes(path, params)
    _, height, width = image_shape(params.data)
    try:
        sizes = input_sizes((height, width), [LayerGeometry.of(layer.model_dump()) for layer in params.model.layers])[
            1:
        ]
    except GeometryError as error:
        raise ConvaeError(f"{path}: {error} (images are {show((height, width))})") from None
    grid = params.features.grid
    for layer in params.features.layers:
        if grid[0] > sizes[layer][0] or grid[1] > sizes[layer][1]:
            raise ConvaeError(
                f"{path}: features.grid = {show(grid)}: layer {layer} has maps of {show(sizes[layer])}, "
                "and a grid has at most as many cells"
            )
    return params


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
