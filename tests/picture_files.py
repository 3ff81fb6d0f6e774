"""Pictures written byte by byte, in ways that no library offers."""

import struct
import zlib
from typing import Any

import numpy as np

TYPES = {np.dtype(np.uint8): 1, np.dtype(np.uint16): 1, np.dtype(np.int8): 2, np.dtype(np.int16): 2, np.dtype("u4"): 1}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, color: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of these raw rows, each with a filter byte; color 0 grey, 2 RGB, 3 palette, 4 grey and 6 RGB + alpha."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pair(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def tiff(pixels: np.ndarray, photometric: int | None = 2, order: str = "<", **tags: Any) -> bytes:
    """A TIFF `[H, W, bands]`; `extra`, `planar`, `sub_ifds`, `bits`, `compression` and `raw` bytes as given."""
    height, width, bands = pixels.shape
    stored = pixels.transpose(2, 0, 1) if tags.get("planar") == 2 else pixels
    data = tags.get("raw") or stored.astype(pixels.dtype.newbyteorder(order)).tobytes()
    bits = tags.get("bits", pixels.dtype.itemsize * 8)
    entries: list[tuple[int, str, list[Any]]] = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [bits] * bands), (259, "H", [tags.get("compression", 1)]),
        (262, "H", [photometric]), (273, "I", [0]), (277, "H", [bands]), (278, "I", [tags.get("rows", height)]),
        (279, "I", [len(data)]),
        (284, "H", [tags.get("planar", 1)]), (339, "H", [TYPES[pixels.dtype]] * bands),
    ]  # fmt: skip
    if tags.get("planar") == 2:
        entries[5], entries[8] = (273, "I", [0] * bands), (279, "I", [len(data) // bands] * bands)
    if "extra" in tags:
        entries.append((338, "H", tags["extra"]))
    if "sub_ifds" in tags:
        entries.append((330, "I", [8]))
    if "colors" in tags:
        entries.append((320, "H", tags["colors"]))
    if "inks" in tags:
        entries.append((332, "H", [tags["inks"]]))
    entries = [entry for entry in entries if entry[2] != [None]]
    entries.sort()
    start = 8 + 2 + 12 * len(entries) + 4
    far = sum(
        struct.calcsize(kind) * len(values) for _, kind, values in entries if len(values) * struct.calcsize(kind) > 4
    )
    strip = (len(data) // bands) if tags.get("planar") == 2 else 0
    body, outside = b"", b""
    for name, kind, values in entries:
        numbers = [start + far + strip * index for index in range(len(values))] if name == 273 else values
        packed = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(packed) > 4:
            outside, packed = outside + packed, struct.pack(f"{order}I", start + len(outside))
        body += struct.pack(f"{order}HHI", name, {"H": 3, "I": 4}[kind], len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + body + struct.pack(f"{order}I", 0) + outside + data
