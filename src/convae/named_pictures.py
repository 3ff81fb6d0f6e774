"""The pictures that commands are given: files, folders, patterns, arrays, or names on standard input.

Without scikit-learn, whose import would take longer than many a command.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from convae.datasets.foreign import FORMAT_NAMES, SUFFIXES, is_litter
from convae.datasets.pictures import UnusableError, read_picture
from convae.datasets.reading import Reading
from convae.encoder import Encoder
from convae.errors import ConvaeError
from convae.images import channels_first, checked_values
from convae.models.geometry import show
from convae.names import printable
from convae.terminal import warn_beside_bars

STACKS = (".npy", ".npz")
AHEAD = 16  # pictures decoded in advance; bounds the memory they take


class Pictures:
    """The pictures named on the command line, decoded in threads; unusable ones are reported and skipped.

    Args:
        arguments: files, folders, patterns, or - to read names from standard input.
        encoder: decides how the pictures are read and which sizes are accepted.
        resize: whether to resize to the size that the encoder was trained on.

    Attributes:
        files: names of all pictures.
        read: names of the pictures yielded so far.
        place: index in `files` of the picture yielded last.
        arrays: images of arrays, by name.

    Raises:
        ConvaeError: the arguments name no picture.
    """

    def __init__(self, arguments: list[str], encoder: Encoder, resize: bool) -> None:
        self.read: list[str] = []
        self.place = 0
        self._reading = encoder.reading(resize)
        self.arrays: dict[str, np.ndarray] = {}
        named = [name for argument in arguments for name in _named(argument)]
        self.files = [file for name in named for file in (self._stack(name) if name.endswith(STACKS) else [name])]
        if not self.files:
            raise ConvaeError("no pictures: " + ("the arrays are empty" if named else "standard input is empty"))
        self._check_size = encoder.batch_size

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the pixels of each usable picture, `[C, H, W]`, in order."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `read_picture` refuses them
            warnings.showwarning = warn_beside_bars
            with tqdm(total=len(self.files), unit=" images", disable=None) as progress:
                for start in range(0, len(self.files), AHEAD):
                    files = self.files[start : start + AHEAD]
                    for place, (file, pixels) in enumerate(zip(files, pool.map(self._read, files), strict=True), start):
                        progress.update()
                        if isinstance(pixels, UnusableError):
                            progress.write(f"convae: {printable(file)}: {pixels}", file=sys.stderr)
                        else:
                            self.read.append(file)
                            self.place = place
                            yield pixels

    def pixels(self, file: str, reading: Reading) -> np.ndarray:
        """The pixels of a picture that `arrays` has, or that is read again: `uint8` unless they are in other units.

        Raises:
            UnusableError: it can't be read.
        """
        if file not in self.arrays:
            return read_picture(file, reading)
        pixels = self.arrays[file]
        if reading.own_units or pixels.dtype == np.uint8:
            return pixels
        shown: np.ndarray = np.rint(255 * pixels).astype(np.uint8)
        return shown

    def finish(self) -> None:
        """Check that no picture was skipped.

        Raises:
            ConvaeError: some were.
        """
        missing = len(self.files) - len(self.read)
        if missing:
            raise ConvaeError(f"{missing} of {len(self.files)} pictures were skipped")

    def _stack(self, argument: str) -> list[str]:
        """Names for the images of an array, such as `stack.npy[0]`."""
        try:
            opened = np.load(argument, mmap_mode="r", allow_pickle=False)
            if not isinstance(opened, np.ndarray):
                names = [name for name in ("images", "arr_0") if name in opened.files]
                if not names:
                    raise ConvaeError(f"it holds {', '.join(opened.files)}; one named images is needed")
                opened = opened[names[0]]
            if opened.ndim not in (3, 4) or opened.dtype.kind not in "uif":
                raise ConvaeError(f"an array of {opened.dtype} {list(opened.shape)}; images [N, C, H, W] are needed")
            images = channels_first(opened, self._reading.channels)
        except Exception as error:  # a damaged archive can make its readers raise nearly anything
            raise ConvaeError(f"{printable(argument)}: not a readable array of images ({error})") from None
        names = [f"{argument}[{row}]" for row in range(len(images))]
        self.arrays |= zip(names, images, strict=True)
        return names

    def _read(self, file: str) -> np.ndarray | UnusableError:
        try:
            if file not in self.arrays:
                pixels = read_picture(file, self._reading)
            else:
                pixels = self.arrays[file]
                if not np.isfinite(pixels).all():
                    return UnusableError("NaN or infinity")
                checked_values(pixels, self._reading.own_units)
                if self._reading.size not in (None, pixels.shape[1:]):
                    size, wanted = (show((one[0], one[1])) for one in (pixels.shape[1:], self._reading.size or (0, 0)))
                    return UnusableError(f"{size} pixels, not {wanted}; arrays are not resized")
            self._check_size((pixels.shape[1], pixels.shape[2]))
        except UnusableError as error:
            return error
        except ConvaeError as error:
            return UnusableError(f"{error}" + ("" if self._reading.size else " (omit --original-size)"))
        return pixels


def _named(argument: str) -> list[str]:
    """Return the names of the pictures that an argument stands for.

    Raises:
        ConvaeError: the argument is a folder without pictures, or one that contains a link to another folder.
    """
    if argument == "-":
        return [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip()]
    if Path(argument).is_dir():
        return pictures_below(argument)
    if has_magic(argument) and not Path(argument).exists():
        found = glob(argument, recursive=True)  # noqa: PTH207 - pathlib globs only below a folder
        return sorted(name for name in found if not (is_litter(Path(name).name) or Path(name).is_dir())) or [argument]
    return [argument]


def pictures_below(folder: str) -> list[str]:
    """Names of the pictures in a folder, at any depth; others are mentioned on stderr.

    Raises:
        ConvaeError: there are none, or the folder contains a link to another folder.
    """
    pictures: list[str] = []
    others: list[str] = []
    for name in _files_below(str(Path(folder))):
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - much faster
        (pictures if suffix in SUFFIXES else others).append(name.removeprefix(f".{os.sep}"))
    skipped = f"{len(others)} with another suffix, such as {printable(Path(others[0]).name)}" if others else ""
    if not pictures:
        raise ConvaeError(f"{folder}: no {FORMAT_NAMES} file in it" + (f", only {skipped}" if others else ""))
    if others:
        print(f"convae: {printable(folder)}: reading {len(pictures)} files, skipping {skipped}", file=sys.stderr)
    return pictures


def _files_below(folder: str) -> Iterator[str]:
    """Yield the files in a folder and its subfolders in the order of their names, except hidden ones and litter.

    Raises:
        OSError: a folder is unreadable.
    """
    waiting = [_entries(folder)]
    while waiting:  # not recursive: folders may be nested deeper than Python's calls
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
        elif not entry.is_dir():
            yield entry.path
        elif entry.is_symlink():
            advice = "name the linked folder, or remove the link"
            raise ConvaeError(f"{entry.path}: links to folders are not followed; {advice}")
        else:
            waiting.append(_entries(entry.path))


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if not (entry.name.startswith(".") or is_litter(entry.name))]
    return iter(sorted(kept, key=lambda one: one.name))
