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
from convae.params import OWN_IMAGES, PARAMS_FILE, LayerParams, Params, parse_sections, read_text

MOST_VALUES = 2**28  # of four bytes: 1 GiB


def load_experiment(path: Path = PARAMS_FILE, text: str | None = None) -> Params:
    """Read `params.yaml` and check it against the images: layers, memory, corruption and batches.

    Args:
        path: the file.
        text: its content, if it has been read already.

    Raises:
        ConvaeError: one line for each mistake.

    Example:
        >>> text = Path(__file__).with_name("default.yaml").read_text("utf-8")
        >>> load_experiment(text=text).features.grid
        (7, 7)
        >>> load_experiment(text=text.replace("kernel: 7", "kernel: 8"))
        Traceback (most recent call last):
        convae.errors.ConvaeError: params.yaml: model.layers[0]: padding 'same' needs an odd kernel, found 8×8; ...
    """
    params = parse_sections(path, read_text(path) if text is None else text, Params)
    try:
        _check_sizes(params)
        _check_shown(params)
        map_sizes(params)
        _check_filter_bank(params)
        _check_memory(params)
        _check_corruption(params)
        _check_batch(params)
        _check_source(params)
    except GeometryError as error:
        raise ConvaeError(f"{path}: {error} (images are {show(_image_size(params))})") from None
    except ConvaeError as error:
        raise ConvaeError(f"{path}: {error}") from None
    return params


def map_sizes(params: Params) -> list[Size]:
    """Height and width of each layer's activation maps; without layers, those of the image.

    Raises:
        GeometryError: names the layer that does not fit.

    Example:
        >>> map_sizes(Params.default())
        [(28, 28), (14, 14)]
    """
    return [maps for *_, maps in _sized_layers(params)] or [_image_size(params)]


def feature_dimension(params: Params) -> int:
    """Number of features per image, D.

    Example:
        >>> feature_dimension(Params.default())
        9408
    """
    sizes, layers, readout = map_sizes(params), params.model.layers, params.features
    cells = [min(readout.grid[axis], *(sizes[layer][axis] for layer in readout.layers)) for axis in (0, 1)]
    maps = sum(layers[layer].filters for layer in readout.layers) if layers else _image_channels(params)
    return maps * prod(cells) * (2 if readout.rectification == "both" else 1)


def _image_channels(params: Params) -> int:
    """Channels of the preprocessed image."""
    channels, _, _ = image_shape(params.data)
    whitening = params.preprocessing.whitening
    return channels * whitening.window**2 if whitening and whitening.kind == "pca" else channels


def _image_size(params: Params) -> Size:
    _, height, width = image_shape(params.data)
    return height, width


def _sized_layers(params: Params) -> list[tuple[LayerParams, LayerGeometry, Size, Size]]:
    """Each layer with its geometry, input size and activation map size."""
    size, layers, stacked_on = _image_size(params), params.model.layers, params.model.stacked_on
    resolved = resolve_kernels(size, [layer.model_dump() for layer in layers], stacked_on)
    geometry = list(map(LayerGeometry.of, resolved))
    sizes = layer_sizes(size, geometry, stacked_on)
    return [(layer, shape, *pair) for layer, shape, pair in zip(layers, geometry, sizes, strict=True)]


def _check_source(params: Params) -> None:
    """Check that training can start from the encoder in `model.initialize_from`, if there is one."""
    config = Path(params.model.initialize_from) / "config.json"
    try:
        if not config.exists():
            check_frozen(params, 0)
            return
    except OSError as error:  # for example, the name is too long
        raise ConvaeError(f"model.initialize_from: {error.strerror}") from None
    layers = [layer.model_dump(mode="json") for layer in params.model.layers]
    target = {
        "channels": image_shape(params.data)[0],
        "preprocessing": params.preprocessing.model_dump(mode="json"),
        "stacked_on": params.model.stacked_on,
        "tied_weights": params.model.tied_weights,
        "layers": resolve_kernels(_image_size(params), layers, params.model.stacked_on),
    }
    try:
        source = read_json(config)
        check_source(source, target)
        check_frozen(params, len(source["layers"]))
        _check_kept(params, len(source["layers"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConvaeError(f"model.initialize_from: {config} does not describe an encoder ({error})") from None


def check_frozen(params: Params, kept: int) -> None:
    """Check that frozen layers have weights to keep, and that a layer is left to learn.

    Args:
        params: the experiment.
        kept: number of layers of the encoder that training starts from; 0 if there is none.

    Raises:
        ConvaeError: there are no weights to keep, or nothing to learn.
    """
    freeze, frozen = f"train.freeze = {params.train.freeze}", params.frozen_layers
    if frozen > kept and not params.objective.pretraining:
        found = (
            f"an encoder with only {kept} layer{'s' if kept > 1 else ''}"
            if kept
            else "no encoder whose filters could be frozen"
        )
        raise ConvaeError(f"{freeze}: {params.model.initialize_from} holds {found}")
    greedy = params.objective.kind == "reconstruct" and params.train.order == "greedy"
    if greedy and frozen == len(params.model.layers):
        raise ConvaeError(f"{freeze}: no layer is left to learn")


def _check_kept(params: Params, kept: int) -> None:
    """Refuse to train a layer below one that is taken over and was fitted to its output."""
    layers = params.model.layers
    for index in range(params.frozen_layers + 1, kept):
        if params.reconstructs and (layers[index].input or layers[index - 1].output):
            raise ConvaeError(
                f"train.freeze = {params.train.freeze}: in {params.model.initialize_from}, model.layers[{index}] was "
                f"fitted to the layers below it; set train.freeze to {kept - 1}"
            )


def _check_shown(params: Params) -> None:
    """Check that the channels that the report shows exist."""
    channels, last = image_shape(params.data)[0], max(params.report.channels or (0,))
    if last >= channels:
        raise ConvaeError(f"report.channels: channel {last} of images with {channels}, which are numbered from 0")


def _check_filter_bank(params: Params) -> None:
    if params.model.layers and params.model.initialization == "filter_bank":
        layer, geometry, *_ = _sized_layers(params)[0]
        if layer.input:
            raise ConvaeError(
                "model.initialization = filter_bank: layer 0 must read plain images; set model.layers[0].input to null"
            )
        check_filter_bank(layer.filters, geometry.kernel)


def _check_sizes(params: Params) -> None:
    """Check that training images are left once test and validation images are held out."""
    if params.data.dataset in OWN_IMAGES:  # of unknown number until `download` has listed them
        return
    images = CATALOGUE[params.data.dataset].images
    left = images["train"]
    for part in ("test", "validation"):
        if part in images:
            continue
        size = getattr(params.data, f"{part}_size")
        count = size if isinstance(size, int) else round(size * left)
        if not 0 < count < left:
            allowed = f"has {left} training images, so 1 to {left - 1} can be held out"
            raise ConvaeError(f"data.{part}_size = {size}: {params.data.dataset} {allowed}")
        left -= count


def _check_memory(params: Params) -> None:
    """Check that one image, each layer's filters and its maps of one image fit into 1 GiB each, and check counts."""
    channels, height, width = image_shape(params.data)
    _check_values("data.image_size: an image", channels * height * width)
    if whitening := params.preprocessing.whitening:
        _check_values("preprocessing.whitening.window: a covariance", (channels * whitening.window**2) ** 2)
    if params.features.code:
        dimension = feature_dimension(params)
        if dimension**2 > MOST_VALUES:
            raise ConvaeError(
                f"features.code: a covariance of {dimension} features would take {4 * dimension**2 / 2**30:.1f} GiB; "
                "at most 1 GiB is allowed; lower features.grid or set features.code to null"
            )
    incoming = _image_channels(params)
    for index, (layer, geometry, below, _) in enumerate(_sized_layers(params)):
        values = incoming * prod(geometry.kernel)
        _check_values(f"model.layers[{index}]: its filters", layer.filters * values)
        _check_values(f"model.layers[{index}]: its maps", layer.filters * prod(geometry.convolved(below)))
        if layer.input and layer.input.whitening:
            _check_values(f"model.layers[{index}].input.whitening: its covariance", values**2)
            if (layer.input.whitening.components or 0) > values:
                found = f"model.layers[{index}].input.whitening.components = {layer.input.whitening.components}"
                raise ConvaeError(f"{found}: its windows hold {values} values; lower it")
        sparsity = params.objective.sparsity
        if sparsity and (sparsity.per_place or 0) > layer.filters:
            found = f"objective.sparsity.per_place = {sparsity.per_place}"
            raise ConvaeError(f"{found}: model.layers[{index}] has {layer.filters} filters; lower it")
        if params.model.stacked_on == "maps":
            incoming = layer.filters * (2 if layer.output and layer.output.rectification == "both" else 1)


def _check_corruption(params: Params) -> None:
    corruption, size = params.objective.corruption, _image_size(params)
    copies = {"train.augmentation": params.train.augmentation}
    if params.features.code:
        copies["features.code.corruption"] = params.features.code.corruption
    for index, layer in enumerate(params.model.layers):
        if layer.input and layer.input.whitening:
            copies[f"model.layers[{index}].input.whitening.corruption"] = layer.input.whitening.corruption
    for name, copy in copies.items():
        if copy and copy.shift >= max(size):
            raise ConvaeError(f"{name}.shift = {copy.shift}: images are {show(size)}; a shift must be smaller")
    if corruption and (corruption.block[0] > size[0] or corruption.block[1] > size[1]):
        block = f"objective.corruption.block = {show(corruption.block)}"
        raise ConvaeError(f"{block}: images are {show(size)}, and a block can't be larger")


def _check_batch(params: Params) -> None:
    """Check that batch normalisation has more than one value per map to learn from."""
    if params.train.batch_size > 1 or params.objective.kind == "none":
        return
    single = [
        f"model.layers[{index}]"
        for index, (layer, geometry, below, _) in enumerate(_sized_layers(params))
        if index >= params.frozen_layers and layer.batch_norm and geometry.convolved(below) == (1, 1)
    ]
    if params.objective.kind == "classify":
        single.append("objective.kind = classify")
    if single:
        raise ConvaeError(
            f"train.batch_size = 1: {single[0]} normalises over a batch, and one image gives a single value; "
            "at least 2 are needed"
        )


def _check_values(what: str, values: int) -> None:
    if values > MOST_VALUES:
        raise ConvaeError(f"{what} would take {4 * values / 2**30:.1f} GiB; at most 1 GiB is allowed")
