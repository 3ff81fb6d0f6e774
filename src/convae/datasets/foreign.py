"""Recognise pictures, other kinds of file and operating systems' litter by name and first bytes."""

import struct

HEAD_BYTES = 4096  # bytes at the start of a file that `what_it_is` needs

_SIGNATURES = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "WebP": (b"RIFF",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = tuple(_SIGNATURES)
FORMAT_NAMES = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"

_LITTER = {
    ".ds_store",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "picasa.ini",
    "icon\r",
    "__macosx",
    "@eadir",
    "#recycle",
    "@recycle",
    "@__thumb",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}

_TO_PNG = "save it as PNG"
_RAW = ("a camera's raw file", "develop it to PNG or TIFF")
_UNPACK = "unpack it"
_NO_PICTURE = "remove it from the folder"

_KINDS: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes there, kind, remedy; first match wins
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (0, b"GIF8", "a GIF", _TO_PNG),
    (0, b"%PDF", "a PDF", _TO_PNG),
    (0, b"%!PS", "PostScript", _TO_PNG),
    (0, b"8BPS", "a Photoshop file", _TO_PNG),
    (0, b"gimp xcf", "a GIMP file", _TO_PNG),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000", _TO_PNG),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000", _TO_PNG),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL", _TO_PNG),
    (0, b"\xff\x0a", "a JPEG XL", _TO_PNG),
    (0, b"II\xbc\1", "a JPEG XR", _TO_PNG),
    (0, b"\0\0\1\0", "a Windows icon", _TO_PNG),
    (0, b"DDS ", "a DDS texture", _TO_PNG),
    (0, b"v/1\1", "an OpenEXR image", _TO_PNG),
    (0, b"#?RADIANCE", "a Radiance HDR image", _TO_PNG),
    (0, b"SIMPLE  =", "a FITS image", _TO_PNG),
    *((0, b"P%d%c" % (kind, gap), "a PNM image", _TO_PNG) for kind in range(1, 8) for gap in b" \n\r\t"),
    (128, b"DICM", "a DICOM image", _TO_PNG),
    (344, b"n+1\0", "a NIfTI image", _TO_PNG),
    (0, b"II*\0\x10\0\0\0CR", *_RAW),
    *((0, head, *_RAW) for head in (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILM", b"\0MRM", b"FOVb")),
    (4, b"ftypcrx", *_RAW),
    *((4, b"ftyp" + brand, "an AVIF", _TO_PNG) for brand in (b"avif", b"avis")),
    *((4, b"ftyp" + brand, "an HEIC photo", _TO_PNG) for brand in (b"hei", b"hev", b"mif1", b"mif2", b"msf1")),
    (4, b"ftyp", "a video", "save its frames as PNG"),
    (8, b"AVI ", "a video", "save its frames as PNG"),
    (0, b"\x1aE\xdf\xa3", "a video", "save its frames as PNG"),
    (0, b"\x93NUMPY", "a NumPy array", "save its images as PNG"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its images as PNG"),
    (0, b"MATLAB 5.0", "a MATLAB file", "save its images as PNG"),
    (0, b"PAR1", "a Parquet file", "save its images as PNG"),
    (0, b"SQLite format 3\0", "an SQLite database", _NO_PICTURE),
    (0, b"PK\3\4", "a zip archive", _UNPACK),
    (0, b"PK\5\6", "an empty zip archive", _NO_PICTURE),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\0\5\x16\7", "a macOS resource fork", _NO_PICTURE),
    (0, b"\xd0\xcf\x11\xe0", "a Microsoft Office or thumbnail file", _NO_PICTURE),
)


def is_litter(name: str) -> bool:
    """Whether operating systems or file servers leave files or folders of this name behind.

    Example:
        >>> [name for name in ("Thumbs.db", "._1.png", "__MACOSX", "1.png") if is_litter(name)]
        ['Thumbs.db', '._1.png', '__MACOSX']
    """
    return name.startswith("._") or name.lower() in _LITTER


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with these bytes has one of the `FORMATS`.

    Example:
        >>> is_picture(b"BM..."), is_picture(b"GIF89a")
        (True, False)
    """
    if head.startswith(_SIGNATURES["WebP"]):  # RIFF is also the container of WAV and AVI
        return head[8:12] == b"WEBP"
    return any(head.startswith(signatures) for signatures in _SIGNATURES.values())


def what_it_is(head: bytes) -> str:
    """Name the kind of a file by its first bytes, and a remedy; '' if it is a picture or unknown.

    Only the first `HEAD_BYTES` of `head` count.

    Example:
        >>> what_it_is(b"GIF89a")
        'a GIF; save it as PNG'
    """
    head = head[:HEAD_BYTES]
    if is_picture(head) and not head.startswith((b"II", b"MM")):  # TIFFs may still be raw files
        return ""
    for start, signature, kind, remedy in _KINDS:
        if head.startswith(signature, start):
            return f"{kind}; {remedy}"
    if _begins_with_preview(head):
        return "; ".join(_RAW)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return f"an SVG; {_TO_PNG}"
    if text.startswith((b"<!", b"<html", b"<head", b"<body", b"<?xml")):
        kind = "XML" if text.startswith(b"<?xml") and b"<html" not in text else "an HTML page"
        return f"{kind}, maybe a server's answer instead of the file; get the file again"
    if head and not head.strip(b"\0"):
        return "only zeros, at least at the start; get the file again"
    return ""


def _begins_with_preview(head: bytes) -> bool:
    """Whether it is a TIFF whose first image is a preview, as in DNG, NEF, ARW and other raw files."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        return False
    (start,) = struct.unpack_from(f"{order}I", head, 4)
    values = {}
    for place in range(start + 2, len(head) - 11, 12):
        if (place - start - 2) // 12 >= struct.unpack_from(f"{order}H", head, start)[0]:
            break
        tag, _, _, value = struct.unpack_from(f"{order}HHII", head, place)
        values[tag] = value
    new_subfile_type, sub_ifds, dng_version = 254, 330, 50706
    return dng_version in values or (sub_ifds in values and values.get(new_subfile_type, 0) % 2 == 1)
