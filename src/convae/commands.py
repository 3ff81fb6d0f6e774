"""The commands `convae features`, `classify`, `reconstruct` and `info`."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from convae.addresses import PRETRAINED, fetched, needs_fetching, pretrained
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.evaluation.concerns import beside_accuracy
from convae.evaluation.saving import load_scores
from convae.files import check_folder, check_free, new_file, read_file, read_json
from convae.models.geometry import show
from convae.named_pictures import Pictures
from convae.names import printable

# Rows written to a Parquet file at a time. Each group describes every column again, and there are often thousands of
# columns: smaller groups would waste space.
ROW_GROUP = 1024
MOST_CARD_BYTES = 1 << 20
Append = Callable[[np.ndarray, list[str]], None]


def write_features(
    images: list[str], encoder: str, resize: bool, output: Path, force: bool, code: bool = False, device: str = "cpu"
) -> None:
    """`convae features`: write a table of features, or of compact codes, as Parquet or `.npy`.

    Raises:
        ConvaeError: pictures were skipped (raised after all others are done), nothing can be read or written, the
            encoder has no compact code, or `output` exists and `force` is off.
    """
    writers = {".npy": _npy_writer, ".parquet": _parquet_writer}
    if output.suffix not in writers:
        raise ConvaeError(f"{output}: the suffix must be .parquet or .npy")
    check_free(output, force)
    loaded = load_encoder(encoder, device)
    dimension = loaded.features([], code=code).shape[1]
    pictures = Pictures(images, loaded, resize)
    with new_file(output) as scratch, writers[output.suffix](scratch, dimension) as append:
        done = 0
        for features in loaded.feature_batches(pictures, resize, code):
            append(features, list(map(printable, pictures.read[done : done + len(features)])))
            done += len(features)
        if not done:  # raises, so that no empty table is left behind
            pictures.finish()
    pictures.finish()


@contextmanager
def _npy_writer(path: Path, dimension: int) -> Iterator[Append]:
    """Append rows to a `.npy` file.

    The header comes first but holds the number of rows. NumPy pads it so that a larger number fits later: it is written
    once as a placeholder and again at the end. So the features never have to fit into memory together.
    """
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
        raise ConvaeError(f"{path.stem}: Parquet needs pyarrow; run `pip install pyarrow`, or write .npy") from None
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


def classify(images: list[str], model: str, as_json: bool, device: str = "cpu") -> None:
    """`convae classify`: print the class of each picture, with its probability if the classifier has one.

    Raises:
        ConvaeError: pictures were skipped (raised after all others are done), or there is no such model.
    """
    from convae.classifier import load_image_classifier

    classifier = load_image_classifier(model, device)
    pictures = Pictures(images, classifier.encoder, resize=True)
    classes, width = classifier.classes, max(map(len, classifier.classes))
    number = "probabilities" if classifier.has_probabilities else "scores"
    found: list[dict[str, Any]] = []
    for batch in classifier.score_batches(pictures):
        for scores in batch:
            file, best = pictures.read[len(found)], int(scores.argmax())
            probability = float(scores[best]) if classifier.has_probabilities else None
            numbers = dict(zip(classes, map(float, scores), strict=True))
            found.append({"file": file, "label": classes[best], "probability": probability, number: numbers})
            if not as_json:
                shown = "" if probability is None else f"{probability:7.2%}  "
                tqdm.write(f"{printable(classes[best]):{width}}  {shown}{printable(file)}")
    if as_json:
        print(json.dumps(found, indent=2))
    pictures.finish()


def reconstruct(images: list[str], encoder: str, resize: bool, output: Path, force: bool, device: str = "cpu") -> None:
    """`convae reconstruct`: write a PNG per picture, the encoder's input on the left, its reconstruction on the right.

    Raises:
        ConvaeError: pictures were skipped (raised after all others are done), there is no decoder, or a file exists and
            `force` is off.
    """
    loaded = load_encoder(encoder, device)
    loaded.reconstruct([])  # raises if there is no decoder, before anything is written
    pictures = Pictures(images, loaded, resize)
    paths = _free_names(output, [_stem(file) for file in pictures.files])
    sources = {Path(file).resolve() for file in pictures.files}
    for path in paths:
        check_free(path, force)
        if path.resolve() in sources:  # even --force must not overwrite a picture before it is read
            raise ConvaeError(f"{path}: is one of the pictures to read; choose another folder")
    check_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    for pixels in pictures:
        seen, made = loaded.preprocess(pixels[None])[0], loaded.reconstruct(pixels[None])[0]
        path = paths[pictures.place]
        with new_file(path) as scratch:
            Image.fromarray(_side_by_side(seen, made)).save(scratch, "PNG")
        tqdm.write(f"{float(np.mean((seen - made) ** 2)):.6f}  {printable(str(path))}  {printable(pictures.read[-1])}")
    pictures.finish()


def _free_names(folder: Path, stems: list[str]) -> list[Path]:
    """Return a different path for each stem: the second `a` becomes `a-2.png`.

    Example:
        >>> [path.name for path in _free_names(Path("out"), ["a", "b", "a"])]
        ['a.png', 'b.png', 'a-2.png']
    """
    paths: list[Path] = []
    taken: set[str] = set()
    number: Counter[str] = Counter()
    for stem in stems:
        name = stem
        while name in taken:
            number[stem] += 1
            name = f"{stem}-{number[stem] + 1}"
        taken.add(name)
        paths.append(folder / f"{name}.png")
    return paths


def _stem(file: str) -> str:
    """The name of a picture without folder and suffix; `stack-3` for `stack.npy[3]`."""
    stack, bracket, row = file.rpartition("[")
    return f"{Path(stack).stem}-{row.rstrip(']')}" if bracket and stack.endswith((".npy", ".npz")) else Path(file).stem


def _side_by_side(seen: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Join two pictures `[C, H, W]` to one `uint8 [H, 2W, C]`, or `[H, 2W]` if grey, on a common scale.

    Other channels than grey or RGB become rows of the picture, `[C·H, 2W]`.

    Black is 0 and white is 1. If preprocessing left values outside that range, zero becomes middle grey instead.
    """
    both = np.concatenate([seen, made], axis=2)
    if seen.min() < 0 or seen.max() > 1:
        both = 0.5 + both / (2 * max(float(np.abs(seen).max()), 1e-6))
    pixels: np.ndarray = np.rint(both.clip(0, 1) * 255).astype(np.uint8)
    if len(pixels) != 3:
        return pixels.reshape(-1, pixels.shape[2])
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def print_info(source: str | None) -> None:
    """`convae info`: describe an encoder, its training data and, if its classifier is next to it, its accuracy.

    Args:
        source: as in `load_encoder`; None for `models/encoder`, if there is one, and a list of the package's encoders.

    Raises:
        ConvaeError: there is no such encoder.
    """
    if source:
        return _describe(source)
    if Path("models/encoder").exists():
        _describe("models/encoder")
        print()
    print("encoders of the package:")
    for name in pretrained():
        accuracy = read_json(PRETRAINED / name / "classifier/classifier.json")["test"]["accuracy"]
        print(f"  {name:15} test accuracy {accuracy:.2%}, {load_encoder(PRETRAINED / name / 'encoder')}")


def _describe(source: str) -> None:
    with fetched(source) if needs_fetching(source) else nullcontext() as published:
        folder = published / "encoder" if published else Path(source)
        encoder = load_encoder(folder)
        try:
            about = list(_about(encoder, folder.parent / "classifier"))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConvaeError(f"{source}: its description is not one that `dvc repro` writes: {error!r}") from None
        print(source)
        for name, text in about:
            print(f"  {name:16}{text}")
        if published and (published / "README.md").exists():
            try:
                card = read_file(published / "README.md", MOST_CARD_BYTES).decode("utf-8", "replace")
            except (OSError, ValueError) as error:
                card = f"README.md: {error}"
            print("", *map(printable, card.splitlines()), sep="\n")  # from anybody, so escape control characters


def _words(name: str) -> str:
    return name.replace("_", " ")


def _windows(reading: dict[str, Any] | None) -> Iterator[str]:
    """What a layer does to each window that it reads."""
    if reading and reading["normalization"]:
        yield "normalised"
    if reading and reading["whitening"]:
        yield f"whitened ({reading['whitening']['kind']})"


def _about(encoder: Encoder, classifier: Path) -> Iterator[tuple[str, str]]:
    config = encoder.config
    least, size = encoder.minimum_size, config["image_size"]
    yield "images", f"{config['channels']} channel(s), {show(least)} pixels or more, trained on {show(size)}"
    yield (
        "",
        "in the units trained on" if encoder.scale else "uint8 from 0 to 255, or floating-point numbers from 0 to 1",
    )
    for name, settings in config["preprocessing"].items():
        if settings and name != "scale":
            yield _words(name), ", ".join(f"{key} {value}" for key, value in settings.items())
    for index, layer in enumerate(config["layers"]):
        pool = f", {layer['pool']['kind']} pooling {show(layer['pool']['size'])}" if layer["pool"] else ""
        text = f"{layer['filters']} filters {show(layer['kernel'])}, stride {show(layer['stride'])}, {layer['padding']}"
        yield f"layer {index}", f"{text}, {layer['activation']}{pool}; maps {show(encoder.map_sizes[index])}"
        if reads := list(_windows(layer.get("input"))):
            yield "", f"of windows: {', '.join(reads)}"
    if encoder.readout:
        settings = [f"{_words(key)} {value}" for key, value in config["readout"].items() if value is not None]
        yield "readout", ", ".join(settings[:4])
        yield "", ", ".join(settings[4:])
        mirrored = ", averaged with those of the mirror image" if config.get("mirror") else ""
        yield "features", f"{encoder.features([]).shape[1]}{mirrored}"
    if encoder.code:
        yield "code", f"{encoder.code.out_features} ({config['code']['kind']})"
    yield "parameters", f"{encoder.parameter_count}"
    yield "decoder", "trained" if encoder.has_decoder else "none"
    data = config["trained_on"]
    yield "trained on", f"{data['images']} images of {data['dataset']}, SHA-256 {data['sha256']}"
    if data["classes"]:
        yield "classes", ", ".join(map(printable, data["classes"]))
    yield "made with", ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    yield "content", f"SHA-256 {encoder.sha256}"
    try:
        _, about = load_scores(classifier)
    except ConvaeError:  # missing, or not to be trusted
        about = {}
    if about.get("encoder") == encoder.sha256:
        test = about["test"]
        interval = f"95 % interval {100 * test['accuracy_low']:.2f} to {100 * test['accuracy_high']:.2f}"
        kind = _words(about["kind"]) + (" of the code" if about.get("reads") == "code" else "")
        yield "test accuracy", f"{100 * test['accuracy']:.2f} % ({interval}), of the {kind} next to it"
        if "balanced_accuracy" in test:  # older versions did not measure it
            yield "", beside_accuracy(test)
        yield "validation", f"{100 * about['validation']['accuracy']:.2f} %"
    yield "origin", "run `convae lineage` on a folder that `dvc repro` wrote"
