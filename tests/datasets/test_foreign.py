"""Other file types, whatever their names: one line says what each is and what to do."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convae.datasets.foreign import is_litter, is_picture, what_it_is
from convae.datasets.image_folder import list_images
from convae.datasets.pictures import UnusableError, decode

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))


def saved(kind: str) -> bytes:
    stream = io.BytesIO()
    RGB.save(stream, kind)
    return stream.getvalue()


def ftyp(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(100)


def packed(write: Callable[[io.BytesIO], object]) -> bytes:
    write(stream := io.BytesIO())
    return stream.getvalue()


def make_zip(stream: io.BytesIO) -> None:
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("1.png", b"x")


def make_tar(stream: io.BytesIO) -> None:
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))


def tiff(order: str, **tags: int) -> bytes:
    """A TIFF's first entries, as DNG and NEF begin."""
    numbers = {"new_subfile_type": 254, "width": 256, "sub_ifds": 330, "dng_version": 50706}
    entries = b"".join(struct.pack(f"{order}HHII", numbers[name], 4, 1, value) for name, value in tags.items())
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(400)


KINDS: dict[str, tuple[bytes, str]] = {
    "GIF": (saved("GIF"), "a GIF; save it as PNG"),
    "PDF": (saved("PDF"), "a PDF; save it as PNG"),
    "PNM": (saved("PPM"), "a PNM image; save it as PNG"),
    "DDS": (saved("DDS"), "a DDS texture; save it as PNG"),
    "ICO": (saved("ICO"), "a Windows icon; save it as PNG"),
    "JPEG 2000": (saved("JPEG2000"), "a JPEG 2000; save it as PNG"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "a JPEG XL; save it as PNG"),
    "JPEG XL code stream": (b"\xff\x0a\xfa\x1f" + bytes(20), "a JPEG XL; save it as PNG"),
    "Photoshop": (b"8BPS\0\1" + bytes(20), "a Photoshop file; save it as PNG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG; save it as PNG"),
    "SVG after a declaration": (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg/>', "an SVG; save it as PNG"),
    "HEIC": (ftyp(b"heic"), "an HEIC photo; save it as PNG"),
    "HEIC of 10 bits": (ftyp(b"heix"), "an HEIC photo; save it as PNG"),
    "HEIC sequence": (ftyp(b"hevc"), "an HEIC photo; save it as PNG"),
    "HEIF": (ftyp(b"mif1"), "an HEIC photo; save it as PNG"),
    "AVIF": (ftyp(b"avif"), "an AVIF; save it as PNG"),
    "CR3": (ftyp(b"crx "), "a camera's raw file; develop it to PNG or TIFF"),
    "MP4": (ftyp(b"isom"), "a video; save its frames as PNG"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST", "a video; save its frames as PNG"),
    "CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "a camera's raw file; develop it to PNG or TIFF"),
    "DNG": (tiff("<", new_subfile_type=1, width=160, dng_version=1025), "a camera's raw file; develop it"),
    "linear DNG": (tiff(">", new_subfile_type=0, width=160, dng_version=1025), "a camera's raw file; develop it"),
    "NEF": (tiff(">", new_subfile_type=1, width=160, sub_ifds=99), "a camera's raw file; develop it"),
    "RAF": (b"FUJIFILMCCD-RAW 0201", "a camera's raw file; develop it"),
    "DICOM": (bytes(128) + b"DICM" + bytes(50), "a DICOM image; save it as PNG"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file; save its images as PNG"),
    "NumPy": (packed(lambda stream: np.save(stream, np.zeros((2, 2)))), "a NumPy array; save its images as PNG"),
    "zip": (packed(make_zip), "a zip archive; unpack it"),
    "tar": (packed(make_tar), "a tar archive; unpack it"),
    "gzip": (gzip.compress(b"x"), "a gzip archive; unpack it"),
    "bzip2": (bz2.compress(b"x"), "a bzip2 archive; unpack it"),
    "xz": (lzma.compress(b"x"), "an xz archive; unpack it"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "a Git LFS pointer"),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page, maybe a server's answer instead"),
    "XHTML": (b'<?xml version="1.0"?><html xmlns="x"><body/></html>', "an HTML page, maybe a server's answer"),
    "refusal of S3": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML, maybe a server's"),
    "zeros": (bytes(5000), "only zeros, at least at the start; get the file again"),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_pipeline_and_command_line_name_other_file_types(tmp_path: Path, case: str) -> None:
    content, message = KINDS[case]
    (tmp_path / "train").mkdir()
    RGB.save(tmp_path / "train/1.png")
    (tmp_path / "train/2.jpg").write_bytes(content)
    files, (rejected,) = list_images(tmp_path)
    assert ([file.path for file in files], rejected.path) == (["train/1.png"], "train/2.jpg")
    assert rejected.reason.startswith(message)
    with pytest.raises(UnusableError, match=r"^\w") as refusal:
        decode(content, 3)
    if "DNG" not in case and case != "NEF":  # Pillow may open their preview
        assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_pictures_are_not_mistaken_for_other_file_types(kind: str) -> None:
    content = saved(kind)
    assert is_picture(content)
    assert what_it_is(content) == ""
    if kind != "TIFF":  # whatever follows
        assert what_it_is(content[:12] + b"DICM" * 2000) == ""


@pytest.mark.parametrize("end", range(0, 60, 3))
def test_a_truncated_tiff_is_inspected_safely(end: int) -> None:
    for first in (8, 0, 38, 2**32 - 1):
        content = tiff("<", new_subfile_type=1, width=1, sub_ifds=9)
        said = what_it_is((content[:4] + struct.pack("<I", first) + content[8:])[:end])
        assert said == "" or (first == 8 and end >= 46 and "raw" in said)


def test_litter_is_recognised_by_name() -> None:
    litter = ["Thumbs.db", "THUMBS.DB", "ehthumbs.db", "desktop.ini", "Icon\r", ".DS_Store", "._a.png", "@eaDir"]
    assert [name for name in litter if not is_litter(name)] == []
    assert [name for name in ("Thumbs", "icon", "thumbs.db.png", "_a.png", "desktop", "train") if is_litter(name)] == []
