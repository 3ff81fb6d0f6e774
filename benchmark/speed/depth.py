"""Read TIFF files of five bands and 16 bits, and arrays of five channels; memory for four times as many images."""

import os
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile

from benchmark.speed.experiments import WHOLE_MAPS, params_of
from benchmark.speed.images import SCRATCH
from benchmark.speed.measuring import REPOSITORY, Row, at_least, at_most, in_new_process, rates, timed
from benchmark.speed.memory import peak_memory
from convae.datasets.decoding import decode_files
from convae.datasets.image_folder import list_images
from convae.datasets.reading import Reading
from convae.files import new_array, new_folder, write_json
from convae.params import Params

COUNT, CHANNELS, SIDE = 2000, 5, 128
FEW, MANY = 1000, 4000  # images in arrays


def rows() -> Iterator[Row]:
    """Files per second relative to tifffile alone, and memory of the stages that read arrays."""
    _tiffs()
    rate = rates(COUNT, (ours, tifffile_alone), 3)
    ours_, usual = rate["ours"], rate["tifffile_alone"]
    yield at_least("TIFF files of 5 bands of 16 bits/s, to tifffile in threads", 0.8, ours_ / usual, ours_, usual, None)
    for stage in ("download", "prepare"):
        few, many = (
            statistics.median(in_new_process(_memory, stage, count) for _ in range(3)) for count in (FEW, MANY)
        )
        yield at_most(f"memory of {stage}, MB, of {MANY} arrays to {FEW}", 1.1, many / few, many)


def ours() -> float:
    """Decode as the stage `prepare` does, hashes included."""
    files, _ = list_images(_tiffs())
    images = np.empty((COUNT, CHANNELS, SIDE, SIDE), np.float32)
    return timed(decode_files, _tiffs(), files, images, Reading(CHANNELS, (SIDE, SIDE), own_units=True, bands=True))


def tifffile_alone() -> float:
    """As many threads that only read the numbers."""
    images = np.empty((COUNT, CHANNELS, SIDE, SIDE), np.float32)

    def read(index: int) -> None:
        images[index] = tifffile.imread(_tiffs() / f"train/{index:05}.tif")

    def read_all() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(read, range(COUNT)))

    return timed(read_all)


def _tiffs() -> Path:
    folder = SCRATCH / "bands"
    if not folder.exists():
        random = np.random.default_rng(0)
        with new_folder(folder) as scratch:
            (scratch / "train").mkdir()
            for index in range(COUNT):
                values = random.integers(1 << 16, size=(CHANNELS, SIDE, SIDE), dtype=np.uint16)
                tifffile.imwrite(scratch / f"train/{index:05}.tif", values, photometric="minisblack")
    return folder


def _memory(stage: str, count: int) -> float:
    """Peak memory of the stage in MB."""
    with TemporaryDirectory(dir=SCRATCH) as folder:
        workspace, environment = Path(folder), os.environ | {"CONVAE_TRACKING": "off", "PYTHONPATH": str(REPOSITORY)}
        write_json(workspace / "params.yaml", _of_arrays(count).model_dump(mode="json"))
        if stage == "prepare":
            peak_memory(["-m", "pipeline.download"], workspace, environment)
        return peak_memory(["-m", f"pipeline.{stage}"], workspace, environment)


def _of_arrays(count: int) -> Params:
    """An experiment on an array of five channels."""
    file = SCRATCH / f"arrays/{count}.npy"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        images = new_array(file, np.float32, (count, CHANNELS, SIDE, SIDE))
        for index in range(count):
            images[index] = np.random.default_rng(index).normal(size=images.shape[1:])
        images.flush()
    own = {"dataset": "arrays", "root": str(file), "image_size": SIDE, "channels": CHANNELS, "scale": "percentile"}
    return params_of(WHOLE_MAPS, data=own)
