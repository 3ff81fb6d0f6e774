"""Extract the features of whole image sets into `.npy` files, in the image set's order."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from convae.datasets.image_set import ImageSet
from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.files import CHUNK_BYTES, row_chunks, save_array, write_json
from convae.models.readout import Readout
from convae.names import PARTS
from convae.params import Params
from convae.processes import ALONE, Processes

CACHED_BYTES = 1 << 21  # features per chunk: few enough to stay in a processor's cache while they are used repeatedly


def extract_features(
    params: Params, trained: Path, prepared: Path, output: Path, processes: Processes = ALONE
) -> Encoder:
    """Attach the readout to a trained encoder, and write the features of the parts `train`, `validation` and `test`.

    Each process writes the features of its share of the images; rank 0 fits the readout.

    Args:
        params: the experiment; its section `features` describes the readout.
        trained: folder of the trained encoder.
        prepared: folder with the image sets `train`, `validation` and `test`.
        output: folder for `{part}.npy`, `float32 [N, D]`, `{part}_labels.npy` if there are labels, and
            `description.json`: the SHA-256 of the encoder and of each part's image set.
        processes: the processes that run the stage together.

    Returns:
        The encoder with its readout, fitted to the training images if the parameters ask for it; the same in all
        processes.

    Raises:
        ConvaeError: `features.pca` is too large, or the encoder or an image set can't be read.
    """
    torch.set_num_threads(params.train.threads)
    encoder = load_encoder(trained)
    encoder.config["readout"] = params.features.model_dump(mode="json")
    encoder.readout = Readout(**encoder.config["readout"])
    # CUDA only: Apple's GPUs can't pool over cells that do not divide a map.
    use_cuda = torch.cuda.is_available() and params.train.accelerator in ("auto", "gpu")
    encoder.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if use_cuda else "cpu")
    with processes.shared_folder(output) as scratch:
        images = {}
        # The training part comes first, because the readout is fitted to it.
        for part in PARTS:
            image_set = ImageSet.load(prepared / part)
            images[part] = image_set.sha256
            features = _extract(encoder, image_set, scratch / f"{part}.npy", processes)
            if part == "train":
                if not processes.rank:
                    fit_readout(encoder.readout, features)
                    _apply_fitted(encoder.readout, features, scratch / "train.npy")
                encoder.readout.load_fitted(processes.collect(encoder.readout.state_dict())[0])
                encoder.to(encoder.device)  # the fitted buffers came from rank 0's CPU
            if image_set.labels is not None and not processes.rank:
                save_array(scratch / f"{part}_labels.npy", image_set.labels)
        encoder.sha256 = encoder.serialize()[0]["sha256"]
        if not processes.rank:
            write_json(scratch / "description.json", {"encoder": encoder.sha256, "images": images})
    return encoder


def _extract(encoder: Encoder, image_set: ImageSet, output: Path, processes: Processes) -> np.memmap:
    dimension = encoder.features(np.zeros_like(image_set.images[:1])).shape[1]
    features = processes.shared_array(output, np.float32, (len(image_set), dimension))
    # Processes share whole batches, because a batch of another size could differ in the last bits.
    height, width = image_set.images.shape[2:]
    size = encoder.batch_size((height, width))
    share = processes.share_of(-(-len(image_set) // size))
    start, end = share.start * size, min(share.stop * size, len(image_set))
    some = size * max(1, CHUNK_BYTES // (size * image_set.images[:1].nbytes))  # images may come from an object store
    batches = (
        batch
        for first in range(start, end, some)
        for batch in encoder.feature_batches(image_set.images[first : min(first + some, end)])
    )
    progress = tqdm(total=end - start, desc=output.stem, unit=" images", unit_scale=True, disable=processes.rank > 0)
    # Faster than writing to the memory map, where every page costs a fault.
    with output.open("r+b") as stream, progress:
        stream.seek(features.offset + start * features.strides[0])
        for batch in batches:
            stream.write(batch.data)
            progress.update(len(batch))
    processes.collect(None)  # wait for all to finish writing
    return features


def fit_readout(readout: Readout, features: np.ndarray) -> None:
    """Fit the readout's principal components and standardisation, if it has any, to `features`, `float32 [N, D]`.

    Raises:
        ConvaeError: `features.pca` is larger than N or D.

    Example:
        >>> readout = Readout([-1], None, "none", 0, "mean", (1, 1), 1, None, standardize=True)
        >>> fit_readout(readout, np.array([[1, 5], [3, 5]], np.float32))
        >>> readout.mean.tolist(), readout.scale.tolist()
        ([2.0, 5.0], [1.0, 1.0])
    """
    if readout.pca is None and not readout.standardize:
        return
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for chunk in _chunks(features):
        total += chunk.sum(0, dtype=torch.float64)
    mean = (total / len(features)).float()
    if readout.pca is not None:
        readout.components = torch.from_numpy(_principal_components(features, mean.numpy(), readout.pca))
    readout.mean = mean
    if readout.standardize:
        squares = torch.zeros(readout.pca or features.shape[1], dtype=torch.float64)
        for chunk in _chunks(features):
            squares += readout.apply_fitted(chunk).square_().sum(0, dtype=torch.float64)
        deviation = (squares / len(features)).sqrt().float()
        readout.scale = torch.where(deviation > 1e-6, deviation, 1)  # a constant feature stays as it is


def _apply_fitted(readout: Readout, features: np.memmap, file: Path) -> None:
    """Replace the pooled features in `file`, `float32 [N, D]`, with those of the fitted readout."""
    if not len(readout.mean):
        return
    chunks = (readout.apply_fitted(chunk).numpy() for chunk in _chunks(features))
    if readout.pca is None:
        with file.open("r+b") as stream:  # not through the memory map, see `_extract`
            stream.seek(features.offset)
            for chunk in chunks:
                stream.write(chunk.data)
    else:
        save_array(file, np.concatenate(list(chunks)))


def _chunks(features: np.ndarray) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(features[rows]) for rows in row_chunks(features, CACHED_BYTES))


def _principal_components(features: np.ndarray, mean: np.ndarray, count: int) -> np.ndarray:
    """The `count` directions of largest variance, `float32 [count, D]`.

    Raises:
        ConvaeError: `count` is larger than N or D.
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
    directions = np.linalg.eigh(products).eigenvectors  # in ascending order of variance
    return np.ascontiguousarray(directions[:, ::-1][:, :count].T.astype(np.float32))
