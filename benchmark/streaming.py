"""Shuffled batches of images that lie in pieces: `data.shards` beside three libraries made for it.

    pip install litdata webdataset datasets
    python -m benchmark.streaming

Each keeps the same images in a local folder in its own format. What is asked of each: how many images a second; whether
a second run gives the same order, and another number of workers or processes; and whether an epoch that broke off goes
on with exactly the batches that it would have had.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

COUNT, SHAPE, BATCH, STOP, BUFFER = 20_000, (3, 64, 64), 256, 30, 10_000
REPETITIONS = 3

Ids = Iterator[list[int]]
"""Of each batch, which images it has."""


def picture(index: int) -> np.ndarray:
    """Noise, with its number in the first four bytes."""
    image = np.random.default_rng(index).integers(0, 256, SHAPE, np.uint8)
    image.reshape(-1)[:4].view(np.int32)[0] = index
    return image


def ids(batch: Any) -> list[int]:
    """The numbers of a batch of pictures."""
    rows = np.ascontiguousarray(np.asarray(batch).reshape(len(batch), -1)[:, :4])
    numbers: list[int] = rows.view(np.int32).ravel().tolist()
    return numbers


def from_tar(sample: Any) -> np.ndarray:
    """The picture in a sample of WebDataset."""
    return np.frombuffer(sample["bin"], np.uint8).reshape(SHAPE)


def from_rows(rows: Any) -> np.ndarray:
    """The pictures in rows of Hugging Face datasets."""
    return np.stack([np.frombuffer(row["image"], np.uint8) for row in rows])


class Ours:
    """`data.shards`."""

    name = "zarr"

    def write(self, folder: Path) -> None:
        """One Zarr array."""
        from convae.datasets.shards import write_shards

        self.images: Any = write_shards(str(folder), (COUNT, *SHAPE), (picture(index)[None] for index in range(COUNT)))

    def batches(self, workers: int, state: Any = None) -> tuple[Ids, Callable[[], Any]]:
        """Batches from a state on; workers are processes that have a share of each batch."""
        from convae import processes
        from convae.training.batches import StreamedBatches

        def together() -> Ids:
            found = []
            count, rank = processes.count, processes.rank
            for number in range(workers):
                processes.count, processes.rank = lambda: workers, lambda number=number: number  # type: ignore[misc]
                one = StreamedBatches(self.images, BATCH, seed=0)
                one.first_batch = state or 0
                found.append(list(map(ids, (pixels for pixels, _ in one))))
            processes.count, processes.rank = count, rank
            yield from (list(chain.from_iterable(shares)) for shares in zip(*found, strict=True))

        one = StreamedBatches(self.images, BATCH, seed=0)
        one.first_batch = state or 0
        return together() if workers > 1 else (ids(pixels) for pixels, _ in one), lambda: STOP


class LitData:
    """Lightning's library, of its own format."""

    name = "litdata"

    def write(self, folder: Path) -> None:
        """Chunks of 8 MiB."""
        import litdata

        self.folder = str(folder)
        litdata.optimize(picture, list(range(COUNT)), self.folder, chunk_bytes=1 << 23, num_workers=1)

    def batches(self, workers: int, state: Any = None) -> tuple[Ids, Callable[[], Any]]:
        """Batches from a state on."""
        from litdata import StreamingDataLoader, StreamingDataset

        loader = StreamingDataLoader(
            StreamingDataset(self.folder, shuffle=True, seed=0), batch_size=BATCH, num_workers=workers
        )
        if state:
            loader.load_state_dict(state)
        return map(ids, loader), loader.state_dict


class WebDataset:
    """Tar files, read from front to back."""

    name = "webdataset"

    def write(self, folder: Path) -> None:
        """Tar files of 682 images."""
        import webdataset

        folder.mkdir()
        self.urls = f"{folder}/{{000000..{(COUNT - 1) // 682:06}}}.tar"
        with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=682, verbose=0) as writer:
            for index in range(COUNT):
                writer.write({"__key__": f"{index:06}", "bin": picture(index).tobytes()})

    def batches(self, workers: int, state: Any = None) -> tuple[Ids, Callable[[], Any]]:
        """Batches from the beginning: it keeps no state."""
        import webdataset

        pictures = webdataset.WebDataset(self.urls, shardshuffle=1000, seed=0, empty_check=False)
        arrays = pictures.shuffle(BUFFER, seed=0).map(from_tar)
        loader = webdataset.WebLoader(
            arrays.batched(BATCH, collation_fn=np.stack), batch_size=None, num_workers=workers
        )
        return map(ids, loader), lambda: None


class HuggingFace:
    """Parquet files, streamed."""

    name = "datasets"

    def write(self, folder: Path) -> None:
        """Parquet files of 682 images."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir()
        for start in range(0, COUNT, 682):
            pictures = [picture(index).tobytes() for index in range(start, min(start + 682, COUNT))]
            pq.write_table(pa.table({"image": pictures}), folder / f"{start:06}.parquet", compression="none")
        self.files = sorted(map(str, folder.iterdir()))

    def batches(self, workers: int, state: Any = None) -> tuple[Ids, Callable[[], Any]]:
        """Batches from a state on."""
        import datasets
        from torch.utils.data import DataLoader

        datasets.disable_progress_bars()
        stream = datasets.load_dataset("parquet", data_files=self.files, split="train", streaming=True)
        shuffled = stream.shuffle(seed=0, buffer_size=BUFFER)
        if state:
            shuffled.load_state_dict(state)

        loader = DataLoader(shuffled, BATCH, num_workers=workers, collate_fn=from_rows)
        return map(ids, loader), shuffled.state_dict


def measure(library: Any, folder: Path) -> list[str]:
    """A row of the table."""
    library.write(folder)
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        whole = list(library.batches(0)[0])
        seconds.append(time.perf_counter() - start)
    again = list(library.batches(0)[0])
    several = list(library.batches(2)[0])
    first, state = library.batches(0)
    begun = list(islice(first, STOP))
    saved = state()
    resumed = [] if saved is None else begun + list(library.batches(0, saved)[0])
    complete = sorted(chain.from_iterable(whole)) == list(range(COUNT))
    return [
        f"{library.name} {'' if library.name == 'zarr' else version(library.name)}",
        f"{COUNT / np.median(seconds):,.0f}",
        yes(complete),
        yes(again == whole),
        yes(several == whole),
        yes(resumed == whole) if saved is not None else "keeps no state",
    ]


def yes(answer: bool) -> str:
    """In words."""
    return "yes" if answer else "no"


def main() -> None:
    """Print the table as Markdown."""
    print("| | images/s | each once | second run alike | 2 workers alike | goes on alike |\n" + "| --- " * 6 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for library in (Ours(), LitData(), WebDataset(), HuggingFace()):
            folder = Path(scratch) / library.name
            print(f"| {' | '.join(measure(library, folder))} |", flush=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
