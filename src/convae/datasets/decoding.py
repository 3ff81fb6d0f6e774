"""Pictures of any kind decoded to arrays of one size."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from convae.datasets.image_folder import ImageFile, UnusableError
from convae.datasets.pictures import decode
from convae.datasets.shards import ShardWriter
from convae.errors import ConvaeError
from convae.files import CHUNK_BYTES

MOST_AT_ONCE = 1000  # what Python keeps of a small picture is larger than its pixels
TASKS_AT_ONCE = 32  # of several files, since threads that are handed each by itself wait for each other
MOST_THREADS = 8  # each may hold a picture of `pictures.MOST_PIXELS`


def decode_files(root: Path, files: Sequence[ImageFile], images: np.ndarray | ShardWriter) -> dict[int, str]:
    """Decode `files`, listed under `root`, into `images` (`uint8 [N, C, H, W]`) in their order, in threads.

    Returns:
        The rows that were left empty, with the reason why the file is rejected.

    Raises:
        ConvaeError: a file is no longer the one that was listed.
    """
    refused = {}
    step = min(max(1, CHUNK_BYTES // prod(images.shape[1:])), MOST_AT_ONCE)
    size = max(1, min(step, len(files)) // TASKS_AT_ONCE)
    with (
        ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool,
        warnings.catch_warnings(),
        tqdm(total=len(files), desc="decode", unit="image") as progress,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are refused
        channels, height, width = images.shape[1:]
        decode_some = partial(_decode_some, root, shape=(channels, height, width))
        for start in range(0, len(files), step):  # in steps, since the pool takes all it is given at once
            tasks = [files[first : first + size] for first in range(start, min(start + step, len(files)), size)]
            for row, result in enumerate(chain.from_iterable(pool.map(decode_some, tasks)), start):
                if isinstance(result, UnusableError):
                    refused[row] = str(result)
                else:
                    images[row] = result
                progress.update()
    return refused


def _decode_some(
    root: Path, files: Sequence[ImageFile], shape: tuple[int, int, int]
) -> list[np.ndarray | UnusableError]:
    return [_decode_file(root, file, shape) for file in files]


def _decode_file(root: Path, file: ImageFile, shape: tuple[int, int, int]) -> np.ndarray | UnusableError:
    try:
        content = (root / file.path).read_bytes()
    except OSError as error:
        raise ConvaeError(f"{root / file.path}: {error.strerror}; rerun `dvc repro --force download`") from None
    if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
        raise ConvaeError(f"{root / file.path}: changed since download; rerun `dvc repro --force download`")
    try:
        return decode(content, shape[0], shape[1:])
    except UnusableError as error:
        return error
