"""scikit-learn transformers: one wraps a trained encoder, the other trains an encoder itself."""

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from convae.datasets.reading import Reading
from convae.devices import find_device
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.images import Images, channel_axis, channels_first, image_batches
from convae.training.state import state_as_before

if TYPE_CHECKING:
    from convae.params import Params

Shape = tuple[int, int]


class _ImageTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns images into features with `encoder_`."""

    encoder_: Encoder
    code = False
    image_shape: Shape | None

    def transform(self, X: Images) -> np.ndarray:
        """Features `float32 [N, D]` of images.

        Files and Pillow images are resized to the size that the encoder was trained on. Arrays of another size cause a
        warning, because their features are not comparable.

        Raises:
            ConvaeError: the encoder does not accept the images, or a file can't be read.

        Example:
            >>> images = np.zeros((6, 8, 8), np.uint8)
            >>> CAEFeatures("models/encoder").fit(images).transform(images).shape
            (6, 16)
        """
        check_is_fitted(self)
        return self.encoder_.features(self._pixels(X, self.encoder_.config["channels"]), code=self.code)

    @property
    def _n_features_out(self) -> int:
        return int(self.encoder_.features([], code=self.code).shape[1])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []  # features are float32
        return tags

    def _pixels(self, X: Any, channels: int | None, reset: bool = False) -> Any:
        """X as encoders take it: arrays as `uint8` or from 0 to 1, with flattened images reshaped."""
        if np.ma.isMaskedArray(X):
            raise ConvaeError("X is a masked array, which encoders do not support; fill it (X.filled(0))")
        if isinstance(X, Tensor):
            X = X.numpy(force=True)
        X = _as_list(X)
        if _holds_pictures(X):
            return X
        if np.asarray(X).ndim > 2:
            X = check_array(X, ensure_2d=False, allow_nd=True, estimator=self)
        else:
            X = validate_data(self, X, reset=reset)
            columns = X.shape[1]
            try:
                X = X.reshape(len(X), channels or 1, *self._shape(columns, channels or 1))
            except (TypeError, ValueError):
                shape = f"image_shape = {self.image_shape}"
                raise ConvaeError(f"X has {columns} columns, which do not fit {shape}") from None
        if X.dtype == np.uint8:
            return X
        return self._scaled(X, reset).astype(np.float32)

    def _shape(self, width: int, channels: int) -> Shape:
        """Height and width of flattened images with `width` numbers; one of the two may be -1."""
        if self.image_shape is not None:
            return self.image_shape
        side = math.isqrt(width // channels)
        if channels * side**2 != width:
            raise ConvaeError(f"X has {width} columns, which are not a square image; set image_shape=(height, width)")
        return side, side

    def _scaled(self, X: np.ndarray, reset: bool) -> np.ndarray:
        """X scaled so that 0 is black and 1 is white."""
        raise NotImplementedError


class CAEFeatures(_ImageTransformer):
    """Features of a trained encoder, which `fit` does not change.

    Args:
        encoder: folder of a saved encoder, an address such as `models:/convae-encoder@champion`, or an `Encoder`.
        code: whether to return the compact code instead.
        device: where a folder or address is loaded to, as in `load_encoder`.
        image_shape: height and width of flattened images (X with two dimensions); None stands for square images. With
            several channels, all values of one channel come before those of the next.
        value_range: the values of black and white in arrays that are not `uint8`.

    X is an array `[N, H, W]`, `[N, H, W, C]`, `[N, C, H, W]` or, flattened, `[N, C·H·W]`; or a list of arrays, files or
    Pillow images, which may differ in size and to which `value_range` does not apply.

    Attributes:
        encoder_: the encoder.

    Example:
        >>> images, labels = np.zeros((6, 8, 8)), [0, 0, 0, 1, 1, 1]
        >>> images[3:, :, 4:] = 1  # the right half is white
        >>> CAEFeatures("models/encoder").fit_transform(images).shape
        (6, 16)
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.svm import LinearSVC
        >>> make_pipeline(CAEFeatures("models/encoder"), LinearSVC()).fit(images, labels).predict(images).tolist()
        [0, 0, 0, 1, 1, 1]
    """

    def __init__(
        self,
        encoder: str | Path | Encoder = "models/encoder",
        *,
        code: bool = False,
        device: str = "cpu",
        image_shape: Shape | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.encoder = encoder
        self.code = code
        self.device = device
        self.image_shape = image_shape
        self.value_range = value_range

    def fit(self, X: Images, y: Any = None) -> "CAEFeatures":
        """Load the encoder and check the shape of X.

        Raises:
            ConvaeError: there is no such encoder, it does not accept X, or it has no compact code.
        """
        source = self.encoder
        self.encoder_ = source if isinstance(source, Encoder) else load_encoder(source, self.device)
        self.encoder_.features(self._pixels(X, self.encoder_.config["channels"], reset=True)[:1], code=self.code)
        return self

    def _scaled(self, X: np.ndarray, reset: bool) -> np.ndarray:
        low, high = _checked_range(self.value_range)
        scaled: np.ndarray = (X - low) / (high - low)
        return scaled


class ConvolutionalAutoencoderFeatures(_ImageTransformer):
    """Features of a convolutional autoencoder that `fit` trains on X, without labels.

    The layers are those of `systems/default.yaml`. Each layer normalises every window that it reads and whitens it; its
    filters are a 1×1 convolutional autoencoder of these windows, of whose maps the three strongest at a place
    reconstruct the window (Makhzani & Frey 2014, "k-sparse autoencoders"). The layers learn one after the other, from
    windows at random places; all but the first read the rectified maps of the layer below, pooled by 2, and keep of
    their windows what survives a shift of the image by a pixel. The maps of all layers are read out.

    Args:
        filters: number of filters of each layer.
        kernel: side of the first layer's filters in pixels, odd; those of further layers are 3×3.
        epochs: epochs per layer.
        batch_size: images per batch.
        learning_rate: initial learning rate of Adam; it falls to zero along a cosine.
        grid: rows and columns of cells over which the maps are averaged.
        device: where it trains and computes: `cpu`, `mps`, `cuda` (the first GPU), or `auto`: `cuda` if there is one.
        image_shape: as in `CAEFeatures`; flattened images are grey.
        value_range: as in `CAEFeatures`; None takes the smallest and the largest value that `fit` sees, and clips all
            values to them.
        random_state: seeds the filters, the batches and the choice of the 10 % of X held out to choose the epoch.
        verbose: show progress.

    X is an array as in `CAEFeatures`, of any number of channels and in `fit` with images of one size; or pictures: a
    list or a data frame's column of files, which are resized to `image_shape`, or to the size of the first.

    Attributes:
        encoder_: the trained encoder; `encoder_.save` writes it for others to load.
        value_range_: the values of black and white in arrays that are not `uint8`. None if `fit` saw `uint8` and no
            `value_range` is given; `transform` then rejects other arrays.

    Example:
        >>> ConvolutionalAutoencoderFeatures(filters=(32, 64), epochs=2).set_params(kernel=5)
        ConvolutionalAutoencoderFeatures(epochs=2, filters=(32, 64), kernel=5)
    """

    def __init__(
        self,
        filters: Sequence[int] = (64,),
        *,
        kernel: int = 7,
        epochs: int = 1,
        batch_size: int = 64,
        learning_rate: float = 0.003,
        grid: int = 4,
        device: str = "cpu",
        image_shape: Shape | None = None,
        value_range: tuple[float, float] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.filters = filters
        self.kernel = kernel
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.grid = grid
        self.device = device
        self.image_shape = image_shape
        self.value_range = value_range
        self.random_state = random_state
        self.verbose = verbose

    @state_as_before()
    def fit(self, X: Images, y: Any = None) -> "ConvolutionalAutoencoderFeatures":
        """Train the autoencoder, then fit the standardisation of its features to X.

        Raises:
            ConvaeError: X holds no images of one size, or the kernel is too large for them.
        """
        try:
            from convae.datasets.image_set import ImageSet
            from convae.features.extract import attach_readout, fit_readout
            from convae.files import array_sha256
            from convae.training.train import train_encoder
        except ModuleNotFoundError as error:
            raise ConvaeError(f"{error}; install convae[train]") from None
        self.value_range_ = None if self.value_range is None else _checked_range(self.value_range)
        images = _image_array(self._pixels(self._stacked(X), None, reset=True))
        generator = check_random_state(self.random_state)
        seed, order = int(generator.randint(2**31)), generator.permutation(len(images))
        tenth = len(images) // 10
        # With fewer than ten images none can be held out, so all of them choose the epoch.
        parts = images[order[tenth:]], images[order[:tenth] if tenth else order]
        training, validation = (ImageSet(part, None, (), array_sha256(part)) for part in parts)
        with TemporaryDirectory() as scratch:
            params, checkpoints = self._experiment(seed, scratch), Path(scratch) / "checkpoints"
            encoder, _, _ = train_encoder(params, training, validation, lambda row: None, checkpoints, self.verbose)
        encoder.to(self.device)
        readout = attach_readout(encoder, params.features)
        fit_readout(readout, encoder.features(images))
        self.encoder_ = encoder
        return self

    def transform(self, X: Images) -> np.ndarray:
        """Features `float32 [N, D]`, as in `CAEFeatures.transform`.

        Raises:
            ConvaeError: also if X is `uint8` but `fit` saw numbers that do not range from 0 to 1.
        """
        if "uint8" in str(getattr(X, "dtype", "")) and self.value_range is None:
            low, high = getattr(self, "value_range_", None) or (0, 1)
            if (low, high) != (0, 1):
                raise ConvaeError(
                    f"X is uint8, but fit saw numbers from {low:g} to {high:g}; pass the same kind, or set "
                    "value_range=(black, white) for arrays that are not uint8"
                )
        return super().transform(_stack(X) if isinstance(X, list) and _alike(X) else X)

    def _stacked(self, X: Any) -> Any:
        """Pictures as one array, in the size of `image_shape` or of the first; grey ones have one channel."""
        X = _as_list(X)
        if not _holds_pictures(X):
            return X
        if any(isinstance(image, np.ndarray) for image in X):
            return _stack(X)
        first = next(image_batches(X[:1], Reading(3), lambda size: 1))
        reading = Reading(3, self.image_shape or (first.shape[2], first.shape[3]))
        pictures = np.concatenate([batch.numpy() for batch in image_batches(X, reading, lambda size: 256)])
        return pictures[:, :1] if (pictures == pictures[:, :1]).all() else pictures

    def _scaled(self, X: np.ndarray, reset: bool) -> np.ndarray:
        if reset and self.value_range is None:
            low, high = float(X.min()), float(X.max())
            self.value_range_ = (low, high if high > low else low + 1)
        if self.value_range_ is None:
            raise ConvaeError(
                f"X is {X.dtype}, but fit saw uint8; set value_range=(black, white) to give these numbers a meaning"
            )
        low, high = self.value_range_
        scaled: np.ndarray = (np.clip(X, low, high) - low) / (high - low)
        return scaled

    def _experiment(self, seed: int, empty: str) -> "Params":
        """The default experiment, changed by the arguments; `empty` is a folder with no encoder to start from."""
        from pydantic import ValidationError

        from convae.params import Params

        filters = np.asarray(self.filters)
        if filters.ndim != 1 or not len(filters) or filters.dtype.kind not in "iu":
            raise ConvaeError(f"filters = {self.filters}: a whole number for each layer is needed, such as (64,)")
        found = find_device(self.device)
        if found.index:
            raise ConvaeError(f"device = {self.device}: only the first GPU is used; CUDA_VISIBLE_DEVICES chooses it")
        content = Params.default().model_dump()
        first, further = content["model"]["layers"]
        counts, whitening = filters.tolist(), further["input"]["whitening"]
        layers = [first | {"filters": counts[0], "kernel": _plain(self.kernel)}]
        for below, count in pairwise(counts):
            values = 2 * below * math.prod(further["kernel"])  # both signs of the maps below
            components = max(1, min(whitening["components"], values))
            reading = further["input"] | {"whitening": whitening | {"components": components}}
            layers.append(further | {"filters": count, "input": reading, "output": first["output"]})
        layers[-1] |= {"output": None}
        content["seed"] = seed
        content["model"] |= {"layers": layers, "initialize_from": empty}
        content["objective"]["sparsity"]["per_place"] = max(
            1, min(*counts, content["objective"]["sparsity"]["per_place"])
        )
        content["train"] |= {
            "order": "greedy",
            "epochs": _plain(self.epochs),
            "batch_size": _plain(self.batch_size),
            "learning_rate": _plain(self.learning_rate),
            "threads": torch.get_num_threads(),
            "accelerator": {"cuda": "gpu"}.get(found.type, found.type),
            "checkpoint_minutes": 60,
        }
        content["features"] |= {"layers": list(range(len(layers))), "grid": _plain(self.grid), "code": None}
        try:
            params = Params.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            known = {*self.get_params(), "layers"}
            key = next((str(part) for part in reversed(first["loc"]) if part in known), "device")
            raise ConvaeError(f"{key} = {first['input']}: {first['msg'].removeprefix('Value error, ')}") from None
        # Only the name, for config.json; the shape is that of X.
        return params.model_copy(update={"data": params.data.model_copy(update={"dataset": "arrays"})})


def _plain(value: Any) -> Any:
    """Numbers of NumPy, as searches of scikit-learn pass them, as those of Python."""
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _checked_range(value_range: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not -math.inf < low < high < math.inf:
        raise ConvaeError(f"value_range = {value_range}: must be (black, white), two numbers with black < white")
    return low, high


def _image_array(images: np.ndarray) -> np.ndarray:
    """Arrays as training takes them, `uint8` or `float32 [N, C, H, W]`; see `channel_axis`."""
    channels = images.shape[channel_axis(images.shape)] if images.ndim == 4 else 1
    return np.ascontiguousarray(channels_first(images, channels))


def _alike(X: list[Any]) -> bool:
    """Whether X holds arrays of one shape and type, such as images."""
    return (
        all(isinstance(image, np.ndarray) and image.ndim > 1 for image in X)
        and len({(i.shape, i.dtype) for i in X}) == 1
    )


def _stack(X: list[Any]) -> np.ndarray:
    if not _alike(X):
        raise ConvaeError("X is a list of arrays of several shapes or types, or of arrays and pictures; pass one kind")
    return np.stack(X)


def _as_list(X: Any) -> Any:
    """An array or a column of a data frame that holds names of files, as a list; anything else as it is."""
    column = np.asarray(X) if hasattr(X, "iloc") else X
    if isinstance(column, np.ndarray) and column.dtype.kind in "OU" and column.size == len(column):
        return column.ravel().tolist()
    return X


def _holds_pictures(X: Any) -> bool:
    """Whether X is a list of files, Pillow images or arrays of single images."""
    if not isinstance(X, (list, tuple)) or not X:
        return False
    first = X[0]
    return isinstance(first, (str, os.PathLike)) or hasattr(first, "getexif") or np.ndim(first) > 1
