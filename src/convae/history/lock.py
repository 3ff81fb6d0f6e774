"""Executions of stages as dvc.lock records them. DVC and git hold the results; MLflow can be rebuilt from them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from convae.errors import ConvaeError
from convae.names import flatten
from convae.params import PARAMS_FILE, is_conflict

if TYPE_CHECKING:
    from dvc.stage import PipelineStage

LOCK_FILE = Path("dvc.lock")
UNRECORDED = {"validate"}  # checks the parameters and computes nothing
REPORTS = "reports/"  # the outputs that git tracks
MERGE = "choose a side with `git checkout --theirs params.yaml dvc.lock reports` (or --ours), then run `dvc repro`"
RESTORE = f"restore the committed file with `git checkout {LOCK_FILE}`"
CODE = ("pipeline/", "src/")


@dataclass(frozen=True)
class Execution:
    """One execution of a stage: everything that determined it, and its outputs.

    Attributes:
        stage: the stage's name.
        params: values of parameters, by dotted name.
        inputs: MD5 hashes of data and code as DVC computes them, by path.
        outputs: the same for what the stage wrote; empty while it runs.

    Example:
        >>> first = Execution("train", {"seed": 0}, {"src/a.py": "1"})
        >>> second = Execution("train", {"seed": 0}, {"src/a.py": "2"})
        >>> first.attempt_key == second.attempt_key, first.experiment_key == second.experiment_key
        (False, True)
    """

    stage: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Hash of the whole execution. It is the same whether the stage was observed or read from dvc.lock."""
        return content_hash([self.stage, self.params, self.inputs, self.outputs])[:32]

    @cached_property
    def attempt_key(self) -> str:
        """Hash of what determines an execution, the same for all attempts, so that a stopped run can be resumed."""
        return content_hash([self.stage, self.params, self.inputs])[:32]

    @cached_property
    def experiment_key(self) -> str:
        """Hash of parameters and inputs without code. For a report, it identifies the experiment."""
        inputs = {path: md5 for path, md5 in self.inputs.items() if not path.startswith(CODE)}
        return content_hash([self.params, inputs])[:32]


Executions = Mapping[str, Execution]


@lru_cache(maxsize=512)  # many branches and experiments have the same dvc.lock
def read_lock(text: str) -> Executions:
    """Parse the text of a dvc.lock into executions by stage, in the file's order.

    Raises:
        ConvaeError: the text is not a valid dvc.lock.

    Example:
        >>> text = "stages: {train: {deps: [{path: data, md5: '1'}], outs: [{path: models, md5: '2'}]}}"
        >>> read_lock(text)["train"].outputs
        {'models': '2'}
        >>> read_lock("stages: train")
        Traceback (most recent call last):
        convae.errors.ConvaeError: dvc.lock can't be read
    """
    try:
        stages = (YAML(typ="safe", pure=True).load(text) or {}).get("stages") or {}
        return {name: _execution(name, entry) for name, entry in stages.items() if name not in UNRECORDED}
    except (YAMLError, AttributeError, KeyError, TypeError):
        problem = "contains merge conflict markers" if is_conflict(text) else "can't be read"
        raise ConvaeError(f"{LOCK_FILE} {problem}") from None


def lock_here() -> Executions:
    """Return the executions in the current folder's dvc.lock; none if there is no such file.

    Raises:
        ConvaeError: the file can't be read.

    Example:
        >>> _ = LOCK_FILE.write_text("stages: {train: {deps: [{path: data, md5: '1'}]}}")
        >>> lock_here()["train"].inputs
        {'data': '1'}
    """
    text = LOCK_FILE.read_text("utf-8", errors="replace") if LOCK_FILE.exists() else ""
    try:
        return read_lock(text)
    except ConvaeError as error:
        raise ConvaeError(f"{error}; {MERGE if is_conflict(text) else RESTORE}") from None


def ordered(executions: Executions) -> list[Execution]:
    """Sort executions so that producers come before consumers.

    Example:
        >>> train = Execution("train", {"seed": 0}, {"data": "1"}, {"model": "2"})
        >>> report = Execution("report", {}, {"model": "2"}, {"page": "3"})
        >>> [one.stage for one in ordered({"report": report, "train": train})]
        ['train', 'report']
    """
    names = TopologicalSorter({one.stage: _producers(executions, one) for one in executions.values()}).static_order()
    return [executions[name] for name in names]


def chain(executions: Executions, last: Execution) -> list[Execution]:
    """Return every execution that `last` builds on, directly or not, producers first.

    Example:
        >>> train = Execution("train", {"seed": 0}, {"data": "1"}, {"model": "2"})
        >>> report = Execution("report", {}, {"model": "2"}, {"page": "3"})
        >>> [one.stage for one in chain({"train": train, "report": report}, report)]
        ['train']
    """
    found: set[str] = set()
    waiting = [last]
    while waiting:
        new = _producers(executions, waiting.pop()) - found
        found |= new
        waiting += [executions[name] for name in new]
    return [one for one in ordered(executions) if one.stage in found]


def reports_in(executions: Executions) -> Iterator[Execution]:
    """Yield the executions that report on an experiment, recognised by reading its metrics.

    Example:
        >>> report = Execution("report", {}, {"reports/metrics.json": "1"})
        >>> [one.stage for one in reports_in({"train": Execution("train", {}, {}), "report": report})]
        ['report']
    """
    return (one for one in executions.values() if f"{REPORTS}metrics.json" in one.inputs)


def changes(stage: str, before: str, after: str) -> list[str]:
    """Describe the parameters of a stage, as dvc.yaml lists them, that differ between two texts of params.yaml."""
    definition = load_stage(stage)
    old, new = _params(definition, before), _params(definition, after)
    return [f"{name} was {value}, is {now}" for name, value, now in differences(old, new)]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return names whose values differ, sorted, with both values; None stands for a missing one.

    Example:
        >>> differences({"seed": 0, "epochs": 2}, {"seed": 0, "epochs": 3, "batch": 1})
        [('batch', None, 1), ('epochs', 2, 3)]
    """
    names = sorted(old.keys() | new.keys())
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def load_stage(name: str) -> "PipelineStage":
    """Load a stage of the current folder's dvc.yaml with DVC.

    Raises:
        Exception: any of DVC's errors, if this is not a DVC repository or has no such stage.
    """
    from dvc.repo import Repo

    return Repo().stage.load_one(name=name)


def begun(stage: "PipelineStage", text: str | None = None) -> Execution:
    """Return the running execution of `stage` as dvc.lock will record it, still without outputs.

    DVC computes the hashes. That costs little, because it remembers those of unchanged files.

    Args:
        stage: from `load_stage`.
        text: params.yaml as the stage read it; None reads the file now.
    """
    from dvc.stage.utils import split_params_deps

    _, inputs = split_params_deps(stage)
    hashes = {dependency.def_path: dependency.get_hash().value for dependency in inputs}
    return Execution(stage.name, _params(stage, text), dict(sorted(hashes.items())))


def ended(execution: Execution, stage: "PipelineStage") -> Execution:
    """Return the execution with its outputs. DVC reuses the hashes computed here when it writes dvc.lock."""
    hashes = {output.def_path: output.get_hash().value for output in stage.outs}
    return replace(execution, outputs=dict(sorted(hashes.items())))


def written(params: Mapping[str, Any]) -> dict[str, str]:
    """Format parameter values as in params.yaml.

    Example:
        >>> written({"train.order": "greedy", "features.code": None, "features.layers": [0, 1]})
        {'train.order': 'greedy', 'features.code': 'null', 'features.layers': '[0, 1]'}
    """
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in params.items()
    }


def content_hash(content: Any) -> str:
    """Return the SHA-256 of content as JSON, which does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def path_md5(path: Path) -> str:
    """Return the MD5 of a file or folder as DVC computes it, following links; empty if nothing is there.

    DVC hashes a folder as the JSON list of its files and their hashes, sorted by the parts of their paths.

    Example:
        >>> Path("folder").mkdir()
        >>> Path("folder/empty").touch()
        >>> path_md5(Path("folder/empty")), path_md5(Path("folder"))[-4:], path_md5(Path("nothing"))
        ('d41d8cd98f00b204e9800998ecf8427e', '.dir', '')
    """
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest()
    if not path.is_dir():
        return ""
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listing = [{"md5": path_md5(file), "relpath": name} for name, file in files.items()]
    listing.sort(key=lambda entry: entry["relpath"].split("/"))
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _params(stage: "PipelineStage", text: str | None) -> dict[str, Any]:
    """Return the values of a stage's parameters in a text of params.yaml, or in the file as it is now."""
    from dvc.stage.utils import split_params_deps

    values: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for dependency in split_params_deps(stage)[0]:
            # DVC reads parameters from a file. A copy of what the stage read is safe from later edits.
            if text is not None and dependency.def_path == str(PARAMS_FILE):
                copy = Path(folder) / PARAMS_FILE
                copy.write_text(text, "utf-8")
                dependency.fs_path = str(copy)
            values |= dependency.read_params()
    return flatten(values)


def _producers(executions: Executions, consumer: Execution) -> set[str]:
    """Return the stages that wrote an input of `consumer` with exactly the content that it read."""
    inputs = set(consumer.inputs.items())
    return {one.stage for one in executions.values() if not inputs.isdisjoint(one.outputs.items())}


def _execution(name: str, entry: dict[str, Any]) -> Execution:
    params = {key: value for values in entry.get("params", {}).values() for key, value in values.items()}
    inputs, outputs = (
        {item["path"]: str(item.get("md5", "")) for item in sorted(entry.get(part, []), key=lambda item: item["path"])}
        for part in ("deps", "outs")
    )
    return Execution(name, flatten(params), inputs, outputs)
