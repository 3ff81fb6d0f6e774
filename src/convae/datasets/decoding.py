"""Pictures of any kind decoded to arrays of one size."""

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from convae.datasets.image_folder import ImageFile, UnusableError, printable
from convae.errors import ConvaeError
from convae.files import CHUNK_BYTES

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MOST_PIXELS = 89_478_485  # Pillow's own threshold for a decompression bomb
MOST_THREADS = 8  # each may hold a picture of that many pixels


def decode_files(root: Path, files: Sequence[ImageFile], images: np.ndarray) -> dict[int, str]:
    """Decode `files`, listed under `root`, into `images` (`uint8 [N, C, H, W]`) in their order, in threads.

    Returns:
        The rows that were left empty, with the reason why the file is rejected.

    Raises:
        ConvaeError: a file is no longer the one that was listed.
    """
    refused = {}
    step = max(1, CHUNK_BYTES // images[0].nbytes)
    with (
        ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool,
        warnings.catch_warnings(),
        tqdm(total=len(files), desc="decode", unit="image") as progress,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are refused
        decode_one = partial(_decode_file, root, shape=images.shape[1:])
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
        return decode(content, shape)
    except UnusableError as error:
        return error


def decode(content: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Decode a PNG, JPEG, WebP, BMP or TIFF picture: first frame, upright by its EXIF orientation.

    The largest centred part with the sides' ratio of `shape` is scaled to it by bilinear interpolation,
    antialiased. What is transparent is laid on white, 16 bits a channel are cut to the upper 8, and colour
    profiles are not applied.

    Args:
        content: the bytes of the file.
        shape: channels, height, width; one channel is grey (ITU-R 601-2 luma), three are RGB.

    Returns:
        `uint8` of `shape`.

    Raises:
        UnusableError: damaged, of another format, too large, or of 32 bits a channel.
    """
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UnusableError(f"{image.width}×{image.height} pixels; at most {MOST_PIXELS} are decoded")
            image.load()
            flat = _flatten(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
        fitted = ImageOps.fit(flat, (width, height), Image.Resampling.BILINEAR)
    except UnusableError:
        raise
    except UnidentifiedImageError:  # its message has an address in memory
        raise UnusableError("not a readable PNG, JPEG, WebP, BMP or TIFF image") from None
    except Exception as error:  # a damaged file can make Pillow's parsers raise nearly anything
        raise UnusableError(printable(f"{type(error).__name__}: {error}")) from None
    return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def _flatten(image: Image.Image) -> Image.Image:
    """An image of 8 bits a channel without transparency."""
    if image.mode in ("I", "F"):  # no agreed brightness
        raise UnusableError("32 bits a channel; 8 or 16 are allowed")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
