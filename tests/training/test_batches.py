import subprocess
import sys

import numpy as np
import pytest
import torch

from convae.datasets import shards
from convae.models.draws import augment
from convae.models.shared_batch import SharedBatch
from convae.processes import ALONE, Processes
from convae.training import batches as module
from convae.training.batches import Batches, ImageBatches, StreamedBatches


def images(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)


def order(batches: Batches, epoch: int = 0) -> list[int]:
    return torch.cat([images for images, _ in batches.of_epoch(epoch)]).flatten().tolist()


def test_every_image_occurs_once_in_an_order_set_by_seed_and_epoch():
    batches = ImageBatches(images(10), 4, seed=1)
    assert len(batches) == 3
    first, again = order(batches), order(batches)
    second = order(batches, 1)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first == again != second
    assert order(ImageBatches(images(10), 4, seed=2)) != first


def test_no_batch_has_a_single_image():
    assert [len(pixels) for pixels, _ in ImageBatches(images(9), 4).of_epoch(0)] == [4, 5]
    assert len(ImageBatches(images(9), 4)) == 2
    assert [len(pixels) for pixels, _ in ImageBatches(images(3), 1, seed=0).of_epoch(0)] == [1, 1, 1]


def test_without_a_seed_images_keep_their_order():
    assert order(ImageBatches(images(10), 4)) == list(range(10))


def test_labels_stay_with_their_images():
    for seed in (None, 1):
        for pixels, labels in ImageBatches(images(10), 4, seed, np.arange(10)).of_epoch(0):
            assert pixels.flatten().tolist() == labels.tolist()


@pytest.mark.parametrize("count", [2, 3, 7])
def test_processes_share_each_batch(count):
    for seed in (None, 1):
        whole, *shares = (
            list(ImageBatches(images(10), 4, seed, processes=process).of_epoch(0))
            for process in (ALONE, *(Processes(rank, count) for rank in range(count)))
        )
        for (batch, _), *parts in zip(whole, *shares, strict=True):
            assert torch.equal(batch, torch.cat([share for share, _ in parts]))
            assert len({len(share) for share, _ in parts}) <= 2


def test_batch_sizes_are_known_in_advance():
    for count in (3, 8, 9, 10):
        batches = ImageBatches(images(count), 4)
        assert [batches.size(index) for index in range(len(batches))] == [
            len(pixels) for pixels, _ in batches.of_epoch(0)
        ]


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    """`streamed(4)`: batches of four out of 30 images, in pieces of at most three and windows of nine."""
    monkeypatch.setattr(shards, "PIECE_BYTES", 3)
    monkeypatch.setattr(module, "PIECE_BYTES", 3)
    monkeypatch.setattr(module, "WINDOW_BYTES", 9)
    written = shards.write_shards(str(tmp_path / "shards"), (40, 1, 1, 1), [images(40)])
    some = shards.ShardedImages(written.address, np.flatnonzero(np.arange(40) % 4), written.hashes)
    return lambda size, seed=1, processes=ALONE: StreamedBatches(some, size, seed, some.index, processes)


def test_every_streamed_image_occurs_once_in_an_order_set_by_seed_and_epoch(streamed):
    batches = streamed(4)
    first, again = order(batches), order(batches)
    second = order(batches, 1)
    assert sorted(first) == sorted(second) == batches.labels.tolist()
    assert first == again != second
    assert order(streamed(4, seed=2)) != first
    assert order(streamed(7)) == first
    assert [len(pixels) for pixels, _ in batches.of_epoch(0)] == [batches.size(index) for index in range(len(batches))]
    for pixels, labels in batches.of_epoch(0):
        assert pixels.flatten().tolist() == labels.tolist()


def test_streaming_resumes_from_any_batch(streamed):
    whole = list(streamed(4).of_epoch(0))
    for first in range(len(whole) + 1):
        rest = list(streamed(4).of_epoch(0, first))
        assert len(rest) == len(whole) - first
        for (pixels, labels), (expected, their_labels) in zip(rest, whole[first:], strict=True):
            assert torch.equal(pixels, expected)
            assert torch.equal(labels, their_labels)


def test_processes_share_each_streamed_batch(streamed):
    whole = order(streamed(4))
    shares = [[pixels for pixels, _ in streamed(4, processes=Processes(rank, 3)).of_epoch(0)] for rank in range(3)]
    assert torch.cat([torch.cat(parts) for parts in zip(*shares, strict=True)]).flatten().tolist() == whole


BEYOND_MEMORY = """\
import resource, sys
import numpy as np, psutil
from convae.datasets import shards
from convae.training import batches

batches.WINDOW_BYTES = 1 << 24
chunks = (np.full((512, 3, 64, 64), number, np.uint8) for number in range(64))
images = shards.write_shards(sys.argv[1], (32_768, 3, 64, 64), chunks)
whole = batches.StreamedBatches(images, 512, 0)
next(whole.of_epoch(0))
limit = psutil.Process().memory_info().data + 150_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
seen = np.zeros(64, int)
for pixels, _ in whole.of_epoch(0):
    seen += np.bincount(pixels[:, 0, 0, 0].numpy(), minlength=64)
print(set(seen.tolist()))
try:
    images[:]
except MemoryError:
    print("no room for all")
"""


def test_streaming_does_not_load_all_images(tmp_path):
    done = subprocess.run([sys.executable, "-c", BEYOND_MEMORY, tmp_path], capture_output=True, text=True)
    assert done.stdout == "{512}\nno room for all\n", done.stderr


def test_augmentation_mirrors_and_shifts_images():
    torch.manual_seed(0)
    picture = torch.arange(30, dtype=torch.uint8).view(1, 2, 3, 5)
    batch = picture.repeat(500, 1, 1, 1)
    assert torch.equal(augment(batch, False, 0, SharedBatch()), batch)
    seen = {tuple(one.flatten().tolist()) for one in augment(batch, True, 1, SharedBatch())}
    expected = set()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = picture[0][:, (torch.arange(3) + down).clamp(0, 2)][:, :, (torch.arange(5) + right).clamp(0, 4)]
            expected |= {tuple(moved.flatten().tolist()), tuple(moved.flip(2).flatten().tolist())}
    assert seen == expected
