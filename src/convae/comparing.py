"""The commands `convae similar` and `anomalies`."""

import json
import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from convae.addresses import fetched, needs_fetching
from convae.datasets.image_set import ImageSet
from convae.datasets.pictures import UnusableError
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.evaluation.anomalies import load_reference
from convae.files import check_folder, check_free, new_file
from convae.named_pictures import Pictures
from convae.names import printable

SHEET_PIXELS = 160  # of a picture's longer side
MOST_ON_SHEET, COLUMNS = 60, 10


def similar(
    images: list[str], folder: str, k: int, encoder: str, sheet: Path | None, as_json: bool, force: bool, device: str
) -> None:
    """`convae similar`: print the pictures in a folder that are most similar to others, and their distances.

    Raises:
        ConvaeError: pictures were skipped (raised after all others are done), `folder` has no usable picture, or
            `sheet` exists and `force` is off.
    """
    from convae.index import Index

    if k < 1:
        raise ConvaeError("-k: 1 or more is needed")
    if not Path(folder).is_dir():
        raise ConvaeError(f"{folder}: not a folder; the last argument is the folder to search")
    check_sheet(sheet, force)
    loaded = load_encoder(encoder, device)
    index = Index.of_folder(loaded, folder)
    pictures = Pictures(images, loaded, resize=True)
    found = index.similar(pictures, k)
    if as_json:
        table = [
            {"file": name, "similar": [{"file": file, "distance": distance} for file, distance in row]}
            for name, row in zip(pictures.read, found, strict=True)
        ]
        print(json.dumps(table, indent=2))
    for name, row in zip(pictures.read, found, strict=True) if not as_json else ():
        if len(pictures.files) > 1:
            print(printable(name))
        for file, distance in row:
            print(f"{distance:10.4f}  {printable(file)}")
    if sheet:
        queries = [(name, "") for name in pictures.read]
        rows = [
            [query, *((file, f"{distance:.2f}") for file, distance in row[: COLUMNS - 1])]
            for query, row in zip(queries, found, strict=True)
        ]
        _draw([entry for row in rows for entry in row], pictures, loaded, sheet, columns=len(rows[0]) if rows else 1)
    pictures.finish()


def anomalies(
    images: list[str], model: str, threshold: float | None, sheet: Path | None, as_json: bool, force: bool, device: str
) -> None:
    """`convae anomalies`: print how unusual each picture is, the most unusual first.

    Raises:
        ConvaeError: pictures were skipped (raised after all others are done), there is no such model, or `sheet` exists
            and `force` is off.
    """
    check_sheet(sheet, force)
    if threshold is not None and math.isnan(threshold):
        raise ConvaeError("--threshold: a number is needed")
    with fetched(model) if needs_fetching(model) else nullcontext(Path(model)) as folder:
        encoder = load_encoder(folder / "encoder", device)
        reference = load_reference(folder / "reference", encoder)
    pictures = Pictures(images, encoder, resize=True)
    scores: list[float] = []
    for features in encoder.feature_batches(pictures, code=reference.code):
        scores += reference.scores(features).tolist()
    order = np.argsort(-np.asarray(scores), kind="stable").tolist()
    worst = [row for row in order if threshold is None or scores[row] >= threshold]
    if as_json:
        print(json.dumps([{"file": pictures.read[row], "score": scores[row]} for row in worst], indent=2))
    for row in worst if not as_json else ():
        print(f"{scores[row]:8.2f}  {printable(pictures.read[row])}")
    if sheet:
        entries = [(pictures.read[row], f"{scores[row]:.1f}") for row in worst]
        _draw(entries, pictures, encoder, sheet, COLUMNS, heat=encoder.has_decoder)
    pictures.finish()


def check_sheet(sheet: Path | None, force: bool) -> None:
    """Refuse a sheet that exists or is no PNG file, before anything is computed."""
    if sheet is None:
        return
    if sheet.suffix.lower() != ".png":
        raise ConvaeError(f"{sheet}: the suffix must be .png")
    check_folder(sheet.parent)
    check_free(sheet, force)


def _draw(
    entries: list[tuple[str, str]], pictures: Pictures, encoder: Encoder, sheet: Path, columns: int, heat: bool = False
) -> None:
    """Write a contact sheet: each picture with its name below and a text above."""
    from convae.reporting.drawing import Paint, gallery, save_figure, style
    from convae.reporting.space import beside_error_maps

    most = MOST_ON_SHEET // columns * columns
    if len(entries) > most or not entries:
        told = f"the first {most} of {len(entries)} pictures" if entries else "no picture, so it is not written"
        print(f"convae: {sheet}: {told}", file=sys.stderr)
    if not entries:
        return
    entries, size = entries[:most], encoder.config["image_size"]
    # Arrays and error maps have the encoder's own size; files are shown larger.
    own = heat or any(file in pictures.arrays for file, _ in entries)
    factor = 1 if own else max(1, round(SHEET_PIXELS / max(size)))
    reading = replace(encoder.reading(), size=(size[0] * factor, size[1] * factor))
    try:
        pixels = np.stack([pictures.pixels(file, reading) for file, _ in entries])
    except UnusableError as error:  # changed since it was read for the first time
        raise ConvaeError(f"{sheet}: not written: {error}") from None
    paint = Paint.of(ImageSet(pixels, None, (), sha256=""), encoder.scale, None)
    shown = beside_error_maps(encoder, pixels, paint) if heat else list(paint(pixels))
    with style(), new_file(sheet) as scratch:
        names = [printable(Path(file).name) for file, _ in entries]
        save_figure(gallery(shown, [text for _, text in entries], names, columns), scratch, palette=False)
