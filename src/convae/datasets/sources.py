"""Where archives come from, in this order: a local folder, the system, the mirrors, Debian's archive."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from convae.datasets.catalogue import Dataset
from convae.datasets.transfer import fetch
from convae.errors import ConvaeError

Files = dict[str, Path]
"""Where each archive of the catalogue lies."""

APT_SECONDS = 900
_APT_OPTIONS = [f"-oAcquire::{kind}" for kind in ("http::Timeout=10", "https::Timeout=10", "Retries=1")]


def sources(name: str, dataset: Dataset, root: Path, downloads: Path, scratch: Path) -> dict[str, Callable[[], Files]]:
    """Ways to come by the archives of a data set, each under the name that a message calls it by.

    Each raises ConvaeError or OSError where it cannot serve. `downloads` keeps what was
    downloaded, `scratch` is a folder for what has to be unpacked.
    """
    if not dataset.archives:
        return {"scikit-learn": dict}
    ways: dict[str, Callable[[], Files]] = {f"data.root = {root}": partial(_local, dataset, [root / name, root])}
    if dataset.system_folder:
        ways[dataset.system_folder] = partial(_local, dataset, [Path(dataset.system_folder)])
    for mirror in dataset.mirrors:
        ways[mirror] = partial(_mirror, dataset, mirror, downloads)
    if dataset.package:
        ways["Debian's archive"] = partial(_debian, dataset, downloads, scratch)
    return ways


def _local(dataset: Dataset, folders: list[Path]) -> Files:
    """Files in the first of `folders` that has any; IDX files may be unpacked already."""
    for folder in folders:
        found: Files = {}
        for name in dataset.archives:
            # Only decoded hashes can vouch for an unpacked file: the published MD5 is that of the archive.
            for candidate in [name, name.removesuffix(".gz")] if dataset.sha256 else [name]:
                if (folder / candidate).is_file():
                    found.setdefault(name, folder / candidate)
        if found:
            missing = [name for name in dataset.archives if name not in found]
            if missing:
                raise ConvaeError(f"{folder} lacks {', '.join(missing)}")
            return found
    if not folders[-1].is_dir():
        raise ConvaeError("no such folder")
    raise ConvaeError(f"none of {', '.join(dataset.archives)} there")


def _mirror(dataset: Dataset, mirror: str, downloads: Path) -> Files:
    # No archive is larger than what it holds, but for small change.
    most_bytes = 1_000_000 + sum(dataset.images.values()) * (dataset.shape[0] * dataset.shape[1] * dataset.shape[2] + 1)
    return {name: fetch(mirror + name, downloads / name, md5, most_bytes) for name, md5 in dataset.archives.items()}


def _debian(dataset: Dataset, downloads: Path, scratch: Path) -> Files:
    """Download Debian's package, whose hash apt checks, and unpack it; neither needs root."""
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
    """Run a program of Debian's; ConvaeError with the last line it wrote where it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=APT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ConvaeError(f"{command[0]} did not end within {APT_SECONDS} s") from None
    if done.returncode:
        lines = (done.stderr + done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise ConvaeError(f"{command[0]}: {lines[-1]}")
