import numpy as np
import torch

from convae.training.batches import ImageBatches, augment


def images(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)


def order(batches: ImageBatches) -> list[int]:
    return torch.cat([images for images, _ in batches]).flatten().tolist()


def test_every_image_comes_once_and_the_order_follows_seed_and_epoch():
    batches = ImageBatches(images(10), 4, seed=1)
    assert len(batches) == 3
    first, again = order(batches), order(batches)
    batches.epoch = 1
    second = order(batches)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first == again != second
    assert order(ImageBatches(images(10), 4, seed=2)) != first


def test_no_image_is_left_alone_in_a_batch():
    assert [len(pixels) for pixels, _ in ImageBatches(images(9), 4)] == [4, 5]
    assert len(ImageBatches(images(9), 4)) == 2
    assert [len(pixels) for pixels, _ in ImageBatches(images(3), 1, seed=0)] == [1, 1, 1]


def test_without_a_seed_the_order_is_that_of_the_images():
    assert order(ImageBatches(images(10), 4)) == list(range(10))


def test_labels_stay_with_their_images():
    for seed in (None, 1):
        for pixels, labels in ImageBatches(images(10), 4, seed, np.arange(10)):
            assert pixels.flatten().tolist() == labels.tolist()


def test_processes_share_each_batch():
    for seed in (None, 1):
        whole = ImageBatches(images(10), 4, seed)
        parts = [ImageBatches(images(10), 4, seed) for _ in range(2)]
        for rank, part in enumerate(parts):
            part.rank, part.world_size = rank, 2
        for (batch, _), (first, _), (second, _) in zip(whole, *parts, strict=True):
            assert sorted(batch.flatten().tolist()) == sorted(torch.cat([first, second]).flatten().tolist())


def test_augmented_images_are_mirrored_and_moved_ones():
    torch.manual_seed(0)
    picture = torch.arange(30, dtype=torch.uint8).view(1, 2, 3, 5)
    batch = picture.repeat(500, 1, 1, 1)
    assert torch.equal(augment(batch, flip=False, shift=0), batch)
    seen = {tuple(one.flatten().tolist()) for one in augment(batch, flip=True, shift=1)}
    expected = set()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = picture[0][:, (torch.arange(3) + down).clamp(0, 2)][:, :, (torch.arange(5) + right).clamp(0, 4)]
            expected |= {tuple(moved.flatten().tolist()), tuple(moved.flip(2).flatten().tolist())}
    assert seen == expected
