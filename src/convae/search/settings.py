"""`search.yaml` as typed, validated models: which keys of `params.yaml` a search varies, and over which values."""

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, model_validator

from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.params import PARAMS_FILE, Params, Place, Positive, Section, load_params, parse_sections, read_text

# Keys that change the definition of the loss, so that losses of two trials can't be compared.
MEANING_OF_LOSS = re.compile(
    r"(data|preprocessing|objective|model\.stacked_on|model\.layers\.\d+\.(input|output)|train\.order)(\.|$)"
)


def _study_name(value: str) -> str:
    if not value.replace("-", "").replace("_", "").isalnum() or not value.isascii() or value.startswith("-"):
        raise ValueError(
            f"found {value[:60]!r}; letters, digits, - and _ are allowed, because experiments are named after it"
        )
    return value


class Values(Section):
    """The values to try for a key: a list of choices, or the numbers from `low` to `high`.

    Example:
        >>> Values(choices=["adam", "sgd"]).ends
        ['adam', 'sgd']
        >>> Values(low=1, high=3).is_whole
        True
    """

    choices: list[JsonValue] | None = Field(default=None, min_length=1)
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = Field(default=None, gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> "Values":
        given = self.model_fields_set
        if given != {"choices"} and not {"low", "high"} <= given <= {"low", "high", "step", "log"}:
            raise ValueError("either choices, or low and high (and step or log) are allowed")
        if self.low is not None and self.high is not None:
            if self.low > self.high:
                raise ValueError(f"low = {self.low} is more than high = {self.high}")
            if self.log and (self.step is not None or self.low <= 0):
                raise ValueError("log needs low above 0 and no step")
            if self.is_whole and isinstance(self.step, float):
                raise ValueError(f"step = {self.step}: must be a whole number, as low and high are")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the range holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> list[Any]:
        """All choices, or the two ends of the range."""
        return self.choices if self.choices is not None else [self.low, self.high]


class Pruning(Section):
    """Optuna's median rule (Golovin et al. 2017, section 3.2.2).

    A trial is stopped if its best validation loss so far is worse than the median of the others at the same epoch.

    Example:
        >>> Pruning(startup_trials=5, warmup_epochs=1)
        Pruning(startup_trials=5, warmup_epochs=1)
    """

    startup_trials: Positive
    warmup_epochs: int = Field(ge=0)


class SearchSettings(Section):
    """One search: all of search.yaml.

    Example:
        >>> space = {"train.epochs": Values(low=1, high=3)}
        >>> SearchSettings(study="first", storage=None, trials=8, pruning=None, space=space).space["train.epochs"].ends
        [1, 3]
    """

    study: Annotated[str, AfterValidator(_study_name)]
    storage: Place | None
    trials: Positive
    pruning: Pruning | None
    space: dict[str, Values] = Field(min_length=1)


def load_search(path: Path) -> SearchSettings:
    """Read a search, and check that `params.yaml` is valid with each value on its own.

    Raises:
        ConvaeError: one line per mistake.
    """
    params = PARAMS_FILE.read_bytes()
    settings = parse_sections(path, read_text(path), SearchSettings)
    for key, values in settings.space.items():
        changed = _changed_loss(key, load_params()) if settings.pruning else None
        if changed:
            raise ConvaeError(
                f"{path}: pruning compares validation losses of the same epoch, but {key} changes {changed}; "
                "set pruning to null"
            )
        for value in values.ends:
            check_changes(path, params, {key: value})
    return settings


def _changed_loss(key: str, params: Params) -> str | None:
    """What about the validation loss of an epoch depends on a key, so that two trials can't be compared."""
    if MEANING_OF_LOSS.match(key):
        return "their definition"
    phases = params.train.order == "greedy_then_end_to_end" or len(params.model.layers) > 1
    if key == "train.epochs" and params.train.order.startswith("greedy") and phases:
        return "which layer learns then"
    return None


def check_changes(path: Path, params: bytes, changes: Mapping[str, Any]) -> None:
    """Check that `params`, the bytes of params.yaml, stay a valid experiment with these changes.

    Raises:
        ConvaeError: one line per mistake, reported as a mistake in the file at `path`.
    """
    with TemporaryDirectory() as folder:
        scratch = Path(folder) / PARAMS_FILE
        scratch.write_bytes(params)
        try:
            change(scratch, changes)
            load_experiment(scratch)
        except ConvaeError as error:
            raise ConvaeError(str(error).replace(f"{scratch}: ", f"{path}: space: ")) from None


def change(params: Path, changes: Mapping[str, Any]) -> None:
    """Change values in a parameter file and keep its comments.

    Raises:
        ConvaeError: the file has no such key.
    """
    from dvc.utils.serialize import modify_yaml  # as for `dvc exp run -S`

    with modify_yaml(str(params)) as content:
        for key, value in changes.items():
            *sections, last = (int(part) if part.isdecimal() else part for part in key.split("."))
            section: Any = content
            try:
                for part in sections:
                    section = section[part]
                section[last] = value
            except (LookupError, TypeError):
                raise ConvaeError(f"{params}: {key}: params.yaml has no such key") from None
