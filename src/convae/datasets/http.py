"""Download a file over HTTP; resume a broken transfer, and check the result."""

import re
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from convae.datasets.readers import check_md5
from convae.errors import ConvaeError

TIMEOUT_SECONDS = 10.0  # for connecting and for each read
ATTEMPTS = 4
_PIECE = 1 << 18


def fetch(url: str, path: Path, md5: str, most_bytes: int) -> Path:
    """Download `url` to `path` through `path.part`, unless a file with this MD5 exists already.

    A broken transfer resumes where it stopped: in this call while attempts still make progress, or in the next call.

    Returns:
        `path`.

    Raises:
        ConvaeError: the server does not answer, lacks the file, or sends one with another MD5 or more than
            `most_bytes`.
    """
    if path.exists():
        try:
            check_md5(path, md5)
            return path
        except ConvaeError:
            path.unlink()
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists()
    complete(url, part, most_bytes)
    try:
        check_md5(part, md5)
    except ConvaeError:
        part.unlink()
        if not resumed:
            raise
        # The earlier part may have been the start of another file.
        return fetch(url, path, md5, most_bytes)
    part.rename(path)
    return path


def complete(url: str, part: Path, most_bytes: int) -> None:
    """Download `url` to `part`, continuing with what is there, while attempts still make progress.

    Raises:
        ConvaeError: the server does not answer, lacks the file, or sends more than `most_bytes`.
    """
    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            return _transfer(url, part, most_bytes)
        except HTTPError as error:
            if error.code == 416 and before:  # range not satisfiable: the part is already as long as the file
                part.unlink()
                continue
            raise ConvaeError(f"{part.stem}: HTTP status {error.code} {error.reason}") from None
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            if _size(part) == before or attempt == ATTEMPTS - 1:
                reason = error.reason if isinstance(error, URLError) else error
                raise ConvaeError(f"{part.stem}: {reason or type(error).__name__}") from None
    raise ConvaeError(f"{part.stem}: the server refuses to send the file from its start")


def _transfer(url: str, part: Path, most_bytes: int) -> None:
    """Send one request; append to `part`, or replace it if the server starts from the beginning."""
    start = _size(part)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if not (response.status == 206 and _first_byte(response) == start):
            start = 0
        total = None if response.length is None else start + response.length
        progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem)
        with part.open("ab" if start else "wb") as stream, progress:
            size = max(start, total or 0)
            while size <= most_bytes and (piece := response.read(_PIECE)):
                stream.write(piece)
                progress.update(len(piece))
                size = max(size, stream.tell())
    if size > most_bytes:
        part.unlink()
        raise ConvaeError(f"{part.stem}: larger than {most_bytes} bytes, so not the file")
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _first_byte(response: HTTPResponse) -> int:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
