import subprocess
import sys
from collections.abc import Callable
from typing import get_args

import pytest
from torchvision import datasets

from convae.datasets.catalogue import CATALOGUE, image_shape
from convae.params import DataParams, DatasetName

IDX = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}
TAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}


def test_every_data_set_that_parameters_allow_is_in_the_catalogue() -> None:
    assert {*CATALOGUE, "image_folder", "arrays"} == set(get_args(DatasetName))


@pytest.mark.parametrize("name", IDX)
def test_idx_archives_and_mirrors_equal_torchvisions(name: str) -> None:
    assert dict(CATALOGUE[name].archives) == dict(IDX[name].resources)
    assert list(CATALOGUE[name].mirrors) == IDX[name].mirrors


@pytest.mark.parametrize("name", TAR)
def test_tar_archives_and_mirrors_equal_torchvisions(name: str) -> None:
    assert dict(CATALOGUE[name].archives) == {TAR[name].filename: TAR[name].tgz_md5}
    assert [mirror + TAR[name].filename for mirror in CATALOGUE[name].mirrors] == [TAR[name].url]


def test_svhn_equals_torchvisions() -> None:
    (mirror,) = CATALOGUE["svhn"].mirrors
    listed = [datasets.SVHN.split_list[split] for split in ("train", "test")]
    assert [(mirror + file, file, md5) for file, md5 in CATALOGUE["svhn"].archives.items()] == [*map(tuple, listed)]


@pytest.mark.parametrize("name", CATALOGUE)
def test_entries_are_consistent(name: str) -> None:
    dataset = CATALOGUE[name]
    assert len(set(dataset.classes)) == len(dataset.classes) == (100 if name == "cifar100" else 10)
    assert set(dataset.images) <= {"train", "test", "unlabelled"}
    arrays = {f"{split}_{kind}" for split in dataset.images for kind in ("images", "labels")}
    assert set(dataset.sha256) in (set(), arrays)
    assert dataset.archives or dataset.sha256


def test_image_shape(data_params: Callable[..., DataParams]) -> None:
    assert image_shape(data_params()) == (1, 28, 28)
    assert image_shape(data_params(dataset="stl10")) == (3, 96, 96)
    assert image_shape(data_params(dataset="image_folder", image_size=(32, 48))) == (3, 32, 48)
    assert image_shape(data_params(dataset="image_folder", image_size=(32, 48), color="grey")) == (1, 32, 48)


def test_the_catalogue_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'sklearn', 'PIL'}"
    code = f"import sys, convae.datasets.catalogue; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
