"""Features of whole image sets, written to memory-mapped files in the image set's order."""

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tqdm import tqdm

from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder, load_encoder
from convae.features.readout import Readout
from convae.files import new_folder, row_chunks
from convae.params import Params


def extract_features(params: Params, trained: Path, prepared: Path, output: Path) -> Encoder:
    """Give a trained encoder its readout and write the features of all labelled parts.

    Args:
        params: the experiment; its section `features` is the readout.
        trained: folder of the trained encoder.
        prepared: folder with the image sets `train`, `validation` and `test`.
        output: folder for `{part}.npy`, `float32 [N, D]`, and `{part}_labels.npy` where there are labels.

    Returns:
        The encoder with its readout, standardised on the training images where the parameters say so.
    """
    torch.set_num_threads(params.train.threads)
    encoder = load_encoder(trained)
    encoder.config["readout"] = params.features.model_dump(mode="json")
    encoder.readout = Readout(**encoder.config["readout"])
    # Apple's GPUs lack the pooling of cells that do not divide a map.
    use_cuda = torch.cuda.is_available() and params.train.accelerator in ("auto", "gpu")
    encoder.to("cuda" if use_cuda else "cpu")
    with new_folder(output) as scratch:
        for part in (
            "train",
            "validation",
            "test",
        ):  # training images first: the others are standardised by them
            image_set = ImageSet.load(prepared / part)
            features = _extract(encoder, image_set, scratch / f"{part}.npy")
            if image_set.labels is not None:
                np.save(scratch / f"{part}_labels.npy", image_set.labels, allow_pickle=False)
            if part == "train" and params.features.standardize:
                mean, scale = _standardize(features)
                encoder.readout.mean, encoder.readout.scale = torch.from_numpy(mean), torch.from_numpy(scale)
                encoder.to(encoder.device)
    return encoder


def _extract(encoder: Encoder, image_set: ImageSet, output: Path) -> np.ndarray:
    dimension = encoder.features(np.zeros_like(image_set.images[:1])).shape[1]
    features = open_memmap(output, mode="w+", dtype=np.float32, shape=(len(image_set), dimension))
    start = 0
    with tqdm(total=len(image_set), desc=output.stem, unit=" images", unit_scale=True) as progress:
        for batch in encoder.feature_batches(image_set.images):
            features[start : start + len(batch)] = batch
            start += len(batch)
            progress.update(len(batch))
    features.flush()
    return features


def _standardize(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring features `float32 [N, D]` to zero mean and unit variance in place, and return mean and scale `[D]`.

    A feature that is constant over the images keeps a scale of one.
    """
    total = sum(features[rows].sum(0, dtype=np.float64) for rows in row_chunks(features))
    mean = (total / len(features)).astype(np.float32)
    squares = sum(np.square(features[rows] - mean).sum(0, dtype=np.float64) for rows in row_chunks(features))
    deviation = np.sqrt(squares / len(features)).astype(np.float32)
    scale = np.where(deviation > 1e-6, deviation, np.float32(1))
    for rows in row_chunks(features):
        features[rows] -= mean
        features[rows] /= scale
    return mean, scale
