"""How far two files of numbers lie apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convae.files import read_json, row_chunks
from convae.names import flatten


def largest_deviation(old: Path, new: Path) -> float | None:
    """The largest difference between two arrays or two sets of weights, in units of the largest magnitude of the old.

    Args:
        old: a `.npy` or `.safetensors` file, or a folder in which these are looked for.
        new: the same, written anew.

    Returns:
        None where there are no numbers to compare; infinity where names or shapes differ, or a number is not finite.
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
    """By how much the numbers in two JSON files differ, by their dotted names; those that are equal are left out."""
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
    for rows in row_chunks(old):
        one, other = old[rows].astype(np.float64), new[rows].astype(np.float64)
        largest = max(largest, float(np.abs(one).max()))
        difference = max(difference, float(np.nan_to_num(np.abs(one - other), nan=np.inf).max()))
    return difference / largest if difference and largest else difference
