"""Bands and pages of TIFF files as channels, in the type and depth in which they were stored."""

import io
import logging
import math
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from convae.datasets.reading import MOST_PIXELS, SCALE_HINT, TYPES, Reading

# TIFF tags
ORIENTATION, NO_DATA = 274, 42113
MEANINGS = {0: "0 is white", 3: "numbers of a palette"}  # values of PhotometricInterpretation


def read_bands(content: bytes, reading: Reading) -> np.ndarray:
    """Decode a TIFF with several bands or pages to `[C, H, W]`: `float32`, or `uint8` if the file has 8 bits.

    Args:
        content: the bytes of the file.
        reading: channels and size. Each band is fitted to another size by bilinear interpolation, and padded with its
            smallest number; a file of the right size keeps its numbers.

    Raises:
        ValueError: the file can't be read, or has other bands, another type, or numbers that are none.

    Example:
        >>> import tifffile
        >>> stream = io.BytesIO()
        >>> tifffile.imwrite(stream, np.full((5, 8, 6), 1000, np.uint16), photometric="minisblack")
        >>> read_bands(stream.getvalue(), Reading(channels=5, own_units=True, bands=True)).shape
        (5, 8, 6)
    """
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(f"{error}; install convae[tiff]") from None
    logging.getLogger("tifffile").disabled = True  # it warns and goes on where this function refuses
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        if len(file.series) != 1:
            raise ValueError(f"{len(file.series)} series of images; save each as a separate file")
        series = file.series[0]
        if math.prod(series.shape) > 3 * MOST_PIXELS:
            raise ValueError(f"{math.prod(series.shape)} numbers; at most {3 * MOST_PIXELS} are allowed")
        _check_tags(series.keyframe)
        if series.dataoffset is not None:  # in one piece; looking at each page would take longer than reading it
            pieces = [(series.dataoffset, series.nbytes)]
        else:
            pages: list[Any] = list(series.pages)
            if None in pages:
                missing = f"{pages.count(None)} of {len(pages)} bands or pages are missing"
                raise ValueError(f"{missing}, or in other files; save all of them in one file")
            pieces = [piece for page in pages for piece in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if any(start + count > len(content) for start, count in pieces):
            raise ValueError("truncated; get it again")
        try:
            axes, values = series.axes, series.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                raise ValueError("compressed in a way that needs `pip install imagecodecs`") from None
            raise
        # Zero is what dark or missing pixels have anyway; any other number would stretch the scale.
        if NO_DATA in series.keyframe.tags and (gap := series.keyframe.nodata) and (values == gap).any():
            raise ValueError(f"{gap:g}, which stands for missing pixels (GDAL_NODATA); fill them with other numbers")
    others = [index for index, axis in enumerate(axes) if axis not in "YX"]
    if len(others) > 1 or not {"Y", "X"} <= {*axes}:
        raise ValueError(f"axes {axes} of {list(values.shape)}; one axis of bands or pages is allowed")
    values = np.moveaxis(values, others[0], 0) if others else values[None]
    if len(values) != reading.channels:
        cut = ", or a truncated file" if len(values) < reading.channels else ""
        raise ValueError(f"number of bands or pages: {len(values)}{cut}; data.channels = {reading.channels}")
    if values.dtype.name not in TYPES:
        raise ValueError(f"{values.dtype}; save it as {', '.join(TYPES[:-1])} or {TYPES[-1]}")
    if values.dtype != np.uint8 and not reading.own_units:
        raise ValueError(f"{values.dtype}; {SCALE_HINT}")
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise ValueError("NaN or infinity")
    if reading.size in (None, values.shape[1:]):
        return values if values.dtype == np.uint8 else values.astype(np.float32)
    fitted = np.stack([_fit(band, reading) for band in values.astype(np.float32)])
    return np.rint(fitted).astype(np.uint8) if values.dtype == np.uint8 else fitted


def _check_tags(page: Any) -> None:
    """Reject numbers or an order of pixels that mean something else than they seem to."""
    if page.photometric in MEANINGS:
        raise ValueError(f"{MEANINGS[page.photometric]}; save the intensities themselves, with 0 as black")
    if page.tags.valueof(ORIENTATION, 1) != 1:
        raise ValueError("turned by its orientation tag; save it upright")


def _fit(band: np.ndarray, reading: Reading) -> np.ndarray:
    """Fit a band `float32 [H, W]` to the size of `reading`."""
    assert reading.size is not None
    (height, width), image = reading.size, Image.fromarray(band)
    if reading.fit == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    elif reading.fit == "stretch":
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    else:
        least: Any = float(band.min())
        image = ImageOps.pad(image, (width, height), Image.Resampling.BILINEAR, color=least)
    return np.asarray(image)
