"""Recognise pictures, other kinds of file and operating systems' litter by name and first bytes."""

import re
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

_WINDOWS = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"}
_MACOS = {".ds_store", "icon\r", "__macosx"}
_PROGRAMS = {"picasa.ini", "@eadir", "#recycle", "@recycle", "@__thumb", "lost+found"}  # Picasa, file servers, Unix
_LITTER = _WINDOWS | _MACOS | _PROGRAMS

_TO_PNG = "save it as PNG"
_IMAGES_TO_PNG = "save its images as PNG"
_RAW = ("a camera's raw file", "develop it to PNG or TIFF")
_UNPACK = "unpack it"
_NO_PICTURE = "remove it from the folder"

_KINDS = (  # kind, remedy, pattern of the first bytes; the first match wins
    ("a Git LFS pointer, not the file itself", "run `git lfs pull`", rb"version https://git-lfs"),
    ("a GIF", _TO_PNG, rb"GIF8"),
    ("a PDF", _TO_PNG, rb"%PDF"),
    ("PostScript", _TO_PNG, rb"%!PS"),
    ("a Photoshop file", _TO_PNG, rb"8BPS"),
    ("a GIMP file", _TO_PNG, rb"gimp xcf"),
    ("a JPEG 2000", _TO_PNG, rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("a JPEG XL", _TO_PNG, rb"\0\0\0\x0cJXL |\xff\x0a"),
    ("a JPEG XR", _TO_PNG, rb"II\xbc\x01"),
    ("a Windows icon", _TO_PNG, rb"\0\0\x01\0"),
    ("a DDS texture", _TO_PNG, rb"DDS "),
    ("an OpenEXR image", _TO_PNG, rb"v/1\x01"),
    ("a Radiance HDR image", _TO_PNG, rb"#\?RADIANCE"),
    ("a FITS image", _TO_PNG, rb"SIMPLE  ="),
    ("a PNM image", _TO_PNG, rb"P[1-7][ \n\r\t]"),
    ("a DICOM image", _TO_PNG, rb".{128}DICM"),
    ("a NIfTI image", _TO_PNG, rb".{344}n\+1\0"),
    (*_RAW, rb"II\*\0\x10\0\0\0CR|IIRO|IIRS|MMOR|IIU\0|FUJIFILM|\0MRM|FOVb|.{4}ftypcrx"),
    ("an AVIF", _TO_PNG, rb".{4}ftypavi[fs]"),
    ("an HEIC photo", _TO_PNG, rb".{4}ftyp(hei|hev|mif1|mif2|msf1)"),
    ("a video", "save its frames as PNG", rb".{4}ftyp|.{8}AVI |\x1aE\xdf\xa3"),
    ("a NumPy array", _IMAGES_TO_PNG, rb"\x93NUMPY"),
    ("an HDF5 file", _IMAGES_TO_PNG, rb"\x89HDF\r\n\x1a\n"),
    ("a MATLAB file", _IMAGES_TO_PNG, rb"MATLAB 5\.0"),
    ("a Parquet file", _IMAGES_TO_PNG, rb"PAR1"),
    ("an SQLite database", _NO_PICTURE, rb"SQLite format 3\0"),
    ("a zip archive", _UNPACK, rb"PK\x03\x04"),
    ("an empty zip archive", _NO_PICTURE, rb"PK\x05\x06"),
    ("a gzip archive", _UNPACK, rb"\x1f\x8b"),
    ("a bzip2 archive", _UNPACK, rb"BZh"),
    ("an xz archive", _UNPACK, rb"\xfd7zXZ\0"),
    ("a Zstandard archive", _UNPACK, rb"\x28\xb5\x2f\xfd"),
    ("a 7-Zip archive", _UNPACK, rb"7z\xbc\xaf\x27\x1c"),
    ("a RAR archive", _UNPACK, rb"Rar!"),
    ("a tar archive", _UNPACK, rb".{257}ustar"),
    ("a macOS resource fork", _NO_PICTURE, rb"\0\x05\x16\x07"),
    ("a Microsoft Office or thumbnail file", _NO_PICTURE, rb"\xd0\xcf\x11\xe0"),
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
    for kind, remedy, pattern in _KINDS:
        if re.match(pattern, head, re.DOTALL):
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
    (count,) = struct.unpack(f"{order}H", head[start : start + 2].ljust(2, b"\0"))
    entries = head[start + 2 :][: 12 * count]
    whole = entries[: len(entries) // 12 * 12]
    values = {tag: value for tag, _, _, value in struct.iter_unpack(f"{order}HHII", whole)}
    new_subfile_type, sub_ifds, dng_version = 254, 330, 50706
    return dng_version in values or (sub_ifds in values and values.get(new_subfile_type, 0) % 2 == 1)
