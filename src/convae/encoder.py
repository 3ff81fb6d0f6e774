"""The saved encoder: a folder with `config.json` and `model.safetensors` that anybody can load and use.

Needs only torch, NumPy and safetensors; Pillow to read pictures, MLflow to fetch an encoder from its registry.
"""

import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from convae.addresses import fetched, is_address, needs_fetching, pretrained
from convae.datasets.reading import Reading, Scale
from convae.devices import batch_room, exact_arithmetic, explained_memory, find_device
from convae.errors import ConvaeError
from convae.files import check_folder, content_sha256, new_file, read_file, read_json, write_json
from convae.images import Images, image_batches
from convae.models.autoencoder import Autoencoder
from convae.models.geometry import GeometryError, Size, layer_sizes, show, smallest_size
from convae.models.limits import MOST_CONFIG_BYTES, MOST_MAP_BYTES, check_effort, check_sizes
from convae.models.readout import Readout
from convae.processes import ALONE, Processes

FORMAT = 5
READABLE = (3, 4, FORMAT)
PICTURES = {"fit": "crop", "white_level": None}  # for encoders of format 3, which do not store it
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MEMORY_REMEDY = "use the CPU (--device cpu, train.accelerator = cpu), or a GPU that no other program uses"

Result = TypeVar("Result")


class Encoder:
    """A frozen encoder: preprocessing, convolutional layers, and optionally a decoder and a readout.

    Args:
        autoencoder: the network; it is put into evaluation mode, and its parameters no longer take gradients.
        readout: turns activation maps into features, or None.
        code: turns features into the compact code, or None.
        config: the content of `config.json`. `channels`, `preprocessing`, `layers`, `tied_weights`, `stacked_on` and
            `sparsity` define the network, `readout` the readout, `code` the compact code, and `mirror` whether features
            are averaged with those of the mirror image. `decoder` tells whether the decoder was trained;
            `image_size` and `trained_on` describe the training images, `initialized_from` the initial weights, and
            `versions` the libraries. `value_range` is the range of pixel values, and `pictures` tells how files become
            such images: `fit` and `white_level` of `Reading`.
        sha256: SHA-256 of the configuration and weights that the encoder was loaded from.

    Attributes:
        room: the most images of a batch, and the most bytes of its largest maps; see `batch_room`.

    Example:
        >>> encoder = load_encoder("models/encoder")
        >>> encoder
        Encoder(1×8×8 images, 4 filters 3×3, 16 features, on cpu)
        >>> encoder.filters.shape, encoder.parameter_count, encoder.map_sizes, encoder.minimum_size
        ((4, 1, 3, 3), 40, [(8, 8)], (1, 1))
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        readout: Readout | None,
        config: dict[str, Any],
        sha256: str = "",
        code: nn.Linear | None = None,
    ) -> None:
        # The fastest layout for convolutions on both CPUs and GPUs.
        self.autoencoder = autoencoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.readout = readout
        self.code = code
        self.config = config
        self.sha256 = sha256
        self.room = batch_room(self.device)

    def __repr__(self) -> str:
        """Input, layers and output, in one line."""
        config = self.config
        layers = ", ".join(f"{layer['filters']} filters {show(layer['kernel'])}" for layer in config["layers"])
        features = f"{self.features([]).shape[1]} features" if self.readout else "no readout"
        if self.code:
            features += f", code of {self.code.out_features}"
        images = "×".join(map(str, (config["channels"], *config["image_size"])))
        return f"Encoder({images} images, {layers or 'no layers'}, {features}, on {self.device})"

    @property
    def has_decoder(self) -> bool:
        """Whether the encoder can reconstruct images."""
        return bool(self.config["decoder"])

    @property
    def filters(self) -> np.ndarray:
        """Filters of the first layer, `float32 [n, C, k_h, k_w]`; n is 0 without layers.

        If the layer reads whitened windows or principal components of patches, each filter is combined with the
        whitening into a filter of the image.
        """
        if not len(self.autoencoder.layers):
            return np.zeros((0, self.config["channels"], 0, 0), np.float32)
        filters: Tensor = self.autoencoder.layers[0].folded()[0]
        preprocessing = self.autoencoder.preprocessing
        if preprocessing.whitening and preprocessing.whitening["kind"] == "pca":
            filters = F.conv_transpose2d(filters, preprocessing.whitening_filters)
        return _to_numpy(filters)

    @property
    def parameter_count(self) -> int:
        """Number of learned parameters up to the activation maps: weights, biases and batch normalisation."""
        network = self.autoencoder
        on_the_way = [network.layers]
        # Later layers read reconstructions, so all decoders but the last belong to the encoder.
        if network.stacked_on == "reconstructions":
            on_the_way.append(network.decoder[:-1])
        return sum(parameter.numel() for parameter in torch.nn.ModuleList(on_the_way).parameters())

    @property
    def device(self) -> torch.device:
        """The device that the network computes on."""
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))  # raw pixels have no tensors

    @property
    def map_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each layer's activation maps, for images of the size trained on."""
        height, width = self.config["image_size"]
        return [maps for _, maps in self._layer_sizes((height, width))] or [(height, width)]

    @property
    def minimum_size(self) -> Size:
        """Height and width of the smallest image for which no layer's activation map is empty."""
        return smallest_size(self.autoencoder.geometry, self.autoencoder.stacked_on)

    def to(self, device: str | torch.device) -> "Encoder":
        """Move to `device`, see `find_device`, and return self.

        Raises:
            ConvaeError: this machine has no such device.
        """
        found = find_device(device)
        for part in self._parts.values():
            part.to(found)
        self.room = batch_room(self.device)
        return self

    def reading(self, resize: bool = True) -> Reading:
        """How to read files and Pillow images: like the training images, or in their own size if `resize` is false.

        Example:
            >>> load_encoder("models/encoder").reading().size
            (8, 8)
        """
        size = tuple(self.config["image_size"]) if resize else None
        pictures = self.config.get("pictures", PICTURES)
        return Reading(self.config["channels"], size, **pictures, own_units=self.scale is not None)

    def preprocess(self, images: Images, resize: bool = True) -> np.ndarray:
        """Preprocessed images, the first layer's input: `float32 [N, C, H, W]`; see `activation_maps`."""
        return _join([_to_numpy(batch) for batch in self._map(self.autoencoder.preprocessing, images, resize)])

    def activation_maps(self, images: Images, resize: bool = True) -> list[np.ndarray]:
        """Each layer's activation maps, `float32 [N, n, H', W']`.

        Args:
            images: arrays, tensors, files or Pillow images, see `convae.images.Images`. Arrays keep their size; they
                all have the same, `minimum_size` or larger.
            resize: whether to resize files and Pillow images to the size that the encoder was trained on.

        Raises:
            ConvaeError: the encoder does not accept the images, a file can't be read, or the images differ in size.

        Example:
            >>> [maps.shape for maps in load_encoder("models/encoder").activation_maps("picture.png")]
            [(1, 4, 8, 8)]
        """
        batches = [[_to_numpy(maps) for maps in batch] for batch in self._map(self._encode, images, resize)]
        return [_join(layer) for layer in zip(*batches, strict=True)]

    def features(self, images: Images, resize: bool = True, code: bool = False) -> np.ndarray:
        """Features `float32 [N, D]`, or the compact code `float32 [N, d]`; D and d are the same for images of any size.

        Only features of images of the size trained on are comparable, as the filters see other details at another
        scale. Arrays of another size cause a warning, unless `resize` is false.

        Args:
            images: as in `activation_maps`, but they may differ in size.
            resize: as in `activation_maps`.
            code: return the compact code.

        Raises:
            ConvaeError: the encoder has no readout, or no code, or does not accept the images; or a file can't be read.

        Example:
            >>> encoder = load_encoder("models/encoder")
            >>> encoder.features(np.zeros((5, 8, 8), np.uint8)).shape
            (5, 16)
            >>> encoder.features(["picture.png", np.zeros((16, 24))], resize=False).shape  # of any size
            (2, 16)
        """
        batches = self.feature_batches(images, resize, code)
        if self.device.type == "cuda":
            batches = map(np.array, batches)  # otherwise all of them would be in page-locked memory at a time
        return np.concatenate(list(batches))

    def feature_batches(self, images: Images, resize: bool = True, code: bool = False) -> Iterator[np.ndarray]:
        """Yield the rows of `features` in batches, so that memory does not grow with N."""
        if self.readout is None:
            raise ConvaeError("this encoder has no readout; models/encoder, written by `dvc repro features`, has one")
        if code and self.code is None:
            raise ConvaeError("this encoder was made without a compact code (features.code: null); use its features")
        trained_on = tuple(self.config["image_size"]) if resize else None

        def read_out(batch: Tensor) -> Tensor:
            nonlocal trained_on
            if trained_on and batch.shape[2:] != trained_on:
                warnings.warn(
                    f"images of {show((batch.shape[2], batch.shape[3]))} pixels; the encoder learned from "
                    f"{show(trained_on)}, and features of other sizes are not comparable with those "
                    "(pass resize=False if this is intended)",
                    stacklevel=5,  # the caller of `features`
                )
                trained_on = None  # warn only once
            features = self.read_out(batch)
            return self.code(features) if code and self.code else features

        return _copied(self._map(read_out, images, resize))

    def read_out(self, batch: Tensor) -> Tensor:
        """Features `float32 [N, D]` of a batch of images `uint8` or `float32 [N, C, H, W]`, on the encoder's device."""
        readout = self.readout
        assert readout is not None
        pooled = readout.pool(self._encode(batch))
        if self.config.get("mirror"):
            pooled = (pooled + readout.pool(self._encode(batch.flip(3)))) / 2
        return readout.apply_fitted(pooled)

    def reconstruct(self, images: Images, resize: bool = True) -> np.ndarray:
        """Reconstructions `float32 [N, C, H, W]` of the *preprocessed* images; see `activation_maps`.

        Raises:
            ConvaeError: also if there is no trained decoder.

        Example:
            >>> load_encoder("models/encoder").reconstruct("picture.png").shape
            (1, 1, 8, 8)
        """
        if not self.has_decoder:
            remedy = "train one with a decoder, such as systems/seed_cae.yaml"
            raise ConvaeError(f"this encoder has no trained decoder, so it can't reconstruct images; {remedy}")
        autoencoder = self.autoencoder
        batches = self._map(lambda batch: autoencoder(autoencoder.preprocessing(batch)), images, resize)
        return _join([_to_numpy(batch) for batch in batches])

    def _map(self, function: Callable[[Tensor], Result], images: Images, resize: bool) -> Iterator[Result]:
        """Yield `function` of each batch of images, computed on the encoder's device without gradients."""
        # An empty batch gives the result its shape if there are no images.
        none = torch.zeros((0, self.config["channels"], *self.config["image_size"]), dtype=torch.uint8)
        batches, device = image_batches(images, self.reading(resize), self.batch_size), self.device
        for batch in itertools.chain([next(batches, none)], batches):
            with torch.inference_mode(), exact_arithmetic(), explained_memory(MEMORY_REMEDY):
                # Uploaded while the GPU computes the batch before.
                if device.type == "cuda" and batch.device.type == "cpu":
                    batch = batch.pin_memory().to(device, non_blocking=True)
                result = function(batch.to(device))
            yield result  # outside inference mode, because the caller may need gradients

    def batch_size(self, size: Size) -> int:
        """Number of images that are computed at a time; see `room`.

        Raises:
            ConvaeError: images of this size are too small, or so large that their maps take more than 1 GiB.
        """
        height, width = size
        try:
            sizes = self._layer_sizes(size)
        except GeometryError:
            need = f"this encoder needs {show(self.minimum_size)} or more"
            raise ConvaeError(f"images of {show(size)} pixels are too small: {need}") from None
        largest = self.autoencoder.preprocessing.channels * height * width
        for layer, (incoming, _) in zip(self.autoencoder.layers, sizes, strict=True):
            height, width = layer.geometry.convolved(incoming)
            largest = max(largest, layer.convolution.out_channels * height * width)
        if 4 * largest > MOST_MAP_BYTES:
            raise ConvaeError(
                f"images of {show(size)} pixels are too large: their activation maps take {4 * largest / 1e9:.1f} GB; "
                f"resize them to {show(tuple(self.config['image_size']))}, the size that the encoder learned from"
            )
        images, maps = self.room
        return max(1, min(images, maps // (4 * largest)))

    @property
    def image_type(self) -> "np.dtype[Any]":
        """The type of the images that the encoder learned from: `uint8`, or `float32`."""
        name: str = self.config.get("image_type", "uint8")
        return np.dtype(name)

    @property
    def scale(self) -> Scale | None:
        """How images in units of their own become about 0 to 1; None for others."""
        scale = self.config["preprocessing"].get("scale")
        return Scale(**{name: tuple(values) for name, values in scale.items()}) if scale else None

    @property
    def _parts(self) -> dict[str, nn.Module]:
        """The modules that are saved, by name."""
        parts = {"autoencoder": self.autoencoder, "readout": self.readout, "code": self.code}
        return {name: part for name, part in parts.items() if part is not None}

    def _tensors(self) -> Iterator[Tensor]:
        for part in self._parts.values():
            yield from itertools.chain(part.parameters(), part.buffers())

    def _layer_sizes(self, size: Size) -> list[tuple[Size, Size]]:
        return layer_sizes(size, self.autoencoder.geometry, self.autoencoder.stacked_on)

    def _encode(self, batch: Tensor) -> list[Tensor]:
        return self.autoencoder.encode(self.autoencoder.preprocessing(batch))

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`; the same encoder gives the same bytes.

        Other files in the folder stay; another encoder in it is replaced.

        Raises:
            ConvaeError: files with these names exist but are not an encoder, or `folder` is a file or an address.

        Example:
            >>> encoder = load_encoder("models/encoder")
            >>> encoder.save("copy")
            >>> load_encoder("copy").sha256 == encoder.sha256
            True
        """
        if is_address(str(folder)) or str(folder).startswith("~"):
            raise ConvaeError(f"{folder}: name a folder; addresses and ~ are not supported here")
        folder = Path(folder)
        check_folder(folder)
        config, weights = self.serialize()
        for name in (CONFIG, WEIGHTS):
            if (folder / name).exists() and not _is_encoder(folder):
                raise ConvaeError(f"{folder / name}: exists, and is not part of an encoder; name another folder")
        write_json(folder / CONFIG, config)  # first: if killed in between, `save` recognises its own file
        with new_file(folder / WEIGHTS) as scratch:
            scratch.write_bytes(weights)

    def serialize(self) -> tuple[dict[str, Any], bytes]:
        """Contents of the two files: the configuration, with the SHA-256 of both, and the weights."""
        state: dict[str, Tensor] = {}
        for part, module in self._parts.items():
            state |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
        if self.config["tied_weights"]:  # safetensors stores no tensor twice
            for index in range(len(self.autoencoder.layers)):
                state.pop(f"autoencoder.decoder.{index}.weight", None)
        weights = save_tensors({name: value.cpu().contiguous() for name, value in state.items()})
        config = {"format": FORMAT, **self.config}
        config["sha256"] = content_sha256(config, weights)
        return config, weights


def _is_encoder(folder: Path) -> bool:
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"format", "sha256", "image_size", "layers"} <= config.keys()


def _join(batches: Sequence[np.ndarray]) -> np.ndarray:
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise ConvaeError("the images differ in size; only their features fit into one array")
    return np.concatenate(batches)


def _to_numpy(values: Tensor) -> np.ndarray:
    result: np.ndarray = values.float().cpu().numpy()
    return result


def _copied(batches: Iterator[Tensor]) -> Iterator[np.ndarray]:
    """Copy batches to the CPU; an NVIDIA GPU computes the next one while the caller uses the one before."""
    waiting: list[tuple[Tensor, torch.cuda.Event]] = []
    for batch in batches:
        if batch.device.type != "cuda":
            yield _to_numpy(batch)
            continue
        copy = torch.empty(batch.shape, dtype=batch.dtype, pin_memory=True).copy_(batch, non_blocking=True)
        waiting.append((copy, torch.cuda.current_stream(batch.device).record_event()))
        if len(waiting) > 1:
            yield _arrived(*waiting.pop(0))
    yield from (_arrived(*one) for one in waiting)


def _arrived(copy: Tensor, copied: torch.cuda.Event) -> np.ndarray:
    copied.synchronize()
    return _to_numpy(copy)


def build_autoencoder(config: dict[str, Any], processes: Processes = ALONE) -> Autoencoder:
    """Build the network that `config.json` describes; its weights are not yet set.

    Example:
        >>> network = build_autoencoder(load_encoder("models/encoder").config)
        >>> network(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """
    names = ("channels", "preprocessing", "layers", "tied_weights", "stacked_on", "sparsity")
    return Autoencoder(**{name: config[name] for name in names}, processes=processes)


def load_encoder(source: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Load a saved encoder, ready to use.

    Args:
        source: a folder; the name of an encoder that the package carries, such as `fashion_mnist`; or an address:
            `models:/convae-encoder@champion` in MLflow, `hf://owner/name` on the Hugging Face Hub, or the URL of an
            archive, see `convae.remote.cached`.
        device: where it computes, see `find_device`; `auto` takes a GPU if there is one.

    Raises:
        ConvaeError: there is no encoder, it has another format, is damaged, or would take too much time or memory; or
            there is no such device.

    Example:
        >>> load_encoder("models/encoder").features("picture.png").shape
        (1, 16)
        >>> load_encoder("models")
        Traceback (most recent call last):
        convae.errors.ConvaeError: models: not an encoder: there is no file config.json; train one with `make run`, ...
    """
    if needs_fetching(source):
        with fetched(str(source)) as published:
            return load_encoder(published / "encoder", device)
    folder = Path(source)
    config, weights, sha256 = _read(folder)
    try:
        encoder = _rebuild(config, weights, sha256)
        _try(encoder)
    except ConvaeError as error:
        raise ConvaeError(f"{folder}/{CONFIG}: {error}") from None
    except Exception as error:  # a forged configuration can make torch raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise ConvaeError(f"{folder}: {CONFIG} and {WEIGHTS} do not belong together: {reason}") from None
    if not all(bool(tensor.isfinite().all()) for tensor in encoder._tensors()):
        raise ConvaeError(f"{folder}/{WEIGHTS}: holds NaN or infinity; training may have diverged")
    return encoder.to(device)


def _read(folder: Path) -> tuple[dict[str, Any], bytes, str]:
    """Read the configuration, the weights and the SHA-256 of both; reject them if they have changed since saving."""
    try:
        config = json.loads(read_file(folder / CONFIG, MOST_CONFIG_BYTES).decode("utf-8"))
        weights = read_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        advice = f"train one with `make run`, or name one of the package: {', '.join(pretrained())}"
        raise ConvaeError(f"{folder}: not an encoder: {error}; {advice}") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ConvaeError(f"{folder}: not an encoder: {error}") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found not in READABLE:
        known = f"formats {READABLE[0]} to {FORMAT}"
        raise ConvaeError(f"{folder}/{CONFIG}: format {found!r}; this version of convae reads {known}")
    sha256 = config.pop("sha256", None)
    if content_sha256(config, weights) != sha256:
        raise ConvaeError(f"{folder}: damaged: {CONFIG} and {WEIGHTS} are not as they were saved")
    del config["format"]
    readout = config.get("readout")
    if found < FORMAT and isinstance(readout, dict):
        readout.pop("pca", None)  # the components are among the weights
    return config, weights, sha256


def _rebuild(config: dict[str, Any], weights: bytes, sha256: str) -> Encoder:
    """Build the saved encoder, unless its description asks for too much time or memory."""
    readout = Readout(**config["readout"]) if config["readout"] else None
    check_sizes(config)
    with torch.device("meta"):  # allocates nothing before `check_effort` has accepted the sizes
        network = build_autoencoder(config)
    check_effort(network, config, len(weights))
    state = load_tensors(weights)
    code = None
    if config.get("code"):
        components, dimension = state["code.weight"].shape
        code = nn.Linear(dimension, components)
    encoder = Encoder(build_autoencoder(config), readout, config, sha256, code)
    _load_state(encoder, state)
    return encoder


def _try(encoder: Encoder) -> None:
    """Encode and reconstruct the smallest possible image, so that a mismatch shows up on loading rather than in use."""
    if encoder.readout and max(encoder.readout.mean.ndim, encoder.readout.scale.ndim) > 1:
        raise ValueError("means and scales of features must be vectors")
    reading = encoder.reading()
    assert reading.size
    encoder.batch_size(reading.size)  # rejects images that are too small or too large
    image = np.zeros((1, reading.channels, *encoder.minimum_size), np.uint8)
    if encoder.readout:
        encoder.features(image, resize=False, code=encoder.code is not None)
    if encoder.has_decoder:
        encoder.reconstruct(image)


def _load_state(encoder: Encoder, state: dict[str, Tensor]) -> None:
    parts: dict[str, dict[str, Tensor]] = {"autoencoder": {}, "readout": {}, "code": {}}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    autoencoder = parts["autoencoder"]
    if encoder.config["tied_weights"]:
        for index, layer in enumerate(encoder.autoencoder.layers):
            if not layer.input:
                autoencoder[f"decoder.{index}.weight"] = autoencoder[f"layers.{index}.convolution.weight"]
    encoder.autoencoder.load_state_dict(autoencoder)
    if encoder.readout:
        encoder.readout.load_fitted(parts["readout"])
    if encoder.code:
        encoder.code.load_state_dict(parts["code"])
    elif parts["code"]:
        raise ValueError("weights of a compact code, which is not described")
