"""Classify all pictures in a folder, however many, and write path, label and probabilities to a Parquet file.

    python examples/score_folder.py pictures/ predictions.parquet --model models

Pictures are read and classified batch by batch, so memory does not grow with their number. Bad ones are skipped.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from convae import load_image_classifier
from convae.datasets.pictures import UnusableError, read_picture
from convae.datasets.reading import Reading
from convae.names import printable
from convae.serving import score_columns

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def readable(files: Iterator[Path], reading: Reading, names: list[str]) -> Iterator[np.ndarray]:
    """Yield the pixels of each readable picture, and append its path to `names`."""
    for file in files:
        try:
            pixels = read_picture(file, reading)
        except UnusableError as error:
            print(f"{file}: {error}", file=sys.stderr)
        else:
            names.append(printable(str(file)))
            yield pixels


def main(pictures: Path, output: Path, model: str) -> None:
    """Write a row for each picture: `path`, `label`, and a column for each class."""
    classifier, names = load_image_classifier(model, device="auto"), []
    columns = score_columns(classifier)
    schema = pa.schema([("path", pa.string()), ("label", pa.string()), *((name, pa.float32()) for name in columns)])
    files = (file for file in sorted(pictures.rglob("*")) if file.suffix.lower() in SUFFIXES)
    with ParquetWriter(output, schema) as writer:
        for scores in classifier.score_batches(readable(files, classifier.encoder.reading(), names)):
            labels = [classifier.classes[index] for index in scores.argmax(1)]
            batch = [names[: len(scores)], labels, *scores.astype(np.float32).T]
            writer.write_table(pa.table(batch, schema=schema))
            del names[: len(scores)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Classify pictures, and write a Parquet file.")
    parser.add_argument("pictures", type=Path, help="a folder; its subfolders are searched, too")
    parser.add_argument("output", type=Path, help="the Parquet file to write")
    parser.add_argument("--model", default="fashion_mnist", help="a folder or a name (default: %(default)s)")
    main(**vars(parser.parse_args()))
