"""Features of whole image sets, written to memory-mapped files in the image set's order."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.features.readout import Readout
from convae.files import new_array, new_folder, row_chunks, save_array, write_json
from convae.params import Params


def extract_features(params: Params, trained: Path, prepared: Path, output: Path) -> Encoder:
    """Give a trained encoder its readout and write the features of all labelled parts.

    Args:
        params: the experiment; its section `features` is the readout.
        trained: folder of the trained encoder.
        prepared: folder with the image sets `train`, `validation` and `test`.
        output: folder for `{part}.npy`, `float32 [N, D]`, `{part}_labels.npy` where there are labels, and
            `description.json`: the SHA-256 of the encoder and of each part's image set.

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
        images = {}
        # Training images first: the others are standardised by them.
        for part in ("train", "validation", "test"):
            image_set = ImageSet.load(prepared / part)
            images[part] = image_set.sha256
            features = _extract(encoder, image_set, scratch / f"{part}.npy")
            if image_set.labels is not None:
                save_array(scratch / f"{part}_labels.npy", image_set.labels)
            if part == "train":
                _fit(encoder.readout, features, scratch / "train.npy")
                encoder.to(encoder.device)
        encoder.sha256 = encoder.serialize()[0]["sha256"]
        write_json(scratch / "description.json", {"encoder": encoder.sha256, "images": images})
    return encoder


def _extract(encoder: Encoder, image_set: ImageSet, output: Path) -> np.ndarray:
    dimension = encoder.features(np.zeros_like(image_set.images[:1])).shape[1]
    features = new_array(output, np.float32, (len(image_set), dimension))
    start = 0
    with tqdm(total=len(image_set), desc=output.stem, unit=" images", unit_scale=True) as progress:
        for batch in encoder.feature_batches(image_set.images):
            features[start : start + len(batch)] = batch
            start += len(batch)
            progress.update(len(batch))
    features.flush()
    return features


def _fit(readout: Readout, features: np.ndarray, output: Path) -> None:
    """Fit principal components and standardisation to features `float32 [N, D]`, and write what they make of them."""
    if readout.pca is None and not readout.standardize:
        return
    if readout.pca is None:
        subtract_mean(readout, features)
    else:
        mean = _mean(features)
        components = _principal_components(features, mean, readout.pca)
        reduced = np.concatenate([(features[rows] - mean) @ components.T for rows in row_chunks(features)])
        save_array(output, reduced)
        features = np.load(output, mmap_mode="r+", allow_pickle=False)
        readout.mean, readout.components = torch.from_numpy(mean), torch.from_numpy(components)
    if readout.standardize:
        divide_by_deviation(readout, features)


def subtract_mean(readout: Readout, features: np.ndarray) -> None:
    """Give `features`, `float32 [N, D]`, a mean of zero, in place, and from now on those that come out of `readout`."""
    mean = _mean(features)
    for rows in row_chunks(features):
        features[rows] -= mean
    readout.mean = torch.from_numpy(mean)


def divide_by_deviation(readout: Readout, centered: np.ndarray) -> None:
    """Give features of zero mean a standard deviation of one, likewise; constant ones are left as they are."""
    squares = sum(np.square(centered[rows]).sum(0, dtype=np.float64) for rows in row_chunks(centered))
    deviation = np.sqrt(squares / len(centered)).astype(np.float32)
    scale = np.where(deviation > 1e-6, deviation, np.float32(1))
    for rows in row_chunks(centered):
        centered[rows] /= scale
    readout.scale = torch.from_numpy(scale)


def _mean(features: np.ndarray) -> np.ndarray:
    total = sum(features[rows].sum(0, dtype=np.float64) for rows in row_chunks(features))
    mean: np.ndarray = (total / len(features)).astype(np.float32)
    return mean


def _principal_components(features: np.ndarray, mean: np.ndarray, count: int) -> np.ndarray:
    """The `count` directions of the largest variance, `float32 [count, D]`.

    Raises:
        ConvaeError: there are not so many.
    """
    dimension = features.shape[1]
    if count > min(dimension, len(features)):
        raise ConvaeError(
            f"features.pca = {count}: {len(features)} training images have {dimension} features; "
            f"at most {min(dimension, len(features))} are possible"
        )
    products = np.zeros((dimension, dimension))
    for rows in row_chunks(features):
        centered = features[rows] - mean
        products += centered.T @ centered
    directions = np.linalg.eigh(products).eigenvectors
    return np.ascontiguousarray(directions[:, ::-1][:, :count].T.astype(np.float32))
