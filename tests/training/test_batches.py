import numpy as np
import torch

from convae.training.batches import ImageBatches


def images(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)


def order(batches: ImageBatches) -> list[int]:
    return torch.cat(list(batches)).flatten().tolist()


def test_every_image_comes_once_and_the_order_follows_seed_and_epoch():
    batches = ImageBatches(images(10), 4, seed=1)
    assert len(batches) == 3
    first, again = order(batches), order(batches)
    batches.epoch = 1
    second = order(batches)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first == again != second
    assert order(ImageBatches(images(10), 4, seed=2)) != first


def test_without_a_seed_the_order_is_that_of_the_images():
    assert order(ImageBatches(images(10), 4)) == list(range(10))


def test_processes_share_each_batch():
    whole = ImageBatches(images(10), 4, seed=1)
    parts = [ImageBatches(images(10), 4, seed=1) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.rank, part.world_size = rank, 2
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(batch.flatten().tolist()) == sorted(torch.cat([first, second]).flatten().tolist())
