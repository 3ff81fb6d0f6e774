"""The sources of archives, in this order: a local folder, the system, the mirrors, Debian's archive."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from convae.datasets.catalogue import Dataset
from convae.datasets.http import fetch
from convae.errors import ConvaeError

Files = dict[str, Path]
"""Path of each archive by its name in the catalogue."""

APT_SECONDS = 900  # limit for each of Debian's programs
_APT_OPTIONS = [f"-oAcquire::{kind}" for kind in ("http::Timeout=10", "https::Timeout=10", "Retries=1")]


def sources(name: str, dataset: Dataset, root: Path, downloads: Path, scratch: Path) -> dict[str, Callable[[], Files]]:
    """Return functions that get the archives of a data set, keyed by the name of their source for messages.

    Each raises ConvaeError or OSError if its source does not have the archives.

    Args:
        name: name of the data set in the catalogue.
        dataset: the data set.
        root: `data.root`, the user's folder.
        downloads: cache of downloaded archives.
        scratch: folder for unpacking packages.

    Example:
        >>> from convae.datasets.catalogue import CATALOGUE
        >>> list(sources("svhn", CATALOGUE["svhn"], Path("data/local"), Path("downloads"), Path("scratch")))
        ['data.root = data/local', 'http://ufldl.stanford.edu/housenumbers/']
    """
    if not dataset.archives:
        return {"scikit-learn": dict}
    laid = ("", "raw", dataset.torchvision_folder or "")
    folders = list(dict.fromkeys(base / folder for base in (root / name, root) for folder in laid))
    ways: dict[str, Callable[[], Files]] = {f"data.root = {root}": partial(_local, dataset, folders)}
    if dataset.system_folder:
        ways[dataset.system_folder] = partial(_local, dataset, [Path(dataset.system_folder)])
    for mirror in dataset.mirrors:
        ways[mirror] = partial(_mirror, dataset, mirror, downloads)
    if dataset.package:
        ways["Debian's archive"] = partial(_debian, dataset, downloads, scratch)
    return ways


def _local(dataset: Dataset, folders: list[Path]) -> Files:
    """The files in the first of `folders` that has all archives, under any of their usual names."""
    lacking = []
    for folder in folders:
        found = {name: path for name in dataset.archives for path in _spellings(dataset, folder, name)[:1]}
        missing = [name for name in dataset.archives if name not in found]
        if not missing:
            return found
        if found:
            lacking.append(f"{folder} lacks {', '.join(missing)}")
    if lacking:
        raise ConvaeError("; ".join(lacking))
    if not any(folder.is_dir() for folder in folders):
        raise ConvaeError("no such folder")
    raise ConvaeError(f"none of {', '.join(dataset.archives)} there")


def _spellings(dataset: Dataset, folder: Path, name: str) -> list[Path]:
    """Existing files that may be the archive `name`.

    IDX files may also be unpacked, be spelled with a dot (`train-images.idx3-ubyte`), or lie in a folder of that name.
    """
    if dataset.reader != "idx":
        names = [name]
    else:
        names = [name, name.removesuffix(".gz")]
        names += [spelled.replace("-idx", ".idx") for spelled in names]
    return [path for spelled in names for path in (folder / spelled, folder / spelled / spelled) if path.is_file()]


def _mirror(dataset: Dataset, mirror: str, downloads: Path) -> Files:
    most = dataset.most_bytes
    return {name: fetch(mirror + name, downloads / name, md5, most) for name, md5 in dataset.archives.items()}


def _debian(dataset: Dataset, downloads: Path, scratch: Path) -> Files:
    """Download Debian's package, whose hash apt checks, and unpack it. Neither step needs root."""
    assert dataset.package
    assert dataset.system_folder
    package = dataset.package
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise ConvaeError("apt-get and dpkg-deb are not installed")
    print(f"apt-get download {package}", file=sys.stderr, flush=True)
    downloads.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", "--quiet=2", *_APT_OPTIONS, package], downloads)
    archive = max(downloads.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_ctime_ns, default=None)
    if archive is None:
        raise ConvaeError(f"apt-get download {package} left no file")
    _run(["dpkg-deb", "-x", archive.name, str(scratch.resolve() / "package")], downloads)
    return _local(dataset, [scratch / "package" / dataset.system_folder.lstrip("/")])


def _run(command: list[str], folder: Path) -> None:
    """Run one of Debian's programs.

    Raises:
        ConvaeError: it fails, with the last line of its output as the message; or it takes too long.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=APT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ConvaeError(f"{command[0]} did not finish within {APT_SECONDS} s") from None
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise ConvaeError(f"{command[0]}: {lines[-1]}")
