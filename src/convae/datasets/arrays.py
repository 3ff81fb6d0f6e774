"""Images in arrays: a folder of `.npy` files, a `.npz` file or a Zarr group, of any number of channels.

    images                  [N, C, H, W] or [N, H, W, C], see `data.layout`; uint8, uint16, int16 or float32
    labels                  optional: [N], whole numbers or text
    split                   optional: [N], train, validation or test
    groups                  optional: [N], whole numbers or text; images of one group stay together

Or apart: `train_images` and optionally `validation_images` and `test_images`, each with labels and groups of its own. A
single `.npy` file or Zarr array is taken for `images`.
"""

import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from convae.datasets.catalogue import image_shape
from convae.datasets.foreign import is_litter
from convae.datasets.image_folder import is_clean
from convae.datasets.reading import SCALE_HINT, TYPES
from convae.errors import ConvaeError
from convae.files import CHUNK_BYTES, new_array, save_array, write_json
from convae.names import PARTS, printable
from convae.params import DataParams

CLASSES_FILE = "classes.json"
BLOCK = 1 << 20  # bytes copied at a time

Arrays = Mapping[str, Any]
"""Arrays of NumPy or Zarr by name; slices of these are NumPy arrays."""


def copy_arrays(data: DataParams, folder: Path) -> None:
    """Check the arrays in `data.root` and copy them into `folder`, memory-mapped from end to end.

    For each part, `{part}_images.npy` (of their own type, `[N, C, H, W]`) and, where known, `{part}_labels.npy` (`int64
    [N]`) and `{part}_groups.npy` (`int64 [N]`); `classes.json` has the names of the labels.

    Raises:
        ConvaeError: an array is missing, or is not what the parameters say; or a label or group can't be used.

    Example:
        >>> np.save("stack.npy", np.zeros((4, 5, 8, 8), np.float32))
        >>> given = {"dataset": "arrays", "root": "stack.npy", "image_size": 8, "channels": 5}
        >>> Path("raw").mkdir()
        >>> from convae.params import Params
        >>> copy_arrays(DataParams(**Params.default().data.model_dump() | given), Path("raw"))
        >>> np.load("raw/train_images.npy").shape
        (4, 5, 8, 8)
    """
    scratch = folder / "unpacked"
    scratch.mkdir()
    arrays = open_arrays(Path(data.root), scratch)
    for gap in missing_chunks(arrays):
        print(f"data.root = {data.root}: {gap}", file=sys.stderr)
    parts = dict(_parts(data, arrays))
    if "train" not in parts:
        raise ConvaeError(f"data.root = {data.root}: no image of the training part")
    _check_groups(data, parts)
    classes = _classes(data, parts)
    write_json(folder / CLASSES_FILE, [str(name) for name in classes])
    names = np.unique(np.concatenate([part["groups"] for part in parts.values() if "groups" in part] or [[]]))
    for name, part in parts.items():
        _copy_images(data, name, part["images"], part["rows"], folder / f"{name}_images.npy")
        if "labels" in part:
            save_array(folder / f"{name}_labels.npy", np.searchsorted(classes, part["labels"]))
        if "groups" in part:
            save_array(folder / f"{name}_groups.npy", np.searchsorted(names, part["groups"]))
    shutil.rmtree(scratch)


def is_arrays(root: Path) -> bool:
    """Whether `root` holds arrays, not pictures.

    Example:
        >>> np.save("stack.npy", np.zeros((4, 5, 8, 8), np.float32))
        >>> is_arrays(Path("stack.npy")), is_arrays(Path("photos"))
        (True, False)
    """
    held = ("images.npy", "train_images.npy")
    return root.suffix.lower() in (".npy", ".npz") or _is_zarr(root) or any((root / name).is_file() for name in held)


def _is_zarr(root: Path) -> bool:
    return any((root / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def open_arrays(root: Path, scratch: Path) -> Arrays:
    """Open the arrays in `root` without reading them; a `.npz` file is unpacked into `scratch`.

    Raises:
        ConvaeError: there are none, or they can't be opened.

    Example:
        >>> np.savez("stack.npz", images=np.zeros((4, 5, 8, 8), np.float32), labels=np.arange(4))
        >>> Path("scratch").mkdir()
        >>> sorted(open_arrays(Path("stack.npz"), Path("scratch")))
        ['images', 'labels']
    """
    try:
        return _open(root, scratch)
    except ConvaeError:
        raise
    except Exception as error:  # a damaged archive can make its readers raise nearly anything
        raise ConvaeError(f"data.root = {root}: not readable ({' '.join(str(error).split())})") from None


def _open(root: Path, scratch: Path) -> Arrays:
    if not root.exists():
        raise ConvaeError(f"data.root = {root}: no such file or folder; a .npz file, a folder of .npy files or Zarr")
    if root.suffix.lower() == ".npz":
        with zipfile.ZipFile(root) as archive:
            for member in archive.infolist():
                name = member.filename
                if Path(name).name != name or (scratch / name).exists():
                    raise ConvaeError(f"data.root = {root}: member {printable(name)} is in a folder, or there twice")
                with archive.open(member) as source, (scratch / name).open("wb") as target:
                    shutil.copyfileobj(source, target, BLOCK)
        root = scratch
    if _is_zarr(root):
        import zarr

        opened = zarr.open(str(root), mode="r")
        return {"images": opened} if isinstance(opened, zarr.Array) else dict(opened.arrays())
    files = sorted(file for file in root.glob("*.npy") if not is_litter(file.name)) if root.is_dir() else [root]
    arrays = {path.stem: _open_npy(path) for path in files}
    if root.is_file() or set(arrays) == {"arr_0"}:  # as `np.savez` calls an array without a name
        return {"images": next(iter(arrays.values()))}
    return arrays


def _open_npy(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        objects = "Python objects; save it with .astype(str) or as whole numbers"
        raise ValueError(f"{path.name}: {objects if 'Python objects' in str(error) else error}") from None
    return array


def missing_chunks(arrays: Arrays) -> Iterator[str]:
    """Yield a sentence for each Zarr array that lacks chunks, which read as numbers of one value.

    Writers may omit chunks that hold nothing else, so this need not be a mistake.

    Example:
        >>> list(missing_chunks({"images": np.zeros((4, 1, 8, 8), np.uint8)}))
        []
    """
    for name, array in arrays.items():
        if hasattr(array, "nchunks_initialized") and (missing := array.nchunks - array.nchunks_initialized):
            what = f"{missing} of {array.nchunks} chunks are missing and read as {array.fill_value}"
            yield f"{printable(name)}: {what}. If a copy was interrupted, copy them again."


def _parts(data: DataParams, arrays: Arrays) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each part, and its images, rows of these, labels and groups."""
    where = f"data.root = {data.root}"
    apart = [part for part in PARTS if f"{part}_images" in arrays]
    kinds = ("images", "labels", "groups")
    known = [f"{part}_{kind}" for part in apart for kind in kinds] if apart else [*kinds, "split"]
    if ("images" in arrays) != bool(apart) and (unknown := [printable(name) for name in arrays if name not in known]):
        raise ConvaeError(f"{where}: it also holds {', '.join(unknown)}; only {', '.join(known)} are allowed")
    if ("images" in arrays) == bool(apart):
        found = ", ".join(map(printable, arrays)) or "nothing"
        raise ConvaeError(f"{where}: either images or train_images is needed; it holds {found}")
    for prefix in [f"{part}_" for part in apart] or [""]:
        images = arrays[f"{prefix}images"]
        _check_images(data, f"{prefix}images", images)
        of_each = {
            name: _of_each(where, f"{prefix}{name}", arrays[f"{prefix}{name}"], images.shape[0])
            for name in ("labels", "groups", "split")
            if f"{prefix}{name}" in arrays
        }
        split = of_each.pop("split", np.full(images.shape[0], prefix.rstrip("_") or "train")).astype(str)
        if wrong := next((name for name in split if name not in PARTS), None):
            raise ConvaeError(f"{where}: split has '{printable(wrong)}'; {', '.join(PARTS)} are allowed")
        for part in PARTS:
            if len(rows := np.flatnonzero(split == part)):
                yield part, {"images": images, "rows": rows, **{name: of_each[name][rows] for name in of_each}}


def _check_images(data: DataParams, name: str, images: Any) -> None:
    channels, height, width = image_shape(data)
    where, shape = f"data.root = {data.root}: {name}", tuple(images.shape)
    expected = (channels, height, width) if data.layout == "channels_first" else (height, width, channels)
    if str(images.dtype.newbyteorder("=")) not in TYPES:
        raise ConvaeError(f"{where} are {images.dtype}; {', '.join(TYPES)} are allowed")
    if len(shape) == 3 and channels == 1:
        shape = (shape[0], *((1, *shape[1:]) if data.layout == "channels_first" else (*shape[1:], 1)))
    if len(shape) != 4 or shape[1:] != expected:
        axes = "[N, C, H, W]" if data.layout == "channels_first" else "[N, H, W, C]"
        wanted = "; set data.channels, data.image_size and data.layout to its shape" if len(shape) == 4 else ""
        raise ConvaeError(
            f"{where} are {list(images.shape)}, expected {axes} = [N, {', '.join(map(str, expected))}]{wanted}"
        )
    if data.scale is None and images.dtype.newbyteorder("=") not in ("uint8", "float32"):
        raise ConvaeError(f"{where} are {images.dtype}; {SCALE_HINT}")


def _of_each(where: str, name: str, array: Any, count: int) -> np.ndarray:
    """Labels, groups or parts, one for each image."""
    try:
        values = np.asarray(array[...])
    except Exception as error:  # a damaged chunk can make Zarr raise nearly anything
        raise ConvaeError(f"{where}: {name} are not readable ({error})") from None
    if values.dtype.kind == "T":  # text of NumPy 2, as Zarr reads it
        values = values.astype(str)
    if values.shape != (count,):
        raise ConvaeError(f"{where}: {name} are {list(values.shape)}, but there are {count} images")
    if values.dtype.kind not in "iubUS":
        raise ConvaeError(f"{where}: {name} are {values.dtype}; whole numbers or text are needed")
    try:
        values = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
    except UnicodeDecodeError as error:
        raise ConvaeError(f"{where}: {name} are not UTF-8 ({error.reason})") from None
    if values.dtype.kind == "U" and (unclean := next((text for text in values if not is_clean(text)), "")):
        raise ConvaeError(f"{where}: {name} hold {printable(unclean)}; control characters are not allowed")
    if values.dtype.kind == "U" and len(empty := np.flatnonzero(values == "")):
        raise ConvaeError(f"{where}: {name} are empty for {len(empty)} images, such as {empty[0]}; leave these out")
    return values


def _classes(data: DataParams, parts: Mapping[str, Mapping[str, Any]]) -> np.ndarray:
    where, labelled = f"data.root = {data.root}", [part for part in parts if "labels" in parts[part]]
    if not labelled:
        return np.empty(0)
    if len(labelled) < len(parts):
        raise ConvaeError(f"{where}: labels of the {labelled[0]} part alone; all parts need them, or none")
    classes = np.unique(parts["train"]["labels"])
    for name, part in parts.items():
        if len(unknown := np.setdiff1d(part["labels"], classes)):
            raise ConvaeError(f"{where}: the {name} part has the label {unknown[0]}, which the training part lacks")
    if len(classes) == 1:
        raise ConvaeError(f"{where}: {classes[0]} is the only label; at least two are needed, or no labels at all")
    return classes


def _check_groups(data: DataParams, parts: Mapping[str, Mapping[str, Any]]) -> None:
    where, grouped = f"data.root = {data.root}", [name for name in parts if "groups" in parts[name]]
    if grouped and len(grouped) < len(parts):
        raise ConvaeError(f"{where}: groups of the {grouped[0]} part alone; all parts need them, or none")
    for index, one in enumerate(grouped):
        for other in grouped[index + 1 :]:
            if len(both := np.intersect1d(parts[one]["groups"], parts[other]["groups"])):
                raise ConvaeError(f"{where}: group {both[0]} lies in two parts, {one} and {other}")
    images = [part["rows"].size for part in parts.values()]
    if grouped and sum(len(np.unique(parts[name]["groups"])) for name in grouped) == sum(images) > 1:
        raise ConvaeError(f"{where}: each of the {sum(images)} images is a group by itself; omit groups")


def _copy_images(data: DataParams, name: str, images: Any, rows: np.ndarray, file: Path) -> None:
    """Copy some rows of an array, as `[N, C, H, W]`."""
    where, shape, dtype = f"data.root = {data.root}", image_shape(data), images.dtype.newbyteorder("=")
    target = new_array(file, dtype, (len(rows), *shape))
    step = max(1, CHUNK_BYTES // (dtype.itemsize * int(np.prod(shape))))
    step = max(step, getattr(images, "chunks", (1,))[0])  # Zarr decodes whole chunks
    low, high = np.inf, -np.inf
    for start in tqdm(range(0, images.shape[0], step), desc=name, unit="chunk"):
        first, end = np.searchsorted(rows, [start, start + step])
        if first == end:
            continue
        try:
            some = np.asarray(images[start : start + step])[rows[first:end] - start]
        except Exception as error:  # a damaged chunk can make Zarr raise nearly anything
            raise ConvaeError(f"{where}: images from {start} on are not readable ({error})") from None
        if data.layout == "channels_last" and some.ndim == 4:
            some = some.transpose(0, 3, 1, 2)
        some = some.reshape(len(some), *shape)
        if dtype.kind == "f" and not (finite := np.isfinite(some).all(axis=(1, 2, 3))).all():
            row = rows[first + int(np.argmin(finite))]
            raise ConvaeError(f"{where}: image {row} of the {name} part holds NaN or infinity")
        low, high = min(low, some.min()), max(high, some.max())
        target[first:end] = some
    target.flush()
    if data.scale is None and dtype.kind == "f" and not 0 <= low <= high <= 1:
        raise ConvaeError(f"{where}: {name} images have values from {low:g} to {high:g}; {SCALE_HINT}")
