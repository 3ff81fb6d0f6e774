"""The first stage: get the images. The output is the same, byte for byte, whichever source it comes from."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convae.datasets.arrays import copy_arrays
from convae.datasets.catalogue import CATALOGUE, Dataset
from convae.datasets.groups import grouped
from convae.datasets.image_folder import list_images
from convae.datasets.image_table import list_table
from convae.datasets.listing import write_listing
from convae.datasets.readers import read
from convae.datasets.sources import sources
from convae.errors import ConvaeError
from convae.files import array_sha256, new_array, new_folder, row_chunks
from convae.params import DataParams


def download(data: DataParams, output: Path, downloads: Path) -> str:
    """Write the folder `output` from the first source that works.

    A data set of the catalogue becomes `{train,test,unlabelled}_{images,labels}.npy`, for the splits that it has:
    images `uint8 [N, C, H, W]` and labels `int64 [N]`. The files of an image folder stay where they are; `files.csv`
    lists its pictures (part, class, path relative to the root, bytes, SHA-256, group), and `rejected.csv` lists all
    other files, or rows of the table, with the reason for their rejection.

    Arrays of the user's own are described in `arrays.py`.

    Args:
        data: the section `data` of the parameters.
        output: `data/raw/<dataset>`; replaced as a whole, or left unchanged if an error occurs.
        downloads: `data/downloads`, a cache of archives.

    Returns:
        The source, for the log. The output does not depend on it.

    Raises:
        ConvaeError: no source works, or the image folder can't be used.
    """
    root = Path(data.root)
    with new_folder(output) as folder:
        if data.dataset == "image_folder":
            files, rejected = list_table(root, data.table) if data.table else list_images(root)
            write_listing(folder, grouped(files, data.group), rejected)
            return f"data.root = {root}"
        if data.dataset == "arrays":
            copy_arrays(data, folder)
            return f"data.root = {root}"
        return _from_first_source(data, CATALOGUE[data.dataset], downloads / data.dataset, folder)


def _from_first_source(data: DataParams, dataset: Dataset, downloads: Path, folder: Path) -> str:
    name, root = data.dataset, Path(data.root)
    scratch = folder / "unpacked"
    scratch.mkdir()
    failures = []
    for source, find in sources(name, dataset, root, downloads, scratch).items():
        try:
            for split, images, labels in read(dataset, find(), scratch, data.trust):
                _write_array(folder, f"{split}_images", images, dataset.sha256)
                if labels is not None:
                    _write_array(folder, f"{split}_labels", labels, dataset.sha256)
        except (ConvaeError, OSError) as error:
            failures.append(f"{source}: {error}")
            print(failures[-1], file=sys.stderr, flush=True)
        else:
            shutil.rmtree(scratch)
            return source
    remedies = [f"put {', '.join(dataset.archives)} into {root}, or set data.root to their folder"]
    if dataset.package:
        remedies.append(f"apt-get install {dataset.package}")
    remedies.append("set data.dataset to digits, which needs no download")
    lines = [f"data.dataset = {name}: no source has it", *failures, f"Possible remedies: {'; or '.join(remedies)}"]
    raise ConvaeError("\n  ".join(lines))


def _write_array(folder: Path, name: str, array: np.ndarray, sha256: Mapping[str, str]) -> None:
    """Check `array` against the catalogue's hash, if there is one, and write it in chunks."""
    if sha256 and (found := array_sha256(array)) != sha256[name]:
        raise ConvaeError(
            f"{name.replace('_', ' ')} differ from the catalogue's: SHA-256 {found}, expected {sha256[name]}; "
            "get the files again"
        )
    target = new_array(folder / f"{name}.npy", array.dtype, array.shape)
    for rows in row_chunks(array):
        target[rows] = array[rows]
    target.flush()
