"""Download models from the Hugging Face Hub, or as an archive from a URL, into a cache; and upload them to the Hub.

Nothing but a model's own files is ever written, at places that do not depend on what the archive says. The files are
not trusted: `load_encoder` and `load_scores` check their hashes and sizes, and unpickle nothing.
"""

import errno
import hashlib
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from tqdm import tqdm

from convae.datasets.http import complete
from convae.errors import ConvaeError
from convae.files import content_sha256, file_sha256, read_file
from convae.models.limits import MOST_CONFIG_BYTES

# What a model consists of; the README is a model card.
ENCODER = ("encoder/config.json", "encoder/model.safetensors")
FILES = (
    *ENCODER,
    "classifier/classifier.json",
    "classifier/classifier.skops",
    "reference/reference.json",
    "reference/features.safetensors",
    "README.md",
)
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
MOST_BYTES = 1 << 30  # of a download, and of what is unpacked
MOST_MEMBERS, MOST_HEADER_BYTES = 10_000, 1 << 16
# Kinds of tar members with names or comments, which tarfile reads into memory whole.
_NAMES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PIECE = 1 << 20


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/convae`, or `~/.cache/convae`.

    Raises:
        ConvaeError: this user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convae"
    except RuntimeError:
        raise ConvaeError("this user has no home folder for a cache; set XDG_CACHE_HOME") from None


def cached(address: str) -> Path:
    """Return the folder of a model, after downloading it unless the cache has it.

    Args:
        address: `hf://owner/name`, optionally with `@` and a branch, tag or commit; or the URL of an archive of a
            folder with `encoder/` and optionally `classifier/`, of HTTP(S) or any scheme of fsspec (`s3://`, `gs://`,
            `memory://`). The URL may end with `#sha256=` and the hash of the archive.

    Raises:
        ConvaeError: it can't be downloaded, has another hash, or holds no encoder.
        ImportError: a package is missing that this takes.
    """
    if address.startswith("hf://"):
        return _from_hub(address)
    url, _, pin = address.partition("#")
    if pin and not re.fullmatch(r"sha256=[0-9a-f]{64}", pin):
        raise ConvaeError(f"{address}: after # only sha256= and 64 hexadecimal digits are allowed")
    if url.startswith("file:"):  # it may change at any time
        raise ConvaeError(f"{address}: unpack it, and name the folder")
    if "://" not in url or not _path(url).lower().endswith(SUFFIXES):
        raise ConvaeError(
            f"{address}: no address of a model; models:/name@alias, hf://owner/name, or the URL of an archive "
            f"({', '.join(SUFFIXES)}) is allowed"
        )
    # A pinned archive is never taken for one that was not checked.
    folder = cache_folder() / "models" / hashlib.sha256(address.encode()).hexdigest()[:32]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own for each process: two may want the same model at the same time.
        with TemporaryDirectory(dir=folder.parent) as scratch:
            archive, unpacked = Path(scratch) / PurePosixPath(_path(url)).name.lower(), Path(scratch) / "unpacked"
            _download(url, archive)
            if pin and file_sha256(archive) != pin.removeprefix("sha256="):
                raise ConvaeError(f"{url}: SHA-256 {file_sha256(archive)}, expected {pin.removeprefix('sha256=')}")
            try:
                _unpack(archive, unpacked)
                _check(unpacked / "encoder")
            except ConvaeError as error:
                raise ConvaeError(f"{url}: {error}") from None
            try:
                unpacked.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was faster
                    raise
    return folder


def _path(url: str) -> str:
    """The path of a URL, without what follows it: `https://host/encoder.tar?version=2`."""
    return url.partition("?")[0]


def _download(url: str, target: Path) -> None:
    """Download a file, with a progress bar.

    Raises:
        ConvaeError: it can't be downloaded, or has more than `MOST_BYTES`.
    """
    try:
        if url.startswith(("http://", "https://")):
            complete(url, target, MOST_BYTES)
            return
        import fsspec

        with fsspec.open(url, "rb") as stream, target.open("wb") as output:
            _copy(stream, output, MOST_BYTES, target.name)
    except ImportError:
        raise
    except Exception as error:  # each scheme has a library with errors of its own
        raise ConvaeError(f"{url}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _copy(source: IO[bytes], target: IO[bytes], most: int, name: str) -> int:
    """Copy to the end, `most` bytes at most; return the number of bytes."""
    copied = 0
    # Shown only after a second: a model has small files, too.
    with tqdm(unit="B", unit_scale=True, desc=name, leave=False, delay=1) as progress:
        while piece := source.read(_PIECE):
            copied += len(piece)
            if copied > most:
                raise ConvaeError(f"{name}: more than {MOST_BYTES} bytes")
            target.write(piece)
            progress.update(len(piece))
    return copied


def _unpack(archive: Path, target: Path) -> None:
    """Write the model's files from an archive, whatever folder they are in, and nothing else.

    Raises:
        ConvaeError: the archive is damaged, too large, or holds no encoder, or more than one.
    """
    left = MOST_BYTES
    try:
        with _members(archive) as members:
            for name, place in _places(list(members)).items():
                (target / place).parent.mkdir(parents=True, exist_ok=True)
                with members[name]() as stream, (target / place).open("wb") as output:
                    left -= _copy(stream, output, left, place)
    except ConvaeError:
        raise
    except Exception as error:  # a damaged archive can make its readers raise nearly anything
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
            raise
        raise ConvaeError(f"not a readable archive: {' '.join(str(error).split())}") from None


@contextmanager
def _members(archive: Path) -> Iterator[dict[str, Callable[[], IO[bytes]]]]:
    """What opens each regular file of an archive, by its name. Links are skipped."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            _check_number(len(packed.namelist()))
            names = [name for name in packed.namelist() if not name.endswith("/")]
            yield {_clean(name): partial(packed.open, name) for name in names}
        return
    with tarfile.open(archive, tarinfo=_Header) as tape:
        found: dict[str, Callable[[], IO[bytes]]] = {}
        for number, member in enumerate(tape, 1):
            _check_number(number)
            if member.offset_data + member.size > MOST_BYTES:  # before it is decompressed on the way to the next one
                raise ConvaeError(f"{archive.name}: more than {MOST_BYTES} bytes")
            if member.isfile():
                found[_clean(member.name)] = partial(_opened, tape, member)
        yield found


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        """Read a header, unless it announces a name that would fill the memory."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _NAMES and header.size > MOST_HEADER_BYTES:
            raise ConvaeError(f"a name of more than {MOST_HEADER_BYTES} bytes")
        return header


def _check_number(members: int) -> None:
    if members > MOST_MEMBERS:
        raise ConvaeError(f"more than {MOST_MEMBERS} files")


def _check(encoder: Path) -> None:
    """Check the hash of an encoder, so that a damaged one is not kept in the cache.

    Raises:
        ConvaeError: it is damaged.
    """
    try:
        config = json.loads(read_file(encoder / "config.json", MOST_CONFIG_BYTES))
        sha256 = config.pop("sha256")
        intact = content_sha256(config, read_file(encoder / "model.safetensors")) == sha256
    except (AttributeError, LookupError, OSError, TypeError, ValueError, RecursionError) as error:
        raise ConvaeError(f"not an encoder: {error}") from None
    if not intact:
        raise ConvaeError("damaged: config.json and model.safetensors are not as they were saved")


def _clean(name: str) -> str:
    return str(PurePosixPath(name))


def _opened(tape: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tape.extractfile(member)
    assert stream is not None, "regular files have content"
    return stream


def _places(names: list[str]) -> dict[str, str]:
    """Return which of `FILES` each member is.

    Example:
        >>> _places(["run/encoder/config.json", "run/encoder/model.safetensors", "run/params.yaml"])
        {'run/encoder/config.json': 'encoder/config.json', 'run/encoder/model.safetensors': 'encoder/model.safetensors'}
        >>> _places(["config.json", "model.safetensors"])  # the encoder's folder alone
        {'config.json': 'encoder/config.json', 'model.safetensors': 'encoder/model.safetensors'}
    """
    parts = {place: PurePosixPath(place) for place in FILES}
    roots = [path.parents[1] for path in map(PurePosixPath, names) if path.match(ENCODER[0])]
    if not roots:
        parts = {place: PurePosixPath(PurePosixPath(place).name) for place in ENCODER}
        roots = [path.parent for path in map(PurePosixPath, names) if path.name == parts[ENCODER[0]].name]
    if len(roots) != 1:
        raise ConvaeError(f"holds {len(roots) or 'no'} encoders; one is needed: {' and '.join(ENCODER)}")
    wanted = {str(roots[0] / path): place for place, path in parts.items()}
    if not set(ENCODER) <= {wanted[name] for name in names if name in wanted}:
        raise ConvaeError(f"not an encoder: there is no {ENCODER[1]}")
    return {name: wanted[name] for name in names if name in wanted}


def _from_hub(address: str) -> Path:
    """Download a repository of the Hub into the cache of its own client; `load_encoder` checks the hash."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    repository, _, revision = address.removeprefix("hf://").partition("@")
    revision, files = revision or "main", list(FILES)
    try:
        with suppress(DryRunError):  # without the Hub, the cache may still have the model
            found = snapshot_download(repository, revision=revision, allow_patterns=files, dry_run=True)
            if sum(file.file_size or 0 for file in found) > MOST_BYTES:
                raise ConvaeError(f"more than {MOST_BYTES} bytes")
            revision = found[0].commit_hash if found else revision
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except Exception as error:  # the Hub's client lets errors of its HTTP library through
        raise ConvaeError(f"{address}: {' '.join(str(error).split())}") from None
