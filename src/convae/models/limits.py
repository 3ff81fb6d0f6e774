"""How much the `config.json` of a saved encoder may ask for.

Encoders come from anywhere. Before anything of the described size is built, its numbers must be within the limits of
`params.yaml`, and encoding an image must take minutes at most, and no more than a limited amount of memory.
"""

import math
from typing import Any

from convae.errors import ConvaeError
from convae.models.autoencoder import Autoencoder
from convae.models.geometry import Size, layer_sizes, show, smallest_size
from convae.models.layers import EncoderLayer

MOST_CONFIG_BYTES = 1 << 24
MOST_LAYERS = 100
LARGEST = 1 << 16  # side in pixels, number of channels or filters
MOST_MAP_BYTES = 1 << 30  # the largest layer's activation maps of one image
MOST_WORK, MOST_BYTES = 10**12, 1 << 33  # multiplications and all activation maps, for an image of the size trained on
MOST_TRIAL_WORK, MOST_TRIAL_BYTES = 10**10, 1 << 28  # for the smallest image, patches included


def check_sizes(config: dict[str, Any]) -> None:
    """Refuse sizes that `params.yaml` would not allow. Nothing is built.

    Raises:
        ConvaeError: there are too many layers, or a number of pixels, channels or filters is out of range.

    Example:
        >>> config = {"channels": 0, "image_size": [8, 8], "preprocessing": {}, "layers": []}
        >>> check_sizes(config | {"readout": None, "sparsity": None})
        Traceback (most recent call last):
        convae.errors.ConvaeError: 0 is not a number of pixels, channels or filters from 1 to 65536
    """
    layers, readout, sparsity = config["layers"], config["readout"], config["sparsity"]
    if max(len(layers), len(readout["layers"]) if readout else 0) > MOST_LAYERS:
        raise ConvaeError(f"more than {MOST_LAYERS} layers")
    pairs = [config["image_size"], *(layer[key] for layer in layers for key in ("kernel", "stride"))]
    pairs += [layer["pool"]["size"] for layer in layers if layer["pool"]]
    outputs, inputs = ([layer[key] for layer in layers if layer.get(key)] for key in ("output", "input"))
    pairs += [output["pool"]["size"] for output in outputs if output["pool"]]
    pairs += [readout["grid"]] if readout else []
    pairs += [sparsity["block"]] if sparsity and sparsity["block"] else []
    windows = [part["window"] for name, part in config["preprocessing"].items() if part and name != "scale"]
    whitenings = [layer_input["whitening"] for layer_input in inputs if layer_input["whitening"]]
    kept = [whitening["components"] for whitening in whitenings if whitening["components"] is not None]
    places = [sparsity["per_place"]] if sparsity and sparsity.get("per_place") is not None else []
    numbers = [config["channels"], *windows, *kept, *places, *(layer["filters"] for layer in layers)]
    for number in [*numbers, *(side for height, width in pairs for side in (height, width))]:
        if type(number) is not int or not 0 < number <= LARGEST:
            raise ConvaeError(f"{str(number)[:20]} is not a number of pixels, channels or filters from 1 to {LARGEST}")


def check_effort(network: Autoencoder, config: dict[str, Any], weight_bytes: int) -> None:
    """Refuse a network that is larger than its weight file, or that would take too much time or memory for one image.

    Args:
        network: as `config` describes it, on the device `meta`, where it takes no memory.
        config: what `config.json` holds; `check_sizes` has accepted it.
        weight_bytes: size of the file of weights.

    Raises:
        ConvaeError: encoding an image would take too much time or memory, or there are too many features.
        ValueError: there are fewer weights than described.

    Example:
        >>> network = Autoencoder(1, {}, [], tied_weights=False)
        >>> check_effort(network, {"image_size": [10**7, 10**7], "layers": [], "readout": None}, weight_bytes=0)
        Traceback (most recent call last):
        convae.errors.ConvaeError: an image of 10000000×10000000 pixels would take 1.00e+14 multiplications and ...
    """
    if sum(value.nbytes for value in network.state_dict().values()) > 2 * weight_bytes:  # tied weights are stored once
        raise ValueError("there are fewer weights than described")
    height, width = config["image_size"]
    smallest = smallest_size(network.geometry, network.stacked_on)
    work, maps, _ = effort(network, (height, width))
    least_work, least_maps, patches = effort(network, smallest)
    if work > MOST_WORK or 4 * maps > MOST_BYTES:
        raise ConvaeError(
            f"an image of {height}×{width} pixels would take {work:.2e} multiplications and {4 * maps:.2e} bytes; "
            f"at most {MOST_WORK:.2e} and {MOST_BYTES:.2e} are allowed"
        )
    folded = max((len(layer.convolution.weight) * _values(layer) for layer in network.layers), default=0)
    if 4 * folded > MOST_MAP_BYTES:  # filters and whitening are small, but their product need not be
        raise ConvaeError(f"the filters of a layer would take {4 * folded:.2e} bytes; {MOST_MAP_BYTES} are allowed")
    if least_work > MOST_TRIAL_WORK or 4 * (least_maps + patches) > MOST_TRIAL_BYTES:
        raise ConvaeError(f"even the smallest image, {show(smallest)} pixels, would take too much time or memory")
    readout = config["readout"]
    filters = [layer["filters"] for layer in config["layers"]] or [network.preprocessing.channels]
    if readout and 8 * math.prod(readout["grid"]) * sum(filters[layer] for layer in readout["layers"]) > MOST_MAP_BYTES:
        raise ConvaeError(f"more features than fit into {MOST_MAP_BYTES} bytes")


def effort(network: Autoencoder, size: Size) -> tuple[int, int, int]:
    """What it takes to encode one image of `size`: multiplications, values in all activation maps and in all patches.

    Raises:
        GeometryError: the image is too small for some layer.

    Example:
        >>> from convae.params import LayerParams
        >>> effort(Autoencoder(1, {}, [LayerParams(filters=8).model_dump()], tied_weights=False), (10, 10))
        (7300, 900, 900)
    """
    preprocessing, pixels = network.preprocessing, math.prod(size)
    work, maps, patches = pixels, pixels * preprocessing.channels, 0
    if preprocessing.local_contrast:
        window = preprocessing.local_contrast["window"]
        work *= 2 * min(window, 2 * size[0]) * min(window, 2 * size[1])
    if preprocessing.whitening:
        filters = preprocessing.whitening_filters
        work, patches = work + pixels * filters.numel(), pixels * filters[0].numel()
    sizes = layer_sizes(size, network.geometry, network.stacked_on)
    for layer, (incoming, _) in zip(network.layers, sizes, strict=True):
        count, pixels = len(layer.convolution.weight), math.prod(layer.geometry.convolved(incoming))
        work += pixels * count * _values(layer)
        maps += pixels * count
        patches += pixels * _values(layer)
    return work, maps, patches


def _values(layer: EncoderLayer) -> int:
    """Values that each filter reads, whether or not they are whitened first."""
    return math.prod(layer.input.window if layer.input else layer.convolution.weight.shape[1:])
