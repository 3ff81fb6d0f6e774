"""The usual way: torchvision's data sets and transforms, a DataLoader, plain Lightning modules."""

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
    """As torchvision's MNIST and CIFAR10: an array, of which each image becomes a Pillow image for the transform."""

    def __init__(self, images: np.ndarray) -> None:
        """Take images `uint8 [N, C, H, W]`."""
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
    """An autoencoder that minimises the mean squared error by Adam."""

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        """Take the network, from images to images."""
        super().__init__()
        self.network, self.learning_rate = network, learning_rate

    def loss(self, images: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(self.network(images), images)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Log and give the loss."""
        loss = self.loss(batch[0])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """Log the loss."""
        self.log("validation_loss", self.loss(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.learning_rate)


class WinnerTakeAll(Reconstruction):
    """The same of preprocessed images, by way of whole activation maps that are zero but for their winners."""

    def loss(self, images: Tensor) -> Tensor:
        """Mean squared error."""
        network: Any = self.network
        preprocessed = network.preprocessing(images)
        maps = network.layers[0](preprocessed)
        return F.mse_loss(network.reconstruct_layer(0, preprocessed, maps), preprocessed)


class EpochTimes(lightning.Callback):
    """When each epoch ended, validation included."""

    def __init__(self) -> None:
        """Nothing has ended yet."""
        self.ends: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called after validation."""
        self.ends.append(time.perf_counter())


def train(module: lightning.LightningModule, images: np.ndarray, validation: np.ndarray, batch_size: int) -> float:
    """Seconds of the second of two epochs."""
    times = EpochTimes()
    with TemporaryDirectory() as folder:
        trainer = lightning.Trainer(max_epochs=2, callbacks=[times], default_root_dir=folder)
        trainer.fit(module, loader(images, batch_size, True), loader(validation, batch_size, False))
    return times.ends[1] - times.ends[0]


def seed_cae(filters: int, learning_rate: float) -> Reconstruction:
    """Full convolution, tanh, valid convolution, all 3×3."""
    layers = nn.Conv2d(1, filters, 3, padding=2), nn.Tanh(), nn.Conv2d(filters, 1, 3)
    return Reconstruction(nn.Sequential(*layers), learning_rate)


def picture_batches(root: Path, side: int) -> DataLoader[Any]:
    """Batches of a folder of pictures, the middle of each at `side`×`side` pixels."""
    transform = Compose([Resize(side), CenterCrop(side), ToTensor()])
    return DataLoader(ImageFolder(root, transform), batch_size=64, num_workers=WORKERS)
