"""Use a trained encoder as a part of your own PyTorch model, and train all of it with your labels.

    python examples/finetune.py pictures/ --encoder models/encoder

`pictures/` has one folder per class. A quarter of the pictures is held out to measure the accuracy.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convae import Encoder, load_encoder
from convae.datasets.pictures import read_picture


class Classifier(nn.Module):
    """A linear layer that reads the encoder's features. Gradients flow through these into the filters."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder  # not an nn.Module, but its parts are
        self.network, self.readout = encoder.autoencoder.requires_grad_(True), encoder.readout
        self.head = nn.Linear(encoder.features([]).shape[1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images, `uint8` or from 0 to 1, `[N, C, H, W]`, into scores `[N, classes]`."""
        return self.head(self.encoder.read_out(images))


def main(pictures: Path, encoder: str, epochs: int) -> None:
    """Print the loss on the training pictures and the accuracy on the others, epoch by epoch."""
    torch.manual_seed(0)
    loaded, files = load_encoder(encoder), sorted(pictures.glob("*/*.png"))
    if not files:
        sys.exit(f"{pictures}: no PNG files in folders of classes")
    classes = sorted({file.parent.name for file in files})
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    images = torch.from_numpy(np.stack([read_picture(file, loaded.reading()) for file in files]))
    test, training = torch.randperm(len(files)).tensor_split([len(files) // 4])
    model = Classifier(loaded, len(classes))
    # The filters have been trained, the head has not.
    groups = [{"params": model.network.parameters(), "lr": 1e-4}, {"params": model.head.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for batch in training[torch.randperm(len(training))].split(32):
            loss = F.cross_entropy(model.train()(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        with torch.inference_mode():
            found = torch.cat([model.eval()(images[batch]).argmax(1) for batch in test.split(256)])
        print(f"epoch {epoch}: loss {total / len(training):.3f}, accuracy {(found == labels[test]).float().mean():.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train all of an encoder and a linear layer with labels.")
    parser.add_argument("pictures", type=Path, help="a folder with one folder of PNG files per class")
    parser.add_argument("--encoder", default="fashion_mnist", help="a folder or a name (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="(default: %(default)s)")
    main(**vars(parser.parse_args()))
