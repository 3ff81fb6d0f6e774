"""The same images in every common form, and objects that are not images."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convae.datasets.reading import Reading
from convae.errors import ConvaeError
from convae.images import image_batches

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), np.uint8)
GREY = COLOUR[:, :1]


def batches(images, channels=3, size=100):
    return list(image_batches(images, Reading(channels), lambda _: size))


def whole(images, channels=3):
    (batch,) = batches(images, channels)
    assert batch.is_contiguous()
    return batch.numpy()


def pictures(folder: Path, images: np.ndarray) -> list[Path]:
    files = [folder / f"{index}.png" for index in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(file)
    return files


KINDS = {
    "[N, C, H, W]": lambda images: images,
    "[N, H, W, C]": lambda images: images.transpose(0, 2, 3, 1),
    "tensor": torch.from_numpy,
    "tensor [N, H, W, C]": lambda images: torch.from_numpy(images.transpose(0, 2, 3, 1)),
    "list of arrays": list,
    "tuple of tensors": lambda images: tuple(torch.from_numpy(images)),
    "Pillow images": lambda images: [Image.fromarray(image.transpose(1, 2, 0).squeeze()) for image in images],
    "generator": lambda images: (image for image in images),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [COLOUR, GREY], ids=["colour", "grey"])
def test_every_kind_of_image_gives_the_same_pixels(kind, images):
    found = whole(KINDS[kind](images), images.shape[1])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images)


def test_files_give_the_same_pixels(tmp_path):
    files = pictures(tmp_path, COLOUR)
    for kind in (files, [str(file) for file in files], np.array([str(file) for file in files])):
        np.testing.assert_array_equal(whole(kind), COLOUR)
    np.testing.assert_array_equal(whole(str(files[2])), COLOUR[2:3])
    np.testing.assert_array_equal(whole(Image.open(files[2])), COLOUR[2:3])


def test_grey_images_need_no_channel_axis():
    np.testing.assert_array_equal(whole(GREY[:, 0], 1), GREY)
    np.testing.assert_array_equal(whole(list(GREY[:, 0]), 1), GREY)


@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_single_image_is_not_mistaken_for_many(width):
    """`[H, W, 1]`, or grey images that are so wide."""
    images = np.arange(6 * 5 * width, dtype=np.uint8).reshape(6, 5, width)
    with pytest.raises(ConvaeError, match=rf"pass images\[None\]; for grey images {width} pixels wide, "):
        batches(images, 1)
    with pytest.raises(ConvaeError, match=r"images\[:, None\]$"):
        batches(torch.from_numpy(images), 1)
    np.testing.assert_array_equal(whole(images[:, None], 1), images[:, None])
    np.testing.assert_array_equal(whole(list(images), 1), images[:, None])
    if width == 1:
        np.testing.assert_array_equal(whole(images[None], 1), images[None].transpose(0, 3, 1, 2))


def test_if_both_layouts_are_possible_channels_come_first():
    images = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
    np.testing.assert_array_equal(whole(images), images)
    np.testing.assert_array_equal(whole(list(images)), images)


@pytest.mark.parametrize("shape", [(6, 7), (7,), (), (1, 2, 3, 6, 7)])
def test_other_numbers_of_axes_are_refused(shape):
    with pytest.raises(ConvaeError, match=r"images have the shape \["):
        batches(np.zeros(shape, np.uint8), 1)


def test_a_mask_is_not_dropped():
    with pytest.raises(ConvaeError, match="images are a masked array"):
        batches(np.ma.masked_array(COLOUR, COLOUR > 9))


def test_pictures_are_converted_to_the_encoders_channels(tmp_path):
    luma = np.einsum("nchw,c->nhw", COLOUR, [0.299, 0.587, 0.114])
    np.testing.assert_allclose(whole(pictures(tmp_path, COLOUR), 1)[:, 0], luma, atol=1)
    np.testing.assert_array_equal(whole(pictures(tmp_path, GREY), 3), GREY.repeat(3, axis=1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", torch.bfloat16])
def test_floats_range_from_zero_to_one(dtype):
    images = COLOUR / 255
    images = torch.tensor(images, dtype=dtype) if isinstance(dtype, torch.dtype) else images.astype(dtype)
    found = whole(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, COLOUR / 255, atol=4e-3 if dtype == torch.bfloat16 else 3e-4)


def test_rounding_errors_beyond_the_range_are_clipped():
    found = whole(np.full((1, 3, 2, 2), 1 + 1e-6, np.float32) - np.float32(0))
    assert found.max() == 1


def test_views_and_read_only_arrays_are_read_without_a_warning():
    locked = COLOUR.copy()
    locked.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(whole(locked), COLOUR)
        np.testing.assert_array_equal(whole(COLOUR[:, ::-1, ::-1]), COLOUR[:, ::-1, ::-1])


def test_batches_have_one_image_size_and_keep_the_order():
    sizes = [(6, 7), (6, 7), (6, 7), (8, 9), (6, 7)]
    images = [np.full((3, *size), index, np.uint8) for index, size in enumerate(sizes)]
    found = batches(images, size=2)
    assert [tuple(batch.shape) for batch in found] == [(2, 3, 6, 7), (1, 3, 6, 7), (1, 3, 8, 9), (1, 3, 6, 7)]
    assert [int(image.max()) for batch in found for image in batch] == [0, 1, 2, 3, 4]
    assert [len(batch) for batch in batches(COLOUR, size=2)] == [2, 2, 1]


SHAPES = r"expected for 3 channel\(s\): \[N, 3, H, W\] or \[N, H, W, 3\]"


@pytest.mark.parametrize(
    ("images", "channels", "message"),
    [
        (COLOUR[:, :2], 3, rf"the shape \[5, 2, 6, 7\]; {SHAPES}"),
        (COLOUR[0], 3, rf"the shape \[3, 6, 7\]; {SHAPES}; for a single image, pass images\[None\]$"),
        ([COLOUR[0, 0]], 3, rf"the shape \[1, 6, 7\]; {SHAPES}"),
        (COLOUR, 1, r"expected for 1 channel\(s\): \[N, 1, H, W\] or \[N, H, W, 1\] or \[N, H, W\]"),
        (COLOUR.astype(np.int64), 3, "images are int64; uint8 from 0 to 255 or floating-point numbers from 0 to 1"),
        (torch.tensor(COLOUR > 9), 3, "images are bool"),
        (COLOUR[0].transpose(1, 2, 0), 1, r"the shape \[6, 7, 3\]; expected for 1 channel"),
        (COLOUR.astype(np.float32), 3, "values from 0 to 25[0-9]; allowed are floating-point numbers from 0 to 1"),
        (-(COLOUR / 255), 3, "values from -1 to "),
        (np.where(COLOUR > 250, np.nan, COLOUR / 255), 3, "values from nan to nan"),
        ("missing.png", 3, r"^missing\.png: "),
        ("zero\0byte.png", 3, "^zero\0byte.png: "),
        ([Image.new("F", (4, 4))], 3, "a Pillow image: floating-point numbers of 32 bits"),
        (["picture.png"], 2, "picture.png: a picture has 1 or 3 channels; an array of 2 is needed"),
        ([object()], 3, "an image is a object; arrays, files and Pillow images are allowed"),
        ([None], 1, "an image is a NoneType"),
    ],
)
def test_invalid_images_are_refused_in_one_line(images, channels, message):
    with pytest.raises(ConvaeError, match=message) as refusal:
        batches(images, channels)
    assert "\n" not in str(refusal.value)


def test_a_damaged_picture_is_refused_by_name(tmp_path):
    (file,) = pictures(tmp_path, COLOUR[:1])
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ConvaeError, match=f"{file}: "):
        batches([file])
