"""Rerun the experiment in a scratch workspace and compare the results with dvc.lock."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.files import read_json
from convae.history.deviation import largest_deviation, metric_deviations
from convae.history.git import git
from convae.history.lock import CODE, LOCK_FILE, Executions, differences, lock_here, path_md5, read_lock
from convae.names import flatten

SCRATCH = Path(".convae/verify")
ENVIRONMENT = Path("reports/environment.json")
METRICS = "reports/metrics.json"
DOWNLOADS = "data/downloads"
IDENTICAL, CLOSE, DIFFERENT = "identical", "equal within tolerance", "different"
ERROR, ROUNDED = 0.05, 2e-6  # of reconstructions: relative to the earlier error, and for its rounding to six digits
TOLERANCE = f"test accuracy in its 95 % interval, reconstruction errors within {100 * ERROR:.0f} %"
EXACT = ("data/raw/", "data/prepared/")  # images involve no rounding: they are equal or they are not
ROUNDING = {"train.threads"}  # parameters that change nothing but rounding


def verify() -> None:
    """Rerun, compare and print.

    Raises:
        ConvaeError: the results differ by more than the tolerance, there is nothing to compare with, the pipeline
            fails, or another verification is running here.
    """
    params = load_experiment()
    if not LOCK_FILE.exists() or not git("ls-files", str(LOCK_FILE)):
        raise ConvaeError(f"git tracks no {LOCK_FILE} here; run this in a clone of a repository with results")
    before = lock_here()
    with _alone():
        copy_workspace(SCRATCH, [params.data.root, params.model.initialize_from, DOWNLOADS])
        _rerun(SCRATCH)
        after = read_lock((SCRATCH / LOCK_FILE).read_text("utf-8"))
        print()
        verdict = report(before, after, SCRATCH)
        if verdict == IDENTICAL:
            shutil.rmtree(SCRATCH)
        elif verdict == CLOSE:
            print(f"the rerun's files are in {SCRATCH}")
    if verdict == DIFFERENT:
        raise ConvaeError(f"the rerun ended with different results; its files are in {SCRATCH}")


def _alone() -> AbstractContextManager[object]:
    """Lock the scratch workspace; the lock is released at the end of a `with` block."""
    SCRATCH.parent.mkdir(exist_ok=True)
    try:
        return FileLock(f"{SCRATCH}.lock").acquire(blocking=False)
    except Timeout:
        raise ConvaeError("another `convae verify` is running in this folder; wait until it ends") from None


def copy_workspace(target: Path, data: list[str]) -> None:
    """Copy this workspace's tracked and untracked files to `target`, and link the folders in `data`.

    The copy has no dvc.lock, and an empty cache whatever is configured, so that DVC has to compute everything.

    Args:
        target: the folder to write; it is emptied first.
        data: names of folders with data; absolute paths need no link.
    """
    shutil.rmtree(target, ignore_errors=True)
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if Path(name).is_file() and name != str(LOCK_FILE):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, target / name)
    link_folders(target, data)
    (target / ".dvc/config.local").write_text("[core]\nno_scm = true\n[cache]\ndir = cache\n", "utf-8")


def link_folders(target: Path, names: list[str]) -> None:
    """Link or copy the files in this workspace's folders into another workspace; files already there are kept."""

    def there(folder: str, names: list[str]) -> list[str]:
        paths = {name: target / folder / name for name in names}
        return [name for name, path in paths.items() if path.is_file() or path.is_symlink()]

    for name in names:
        if Path(name).is_dir() and not Path(name).is_absolute():
            shutil.copytree(name, target / name, symlinks=True, ignore=there, copy_function=_link, dirs_exist_ok=True)


def report(before: Executions, after: Executions, scratch: Path) -> str:
    """Print what differs between this workspace and the rerun in `scratch`, and possible causes; return the verdict."""
    verdict = IDENTICAL
    for stage, path, old, new in _outputs(before, after):
        words, found = (IDENTICAL, IDENTICAL) if old == new else _compare(path, old, scratch)
        verdict = max(verdict, found, key=[IDENTICAL, CLOSE, DIFFERENT].index)
        print(f"{stage:<10} {path:<32} {words}")
    pairs = [(before[one.stage], one) for one in after.values() if one.stage in before]
    params = {line for old, new in pairs for line in _changes(old.params, new.params)}
    code = {name for old, new in pairs for name, *_ in differences(old.inputs, new.inputs) if name.startswith(CODE)}
    changed = [f"{name} has changed" for name in code]
    for title, lines in (("parameters", params), ("code", changed), ("environment", _environment_changes(scratch))):
        for line in sorted(lines):
            print(f"{title}: {line}")
    if verdict == CLOSE and {line.partition(":")[0] for line in params} - ROUNDING:
        verdict = DIFFERENT  # close by chance: the parameters describe another experiment
    print(f"verdict: {verdict}" + (f" ({TOLERANCE})" if verdict == CLOSE else ""))
    return verdict


def _rerun(folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Without DVC's variables: the rerun belongs to no experiment, and to no repository but the copy.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    environment |= {"CONVAE_TRACKING": "off", "PATH": path}
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, env=environment, check=False)
    if done.returncode:
        raise ConvaeError(f"the rerun failed, see above; its files are in {folder}")


def _link(source: str, target: str) -> None:
    if source.endswith(".part"):  # an interrupted download, resumed in the copy: a link would append to the original
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError:  # no hard links across disks
        shutil.copy2(source, target)


def _outputs(before: Executions, after: Executions) -> Iterator[tuple[str, str, str, str]]:
    for one in after.values():
        earlier = before[one.stage].outputs if one.stage in before else {}
        for path in sorted({*one.outputs, *earlier}):
            yield one.stage, path, earlier.get(path, ""), one.outputs.get(path, "")


def _compare(path: str, old: str, scratch: Path) -> tuple[str, str]:
    """Describe how far a file or folder differs, with the verdict that follows."""
    if not old or path.startswith(EXACT):
        return "differs", DIFFERENT
    if path_md5(Path(path)) != old:
        words = "differs; this workspace lacks the original to compare with"
        return words, DIFFERENT if path == METRICS else CLOSE
    if path == METRICS:
        found = metric_deviations(Path(path), scratch / path)
        if not found:
            return "differs in words only", CLOSE
        name = max(found, key=lambda name: found[name])
        before, now = (flatten(read_json(file)) for file in (Path(path), scratch / path))
        return f"differs by at most {found[name]:.4g} ({name})", CLOSE if _as_good(before, now) else DIFFERENT
    deviation = largest_deviation(Path(path), scratch / path)
    if deviation is None:
        return "differs", CLOSE  # no numbers to compare
    # Training amplifies rounding: some filters come out different but equally good. So the metrics decide.
    words = f"differs by at most {deviation:.2g} of the largest magnitude"
    return words, CLOSE if math.isfinite(deviation) else DIFFERENT


def _as_good(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the test accuracy is in the interval of the earlier one, and reconstruction errors are close."""
    errors = [(before[name], now.get(name, math.inf)) for name in before if name.endswith("_mse")]
    close = all(abs(error - earlier) <= ERROR * earlier + ROUNDED for earlier, error in errors)
    if "test.accuracy" not in before:  # no labels
        return close
    accuracy = now.get("test.accuracy", math.nan)
    return close and before["test.accuracy_low"] <= accuracy <= before["test.accuracy_high"]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {value} before, {now} now" for name, value, now in differences(old, new)]


def _environment_changes(scratch: Path) -> list[str]:
    if not ENVIRONMENT.exists():
        return [f"unknown, because there is no {ENVIRONMENT}"]
    old, new = (flatten(read_json(path)) for path in (ENVIRONMENT, scratch / ENVIRONMENT))
    return [line.removeprefix("packages.") for line in _changes(old, new)]
