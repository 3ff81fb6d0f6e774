"""The origin of a file or folder: data, code, parameters and runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from convae.errors import ConvaeError
from convae.history.git import Place, places
from convae.history.lock import CODE, Execution, chain, path_md5, written


def find_producer(path: Path) -> tuple[Place, Execution]:
    """Find the execution that wrote the content of `path`, and a state of the repository that has it.

    Content alone counts: a copy in another place, or with another name, is found too.

    Raises:
        ConvaeError: `path` does not exist, or no dvc.lock has its hash.
    """
    md5 = path_md5(path)
    if not md5:
        raise ConvaeError(f"{path}: no such file or folder")
    known = list(places())
    found = [(place, one) for place in known for one in place.executions.values() if md5 in one.outputs.values()]
    if not found:
        raise ConvaeError(f"{path}: no dvc.lock in this repository has its content (MD5 {md5})")
    # Several versions of the code may have written the same bytes; prefer the workspace's.
    keys = {one.key for one in known[-1].executions.values()}
    return next((pair for pair in found if pair[1].key in keys), found[0])


def describe(path: Path, place: Place, execution: Execution, runs: Mapping[str, str]) -> Iterator[str]:
    """Yield lines on how `path` was made, last stage first; `runs` maps keys of executions to their runs' addresses.

    Example:
        >>> execution = Execution("train", {"train.epochs": 2}, {"data/prepared": "1"}, {"picture.png": "2"})
        >>> place = Place("workspace", {"train": execution}, time=0, command="")
        >>> for line in list(describe(Path("picture.png"), place, execution, runs={}))[3:]:
        ...     print(line)
        train
          run           none in MLflow; `convae sync` adds it
          data          data/prepared  1
          parameter     train.epochs = 2
    """
    stages = [execution, *reversed(chain(place.executions, execution))]
    writers = {written: one.stage for one in stages for written in one.outputs.items()}
    yield f"{path}  {path_md5(path)}"
    yield f"  kept in       {place.name}"
    if place.command:
        yield f"  restored by   {place.command}"
    for one in stages:
        yield ""
        yield one.stage
        yield f"  run           {runs.get(one.key, 'none in MLflow; `convae sync` adds it')}"
        for name, md5 in sorted(one.inputs.items(), key=lambda item: item[0].startswith(CODE)):
            kind = "code" if name.startswith(CODE) else "data"
            writer = writers.get((name, md5))
            yield f"  {kind}          {name}  {md5}" + (f"  from {writer}" if writer else "")
        for name, value in written(one.params).items():
            yield f"  parameter     {name} = {value}"
