"""Extract the features of whole image sets into `.npy` files, in the image set's order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from convae.datasets.image_set import ImageSet
from convae.devices import exact_arithmetic, explained_memory
from convae.encoder import Encoder, load_encoder
from convae.files import CHUNK_BYTES, new_array, row_chunks, save_array, write_json
from convae.models.code import fit_code
from convae.models.draws import augment, random_seed
from convae.models.layers import LEAST_DEVIATION
from convae.models.readout import Readout
from convae.models.shared_batch import SharedBatch
from convae.models.windows import Moments
from convae.names import PARTS
from convae.params import FeaturesParams, Params
from convae.processes import ALONE, Processes

CACHED_BYTES = 1 << 21  # features per chunk: few enough to stay in a processor's cache while they are used repeatedly
CODE_IMAGES = 2000  # at a time: large enough for fast matrix products


def extract_features(
    params: Params, trained: Path, prepared: Path, output: Path, processes: Processes = ALONE
) -> Encoder:
    """Attach the readout to a trained encoder, and write the features of the parts `train`, `validation` and `test`.

    Each process writes the features of its share of the images; rank 0 fits the readout and the code.

    Args:
        params: the experiment; its section `features` describes the readout.
        trained: folder of the trained encoder.
        prepared: folder with the image sets `train`, `validation` and `test`.
        output: folder for `{part}.npy`, `float32 [N, D]`, `{part}_code.npy`, `float32 [N, d]`, if there is a compact
            code, `{part}_labels.npy` if there are labels, and `description.json`: the SHA-256 of the encoder and of
            each part's image set.
        processes: the processes that run the stage together.

    Returns:
        The encoder with its readout, fitted to the training images if the parameters ask for it; the same in all
        processes.

    Raises:
        ConvaeError: the features' covariance is singular, or the encoder or an image set can't be read.
    """
    torch.set_num_threads(params.train.threads)
    encoder = load_encoder(trained)
    readout = attach_readout(encoder, params.features)
    code = params.features.code and params.features.code.model_dump(mode="json")
    # Not `mps`: Apple's GPUs can't pool over cells that do not divide a map.
    encoder.to("auto" if params.train.accelerator in ("auto", "gpu") else "cpu")
    encoder.room = min(processes.collect(encoder.room))  # or ranks with other devices would share other batches
    with processes.shared_folder(output) as scratch:
        images = {}
        # The training part comes first, because the readout is fitted to it.
        for part in PARTS:
            image_set = ImageSet.load(prepared / part)
            images[part] = image_set.sha256
            features = _extract(encoder, image_set, scratch / f"{part}.npy", processes)
            if part == "train":
                if not processes.rank:
                    fit_readout(readout, features)
                    _apply_fitted(readout, features, scratch / "train.npy")
                    if code:
                        fit_compact_code(encoder, code, image_set, features, params.seed)
                # By way of the CPU: a rank may lack the GPU of another.
                fitted = {name: value.cpu() for name, value in readout.state_dict().items()}
                readout.load_fitted(processes.collect(fitted)[0])
                encoder.code, encoder.config["code"] = processes.collect(
                    (encoder.code and encoder.code.cpu(), encoder.config.get("code"))
                )[0]
                if encoder.code:
                    encoder.code.to(encoder.device)
            if encoder.code and not processes.rank:
                _write_code(encoder.code, features, scratch / f"{part}_code.npy")
            if image_set.labels is not None and not processes.rank:
                save_array(scratch / f"{part}_labels.npy", image_set.labels)
        encoder.sha256 = encoder.serialize()[0]["sha256"]
        if not processes.rank:
            write_json(scratch / "description.json", {"encoder": encoder.sha256, "images": images})
    return encoder


def attach_readout(encoder: Encoder, features: FeaturesParams) -> Readout:
    """Give an encoder the readout that the parameters describe, not yet fitted, and return it.

    A grid with more cells than a map has pixels shrinks to the map.
    """
    readout = features.model_dump(mode="json", exclude={"mirror", "code"})
    sizes = encoder.map_sizes
    readout["grid"] = [min(features.grid[axis], *(sizes[layer][axis] for layer in features.layers)) for axis in (0, 1)]
    encoder.config |= {"readout": readout, "mirror": features.mirror}
    encoder.readout = Readout(**readout).to(encoder.device)
    return encoder.readout


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
    """Fit the readout's standardisation, if it has one, to `features`, `float32 [N, D]`.

    Example:
        >>> readout = Readout([-1], None, "none", 0, "mean", (1, 1), 1, standardize=True)
        >>> fit_readout(readout, np.array([[1, 5], [3, 5]], np.float32))
        >>> readout.mean.tolist(), readout.scale.tolist()
        ([2.0, 5.0], [1.0, 1.0])
    """
    if not readout.standardize:
        return
    total, squares = (torch.zeros(features.shape[1], dtype=torch.float64) for _ in range(2))
    for chunk in _chunks(features):
        total += chunk.sum(0, dtype=torch.float64)
    mean = (total / len(features)).float()
    for chunk in _chunks(features):
        squares += (chunk - mean).square_().sum(0, dtype=torch.float64)
    deviation = (squares / len(features)).sqrt().float()
    scale = torch.where(deviation > LEAST_DEVIATION, deviation, 1)  # a constant feature stays as it is
    readout.load_fitted({"mean": mean, "scale": scale, "components": readout.components})


def _apply_fitted(readout: Readout, features: np.memmap, file: Path) -> None:
    """Replace the pooled features in `file`, `float32 [N, D]`, with those of the fitted readout."""
    if not len(readout.mean):
        return
    with file.open("r+b") as stream:  # not through the memory map, see `_extract`
        stream.seek(features.offset)
        for chunk in _chunks(features):
            stream.write(readout.apply_fitted(chunk.to(readout.mean.device)).numpy(force=True).data)


def _chunks(features: np.ndarray) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(features[rows]) for rows in row_chunks(features, CACHED_BYTES))


def fit_compact_code(
    encoder: Encoder, code: dict[str, Any], training: ImageSet, features: np.ndarray, seed: int, progress: bool = True
) -> None:
    """Fit the encoder's compact code to training images, in one pass over their features and those of copies.

    Memory is proportional to D². The code has at most as many numbers as there are features, and fewer than images.

    Args:
        encoder: gets the code; its readout is fitted.
        code: the section `features.code`.
        training: training images.
        features: their features `float32 [N, D]`.
        seed: seeds the corruption.
        progress: show a progress bar.

    Raises:
        ConvaeError: the features' covariance is singular in single precision.
    """
    chosen = training.spread(min(code["images"] or len(training), len(training)))
    code = code | {"components": min(code["components"], max(1, len(chosen) - 1), features.shape[1])}
    device = encoder.device if encoder.device.type == "cuda" else torch.device("cpu")
    moments = Moments()
    with (
        exact_arithmetic(),
        explained_memory("set train.accelerator = cpu, or features.code = null"),
        tqdm(total=len(chosen), desc="code", unit=" images", unit_scale=True, disable=not progress) as bar,
    ):
        for number, rows in enumerate(np.array_split(chosen, -(-len(chosen) // CODE_IMAGES))):
            copies = None
            if code["corruption"]:
                with torch.random.fork_rng(devices=()):
                    torch.manual_seed(random_seed(seed, number))
                    corrupted = augment(
                        torch.from_numpy(training.images[rows]), **code["corruption"], batch=SharedBatch()
                    )
                copies = torch.from_numpy(encoder.features(corrupted)).to(device)
            moments.add(torch.from_numpy(features[rows]).to(device), copies)
            bar.update(len(rows))
        encoder.code = fit_code(moments, code["components"], code["ridge"], code["scale"]).to(encoder.device)
    encoder.config["code"] = code


@exact_arithmetic()
def _write_code(code: torch.nn.Linear, features: np.ndarray, file: Path) -> None:
    """Write the compact code `float32 [N, d]` of features `float32 [N, D]`."""
    target = new_array(file, np.float32, (len(features), code.out_features))
    for rows in row_chunks(features):
        target[rows] = code(torch.from_numpy(features[rows]).to(code.weight.device)).numpy(force=True)
