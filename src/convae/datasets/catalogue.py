"""The public data sets: shapes, classes, files, hashes and where to get them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from convae.params import DataParams


@dataclass(frozen=True)
class Dataset:
    """A public data set of small images.

    Attributes:
        reader: the function of `convae.datasets.readers` that decodes the archives.
        shape: channels, height and width of every image.
        classes: names of the labels 0, 1, ...
        images: number of images in each split.
        archives: MD5 of each file on the mirrors, as torchvision publishes it.
        unpacked: MD5 of each unpacked file, if known. Copies compressed by another program differ only when packed.
        mirrors: base addresses for the files' names, in the order in which they are tried.
        torchvision_folder: torchvision's folder for the files, below its `root`; None means `root` itself.
        system_folder, package: where Debian installs the files, and the package that does.
        sha256: `convae.files.array_sha256` of each decoded array, such as `train_images`.

    Example:
        >>> CATALOGUE["cifar10"].shape, CATALOGUE["cifar10"].images["test"]
        ((3, 32, 32), 10000)
    """

    reader: Literal["idx", "cifar10", "cifar100", "svhn", "stl10", "digits"]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    images: Mapping[str, int]
    archives: Mapping[str, str] = field(default_factory=dict)
    unpacked: Mapping[str, str] = field(default_factory=dict)
    mirrors: tuple[str, ...] = ()
    torchvision_folder: str | None = None
    system_folder: str | None = None
    package: str | None = None
    # Empty for data sets whose archives were unavailable when this was written; MD5 is then the only check.
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def most_bytes(self) -> int:
        """An upper limit on the size of any archive or file in it: all images and labels, and 1 MB."""
        return 1_000_000 + sum(self.images.values()) * (math.prod(self.shape) + 1)


_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

_like_mnist = partial(Dataset, "idx", (1, 28, 28), images={"train": 60_000, "test": 10_000})

CATALOGUE: Mapping[str, Dataset] = {
    "fashion_mnist": _like_mnist(
        classes=_CLOTHES,
        archives={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        unpacked={
            "train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        torchvision_folder="FashionMNIST/raw",
        system_folder="/usr/share/datasets/fashion-mnist",
        package="dataset-fashion-mnist",
        sha256={
            "train_images": "3dbeb60b0f7b70ce3ca1b55f3fec5937708c25b90946a4367dcafc355ab6fc65",
            "train_labels": "360b383018792831520c7d2fd5b0144cf724933ddf4ed2b8ca90f0895998d38f",
            "test_images": "c8d929f04cc5b986db9fde49c8c4083820e5ff1046eec1d5349a91cf82484144",
            "test_labels": "ae0afadfdcca7255b6c3143fb81841cba2fd58668dae7fd71cb83aa3c406b824",
        },
    ),
    "mnist": _like_mnist(
        classes=_DIGITS,
        archives={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        unpacked={
            "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
        },
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        torchvision_folder="MNIST/raw",
    ),
    "kmnist": _like_mnist(
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        archives={
            "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
            "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
            "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
            "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
        },
        mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        torchvision_folder="KMNIST/raw",
    ),
    "cifar10": Dataset(
        reader="cifar10",
        shape=(3, 32, 32),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        images={"train": 50_000, "test": 10_000},
        archives={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
    ),
    "cifar100": Dataset(
        reader="cifar100",
        shape=(3, 32, 32),
        classes=tuple(_CIFAR100.split()),
        images={"train": 50_000, "test": 10_000},
        archives={"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
    ),
    "svhn": Dataset(
        reader="svhn",
        shape=(3, 32, 32),
        classes=_DIGITS,
        images={"train": 73_257, "test": 26_032},
        archives={
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
        mirrors=("http://ufldl.stanford.edu/housenumbers/",),
    ),
    "stl10": Dataset(
        reader="stl10",
        shape=(3, 96, 96),
        classes=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        images={"train": 5_000, "test": 8_000, "unlabelled": 100_000},
        archives={"stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb"},
        mirrors=("http://ai.stanford.edu/~acoates/stl10/",),
    ),
    "digits": Dataset(
        reader="digits",
        shape=(1, 8, 8),
        classes=_DIGITS,
        images={"train": 1_797},
        sha256={
            "train_images": "444f8f02117050d768476852fc9f33c597364446af0ab5136a8d524045a84bc4",
            "train_labels": "76bff3ae86fcdf6a3fe449398992fead9d3d4f3edacc86308efa76a8a5db1e2b",
        },
    ),
}


def image_shape(data: DataParams) -> tuple[int, int, int]:
    """Channels, height and width of the images that `prepare` writes.

    Example:
        >>> from convae.params import Params
        >>> image_shape(Params.default().data)
        (1, 28, 28)
    """
    if data.any_depth:
        assert data.image_size is not None  # DataParams rejects parameters without size and channels
        assert data.channels is not None
        return (data.channels, *data.image_size)
    if data.dataset == "image_folder":
        assert data.image_size is not None  # and an image folder without a size
        return (1 if data.color == "grey" else 3, *data.image_size)
    return CATALOGUE[data.dataset].shape
