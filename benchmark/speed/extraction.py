"""Features of the shipped system: the whole stage against the usual way, and against the forward passes alone."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmark.speed.images import SCRATCH, default_params, fashion_mnist, untrained
from benchmark.speed.measuring import THREADS, Row, at_least, in_new_process, rates, timed
from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder, load_encoder
from convae.features.extract import extract_features
from convae.models.readout import Readout
from convae.stages.runner import keep_freed_memory, limit_threads

PARTS = ("train", "validation", "test")
IMAGES = 70_000


def rows() -> Iterator[Row]:
    """Images per second."""
    fashion_mnist()
    in_new_process(check)
    rate = rates(IMAGES, (ours, usual, limit), 5)
    ratio = rate["ours"] / rate["limit"]
    yield at_least("extraction with readout, to disk, images/s, to the forward passes", 0.9, ratio, **rate)


def check() -> None:
    """Assert that the stage writes what the forward passes and the fitted readout compute."""
    params = default_params()
    with TemporaryDirectory(dir=SCRATCH) as folder, torch.inference_mode():
        encoder = extract_features(params, untrained(params), fashion_mnist(), Path(folder) / "features")
        network, readout = encoder.autoencoder, encoder.readout
        assert readout is not None
        images = torch.from_numpy(ImageSet.load(fashion_mnist() / "test").images[:1000])
        expected = readout(network.encode(network.preprocessing(images)))
        written = torch.from_numpy(np.load(Path(folder) / "features/test.npy")[:1000])
        torch.testing.assert_close(written, expected, rtol=1e-5, atol=1e-5)


def ours() -> float:
    """The stage `features`: standardised features of all parts, written to files."""
    keep_freed_memory()
    params = default_params()
    with TemporaryDirectory(dir=SCRATCH) as folder, limit_threads(THREADS):
        return timed(extract_features, params, untrained(params), fashion_mnist(), Path(folder) / "features")


def usual() -> float:
    """Encode a DataLoader's batches, collect the features in memory, standardise them with scikit-learn and save."""
    from sklearn.preprocessing import StandardScaler

    from benchmark.speed.usual import loader

    encoder, readout = _model()
    network, scaler = encoder.autoencoder, StandardScaler()

    def extract(folder: Path) -> None:
        for part in PARTS:
            batches = []
            for images, _ in loader(ImageSet.load(fashion_mnist() / part).images, 64, False):
                with torch.no_grad():
                    batches.append(readout(network.encode(network.preprocessing(images))).numpy())
            features = np.concatenate(batches)
            scaled = scaler.fit_transform(features) if part == "train" else scaler.transform(features)
            np.save(folder / f"{part}.npy", scaled)

    with TemporaryDirectory(dir=SCRATCH) as folder:
        return timed(extract, Path(folder))


def limit() -> float:
    """Pass batches through network and readout, and discard the result."""
    keep_freed_memory()
    encoder, readout = _model()
    network, batch_size = encoder.autoencoder, encoder.batch_size((28, 28))
    images = [torch.from_numpy(ImageSet.load(fashion_mnist() / part).images) for part in PARTS]

    def forward() -> None:
        with torch.inference_mode():
            for part in images:
                for batch in part.split(batch_size):
                    readout(network.encode(network.preprocessing(batch)))

    return timed(forward)


def _model() -> tuple[Encoder, Readout]:
    params = default_params()
    return load_encoder(untrained(params)), Readout(**params.features.model_dump(mode="json"))
