"""Pictures of any kind decoded to arrays of one size."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

MOST_AT_ONCE = 1000  # a pending picture takes 2 KB beside its pixels
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
    with (
        ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool,
        warnings.catch_warnings(),
        tqdm(total=len(files), desc="decode", unit="image") as progress,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are refused
        channels, height, width = images.shape[1:]
        decode_one = partial(_decode_file, root, shape=(channels, height, width))
        for start in range(0, len(files), step):  # in steps, since the pool takes all it is given at once
            for row, result in enumerate(pool.map(decode_one, files[start : start + step]), start):
                if isinstance(result, UnusableError):
                    refused[row] = str(result)
                else:
                    images[row] = result
                progress.update()
    return refused


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
