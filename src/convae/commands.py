"""What `convae features`, `classify`, `reconstruct` and `info` do."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from glob import glob, has_magic
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from convae.addresses import fetched, is_address
from convae.datasets.foreign import FORMAT_NAMES, SUFFIXES, is_litter
from convae.datasets.pictures import UnusableError, read_picture
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.evaluation.concerns import beside_accuracy
from convae.evaluation.saving import load_classifier
from convae.files import check_folder, check_free, new_file
from convae.models.geometry import show
from convae.names import printable
from convae.terminal import warn_beside_bars

ROW_GROUP = 1024  # rows of a Parquet file that belong together: each group describes every column
AHEAD = 16  # pictures decoded before they are needed
Append = Callable[[np.ndarray, list[str]], None]


class Pictures:
    """The pictures that arguments name, decoded in threads; those that can't be used are reported and left out.

    Args:
        arguments: files, folders, patterns, or - for names from standard input.
        encoder: what the pictures have to suit.
        resize: to the size that the encoder was trained on.

    Attributes:
        files: names of all of them.
        used: names of the pictures given so far.
        place: of the one given last, among `files`.

    Raises:
        ConvaeError: there is no picture.
    """

    def __init__(self, arguments: list[str], encoder: Encoder, resize: bool) -> None:
        self.used: list[str] = []
        self.place = 0
        self.files = [file for argument in arguments for file in _named(argument)]
        if not self.files:
            raise ConvaeError("no pictures: nothing came from standard input")
        self._reading = encoder.reading(resize)
        self._check_size = encoder.batch_size

    def __iter__(self) -> Iterator[np.ndarray]:
        """Pixels `uint8 [C, H, W]` of one picture after the other."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such pictures are refused
            warnings.showwarning = warn_beside_bars
            with tqdm(total=len(self.files), unit=" images", disable=None) as progress:
                for start in range(0, len(self.files), AHEAD):
                    files = self.files[start : start + AHEAD]
                    for place, (file, pixels) in enumerate(zip(files, pool.map(self._read, files), strict=True), start):
                        progress.update()
                        if isinstance(pixels, UnusableError):
                            progress.write(f"convae: {printable(file)}: {pixels}", file=sys.stderr)
                        else:
                            self.used.append(printable(file))
                            self.place = place
                            yield pixels

    def finish(self) -> None:
        """Say whether pictures were left out.

        Raises:
            ConvaeError: some were.
        """
        missing = len(self.files) - len(self.used)
        if missing:
            raise ConvaeError(f"{missing} of {len(self.files)} pictures were left out")

    def _read(self, file: str) -> np.ndarray | UnusableError:
        try:
            pixels = read_picture(file, self._reading)
            self._check_size((pixels.shape[1], pixels.shape[2]))
        except UnusableError as error:
            return error
        except ConvaeError as error:
            return UnusableError(f"{error} (leave out --original-size)")
        return pixels


def _named(argument: str) -> list[str]:
    """The pictures that an argument stands for.

    Raises:
        ConvaeError: it is a folder without any, or with a link to another folder.
    """
    if argument == "-":
        return [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip()]
    if Path(argument).is_dir():
        files = sorted(_files_below(Path(argument)))
        pictures = [str(path) for path in files if path.suffix.lower() in SUFFIXES]
        others = [path for path in files if path.suffix.lower() not in SUFFIXES]
        left_out = f"{len(others)} of another suffix, such as {printable(others[0].name)}" if others else "no others"
        if not pictures:
            raise ConvaeError(f"{argument}: no {FORMAT_NAMES} file below it, and {left_out}")
        if others:
            print(f"convae: {printable(argument)}: {len(pictures)} files are read, and {left_out}", file=sys.stderr)
        return pictures
    if has_magic(argument) and not Path(argument).exists():
        return sorted(glob(argument, recursive=True)) or [argument]  # noqa: PTH207, pathlib's are relative
    return [argument]


def _files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and those in it, but hidden ones and litter; OSError where one can't be read."""
    with os.scandir(folder) as entries:
        kept = [entry for entry in entries if not (entry.name.startswith(".") or is_litter(entry.name))]
    for entry in kept:
        path = folder / entry.name
        if not path.is_dir():
            yield path
        elif path.is_symlink():
            raise ConvaeError(f"{path}: links to folders are not followed; name the folder itself, or remove the link")
        else:
            yield from _files_below(path)


def write_features(images: list[str], encoder: str, resize: bool, output: Path, force: bool) -> None:
    """`convae features`: a table of features as Parquet or `.npy`.

    Raises:
        ConvaeError: pictures were left out, which is told once all others are done; nothing can be read or written; or
            `output` exists and is not to be overwritten.
    """
    writers = {".npy": _npy_writer, ".parquet": _parquet_writer}
    if output.suffix not in writers:
        raise ConvaeError(f"{output}: features are written as .parquet or .npy")
    check_free(output, force)
    loaded = load_encoder(encoder)
    pictures = Pictures(images, loaded, resize)
    with new_file(output) as scratch, writers[output.suffix](scratch, loaded.features([]).shape[1]) as append:
        done = 0
        for features in loaded.feature_batches(pictures, resize):
            append(features, pictures.used[done : done + len(features)])
            done += len(features)
        if not done:  # nothing to write
            pictures.finish()
    pictures.finish()


@contextmanager
def _npy_writer(path: Path, dimension: int) -> Iterator[Append]:
    """Rows are appended; NumPy leaves room in the header for how many there will be."""
    rows = 0
    with path.open("wb") as stream:

        def write_header() -> None:
            stream.seek(0)
            about = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimension)}
            np.lib.format.write_array_header_1_0(stream, about)

        def append(features: np.ndarray, files: list[str]) -> None:
            nonlocal rows
            stream.write(features.astype("<f4").tobytes())
            rows += len(features)
            tqdm.write("\n".join(files))

        write_header()
        yield append
        write_header()


@contextmanager
def _parquet_writer(path: Path, dimension: int) -> Iterator[Append]:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise ConvaeError(f"{path.stem}: Parquet needs pyarrow; pip install pyarrow, or write .npy") from None
    names = [f"feature_{index}" for index in range(dimension)]
    schema = pa.schema([("file", pa.string()), *((name, pa.float32()) for name in names)])
    with ParquetWriter(path, schema) as writer:
        waiting: list[pa.RecordBatch] = []

        def append(features: np.ndarray, files: list[str]) -> None:
            waiting.append(pa.record_batch([pa.array(files, pa.string()), *features.T.copy()], schema=schema))
            if sum(map(len, waiting)) >= ROW_GROUP:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_batches(waiting, schema).combine_chunks())
            waiting.clear()

        yield append
        flush()


def classify(images: list[str], model: str, as_json: bool) -> None:
    """`convae classify`: the class of each picture, and its probability where the classifier knows it.

    Raises:
        ConvaeError: pictures were left out, which is told once all others are done; or there is no such model.
    """
    from convae.classifier import load_image_classifier

    classifier = load_image_classifier(model)
    pictures = Pictures(images, classifier.encoder, resize=True)
    classes, width = classifier.classes, max(map(len, classifier.classes))
    number = "probabilities" if classifier.has_probabilities else "scores"
    found: list[dict[str, Any]] = []
    for batch in classifier.score_batches(pictures):
        for scores in batch:
            file, best = pictures.used[len(found)], int(scores.argmax())
            probability = float(scores[best]) if classifier.has_probabilities else None
            numbers = dict(zip(classes, map(float, scores), strict=True))
            found.append({"file": file, "label": classes[best], "probability": probability, number: numbers})
            if not as_json:
                shown = "" if probability is None else f"{probability:7.2%}  "
                tqdm.write(f"{printable(classes[best]):{width}}  {shown}{file}")
    if as_json:
        print(json.dumps(found, indent=2))
    pictures.finish()


def reconstruct(images: list[str], encoder: str, resize: bool, output: Path, force: bool) -> None:
    """`convae reconstruct`: a PNG for each picture, what the encoder sees on the left, its reconstruction on the right.

    Raises:
        ConvaeError: pictures were left out, which is told once all others are done; there is no decoder; or a file
            exists that is not to be overwritten.
    """
    loaded = load_encoder(encoder)
    loaded.reconstruct([])  # tells that there is no decoder, before anything is written
    pictures = Pictures(images, loaded, resize)
    paths = _free_names(output, [Path(file).stem for file in pictures.files])
    sources = {Path(file).resolve() for file in pictures.files}
    for path in paths:
        check_free(path, force)
        if path.resolve() in sources:  # it may not have been read when it is overwritten
            raise ConvaeError(f"{path}: one of the pictures to read; name another folder")
    check_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    for pixels in pictures:
        seen, made = loaded.preprocess(pixels[None])[0], loaded.reconstruct(pixels[None])[0]
        path = paths[pictures.place]
        with new_file(path) as scratch:
            Image.fromarray(_side_by_side(seen, made)).save(scratch, "PNG")
        tqdm.write(f"{float(np.mean((seen - made) ** 2)):.6f}  {printable(str(path))}  {pictures.used[-1]}")
    pictures.finish()


def _free_names(folder: Path, stems: list[str]) -> list[Path]:
    """A name for each: the second `a` is `a-2.png`."""
    taken: dict[Path, None] = {}
    for stem in stems:
        names = (folder / f"{stem}{'' if index == 1 else f'-{index}'}.png" for index in count(1))
        taken[next(name for name in names if name not in taken)] = None
    return list(taken)


def _side_by_side(seen: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Two pictures `[C, H, W]` on one scale as `uint8 [H, 2W, C]`: 0 to 1, or grey at zero where values lie beyond."""
    both = np.concatenate([seen, made], axis=2)
    if seen.min() < 0 or seen.max() > 1:
        both = 0.5 + both / (2 * max(float(np.abs(seen).max()), 1e-6))
    pixels = np.rint(both.clip(0, 1) * 255).astype(np.uint8)
    return pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))


def print_info(source: str) -> None:
    """`convae info`: what an encoder is, how good, and from where.

    Raises:
        ConvaeError: there is no such encoder.
    """
    with fetched(source) if is_address(source) else nullcontext() as published:
        folder = published / "encoder" if published else Path(source)
        encoder = load_encoder(folder)
        try:
            about = list(_about(encoder, folder.parent / "classifier"))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConvaeError(f"{source}: not described as `dvc repro` does it: {error!r}") from None
        print(source)
        for name, text in about:
            print(f"  {name:16}{text}")
        if published:
            card = (published / "README.md").read_text("utf-8")  # of whoever published it: no control characters
            print("", *map(printable, card.splitlines()), sep="\n")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _about(encoder: Encoder, classifier: Path) -> Iterator[tuple[str, str]]:
    config = encoder.config
    least, size = encoder.minimum_size, config["image_size"]
    yield "images", f"{config['channels']} channel(s), {show(least)} pixels or more, trained on {show(size)}"
    yield "", "uint8 from 0 to 255, or floating-point numbers from 0 to 1"
    for name, settings in config["preprocessing"].items():
        if settings:
            yield _words(name), ", ".join(f"{key} {value}" for key, value in settings.items())
    for index, layer in enumerate(config["layers"]):
        pool = f", {layer['pool']['kind']} pooling {show(layer['pool']['size'])}" if layer["pool"] else ""
        text = f"{layer['filters']} filters {show(layer['kernel'])}, stride {show(layer['stride'])}, {layer['padding']}"
        yield f"layer {index}", f"{text}, {layer['activation']}{pool}; maps {show(encoder.map_sizes[index])}"
    if encoder.readout:
        settings = [f"{_words(key)} {value}" for key, value in config["readout"].items() if value is not None]
        yield "readout", ", ".join(settings[:4])
        yield "", ", ".join(settings[4:])
        yield "features", f"{encoder.features([]).shape[1]}"
    yield "parameters", f"{encoder.parameter_count}"
    yield "decoder", "trained" if encoder.has_decoder else "none"
    data = config["trained_on"]
    yield "trained on", f"{data['images']} images of {data['dataset']}, SHA-256 {data['sha256']}"
    if data["classes"]:
        yield "classes", ", ".join(map(printable, data["classes"]))
    yield "made with", ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    yield "content", f"SHA-256 {encoder.sha256}"
    try:
        _, about = load_classifier(classifier)
    except ConvaeError:  # there is none, or none to be trusted
        about = {}
    if about.get("encoder") == encoder.sha256:
        test = about["test"]
        interval = f"95 % interval {100 * test['accuracy_low']:.2f} to {100 * test['accuracy_high']:.2f}"
        yield "test accuracy", f"{100 * test['accuracy']:.2f} % ({interval}), of the {_words(about['kind'])} beside it"
        if "balanced_accuracy" in test:  # else it was made before that was measured
            yield "", beside_accuracy(test)
        yield "validation", f"{100 * about['validation']['accuracy']:.2f} %"
    yield "from where", "`convae lineage` says it for a folder that `dvc repro` made"
