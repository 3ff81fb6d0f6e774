"""A picture decoded to an array, for the pipeline and for whoever uses an encoder alike."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from convae.datasets.image_folder import UnusableError, printable

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MOST_PIXELS = 89_478_485  # Pillow's own threshold for a decompression bomb


def read_picture(path: str | os.PathLike[str], channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The pixels of a file, see `decode`.

    Raises:
        UnusableError: also where there is no such file.
    """
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise UnusableError(getattr(error, "strerror", None) or str(error)) from None
    return decode(content, channels, size)


def decode(content: bytes, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a PNG, JPEG, WebP, BMP or TIFF picture: first frame, then as `to_pixels`.

    Args:
        content: the bytes of the file.
        channels: 1 or 3.
        size: height and width; None leaves them as they are.

    Returns:
        `uint8 [C, H, W]`.

    Raises:
        UnusableError: damaged, of another format, too large, or of 32 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UnusableError(f"{image.width}×{image.height} pixels; at most {MOST_PIXELS} are decoded")
            image.load()
            return to_pixels(image, channels, size)
    except UnusableError:
        raise
    except UnidentifiedImageError:  # its message has an address in memory
        raise UnusableError("not a readable PNG, JPEG, WebP, BMP or TIFF image") from None
    except Exception as error:  # a damaged file can make Pillow's parsers raise nearly anything
        raise UnusableError(printable(f"{type(error).__name__}: {error}")) from None


def to_pixels(image: Image.Image, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels of a picture, upright by its EXIF orientation.

    What is transparent is laid on white, 16 bits a channel are cut to the upper 8, and colour profiles are not applied.

    Args:
        image: in any mode of 8 or 16 bits a channel.
        channels: 1 is grey (ITU-R 601-2 luma), 3 are RGB.
        size: height and width, to which the largest centred part with their ratio is scaled by bilinear
            interpolation, antialiased; None leaves the picture as large as it is.

    Returns:
        `uint8 [C, H, W]`.

    Raises:
        UnusableError: 32 bits a channel, or a mode that Pillow can't convert.
    """
    try:
        # Each step only where it is needed: Pillow copies a picture also if there is nothing to do.
        upright = ImageOps.exif_transpose(image) if ExifTags.Base.Orientation in image.getexif() else image
        flat = _flatten(upright)
        if flat.mode != (mode := "L" if channels == 1 else "RGB"):
            flat = flat.convert(mode)
    except ValueError as error:
        raise UnusableError(str(error)) from None
    if size:
        flat = ImageOps.fit(flat, (size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(flat).reshape(flat.height, flat.width, channels).transpose(2, 0, 1)


def _flatten(image: Image.Image) -> Image.Image:
    """An image of 8 bits a channel without transparency."""
    if image.mode in ("I", "F"):  # no agreed brightness
        raise UnusableError("32 bits a channel; 8 or 16 are allowed")
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        transparent = pixels == image.info.get("transparency", -1)
        return Image.fromarray(np.where(transparent, 255, pixels >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
