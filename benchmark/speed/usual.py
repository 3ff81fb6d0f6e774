"""The usual way: torchvision's data sets and transforms, a DataLoader and plain Lightning modules."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

WORKERS = 2


class Pictures(Dataset[Any]):
    """An array whose images become Pillow images for the transform, as in torchvision's MNIST and CIFAR10."""

    def __init__(self, images: np.ndarray) -> None:
        """Store images `uint8 [N, C, H, W]`."""
        self.images = images.transpose(0, 2, 3, 1).squeeze()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), 0


def loader(images: np.ndarray, batch_size: int, shuffle: bool) -> DataLoader[Any]:
    """Batches of `float32 [n, C, H, W]` in [0, 1]."""
    return DataLoader(Pictures(images), batch_size=batch_size, shuffle=shuffle, num_workers=WORKERS)


class Reconstruction(lightning.LightningModule):
    """An autoencoder that minimises the mean squared error with Adam."""

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        """Store the network, which maps images to images."""
        super().__init__()
        self.network, self.learning_rate = network, learning_rate
        self.ends: list[float] = []

    def loss(self, images: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(self.network(images), images)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Log and return the loss."""
        loss = self.loss(batch[0])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """Log the loss."""
        self.log("validation_loss", self.loss(batch[0]))

    def on_train_epoch_end(self) -> None:
        """Record the time; Lightning calls this after validation."""
        self.ends.append(time.perf_counter())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class WinnerTakeAll(Reconstruction):
    """The same on preprocessed images, through whole activation maps in which all but the winners are zero."""

    def loss(self, images: Tensor) -> Tensor:
        """Mean squared error."""
        network: Any = self.network
        preprocessed = network.preprocessing(images)
        maps = network.layers[0](preprocessed)
        return F.mse_loss(network.reconstruct_layer(0, preprocessed, maps), preprocessed)


def train(module: Reconstruction, images: np.ndarray, validation: np.ndarray, batch_size: int) -> float:
    """Train for two epochs, and return the seconds of the second."""
    with TemporaryDirectory() as folder:
        trainer = lightning.Trainer(max_epochs=2, default_root_dir=folder)
        trainer.fit(module, loader(images, batch_size, True), loader(validation, batch_size, False))
    return module.ends[1] - module.ends[0]


def seed_cae(filters: int, learning_rate: float) -> Reconstruction:
    """A full 3×3 convolution, tanh, and a valid 3×3 convolution."""
    layers = nn.Conv2d(1, filters, 3, padding=2), nn.Tanh(), nn.Conv2d(filters, 1, 3)
    return Reconstruction(nn.Sequential(*layers), learning_rate)


def picture_batches(root: Path, side: int) -> DataLoader[Any]:
    """Batches of a folder of pictures, each resized and centre-cropped to `side`×`side` pixels."""
    transform = Compose([Resize(side), CenterCrop(side), ToTensor()])
    return DataLoader(ImageFolder(root, transform), batch_size=64, num_workers=WORKERS)
