"""Features: the whole stage against the forward passes alone, and for whole maps against the usual way."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmark.speed import bare
from benchmark.speed.experiments import WHOLE_MAPS, params_of
from benchmark.speed.images import SCRATCH, fashion_mnist, untrained
from benchmark.speed.measuring import THREADS, Row, at_least, in_new_process, rates, timed
from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder, load_encoder
from convae.features.extract import extract_features
from convae.models.readout import Readout
from convae.params import Params
from convae.stages.runner import keep_freed_memory, limit_threads

PARTS = ("train", "validation", "test")
IMAGES = 70_000


def rows() -> Iterator[Row]:
    """Images per second."""
    fashion_mnist()
    for system in (WHOLE_MAPS, "default"):
        in_new_process(check, system)
        # The usual way of the default takes minutes and has no target.
        contestants = (ours, limit) if system == "default" else (ours, limit, usual)
        rate = rates(IMAGES, contestants, 3, system)
        name = f"extraction {system}, to disk, images/s, to the forward passes"
        own, forward = rate["ours"], rate["limit"]
        yield at_least(name, 0.9, own / forward, own, rate.get("usual"), forward)


def check(system: str) -> None:
    """Assert that the stage writes what the forward passes and the fitted readout compute."""
    params = _params(system)
    with TemporaryDirectory(dir=SCRATCH) as folder, torch.inference_mode():
        encoder = extract_features(params, untrained(params), fashion_mnist(), Path(folder) / "features")
        network, readout = encoder.autoencoder, encoder.readout
        assert readout is not None
        images = torch.from_numpy(ImageSet.load(fashion_mnist() / "test").images[:1000])
        expected = readout(network.encode(network.preprocessing(images)))
        written = torch.from_numpy(np.load(Path(folder) / "features/test.npy")[:1000])
        torch.testing.assert_close(written, expected, rtol=1e-4, atol=1e-4)


def ours(system: str) -> float:
    """The stage `features` without the compact code: standardised features of all parts, written to files."""
    keep_freed_memory()
    params = _params(system)
    with TemporaryDirectory(dir=SCRATCH) as folder, limit_threads(THREADS):
        return timed(extract_features, params, untrained(params), fashion_mnist(), Path(folder) / "features")


def usual(system: str) -> float:
    """Encode a DataLoader's batches, collect the features in memory, standardise them with scikit-learn and save."""
    from sklearn.preprocessing import StandardScaler

    from benchmark.speed.usual import loader

    encoder, readout = _model(system)
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


def limit(system: str) -> float:
    """Pass batches through network and readout, and discard the result."""
    keep_freed_memory()
    encoder, readout = _model(system)
    encoder.readout = readout
    return sum(bare.forward(encoder, torch.from_numpy(ImageSet.load(fashion_mnist() / part).images)) for part in PARTS)


def _model(system: str) -> tuple[Encoder, Readout]:
    params = _params(system)
    readout = params.features.model_dump(mode="json", exclude={"mirror", "code"})
    return load_encoder(untrained(params)), Readout(**readout)


def _params(system: str) -> Params:
    return params_of(system, features={"code": None})
