"""The second stage: turn raw images into image sets for training, validation and test."""

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from convae.datasets.arrays import CLASSES_FILE
from convae.datasets.catalogue import CATALOGUE, image_shape
from convae.datasets.decoding import decode_files
from convae.datasets.duplicates import find_duplicates
from convae.datasets.image_folder import ImageFile, Rejected, classes_of
from convae.datasets.image_set import ImageSet, write_image_set, write_sharded_image_set
from convae.datasets.listing import FILES, ListedFiles, read_rejected
from convae.datasets.reading import Reading, Scale
from convae.datasets.shards import ShardedImages, ShardWriter, create_shards, open_shards, pieces_of, write_shards
from convae.datasets.splits import Part, hold_out
from convae.errors import ConvaeError
from convae.files import content_sha256, read_json, row_chunks, write_json
from convae.names import PARTS
from convae.params import DataParams
from convae.processes import ALONE, Processes

COPIED_BYTES = 1 << 22  # images per chunk; two chunks are in memory at a time
SHARDED = ("train", "unlabelled")  # the parts that `data.shards` moves elsewhere

Given = tuple[dict[str, Part], tuple[str, ...], list[Rejected], np.ndarray]
"""The parts, the classes, the rejected files, and what each picture may have lost, see `decode_files`."""


def prepare(data: DataParams, seed: int, raw: Path, output: Path, processes: Processes = ALONE) -> None:
    """Write the image sets `train`, `validation`, `test` and `unlabelled` (possibly empty) into `output`.

    Parts that the data set does not come with are held out of its training images, stratified and drawn by `seed`. For
    an image folder, `paths.txt` in each image set lists the images' paths relative to the root, one per line. Each
    process decodes its share of a folder's files; rank 0 does the rest. With `data.shards`, the images of `train` and
    `unlabelled` are written there, and their image sets hold the address.

    Args:
        data: the section `data` of the parameters.
        seed: seed of the split.
        raw: the output of `download`.
        output: `data/prepared`; replaced as a whole, or left unchanged if an error occurs. Its `description.json`
            describes the parts, see `_summary`.
        processes: the processes that run the stage together.

    Raises:
        ConvaeError: the images can't be divided as the parameters ask, or too many files are unreadable.
    """
    with processes.shared_folder(output) as folder:
        if data.dataset == "image_folder":
            given, classes, rejected, lost = _from_folder(data, raw, folder / "decoded", processes)
        elif data.dataset == "arrays":
            given, classes, rejected, lost = _from_own_arrays(raw)
        else:
            given, classes, rejected, lost = _from_arrays(data, raw, processes)
        if processes.rank:
            return
        parts = _divide(given, classes, data, seed)
        scaled = data.scale is not None
        together = {name: [part] for name, part in parts.items()}
        if data.dataset == "image_folder" and len(parts["unlabelled"].index):
            # The encoder learns from this part alone, so the labelled pictures have to be in it as well.
            together["unlabelled"].append(parts["train"])
        descriptions = {name: _write_part(folder / name, some, classes, scaled) for name, some in together.items()}
        shutil.rmtree(folder / "decoded", ignore_errors=True)
        scale = _fit_scale(data.scale, descriptions["train"])
        if scale:
            for name in parts:
                _add_scale(folder / name, scale)
        summary = {
            "dataset": data.dataset,
            "shape": list(image_shape(data)),
            "classes": list(classes),
            "parts": _summary(descriptions, given),
            "rejected": [asdict(file) for file in rejected],
            **({"scale": asdict(scale)} if scale else {}),
            "cropped": round(float(np.median(lost[:, 0])), 6),
            "dim": int(lost[:, 1].sum()),
            **find_duplicates({name: ImageSet.load(folder / name) for name in parts}),
        }
        write_json(folder / "description.json", summary)


def _summary(descriptions: Mapping[str, Mapping[str, Any]], given: Collection[str]) -> dict[str, Any]:
    """Summarise each part: its number of images, its origin, and the essential keys of its description.

    If images belong to groups, also the number of these.
    """
    kept = ("images_per_class", "mean", "standard_deviation", "levels", "ranges", "percentiles", "sha256", "groups")
    return {
        name: {
            "images": description["shape"][0],
            "origin": "given" if name in given else "held out" if description["shape"][0] else "none",
            **{key: description[key] for key in kept if key in description},
        }
        for name, description in descriptions.items()
    }


def _from_arrays(data: DataParams, raw: Path, processes: Processes) -> Given:
    """Open the arrays in `raw`, and move those of the training part into `data.shards`."""
    dataset, parts = CATALOGUE[data.dataset], {}
    for split, count in dataset.images.items():
        try:
            images = np.load(raw / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
            labels = None if split == "unlabelled" else np.load(raw / f"{split}_labels.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConvaeError(f"{raw}: not an output of download ({error}); rerun `dvc repro download`") from None
        if data.shards and split in SHARDED and not processes.rank:
            address, chunks = f"{data.shards}/{data.dataset}/{split}", map(images.__getitem__, row_chunks(images))
            images = write_shards(address, images.shape, chunks)
        parts[split] = Part(images, labels, np.arange(count))
    return parts, dataset.classes, [], np.zeros((1, 2))


def _from_own_arrays(raw: Path) -> Given:
    """Open the arrays that `copy_arrays` wrote."""
    try:
        classes, parts = tuple(read_json(raw / CLASSES_FILE)), {}
        for name in PARTS:
            files = {kind: raw / f"{name}_{kind}.npy" for kind in ("images", "labels", "groups")}
            if files["images"].exists():
                images = np.load(files["images"], mmap_mode="r", allow_pickle=False)
                labels, groups = (
                    np.load(files[kind], allow_pickle=False) if files[kind].exists() else None
                    for kind in ("labels", "groups")
                )
                parts[name] = Part(images, labels, np.arange(len(images)), groups=groups)
    except (OSError, ValueError, EOFError) as error:
        raise ConvaeError(f"{raw}: not an output of download ({error}); rerun `dvc repro download`") from None
    return parts, classes, [], np.zeros((1, 2))


def _fit_scale(rule: str | tuple[float, float] | None, training: Mapping[str, Any]) -> Scale | None:
    """The scale that `data.scale` asks for, fitted to the training images that are described."""
    if rule is None:
        return None
    if rule == "standard":
        offset, divisor = np.array(training["mean"]), np.array(training["standard_deviation"])
    elif isinstance(rule, str):
        low, high = np.array(training["ranges" if rule == "range" else "percentiles"]).T
        # Where nearly all numbers are the same, percentiles say nothing.
        low, high = np.where(high > low, [low, high], np.array(training["ranges"]).T)
        offset, divisor = low, high - low
    else:
        low, high = np.array([rule] * training["shape"][1]).T
        offset, divisor = low, high - low
    divisor = np.where(divisor > 0, divisor, 1)  # a constant channel
    # As single precision stores them, so that config.json has the very numbers that are used.
    rounded = (values.astype(np.float32).tolist() for values in (offset, divisor))
    try:
        return Scale(*map(tuple, rounded))
    except ValueError:
        raise ConvaeError(f"data.scale = {rule}: the numbers are too large or too close for single precision") from None


def _add_scale(folder: Path, scale: Scale) -> None:
    description = read_json(folder / "description.json")
    write_json(folder / "description.json", description | {"scale": asdict(scale)})


def _from_folder(data: DataParams, raw: Path, scratch: Path, processes: Processes) -> Given:
    """Decode the files that `raw` lists into arrays in `scratch`, or the training part into `data.shards`."""
    root, rejected = Path(data.root), read_rejected(raw)
    classes = classes_of(ListedFiles(raw, "train"))
    numbers = {label: number for number, label in enumerate(classes or [""])}
    channels, height, width = image_shape(data)
    own_units = data.scale is not None
    reading = Reading(channels, (height, width), data.fit, data.white_level, own_units, data.color == "bands")
    dtype = np.float32 if own_units else np.uint8
    scratch.mkdir(exist_ok=True)
    parts, lost, groups = {}, [], {}
    for name in (*PARTS, "unlabelled"):
        files = ListedFiles(raw, name)
        groups[name] = [file.group for file in files]
        labels = np.fromiter((numbers.get(file.label, 0) for file in files), np.int64)
        if not len(labels):
            continue
        shape = (len(labels), channels, height, width)
        if data.shards and name in SHARDED:
            # Other pixels get another address, because an object store can't replace a whole array at once.
            how = {"shape": shape, "fit": data.fit, "white_level": data.white_level}
            key = content_sha256(how, (raw / FILES).read_bytes())[:20]
            address = f"{data.shards}/{key}/{name}"
            images, share, mine = _decode_into_shards(root, files, address, shape, reading, processes)
        else:
            images = processes.shared_array(scratch / f"{name}.npy", dtype, shape)
            share = processes.share_of(len(labels))
            mine = decode_files(root, islice(files, share.start, share.stop), images[share], reading)
        done = processes.collect((share.start, *mine))
        refused = {start + row: file for start, rows, _ in done for row, file in rows.items()}
        lost += [np.delete(of_each, list(rows), axis=0) for _, rows, of_each in done]
        rejected += refused.values()
        index = np.setdiff1d(np.arange(len(labels)), list(refused))
        is_labelled = bool(classes) and name != "unlabelled"
        parts[name] = Part(images, labels if is_labelled else None, index, files)
    if not processes.rank:
        parts = _with_groups(parts, groups)
        _check_folder(data, parts, classes, rejected)
        if data.shards and "unlabelled" in parts:
            raise ConvaeError("data.shards: all training pictures need a label, or none; set it to null")
    return parts, classes, rejected, np.concatenate(lost)


def _with_groups(parts: Mapping[str, Part], groups: Mapping[str, list[str]]) -> dict[str, Part]:
    """Number the groups, in all parts alike; nothing changes if there are none."""
    names = np.unique([name for part in parts for name in groups[part]])
    if names.tolist() == [""]:
        return dict(parts)
    return {name: replace(part, groups=np.searchsorted(names, groups[name])) for name, part in parts.items()}


def _decode_into_shards(
    root: Path, files: Iterable[ImageFile], address: str, shape: tuple[int, ...], reading: Reading, processes: Processes
) -> tuple[np.ndarray, slice, tuple[dict[int, Rejected], np.ndarray]]:
    """Decode this process's share of the pieces.

    Returns:
        All images, the rows that this process decoded, and the result of `decode_files` for these.
    """
    if not processes.rank:
        create_shards(address, shape)
    processes.collect(None)  # the array exists from here on
    writer = ShardWriter(address, processes.share_of(pieces_of(shape)))
    result = decode_files(root, islice(files, writer.rows.start, writer.rows.stop), writer, reading)
    hashes = [one for part in processes.collect(writer.close()) for one in part]
    return open_shards(address, np.arange(shape[0]), hashes), writer.rows, result


def _check_folder(
    data: DataParams, parts: Mapping[str, Part], classes: Sequence[str], rejected: Sequence[Rejected]
) -> None:
    """Check that not too many files were rejected, and that every part and class still has an image."""
    if len(rejected) > data.max_rejected:
        first = [f"{file.path} ({file.reason})" for file in rejected[:3]] + ["..."] * (len(rejected) > 3)
        limit = f"data.max_rejected = {data.max_rejected}"
        raise ConvaeError(f"{limit}: {len(rejected)} files in {data.root} cannot be used: {'; '.join(first)}")
    for name, part in parts.items():
        if not len(part.index):
            why = f"; {rejected[0].path}: {rejected[0].reason}" if rejected else ", as it holds no pictures"
            raise ConvaeError(f"data.root = {data.root}: no image of the {name} part can be read{why}")
        if part.labels is not None:
            for label in np.setdiff1d(part.labels, part.labels[part.index]):
                what = f"class '{classes[label]}' in the {name} part"
                raise ConvaeError(f"data.root = {data.root}: no image of {what} can be read")


def _divide(given: Mapping[str, Part], classes: Sequence[str], data: DataParams, seed: int) -> dict[str, Part]:
    """Hold out training images for the test and validation parts that the data set lacks."""
    parts = dict(given)
    for name, size in (("test", data.test_size), ("validation", data.validation_size)):
        if name not in parts:
            parts["train"], parts[name] = hold_out(parts["train"], classes, size, seed, f"data.{name}_size")
    if "unlabelled" not in parts:
        parts["unlabelled"] = Part(parts["train"].images[:0], None, np.empty(0, np.int64))
    parts["unlabelled"] = _without_held_out(parts["unlabelled"], parts)
    return {name: parts[name] for name in (*PARTS, "unlabelled")}


def _groups_of(part: Part) -> np.ndarray:
    """Number of the group of each image; empty if they belong to none."""
    return np.empty(0, np.int64) if part.groups is None else part.groups[part.index]


def _without_held_out(unlabelled: Part, parts: Mapping[str, Part]) -> Part:
    """The unlabelled part without images of groups that are held out."""
    if unlabelled.groups is None:
        return unlabelled
    held = np.concatenate([_groups_of(parts[name]) for name in PARTS[1:]])
    left_out = np.isin(_groups_of(unlabelled), held)
    if left_out.any():
        print(f"{left_out.sum()} unlabelled images are left out, because their groups are held out")
    return replace(unlabelled, index=unlabelled.index[~left_out])


def _write_part(folder: Path, parts: Sequence[Part], classes: Sequence[str], scaled: bool) -> dict[str, Any]:
    """Write the images of one or more parts as an image set, with the labels if it is one."""
    part, labels = parts[0], None
    if len(parts) == 1 and part.labels is not None:
        labels = part.labels[part.index]
    names = () if labels is None else classes
    if isinstance(part.images, ShardedImages) and folder.name in SHARDED:
        images = open_shards(part.images.address, part.index, part.images.hashes)
        description = write_sharded_image_set(folder, images, labels, names)
    else:
        shape = (sum(len(one.index) for one in parts), *part.images.shape[1:])
        # As floating-point numbers, all types and scales have the same way through the library.
        dtype = np.uint8 if part.images.dtype == np.uint8 and not scaled else np.float32
        description = write_image_set(folder, shape, chain.from_iterable(map(_chunks, parts)), labels, names, dtype)
    if part.groups is not None:
        description["groups"] = len(np.unique(np.concatenate([_groups_of(one) for one in parts])))
    if part.files:
        with (folder / "paths.txt").open("w", encoding="utf-8", newline="\n") as stream:
            for one in parts:
                chosen = np.isin(np.arange(len(one.images)), one.index)
                stream.writelines(f"{file.path}\n" for file in compress(one.files, chosen))
    return description


def _chunks(part: Part) -> Iterator[np.ndarray]:
    """Yield the images of a part in chunks."""
    step = max(1, COPIED_BYTES // max(1, part.images[:1].nbytes))
    for start in range(0, len(part.index), step):
        yield part.images[part.index[start : start + step]]
