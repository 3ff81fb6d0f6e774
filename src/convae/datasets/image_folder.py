"""A user's folder of pictures: the part and class of each file, and the files that are rejected.

    train/<class>/<image>         or, without labels, train/<image>
    validation/<class>/<image>    optional
    test/<class>/<image>          optional

Without `train/`, the folder itself is the training part, apart from `validation/` and `test/`. Hidden files and
operating systems' litter, such as `Thumbs.db`, are ignored.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from convae.datasets.foreign import FORMAT_NAMES, HEAD_BYTES, is_litter, is_picture, what_it_is
from convae.datasets.pictures import UnusableError
from convae.datasets.reading import MOST_BYTES
from convae.errors import ConvaeError
from convae.names import PARTS, printable

# Names that mean a part, not a class, but are spelt otherwise.
LIKE_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
LAYOUT = "expected: train/<class>/<image> or, without labels, train/<image>; the same for validation/ and test/"

Place = tuple[str, str]
"""Part and class; the class is '' for a picture without a label."""


@dataclass(frozen=True, slots=True)  # slots save memory: there may be millions of these
class ImageFile:
    """A picture: its part, class, path relative to the root, size in bytes, SHA-256, and group.

    The class is '' for a picture without a label, and the group '' for one that belongs to none.
    """

    part: str
    label: str
    path: str
    bytes: int
    sha256: str
    group: str = ""


@dataclass(frozen=True)
class Rejected:
    """A file that can't be used, and the reason. Unprintable characters in `path` are escaped."""

    path: str
    reason: str


def list_images(root: Path) -> tuple[list[ImageFile], list[Rejected]]:
    """List the pictures under `root` by part, class and name, sorted bytewise, and the rejected files.

    A picture is recognised by its first bytes; only `prepare` finds out whether it can be decoded.

    Raises:
        ConvaeError: there is no picture, a folder can't be read or would be skipped, or the layout does not determine
            the part and class of every picture.

    Example:
        >>> for name in ("cat", "dog"):
        ...     Path("photos", name).mkdir(parents=True)
        ...     _ = Path("photos", name, "1.png").write_bytes(Path("picture.png").read_bytes())
        >>> files, rejected = list_images(Path("photos"))
        >>> [(file.part, file.label, file.path) for file in files]
        [('train', 'cat', 'cat/1.png'), ('train', 'dog', 'dog/1.png')]
    """
    try:
        if not root.is_dir():
            raise ConvaeError(f"data.root = {root}: {'not a' if os.path.lexists(root) else 'no such'} folder; {LAYOUT}")
        candidates, places = _candidates(root)
    except OSError as error:
        raise ConvaeError(f"data.root = {root}: {printable(str(error.filename))}: {error.strerror}") from None
    files: list[ImageFile] = []
    rejected: list[tuple[Place, Rejected]] = []
    for place, path in tqdm(candidates, desc="hash", unit="file"):
        try:
            files.append(image_file(root, place, path))
        except UnusableError as error:
            rejected.append((place, Rejected(printable(path), str(error))))
    if mistake := next(_layout_mistakes(places, files, rejected), ""):
        raise ConvaeError(f"data.root = {root}: {mistake}")
    return files, [file for _, file in rejected]


def classes_of(files: Iterable[ImageFile]) -> tuple[str, ...]:
    """Class names of the training part, in sorted order; empty without labels.

    Example:
        >>> classes_of([ImageFile("train", name, f"train/{name}/1.png", 68, "") for name in ("dog", "cat", "dog")])
        ('cat', 'dog')
    """
    return tuple(sorted({file.label for file in files if file.part == "train" and file.label}))


def _candidates(root: Path) -> tuple[list[tuple[Place, str]], list[Place]]:
    """All files as (place, relative path), and the places that have a folder."""
    candidates, places = [], []
    for part, folder in _part_folders(root).items():
        places.append((part, ""))
        entries = [entry for entry in _entries(folder) if folder != root or entry.name not in PARTS]
        has_classes = any(_is_folder(entry) for entry in entries)
        for entry in entries:
            if not _is_folder(entry):
                if has_classes and entry.is_symlink() and not Path(entry).exists():
                    raise _misplaced(entry, "a link that leads nowhere, among class folders; fix or remove it")
                candidates.append(((part, ""), _relative(root, entry)))
                continue
            if not is_clean(entry.name):
                raise _misplaced(entry, "class names must be UTF-8 without control characters")
            places.append((part, entry.name))
            for inner in _entries(Path(entry.path)):
                if _is_folder(inner):
                    remedy = "move its pictures up into the class folder, or list them in a table (data.table)"
                    raise _misplaced(inner, f"a folder inside a class folder; {remedy}; {LAYOUT}")
                candidates.append(((part, entry.name), _relative(root, inner)))
    return candidates, places


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a folder.

    Raises:
        ConvaeError: it is a link to a folder, whose pictures would be skipped.
    """
    if entry.is_dir(follow_symlinks=False):
        return True
    if entry.is_symlink() and Path(entry).is_dir():  # entry.is_dir() would raise for links in a circle
        remedy = "put the real folder in its place, or remove the link"
        raise _misplaced(entry, f"links to folders are not followed; {remedy}")
    return False


def _misplaced(entry: os.DirEntry[str], mistake: str) -> ConvaeError:
    return ConvaeError(f"{printable(entry.path)}: {mistake}")


def _relative(root: Path, entry: os.DirEntry[str]) -> str:
    return Path(entry.path).relative_to(root).as_posix()


def _part_folders(root: Path) -> dict[str, Path]:
    for entry in _entries(root):
        if entry.name in PARTS and not entry.is_dir():
            raise _misplaced(entry, f"not a folder, although its name is reserved for one; {LAYOUT}")
    folders = {part: root / part for part in PARTS if (root / part).is_dir()}
    for folder in folders.values():
        if folder.is_symlink():
            raise ConvaeError(f"{folder}: links to folders are not followed; set data.root to the real folder")
    for entry in _entries(root):
        if entry.is_dir() and entry.name not in PARTS:
            if "train" in folders:
                raise _misplaced(entry, "only validation/ and test/ are allowed next to train/")
            if entry.name.casefold() in LIKE_PARTS:
                remedy = "rename it to train, validation or test; if it is a class, list the pictures in a table"
                raise _misplaced(entry, f"{remedy} (data.table)")
    return {"train": root} | folders


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        kept = (e for e in entries if not (e.name.startswith(".") or is_litter(e.name)))
        return sorted(kept, key=lambda e: os.fsencode(e.name))


def is_clean(name: str) -> bool:
    """Whether a name is valid UTF-8 (Python turns other bytes into lone surrogates) without control characters."""
    return not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name)


def image_file(root: Path, place: Place, path: str) -> ImageFile:
    """Inspect the file `path` below `root`.

    Links are not followed out of `root`, and nothing but a regular file is opened.

    Raises:
        UnusableError: it is not a usable picture.
    """
    if not is_clean(path):
        raise UnusableError("the name is not UTF-8 or holds control characters")
    file = root / path
    try:
        if file.is_symlink() and not file.resolve(strict=True).is_relative_to(root.resolve()):
            raise UnusableError("a symbolic link that leads out of data.root")
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnusableError("not a regular file")
        return ImageFile(*place, path, status.st_size, _image_sha256(file, status.st_size))
    except (OSError, RuntimeError) as error:  # RuntimeError: Python 3.11 and 3.12 on links in a circle
        reason = error.strerror if isinstance(error, OSError) else "a symbolic link in a circle"
        raise UnusableError(f"cannot be read: {reason}") from None


def _image_sha256(file: Path, size: int) -> str:
    if size == 0:
        raise UnusableError("empty file; get it again")
    if size > MOST_BYTES:
        raise UnusableError(f"{size} bytes; at most {MOST_BYTES} are allowed")
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        if found := what_it_is(head):
            raise UnusableError(found)
        if not is_picture(head):
            raise UnusableError(f"not a {FORMAT_NAMES} image")
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _layout_mistakes(
    places: Sequence[Place], files: Sequence[ImageFile], rejected: Sequence[tuple[Place, Rejected]]
) -> Iterator[str]:
    """Yield what keeps the layout from being usable."""
    labels: dict[str, set[str]] = {part: set() for part, _ in places}
    for file in files:
        labels[file.part].add(file.label)
    for part, label in places:
        if not labels[part]:
            why = _unreadable(rejected, part) or f"; {LAYOUT}"
            yield f"no image in the {part} part{why}"
        if label and label not in labels[part]:
            yield f"class folder '{label}' of the {part} part has no image in it{_unreadable(rejected, part, label)}"
        if "" in labels[part] and len(labels[part]) > 1:
            yield f"the {part} part has images both inside and outside class folders"
    for part, found in labels.items():
        unknown = sorted(found - labels["train"])
        if unknown:
            what = f"class '{unknown[0]}'" if unknown[0] else "images without class folders"
            known = ", ".join(sorted(labels["train"] - {""})) or "no class folders"
            yield f"the {part} part has {what}, but the training part has {known}"
    if len(labels["train"] - {""}) == 1:
        only = next(iter(labels["train"]))
        yield f"'{only}' is the only class; at least two are needed, or no class folders at all"


def _unreadable(rejected: Sequence[tuple[Place, Rejected]], *place: str) -> str:
    """Explain that all files of a part, or of one class in it, were rejected; '' if there are no files."""
    found = [file for where, file in rejected if where[: len(place)] == place]
    if not found:
        return ""
    reason, count = Counter(file.reason for file in found).most_common(1)[0]
    first = next(file for file in found if file.reason == reason)
    others = f", as are {count - 1} of the {len(found) - 1} other files" if len(found) > 1 else ""
    return f" that can be read: {first.path} ({reason}{others})"
