"""Decode picture files to arrays of one size."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from convae.datasets.image_folder import ImageFile, Rejected
from convae.datasets.pictures import Picture, UnusableError, decode
from convae.datasets.reading import Reading
from convae.datasets.shards import ShardWriter
from convae.errors import ConvaeError
from convae.files import CHUNK_BYTES
from convae.names import printable
from convae.terminal import warn_beside_bars

MOST_AT_ONCE = 1000  # pictures per step; the Python objects of a small picture are larger than its pixels
TASKS_AT_ONCE = 32  # tasks per step; handing out single files would make the threads wait for each other
MOST_THREADS = 8  # each may hold a picture of `reading.MOST_PIXELS`


def decode_files(
    root: Path, files: Iterable[ImageFile], images: np.ndarray | ShardWriter, reading: Reading
) -> tuple[dict[int, Rejected], np.ndarray]:
    """Decode the listed `files` below `root` in threads, in order, into `images` (`[N, C, H, W]`).

    Returns:
        The rejected file of each row that stays empty, and `cropped` and `dim` of each picture, `float32 [N, 2]`, see
        `Picture`.

    Raises:
        ConvaeError: a file is missing or has changed since it was listed.
    """
    total = images.shape[0]
    refused, lost = {}, np.zeros((total, 2), np.float32)
    step = min(max(1, CHUNK_BYTES // prod(images.shape[1:])), MOST_AT_ONCE)
    files, start = iter(files), 0
    with (
        ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool,
        warnings.catch_warnings(),
        tqdm(total=total, desc="decode", unit="image") as progress,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `decode` rejects such images
        warnings.showwarning = warn_beside_bars
        decode_some = partial(_decode_some, root, reading)
        while some := list(islice(files, step)):  # in steps, because `pool.map` consumes its whole input at once
            size = max(1, len(some) // TASKS_AT_ONCE)
            tasks = [some[first : first + size] for first in range(0, len(some), size)]
            results = chain.from_iterable(pool.map(decode_some, tasks))
            for row, (file, result) in enumerate(zip(some, results, strict=True), start):
                if isinstance(result, UnusableError):
                    refused[row] = Rejected(printable(file.path), str(result))
                else:
                    images[row], *lost[row] = result
                progress.update()
            start += len(some)
    return refused, lost


def _decode_some(root: Path, reading: Reading, files: Sequence[ImageFile]) -> list[Picture | UnusableError]:
    return [_decode_file(root, reading, file) for file in files]


def _decode_file(root: Path, reading: Reading, file: ImageFile) -> Picture | UnusableError:
    try:
        content = (root / file.path).read_bytes()
    except OSError as error:
        raise ConvaeError(f"{root / file.path}: {error.strerror}; rerun `dvc repro --force download`") from None
    if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
        raise ConvaeError(f"{root / file.path}: changed since download; rerun `dvc repro --force download`")
    try:
        return decode(content, reading)
    except UnusableError as error:
        return error
