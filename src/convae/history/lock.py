"""What DVC says was executed: the truth that the runs in MLflow are a view of."""

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
from convae.params import PARAMS_FILE

if TYPE_CHECKING:
    from dvc.stage import PipelineStage

LOCK_FILE, PIPELINE = Path("dvc.lock"), Path("dvc.yaml")
UNRECORDED = {"validate"}  # looks at the parameters and computes nothing
REPORTS = "reports/"  # what git keeps
MERGE = "take one by `git checkout --theirs params.yaml dvc.lock reports` (or --ours), then `dvc repro`"
RESTORE = f"`git checkout {LOCK_FILE}` brings the committed one back"
CODE = ("pipeline/", "src/")


@dataclass(frozen=True)
class Execution:
    """One execution of a stage: everything that determined it, and what came of it.

    Hashes are MD5 as DVC computes them, by path; values of parameters go by their dotted names.
    """

    stage: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Hash of the whole execution; equal for a run that was seen and one that is read from dvc.lock."""
        return _hash([self.stage, self.params, self.inputs, self.outputs])

    @cached_property
    def attempt_key(self) -> str:
        """Hash of what determines an execution: equal for all attempts at it."""
        return _hash([self.stage, self.params, self.inputs])

    @cached_property
    def experiment_key(self) -> str:
        """Hash of parameters and inputs but not of code: what tells experiments apart once all is reported."""
        return _hash([self.params, {path: md5 for path, md5 in self.inputs.items() if not path.startswith(CODE)}])


Executions = Mapping[str, Execution]


@lru_cache(maxsize=512)  # most branches and experiments share theirs
def read_lock(text: str) -> Executions:
    """The executions in the text of a dvc.lock, by stage, in its order.

    Raises:
        ConvaeError: it can't be read.
    """
    try:
        stages = (YAML(typ="safe", pure=True).load(text) or {}).get("stages") or {}
        return {name: _execution(name, entry) for name, entry in stages.items() if name not in UNRECORDED}
    except (YAMLError, AttributeError, KeyError, TypeError):
        problem = "holds both sides of a merge" if _is_conflict(text) else "can't be read"
        raise ConvaeError(f"{LOCK_FILE} {problem}") from None


def lock_here() -> Executions:
    """The executions in the dvc.lock of the current folder; none without one.

    Raises:
        ConvaeError: it can't be read.
    """
    text = LOCK_FILE.read_text("utf-8", errors="replace") if LOCK_FILE.exists() else ""
    try:
        return read_lock(text)
    except ConvaeError as error:
        raise ConvaeError(f"{error}; {MERGE if _is_conflict(text) else RESTORE}") from None


def ordered(executions: Executions) -> list[Execution]:
    """All executions, producers before those that read their outputs."""
    names = TopologicalSorter({one.stage: _producers(executions, one) for one in executions.values()}).static_order()
    return [executions[name] for name in names]


def chain(executions: Executions, last: Execution) -> list[Execution]:
    """Every execution that `last` builds upon, producers first, without itself."""
    found: set[str] = set()
    waiting = [last]
    while waiting:
        new = _producers(executions, waiting.pop()) - found
        found |= new
        waiting += [executions[name] for name in new]
    return [one for one in ordered(executions) if one.stage in found]


def reports_in(executions: Executions) -> Iterator[Execution]:
    """Those that report on an experiment: they read its metrics."""
    return (one for one in executions.values() if f"{REPORTS}metrics.json" in one.inputs)


def changes(stage: str, before: str, after: str) -> list[str]:
    """The parameters of a stage, as dvc.yaml lists them, in which two texts of params.yaml differ."""
    load = YAML(typ="safe", pure=True).load
    entry = (load(PIPELINE.read_text("utf-8")).get("stages") or {}).get(stage) or {}
    listed = (one.get(str(PARAMS_FILE), ()) if isinstance(one, dict) else [one] for one in entry.get("params", []))
    keys = [key for keys in listed for key in keys]
    old, new = flatten(load(before)), flatten(load(after))
    return [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and any(f"{name}.".startswith(f"{key}.") for key in keys)
    ]


def load_stage(name: str) -> "PipelineStage":
    """DVC's own idea of a stage of the dvc.yaml in the current folder.

    Raises:
        Exception: whatever DVC comes up with, where this is no repository of it or has no such stage.
    """
    from dvc.repo import Repo

    return Repo().stage.load_one(name=name)


def begun(stage: "PipelineStage", text: str | None = None) -> Execution:
    """The execution of `stage` that is under way, as dvc.lock will have it; outputs are still missing.

    DVC computes the hashes, which costs little: it remembers those of files that did not change.

    Args:
        stage: as DVC knows it.
        text: of params.yaml when the stage read it; None reads it now.
    """
    from dvc.stage.utils import split_params_deps

    params, inputs = split_params_deps(stage)
    values: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for dependency in params:
            if text is not None and dependency.def_path == str(PARAMS_FILE):
                copy = Path(folder) / PARAMS_FILE
                copy.write_text(text, "utf-8")
                dependency.fs_path = str(copy)
            values |= dependency.read_params()
    hashes = {dependency.def_path: dependency.get_hash().value for dependency in inputs}
    return Execution(stage.name, flatten(values), dict(sorted(hashes.items())))


def ended(execution: Execution, stage: "PipelineStage") -> Execution:
    """The same with its outputs; DVC takes the hashes over when it writes dvc.lock."""
    hashes = {output.def_path: output.get_hash().value for output in stage.outs}
    return replace(execution, outputs=dict(sorted(hashes.items())))


def written(params: Mapping[str, Any]) -> dict[str, str]:
    """Values of parameters the way params.yaml has them."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in params.items()
    }


def path_md5(path: Path) -> str:
    """MD5 of a file or folder as DVC computes it, links followed; empty where nothing is there."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest()
    if not path.is_dir():
        return ""
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listing = [{"md5": path_md5(file), "relpath": name} for name, file in files.items()]
    listing.sort(key=lambda entry: entry["relpath"].split("/"))
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _is_conflict(text: str) -> bool:
    return "\n<<<<<<< " in f"\n{text}"


def _producers(executions: Executions, consumer: Execution) -> set[str]:
    """Stages that wrote an input of `consumer` with just that content."""
    inputs = set(consumer.inputs.items())
    return {one.stage for one in executions.values() if not inputs.isdisjoint(one.outputs.items())}


def _execution(name: str, entry: dict[str, Any]) -> Execution:
    params = {key: value for values in entry.get("params", {}).values() for key, value in values.items()}
    inputs, outputs = (
        {item["path"]: str(item.get("md5", "")) for item in sorted(entry.get(part, []), key=lambda item: item["path"])}
        for part in ("deps", "outs")
    )
    return Execution(name, flatten(params), inputs, outputs)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
