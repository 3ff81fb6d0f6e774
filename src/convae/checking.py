"""The command `convae check`: what the pipeline would make of some images, found out without training."""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from convae.datasets.arrays import is_arrays, missing_chunks, open_arrays
from convae.datasets.catalogue import image_shape
from convae.datasets.download import download
from convae.datasets.listing import ListedFiles
from convae.datasets.pictures import TURN_OF, UnusableError, read_picture
from convae.datasets.prepare import prepare
from convae.datasets.reading import Reading
from convae.errors import ConvaeError
from convae.evaluation.concerns import EXAMPLES, MOST_CROPPED, PART_NAMES, image_concerns
from convae.experiment import feature_dimension
from convae.files import new_file, read_json
from convae.images import channel_axis
from convae.models.geometry import show
from convae.names import PARTS, printable
from convae.params import PARAMS_FILE, DataParams, Params, load_params

MOST_PIXELS = 96 * 96  # of a suggested size; larger pictures are scaled to about 64×64
USUAL_SIDE = 64
LOOKED_AT = 500  # pictures, to see whether they are grey
SAMPLE_BYTES = 1 << 27  # of arrays, to see their range
LEAST_STEPS = 300  # of training, per layer
NAMED = 10
TABLES = (".csv", ".parquet")
DESCRIBING = ("table", "group", "image_size", "channels", "layout", "scale", "color", "fit", "white_level", "shards")
# Seconds on two cores that Fashion-MNIST takes: to train, to compute features, to sum up the moments of 9408 features
# for the code, and for the rest; then those that do not depend on the number of images: to solve for that code, and to
# start processes.
TRAIN_SECONDS, FEATURE_SECONDS, MOMENT_SECONDS, OTHER_SECONDS = 50, 60, 80, 60
CODE_SECONDS, START_SECONDS = 15, 45


def check(root: Path, table: str | None, group: str | None, as_json: bool, write: bool) -> None:
    """Read images as the pipeline would, and print what it found, how long a run would take, and what to set.

    Args:
        root: the folder of pictures, or arrays.
        table: a table in `root` that lists them, or None.
        group: a pattern with the name of a picture's group in parentheses, or None.
        as_json: print an object instead of text.
        write: write the suggested parameters to params.yaml.

    Raises:
        ConvaeError: after the findings, if a run would refuse these pictures.
    """
    if write:
        load_params(PARAMS_FILE)  # raises if there is no valid file
    found = survey(root, table, group)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(_page(found)))
    if found["refused"]:
        raise ConvaeError(f"a run would stop: {found['refused']}")
    if write:
        _write(found["params"])
        print(f"{PARAMS_FILE} has these lines now", file=sys.stderr)


def survey(root: Path, table: str | None = None, group: str | None = None) -> dict[str, Any]:
    """What the pipeline would make of the pictures or arrays in `root`.

    Returns:
        - `refused`: why a run would stop; empty if it would not.
        - `params`: suggested parameters, by their dotted names.
        - `sizes`, `modes`: number of pictures by width×height and by kind of pixels.
        - `description`: the content of `data/prepared/description.json`, if a run gets that far.
        - `concerns`: as in the report, about images alone.
        - `disk_gb`, `minutes`: estimates for the default experiment.

    Example:
        >>> Path("photos").mkdir()
        >>> _ = Path("photos/1.png").write_bytes(Path("picture.png").read_bytes())
        >>> survey(Path("photos"))["refused"]
        "data.test_size = 0.2: 1 image(s) can't be split, at least 2 are needed; add some to the training part"
    """
    found: dict[str, Any] = {"root": str(root), "refused": "", "params": {}, "sizes": {}, "modes": {}, "concerns": []}
    with TemporaryDirectory() as scratch:
        raw, prepared = Path(scratch) / "raw", Path(scratch) / "prepared"
        try:
            if is_arrays(root):
                suggested = _look_at_arrays(root, Path(scratch), found)
                data = _data_params(root, table, group, **suggested)
                download(data, raw, Path(scratch))
            else:
                data = _data_params(root, table, group)
                download(data, raw, Path(scratch))
                suggested = _look(root, raw, found)
                data = DataParams.model_validate(data.model_dump() | suggested)
            dimension = feature_dimension(Params.default().model_copy(update={"data": data}))
            prepare(data, 0, raw, prepared)
        except ConvaeError as error:
            found["refused"] = str(error)
            return found
        description = read_json(prepared / "description.json")
    found["description"] = description
    # Without the files that can't be used, which are listed apart, and what only a run leaves behind.
    about = image_concerns(description | {"rejected": []})
    found["concerns"] += [concern.removesuffix(EXAMPLES).strip() for concern in about]
    if not table:
        unused = sorted(file.name for file in root.glob("*") if file.suffix.lower() in TABLES)
        found["concerns"] += [
            f"{printable(name)} is not read. If it lists the pictures, use --table." for name in unused
        ]
    if rejected := description["rejected"]:
        found["refused"] = f"files that can't be used: {len(rejected)}; remove them, or raise data.max_rejected"
    training = description["parts"]["unlabelled"]["images"] or description["parts"]["train"]["images"]
    epochs = max(1, math.ceil(LEAST_STEPS * 64 / training))
    found["params"] = {
        "data.dataset": data.dataset,
        "data.root": str(root.absolute()),
        "data.table": data.table and data.table.model_dump(exclude_none=True),
        "data.group": group,
        **{f"data.{key}": value for key, value in suggested.items()},
        "train.epochs": epochs,
    }
    _estimate(found, data, dimension, training * epochs)
    return found


def _data_params(root: Path, table: str | None, group: str | None, **suggested: Any) -> DataParams:
    """The default parameters for images of one's own; of pictures, any number may be unreadable."""
    content = Params.default().data.model_dump() | {
        "dataset": "image_folder",
        "root": str(root),
        "table": table and {"file": table},
        "group": group,
        "image_size": 8,
        "max_rejected": 2**31,
        **suggested,
    }
    try:
        return DataParams.model_validate(content)
    except ValidationError as error:
        mistake = error.errors()[0]
        name = ".".join(map(str, ("data", *mistake["loc"])))
        raise ConvaeError(f"{name}: {mistake['msg'].removeprefix('Value error, ')}") from None


def _look_at_arrays(root: Path, scratch: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Describe the array of images, and suggest how to read it."""
    unpacked = scratch / "arrays"
    unpacked.mkdir()
    arrays = open_arrays(root, unpacked)
    images = arrays.get("images", arrays.get("train_images"))
    if images is None or len(images.shape) not in (3, 4):
        raise ConvaeError(f"data.root = {root}: an array images [N, C, H, W] is needed; it holds {', '.join(arrays)}")
    _, *shape = images.shape
    is_last = len(shape) == 3 and channel_axis(images.shape) == 3
    channels = 1 if len(shape) == 2 else shape.pop(2 if is_last else 0)
    found["sizes"] = {show((shape[0], shape[1])): images.shape[0]}
    found["modes"] = {f"{images.dtype}, {channels} channel{'s' * (channels > 1)}": images.shape[0]}
    if len({*images.shape[1:]}) == 3 and not {1, 3} & {images.shape[1], images.shape[3]}:
        other = "channels_first" if is_last else "channels_last"
        found["concerns"].append(f"The shape {list(images.shape)} does not tell the channels: is it {other}?")
    of_image = max(1, math.prod(images.shape[1:]) * images.dtype.itemsize)
    found["concerns"].extend(missing_chunks(arrays))
    step = max(1, -(-images.shape[0] // min(LOOKED_AT, max(1, SAMPLE_BYTES // of_image))))
    try:
        sample = np.asarray(images[::step])
    except Exception as error:  # a damaged chunk can make Zarr raise nearly anything
        raise ConvaeError(f"data.root = {root}: images are not readable ({error})") from None
    is_fraction = images.dtype.kind == "f" and sample.size and 0 <= sample.min() <= sample.max() <= 1
    return {
        "dataset": "arrays",
        "image_size": shape,
        "channels": channels,
        "layout": "channels_last" if is_last else "channels_first",
        "scale": None if images.dtype == np.uint8 or is_fraction else "percentile",
    }


def _look(root: Path, raw: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Count the sizes and modes of all listed pictures, and suggest how to read them."""
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    deepest = 0
    paths = [root / file.path for part in (*PARTS, "unlabelled") for file in ListedFiles(raw, part)]
    for path in paths:
        try:
            with Image.open(path) as image:
                is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in list(TURN_OF)[3:]
                if image.mode.startswith("I;16"):
                    deepest = max(deepest, int(np.asarray(image).max()))
                sizes[image.size[::-1] if is_turned else image.size] += 1
                modes[image.mode] += 1
        except Exception:  # a damaged file can make Pillow raise nearly anything; `prepare` will say what is wrong
            found_bands = _bands(path)
            modes[f"{found_bands['channels']} bands" if found_bands else "unreadable"] += 1
    found["sizes"] = {show(size): count for size, count in sizes.most_common()}
    found["modes"] = dict(modes.most_common())
    size, fit = _suggested_size(sizes)
    suggested: dict[str, Any] = {"image_size": list(size), "fit": fit}
    kinds = Counter(tuple(_bands(path).items()) for path in paths[:: -(-len(paths) // LOOKED_AT)])
    if bands := dict(kinds.most_common(1)[0][0]):
        return suggested | {"color": "bands"} | bands
    suggested["color"] = "grey" if all(_is_grey(path) for path in paths[:: -(-len(paths) // LOOKED_AT)]) else "rgb"
    white = next(2**bits - 1 for bits in (*range(9, 16), 16) if deepest < 2**bits)
    if deepest and white < 2**16 - 1:
        suggested["white_level"] = white
    return suggested


def _bands(path: Path) -> dict[str, Any]:
    """Channels and scale of a TIFF that can't be read as grey or colour; empty for other pictures."""
    try:
        import tifffile

        with tifffile.TiffFile(path) as file:
            axes, shape, dtype = file.series[0].axes, file.series[0].shape, file.series[0].dtype
    except Exception:  # not a TIFF, a damaged one, or no tifffile; `prepare` will say what is wrong
        return {}
    with suppress(UnusableError):
        read_picture(path, Reading(3))
        return {}
    count = math.prod(side for axis, side in zip(axes, shape, strict=True) if axis not in "YX")
    return {"channels": count, "scale": None if dtype == np.uint8 else "percentile"}


def _suggested_size(sizes: Mapping[tuple[int, int], int]) -> tuple[tuple[int, int], str]:
    """Height and width that suit pictures of these widths and heights, and `data.fit`."""
    if not sizes:
        return (USUAL_SIDE, USUAL_SIDE), "crop"
    every = np.repeat(np.array(list(sizes)), list(sizes.values()), axis=0)
    width, height = (float(side) for side in np.median(every, axis=0))
    if width * height > MOST_PIXELS:
        scale = USUAL_SIDE / math.sqrt(width * height)
        width, height = width * scale, height * scale
    size = max(1, round(height)), max(1, round(width))
    ratios = every[:, 0] * size[0] / (every[:, 1] * size[1])
    cropped = 1 - np.minimum(ratios, 1 / ratios)
    return size, "pad" if np.median(cropped) > MOST_CROPPED else "crop"


def _is_grey(path: Path) -> bool:
    try:
        pixels = read_picture(path, Reading(3, (USUAL_SIDE, USUAL_SIDE)))
    except UnusableError:
        return True
    return bool((pixels == pixels[:1]).all())


def _estimate(found: dict[str, Any], data: DataParams, dimension: int, trained_on: int) -> None:
    """Estimate space and time from what Fashion-MNIST takes: 60 000 and 10 000 images of 28×28 pixels."""
    images = sum(part["images"] for part in found["description"]["parts"].values())
    channels, height, width = image_shape(data)
    area = height * width / 28**2
    of_value = 1 if "levels" in found["description"]["parts"]["train"] else 8  # as they came, and as single precision
    of_each = of_value * channels * height * width + 4 * dimension
    found["disk_gb"] = math.ceil(2 * images * of_each / 1e7) / 100  # twice, because DVC's cache has a copy
    seconds = TRAIN_SECONDS * trained_on / 54_000 * area + FEATURE_SECONDS * images / 70_000 * area
    seconds += MOMENT_SECONDS * images / 70_000 * (dimension / 9408) ** 2 + OTHER_SECONDS * images / 70_000
    seconds += CODE_SECONDS * (dimension / 9408) ** 3 + START_SECONDS
    found["minutes"] = math.ceil(seconds / 60)


def _page(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the text."""
    description = found.get("description", {"parts": {}, "rejected": []})
    if found["sizes"]:
        yield f"{printable(found['root'])}: {sum(found['modes'].values())} images"
    for part, about in description["parts"].items():
        if about["images"]:
            yield f"  {PART_NAMES[part]:<12}{about['images']:>8} {_details(about)}"
    for what in ("sizes", "modes"):
        if found[what]:
            yield f"  {what:<12}{_counts(found[what])}"
    if rejected := description["rejected"]:
        yield f"Files that can't be used: {len(rejected)}"
        yield from (f"  {file['path']}: {file['reason']}" for file in rejected[:NAMED])
        yield from ["  ..."][: len(rejected) > NAMED]
    if found["concerns"]:
        yield "Concerns"
        yield from (f"  {concern}" for concern in found["concerns"])
    if found["params"]:
        yield "Parameters that suit (--write puts them into params.yaml)"
        yield from (f"  {name}: {json.dumps(value)}" for name, value in found["params"].items())
        yield f"A run takes about {found['disk_gb']:g} GB of disk and, on two cores, {found['minutes']} min."


def _details(about: Mapping[str, Any]) -> str:
    details = [about["origin"]] if about["origin"] == "held out" else []
    if "groups" in about:
        details.append(f"{about['groups']} group{'s' * (about['groups'] > 1)}")
    if about["images_per_class"]:
        details.append(_counts({printable(name): count for name, count in about["images_per_class"].items()}))
    return "; ".join(details)


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:NAMED]]
    return ", ".join(shown + [f"{len(counts) - NAMED} more"][: len(counts) > NAMED])


def _write(params: Mapping[str, Any]) -> None:
    """Set parameters in params.yaml, whose comments stay, and return others that describe images to the default."""
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    content = yaml.load(PARAMS_FILE.read_text("utf-8"))
    default = Params.default().data.model_dump(mode="json")
    for name, value in ({f"data.{key}": default[key] for key in DESCRIBING} | dict(params)).items():
        section, key = name.split(".")
        if isinstance(value, list):
            value = CommentedSeq(value)
            value.fa.set_flow_style()
        content[section][key] = value
    with new_file(PARAMS_FILE) as scratch:
        yaml.dump(content, scratch)
