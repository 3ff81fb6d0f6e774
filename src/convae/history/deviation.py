"""How far the numbers in two files deviate from each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convae.files import read_json, row_chunks
from convae.names import flatten


def largest_deviation(old: Path, new: Path) -> float | None:
    """Return the largest difference between two arrays or sets of weights, relative to the largest magnitude in `old`.

    Args:
        old: a `.npy` or `.safetensors` file, or a folder to search for them.
        new: its counterpart from the rerun.

    Returns:
        None if there are no numbers to compare; infinity if names or shapes differ, or a number is not finite.

    Example:
        >>> np.save("old.npy", [1.0, 4.0])
        >>> np.save("new.npy", [1.0, 5.0])
        >>> largest_deviation(Path("old.npy"), Path("new.npy"))
        0.25
    """
    if old.is_dir():
        names = {file.relative_to(folder) for folder in (old, new) for file in folder.rglob("*") if file.is_file()}
        found = [largest_deviation(old / name, new / name) for name in sorted(names)]
        return max((value for value in found if value is not None), default=None)
    if old.suffix not in (".npy", ".safetensors"):
        return None
    if not (old.exists() and new.exists()):
        return np.inf
    arrays, others = _arrays(old), _arrays(new)
    if {name: array.shape for name, array in arrays.items()} != {name: array.shape for name, array in others.items()}:
        return np.inf
    return max((_relative(array, others[name]) for name, array in arrays.items()), default=0.0)


def metric_deviations(old: Path, new: Path) -> dict[str, float]:
    """Return absolute differences of unequal numbers in two JSON files, by dotted name; infinity if one is missing.

    Example:
        >>> _ = Path("old.json").write_text('{"test": {"accuracy": 0.5, "macro_f1": 0.5}}')
        >>> _ = Path("new.json").write_text('{"test": {"accuracy": 0.75, "macro_f1": 0.5}}')
        >>> metric_deviations(Path("old.json"), Path("new.json"))
        {'test.accuracy': 0.25}
    """
    before, after = (_numbers(read_json(path)) for path in (old, new))
    return {
        name: abs(after.get(name, np.inf) - before.get(name, np.inf))
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in flatten(content).items() if type(value) in (int, float)}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    from safetensors.numpy import load_file

    arrays: dict[str, np.ndarray] = load_file(path)
    return arrays


def _relative(old: np.ndarray, new: np.ndarray) -> float:
    old, new = np.atleast_1d(old), np.atleast_1d(new)
    largest, difference = 0.0, 0.0
    # In chunks of rows: the files are memory-mapped and may not fit into memory.
    for rows in row_chunks(old):
        one, other = old[rows].astype(np.float64), new[rows].astype(np.float64)
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return np.inf
        largest = max(largest, float(np.abs(one).max()))
        difference = max(difference, float(np.abs(one - other).max()))
    return difference / largest if difference and largest else difference
