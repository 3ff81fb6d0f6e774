"""`params.yaml` as typed, documented, validated models.

One file describes one complete experiment. Every key must be present unless it has a default here; an unknown key, a
wrong type or an impossible value stops every stage before it computes anything. params.yaml explains each key.
"""

import os
import re
import unicodedata
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.events import AliasEvent

from convae.errors import ConvaeError

PARAMS_FILE = Path("params.yaml")
MOST_ALIASES = 20  # nested YAML aliases multiply: a few lines of them expand to more than fits into memory
MOST_PIXELS = 65_535  # along one side
SMALLEST, LARGEST = 1e-12, 1e12  # their squares and reciprocals are finite in single precision, and not zero
OWN_IMAGES = ("image_folder", "arrays")  # data sets of the user's own images
UNWEIGHTED = ("k_nearest_neighbors", "mlp")  # classifiers without class_weight in scikit-learn


def _as_pair(value: Any) -> Any:
    """Turn one number into a pair of equal sides, or a list of height and width into a pair.

    Example:
        >>> _as_pair(3), _as_pair([3, 5])
        ((3, 3), (3, 5))
    """
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    # `type`, not `isinstance`, because True and False are integers too.
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= MOST_PIXELS for side in pair):
        allowed = f"one number or [height, width] is allowed, whole numbers from 1 to {MOST_PIXELS}"
        raise ValueError(f"found {_shorten(value)}; {allowed}")
    return pair


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _in_single_precision(value: float) -> float:
    """Refuse magnitudes whose square or reciprocal overflows or vanishes in single precision."""
    if value and not SMALLEST <= abs(value) <= LARGEST:
        raise ValueError(f"found {value}; a magnitude from {SMALLEST:g} to {LARGEST:g} is allowed")
    return value


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"{value} is even; an odd number of pixels is needed")
    return value


def _name(value: str) -> str:
    if not value or any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError(f"found {_shorten(value)}; at least one character is needed, and no control characters")
    return value


def _place(value: str) -> str:
    """Refuse paths and addresses with ~ or $NAME, which DVC and other programs would not expand."""
    start, _, rest = value.rpartition("://") if "://" in value else ("", "", value)
    path = rest.removeprefix("/") if start else rest  # sqlite:///~/runs.db
    written = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - pathlib would normalise the rest too
    if written != path or path.startswith(("~", "$")):
        cure = f"write '{value.removesuffix(path)}{written}'" if written != path else "write the full path"
        raise ValueError(f"found {_shorten(value)}; ~ and variables are not expanded here; {cure}")
    return value


def _folder(value: str) -> str:
    if re.match(r"\w{2,}:/", value):
        raise ValueError(f"found {_shorten(value)}; it must be the path of a folder on this machine")
    return value


def _pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"found {_shorten(value)}, which is no regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"found {_shorten(value)}; one pair of parentheses is needed, around the name of the group")
    return value


def _as_range(value: Any) -> Any:
    """Turn a list of two numbers into a pair, the first smaller than the second."""
    if isinstance(value, str):
        raise ValueError(f"found {_shorten(value)}; range, percentile, standard or [low, high] is allowed")
    numbers = isinstance(value, (list, tuple)) and [one for one in value if type(one) in (int, float)]
    if not numbers or len(value) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"found {_shorten(value)}; [low, high] needs two numbers, the first smaller than the second")
    low, high = map(float, numbers)
    for number in (low, high, high - low):
        _in_single_precision(number)
    return low, high


Positive = Annotated[int, Field(gt=0, lt=2**31)]
Index = Annotated[int, Field(ge=0, lt=1024)]
Name = Annotated[str, AfterValidator(_name)]
Place = Annotated[Name, AfterValidator(_place)]
Folder = Annotated[Place, AfterValidator(_folder)]
Pair = Annotated[tuple[int, int], BeforeValidator(_as_pair)]
Real = Annotated[float, AfterValidator(_in_single_precision)]
Range = Annotated[tuple[float, float], BeforeValidator(_as_range)]
Odd = Annotated[int, Field(ge=3), AfterValidator(_odd)]
Share = Annotated[float, Field(gt=0, lt=1)] | Positive


class Section(BaseModel):
    """A section of a file that users write: unknown keys and wrong types are rejected; instances are immutable.

    Example:
        >>> WhiteningParams(kind="zca", window=6, epsilon=0.1)
        Traceback (most recent call last):
        pydantic_core._pydantic_core.ValidationError: 1 validation error for WhiteningParams
        window
          Value error, 6 is even; an odd number of pixels is needed ...
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, content: Any) -> Any:
        for key in content if isinstance(content, Mapping) else ():
            if key not in cls.model_fields:
                nearest = get_close_matches(str(key)[:60], cls.model_fields, n=1, cutoff=0)
                raise ValueError(f"unknown key {_shorten(key)}; the nearest known key is '{nearest[0]}'")
        return content


DatasetName = Literal[
    "fashion_mnist", "mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10", "digits", "image_folder", "arrays"
]


class TableParams(Section):
    """A table that lists the images of a folder, and the names of its columns.

    Without a name, a column called label, split or group is used if there is one.
    """

    file: Place
    path: Name = "path"
    label: Name | None = None
    split: Name | None = None
    group: Name | None = None


class DataParams(Section):
    """The images, and how they are split."""

    dataset: DatasetName
    root: Folder
    table: TableParams | None = None
    group: Annotated[Name, AfterValidator(_pattern)] | None = None
    trust: bool = False
    image_size: Pair | None
    channels: int | None = Field(default=None, ge=1, le=1024)
    layout: Literal["channels_first", "channels_last"] = "channels_first"
    scale: Literal["range", "percentile", "standard"] | Range | None = None
    color: Literal["rgb", "grey", "bands"]
    fit: Literal["crop", "pad", "stretch"] = "crop"
    white_level: int | None = Field(default=None, gt=0, lt=2**16)
    validation_size: Share
    test_size: Share
    max_rejected: int = Field(ge=0)
    shards: Place | None

    @property
    def any_depth(self) -> bool:
        """Whether images may have any number of channels: arrays, or bands of pictures."""
        return self.dataset == "arrays" or (self.dataset == "image_folder" and self.color == "bands")

    @model_validator(mode="after")
    def _size_goes_with_folder(self) -> "DataParams":
        if self.dataset in OWN_IMAGES and self.image_size is None:
            raise ValueError(f"image_size is needed for {self.dataset}: one number or [height, width], in pixels")
        if self.dataset not in OWN_IMAGES and self.image_size is not None:
            raise ValueError(f"image_size must be null for {self.dataset}, whose images all have the same size")
        if self.any_depth and self.channels is None:
            raise ValueError("channels is needed: the number of channels of an image")
        if self.any_depth and self.shards:
            raise ValueError("shards must be null for arrays and bands")
        for key in ("channels", "scale"):
            if not self.any_depth and getattr(self, key) is not None:
                raise ValueError(f"{key} must be null; it describes arrays, or an image_folder with color: bands")
        if (self.any_depth or self.dataset != "image_folder") and self.white_level is not None:
            raise ValueError("white_level must be null; it describes an image_folder in rgb or grey. See scale")
        for key in ("table", "group"):
            if self.dataset != "image_folder" and getattr(self, key) is not None:
                raise ValueError(f"{key} must be null for {self.dataset}; it describes an image_folder")
        if self.dataset != "arrays" and self.layout != "channels_first":
            raise ValueError(f"layout must be channels_first for {self.dataset}; it describes arrays")
        if self.group and self.table and self.table.group:
            raise ValueError("group and table.group both name the groups; set one of them to null")
        return self


class LocalContrastParams(Section):
    """Local contrast normalisation (Jarrett et al. 2009, section 2.2)."""

    window: Odd = Field(le=MOST_PIXELS)
    floor: Real = Field(gt=0)


class WhiteningParams(Section):
    """Whitening of patches, applied as a convolution (Coates, Lee & Ng 2011, section 3.1)."""

    kind: Literal["zca", "pca"]
    window: Odd = Field(le=15)
    epsilon: Real = Field(gt=0)


class PreprocessingParams(Section):
    """What happens to an image in [0, 1] before the first learned filter."""

    local_contrast: LocalContrastParams | None
    whitening: WhiteningParams | None


class PoolParams(Section):
    """Pooling of a layer's activation maps over non-overlapping windows.

    Example:
        >>> PoolParams(kind="max", size=2)
        PoolParams(kind='max', size=(2, 2))
    """

    kind: Literal["max", "mean"]
    size: Pair


class AugmentationParams(Section):
    """Random changes of the training images that preserve their class."""

    flip: bool
    shift: int = Field(ge=0, le=MOST_PIXELS)


class NormalizationParams(Section):
    """Normalisation of every window that a layer reads, by itself."""

    centered: bool
    floor: Real = Field(ge=1e-3)  # below, the rounding errors of flat windows become visible


class WindowWhiteningParams(Section):
    """Whitening of the windows that a layer reads, as a linear map that is fitted to training images."""

    kind: Literal["pca", "zca", "denoising"]
    components: Positive | None = None
    epsilon: Real = Field(ge=1e-5)  # below, directions without variance become rounding errors of full strength
    corruption: AugmentationParams | None = None

    @model_validator(mode="after")
    def _settings_agree(self) -> "WindowWhiteningParams":
        _check_copy(self.kind, self.corruption)
        if self.kind == "zca" and self.components is not None:
            raise ValueError(f"components = {self.components}: zca keeps all of them; set it to null or use pca")
        return self


def _check_copy(kind: str, corruption: AugmentationParams | None) -> None:
    """Refuse a corrupted copy that is not used, and a missing one."""
    if kind == "denoising" and not (corruption and (corruption.shift or corruption.flip)):
        raise ValueError("kind = denoising: needs a corrupted copy, such as corruption: {flip: false, shift: 1}")
    if kind != "denoising" and corruption:
        raise ValueError(f"kind = {kind}: has no corrupted copy; set corruption to null or use denoising")


class InputParams(Section):
    """What happens to the windows that a layer reads, before its filters.

    Example:
        >>> InputParams(normalization={"centered": True, "floor": 0.01}, whitening=None).normalization.floor
        0.01
    """

    normalization: NormalizationParams | None
    whitening: WindowWhiteningParams | None


class OutputParams(Section):
    """What happens to a layer's activation maps on the way to the layer above."""

    rectification: Literal["none", "positive", "both"]
    threshold: Real = Field(ge=0)
    pool: PoolParams | None
    power: float = Field(gt=0, le=1)
    standardize: bool


class LayerParams(Section):
    """One convolutional layer of the encoder.

    Example:
        >>> layer = LayerParams(filters=64, kernel=7)
        >>> layer.kernel, layer.stride, layer.padding, layer.activation
        ((7, 7), (1, 1), 'same', 'relu')
    """

    filters: int = Field(gt=0, le=65536)
    kernel: Pair | Literal["image"] = (3, 3)
    stride: Pair = (1, 1)
    padding: Literal["full", "same", "valid"] = "same"
    border: Literal["zeros", "reflect"] = "zeros"
    input: InputParams | None = None
    activation: Literal["linear", "relu", "leaky_relu", "tanh", "sigmoid"] = "relu"
    batch_norm: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    pool: PoolParams | None = None
    output: OutputParams | None = None


class ModelParams(Section):
    """The encoder's layers; the decoder mirrors them."""

    layers: list[LayerParams] = Field(max_length=100)
    initialization: Literal["normal", "patches", "kmeans", "filter_bank"]
    initialize_from: Folder
    stacked_on: Literal["maps", "reconstructions"]
    tied_weights: bool


class SparsityParams(Section):
    """Winner-take-all sparsity (Makhzani & Frey 2015), among all places of a map or among all maps at a place.

    Example:
        >>> SparsityParams(block=14, lifetime=0.3)
        SparsityParams(block=(14, 14), lifetime=0.3, per_place=None)
    """

    block: Pair | None
    lifetime: float | None = Field(gt=0, le=1)
    per_place: Positive | None = None

    @model_validator(mode="after")
    def _one_kind_of_competition(self) -> "SparsityParams":
        if self.per_place and (self.block or self.lifetime):
            raise ValueError(f"per_place = {self.per_place}: set block and lifetime to null, or per_place")
        return self


class CorruptionParams(Section):
    """How an image is corrupted before it is reconstructed: noise is added or blocks are removed.

    Example:
        >>> CorruptionParams(kind="masking", level=0.5, block=4)
        CorruptionParams(kind='masking', level=0.5, block=(4, 4))
    """

    kind: Literal["gaussian", "uniform", "masking"]
    level: Real = Field(gt=0)
    block: Pair = (1, 1)

    @model_validator(mode="after")
    def _a_part_is_masked(self) -> "CorruptionParams":
        if self.kind == "masking" and self.level >= 1:
            raise ValueError(f"level = {self.level}: masking removes a fraction of the blocks, which must be below 1")
        return self


class ObjectiveParams(Section):
    """What training minimises."""

    kind: Literal["reconstruct", "classify", "none"]
    corruption: CorruptionParams | None
    sparsity: SparsityParams | None
    pretraining: int = Field(ge=0)


class TrainParams(Section):
    """How the objective is minimised, and on which hardware."""

    order: Literal["end_to_end", "greedy", "greedy_then_end_to_end", "simultaneous"]
    freeze: Literal["none", "all"] | Positive
    epochs: Positive
    batch_size: Positive
    places: Positive | None = None
    optimizer: Literal["adam", "adamw", "sgd"]
    learning_rate: Real = Field(gt=0)
    head_learning_rate: Real | None = Field(gt=0)
    weight_decay: Real = Field(ge=0)
    schedule: Literal["constant", "cosine", "one_cycle"]
    gradient_clip: Real | None = Field(gt=0)
    patience: Positive | None
    augmentation: AugmentationParams | None
    precision: Literal["32-true", "tf32-true", "16-mixed", "bf16-mixed"]
    threads: int = Field(gt=0, le=1024)
    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: Positive | Literal["auto"]
    nodes: Positive
    strategy: Literal["auto", "ddp"]
    checkpoint_minutes: Real = Field(gt=0)
    probe_every: Positive | None = None


class CodeParams(Section):
    """The compact code: a linear map of the features that is fitted to training images."""

    kind: Literal["pca", "denoising"]
    components: Annotated[int, Field(ge=2, lt=2**31)]  # codes are compared by direction: of one number, all are alike
    corruption: AugmentationParams | None = None
    ridge: Real = Field(gt=0)
    scale: Literal["equal", "shrunk"]
    images: Annotated[int, Field(ge=3)] | None = None  # for two directions

    @model_validator(mode="after")
    def _settings_agree(self) -> "CodeParams":
        _check_copy(self.kind, self.corruption)
        return self


class FeaturesParams(Section):
    """The readout: how activation maps become one vector."""

    layers: list[int] = Field(min_length=1, max_length=100)
    divisive_normalization: Real | None = Field(gt=0)
    rectification: Literal["none", "positive", "both"]
    threshold: Real = Field(ge=0)
    pooling: Literal["mean", "max"]
    grid: Pair
    power: float = Field(gt=0, le=1)
    mirror: Literal["average"] | None = None
    standardize: bool
    code: CodeParams | None = None

    @model_validator(mode="after")
    def _copies_differ(self) -> "FeaturesParams":
        if self.mirror and self.code and self.code.corruption and not self.code.corruption.shift:
            raise ValueError("code.corruption: with mirror = average, a mirrored copy has the same features; set shift")
        return self

    @model_validator(mode="before")
    @classmethod
    def _pca_is_a_code(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and "pca" in content:
            found = content["pca"]
            section = f"{{kind: pca, components: {found}, corruption: null, ridge: 1.0e-6, scale: equal, images: null}}"
            written = f"write code: {section} and classifier.reads: code"
            now = "remove the line" if found is None else written
            raise ValueError(f"features.pca is now features.code; {now}")
        return content


Candidates = Annotated[list[Annotated[Real, Field(gt=0)]], Field(min_length=1)]
Counts = Annotated[list[Positive], Field(min_length=1)]


class InverseRegularization(Section):
    """Candidates for scikit-learn's `C`, the inverse regularisation."""

    C: Candidates


class RidgeSettings(Section):
    """Candidates for the ridge classifier's `alpha`."""

    alpha: Candidates


class NeighborsSettings(Section):
    """Candidates for the number of neighbours."""

    n_neighbors: Counts


class MLPSettings(Section):
    """Candidates for the width of the hidden layer and for the L2 penalty."""

    hidden_layer_sizes: Counts
    alpha: Candidates


class BoostingSettings(Section):
    """Candidates for the number of boosting rounds and for the learning rate."""

    max_iter: Counts
    learning_rate: Candidates


class ClassifierParams(Section):
    """The scikit-learn classifier, what it reads of an image, and its settings to try on the validation images.

    Example:
        >>> Params.default().classifier.model_copy(update={"kind": "ridge"}).candidates.keys()
        dict_keys(['alpha'])
    """

    kind: Literal[
        "logistic_regression", "linear_svm", "ridge", "k_nearest_neighbors", "rbf_svm", "mlp", "gradient_boosting"
    ]
    reads: Literal["features", "code"] = "features"
    class_weight: Literal["balanced"] | None = None
    select_by: Literal["accuracy", "balanced_accuracy", "macro_f1"] = "accuracy"
    logistic_regression: InverseRegularization
    linear_svm: InverseRegularization
    ridge: RidgeSettings
    k_nearest_neighbors: NeighborsSettings
    rbf_svm: InverseRegularization
    mlp: MLPSettings
    gradient_boosting: BoostingSettings

    @property
    def candidates(self) -> dict[str, list[float]]:
        """Values to try, by scikit-learn parameter, for the chosen classifier."""
        settings: Section = getattr(self, self.kind)
        return settings.model_dump()

    @model_validator(mode="after")
    def _kind_can_weight_classes(self) -> "ClassifierParams":
        if self.class_weight and self.kind in UNWEIGHTED:
            raise ValueError(
                f"class_weight = {self.class_weight}: {self.kind} can't weight classes; "
                "set it to null or choose another classifier.kind"
            )
        return self


class ReportParams(Section):
    """How the report shows images: the channels to use as red, green and blue, and the map to two dimensions."""

    channels: Annotated[tuple[Index, Index, Index], BeforeValidator(_as_tuple)] | None = None
    embedding: Literal["pca", "tsne"] = "pca"


class TrackingParams(Section):
    """Where runs are recorded; no output of a stage depends on it."""

    enabled: bool
    uri: Place | None
    experiment: Name


class Params(Section):
    """One experiment: all of params.yaml."""

    seed: int = Field(ge=0, lt=2**32)
    data: DataParams
    preprocessing: PreprocessingParams
    model: ModelParams
    objective: ObjectiveParams
    train: TrainParams
    features: FeaturesParams
    classifier: ClassifierParams
    report: ReportParams = ReportParams()
    tracking: TrackingParams

    @classmethod
    def default(cls) -> "Params":
        """The experiment in `params.yaml` as shipped.

        Example:
            >>> params = Params.default()
            >>> params.data.dataset, params.objective.kind, params.train.epochs
            ('fashion_mnist', 'reconstruct', 1)
        """
        return load_params(Path(__file__).with_name("default.yaml"))

    @property
    def frozen_layers(self) -> int:
        """The number of layers, counted from the first, whose filters stay fixed."""
        freeze = self.train.freeze
        return freeze if isinstance(freeze, int) else {"none": 0, "all": len(self.model.layers)}[freeze]

    @property
    def reconstructs(self) -> bool:
        """Whether layers learn by reconstruction, at least at first."""
        return self.objective.kind == "reconstruct" or self.objective.pretraining > 0

    @model_validator(mode="after")
    def _sections_agree(self) -> "Params":
        if not self.model.layers and self.objective.kind != "none":
            raise ValueError(
                f"objective.kind = {self.objective.kind}: model.layers is empty, so there is nothing to train; "
                "set it to none"
            )
        whitening = self.preprocessing.whitening
        if self.reconstructs and not self.train.places and whitening and whitening.kind == "pca":
            raise ValueError(
                "preprocessing.whitening.kind = pca: principal components of patches are not an image to reconstruct; "
                "use zca"
            )
        self._check_places()
        if self.frozen_layers > len(self.model.layers):
            raise ValueError(
                f"train.freeze = {self.train.freeze}: model.layers has {len(self.model.layers)}; none, all or at most "
                "that number is allowed"
            )
        count = max(1, len(self.model.layers))  # without layers the preprocessed image is read
        for layer in self.features.layers:
            if not -count <= layer < count:
                raise ValueError(
                    f"features.layers = {layer}: model.layers has {len(self.model.layers)}, "
                    f"so {-count} to {count - 1} are allowed"
                )
        if len({layer % count for layer in self.features.layers}) < len(self.features.layers):
            raise ValueError(f"features.layers = {list(self.features.layers)}: it names a layer twice")
        if self.classifier.reads == "code" and not self.features.code:
            raise ValueError("classifier.reads = code: features.code is null; describe a code there, or read features")
        return self

    def _check_places(self) -> None:
        """Check that exactly the layers with an `input` are trained place by place."""
        layers = self.model.layers
        for index, layer in enumerate(layers):
            name = f"model.layers[{index}]"
            if (layer.input or layer.output) and self.model.stacked_on != "maps":
                raise ValueError(f"{name}: input and output need model.stacked_on: maps")
            if layer.output and index == len(layers) - 1:
                raise ValueError(f"{name}.output: no layer above reads it; set it to null")
            if not self.reconstructs or index < self.frozen_layers:
                continue
            if layer.input and not self.train.places:
                raise ValueError(f"{name}.input: normalised windows are learned place by place; set train.places")
            if self.train.places and not layer.input:
                raise ValueError(
                    f"train.places = {self.train.places}: {name}.input is null; add it or set train.places to null"
                )
            if layer.input and (layer.activation != "linear" or layer.batch_norm or layer.dropout):
                raise ValueError(f"{name}.input: needs activation: linear, batch_norm: false and dropout: 0.0")
        if not self.reconstructs:
            return
        whole = [index for index, layer in enumerate(layers) if layer.input or layer.output]
        if whole and self.train.order != "greedy":
            key = f"model.layers[{whole[0]}].{'input' if layers[whole[0]].input else 'output'}"
            raise ValueError(f"train.order = {self.train.order}: {key} can't be decoded; set order to greedy")
        if not self.train.places:
            return
        sparsity = self.objective.sparsity
        for wrong, line in (
            (not self.model.tied_weights, "model.tied_weights: true"),
            (self.objective.corruption, "objective.corruption: null"),
            (sparsity and not sparsity.per_place, "objective.sparsity: null, or its per_place"),
        ):
            if wrong:
                raise ValueError(f"train.places = {self.train.places}: needs {line}")


File = TypeVar("File", bound=Section)


class _Composer(Composer):
    """Refuses files with too many aliases before they are expanded."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, counting the aliases on the way."""
        self.aliases += self.parser.check_event(AliasEvent)
        if self.aliases > MOST_ALIASES:
            raise ValueError(f"more than {MOST_ALIASES} aliases")
        return super().compose_node(parent, index)


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and validate an experiment.

    Raises:
        ConvaeError: one line per mistake, with the key, the value found and what is allowed.

    Example:
        >>> _ = Path("params.yaml").write_text("sede: 0")
        >>> load_params()
        Traceback (most recent call last):
        convae.errors.ConvaeError: params.yaml: unknown key 'sede'; the nearest known key is 'seed'
    """
    return parse_sections(path, read_text(path), Params)


def read_text(path: Path) -> str:
    """Read the text of a YAML file.

    Raises:
        ConvaeError: the file is missing or can't be read.

    Example:
        >>> read_text(Path("params.yml"))
        Traceback (most recent call last):
        convae.errors.ConvaeError: params.yml: no such file; run from the repository's top folder
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConvaeError(f"{path}: no such file; run from the repository's top folder") from None
    except OSError as error:
        raise ConvaeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConvaeError(f"{path}: not readable as YAML: {error}") from None


def parse_sections(path: Path, text: str, model: type[File]) -> File:
    """Validate the text of a YAML file as `model`.

    Raises:
        ConvaeError: one line per mistake, with the key, the value found and what is allowed.

    Example:
        >>> parse_sections(Path("pool.yaml"), "{kind: median, size: 2}", PoolParams)
        Traceback (most recent call last):
        convae.errors.ConvaeError: pool.yaml: kind = 'median': must be 'max' or 'mean'
    """
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Composer = _Composer
        content = yaml.load(text)
    except Exception as error:  # ruamel.yaml raises nearly anything for values that contradict their tags
        if is_conflict(text):
            raise ConvaeError(f"{path} contains merge conflict markers; resolve the conflict") from None
        raise ConvaeError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConvaeError(f"{path}: must contain the sections {', '.join(model.model_fields)}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConvaeError("\n".join(_lines(path, error))) from None


def is_conflict(text: str) -> bool:
    """Whether git has left the markers of a merge conflict in the text of a file."""
    return "\n<<<<<<< " in f"\n{text}"


def _lines(path: Path, error: ValidationError) -> list[str]:
    # By key: pydantic reports one error for each branch of a union, but a mistake should give one line.
    lines: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        known = [part for part in item["loc"] if isinstance(part, int) or not _is_branch(part)]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in known).lstrip(".")
        if item["type"] == "value_error":
            mistake = item["msg"].removeprefix("Value error, ")
            line = f"{key}: {mistake}" if key else mistake
        elif item["type"] == "model_type":
            line = f"{key} = {_shorten(item['input'])}: must be a section with keys and values"
        elif item["type"] == "missing":
            line = f"{key}: missing"
        else:
            allowed = item["msg"].partition(" should ")[2]  # "be …" or, of a list's length, "have …"
            line = f"{key} = {_shorten(item['input'])}: must {allowed}"
        lines.setdefault(key, []).append(line)
    return [
        f"{path}: {' or '.join([same[0], *(line.partition(': must be ')[2] for line in same[1:])])}"
        for same in lines.values()
    ]


def _is_branch(part: str) -> bool:
    """Whether a part of an error's location is pydantic's name for a branch of a union, not a key."""
    return any(character in part for character in "[(-") or part in {"int", "float", "str"}


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
