"""Export of an encoder and its readout to ONNX, for runtimes without Python."""

from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from convae.encoder import Encoder, load_encoder
from convae.errors import ConvaeError
from convae.files import check_free, new_file
from convae.models.readout import Readout

OPSET = 18
Cell = TypeVar("Cell", int, Tensor)
TOLERANCE = 1e-4  # relative to the length of all features; a square root magnifies single rounding errors near zero


class _FeatureModel(nn.Module):
    """Images `[N, C, H, W]` to features `float32 [N, D]` and, if there is one, the compact code `[N, d]`."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.autoencoder = encoder.autoencoder
        self.readout = _AnySizeReadout(**encoder.config["readout"])
        assert encoder.readout is not None, "`features` has checked it"
        self.readout.load_fitted(encoder.readout.state_dict())
        self.mirror = encoder.config.get("mirror")
        self.compact_code = encoder.code

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = self.readout.pool(self._encode(images))
        if self.mirror:
            pooled = (pooled + self.readout.pool(self._encode(images.flip(3)))) / 2
        features = self.readout.apply_fitted(pooled)
        return (features, self.compact_code(features)) if self.compact_code else (features,)

    def _encode(self, images: Tensor) -> list[Tensor]:
        return self.autoencoder.encode(self.autoencoder.preprocessing(images))


class _AnySizeReadout(Readout):
    """Averages over grid cells by matrix products, because ONNX pools only over windows of fixed size.

    Maxima are taken along one side at a time, over slices whose ends are fixed in the exported file.
    """

    def _pool(self, maps: Tensor) -> Tensor:
        if self.pooling == "max":
            for axis, cells in zip((2, 3), self.grid, strict=True):
                spans = (_span(cell, maps.shape[axis], cells) for cell in range(cells))
                slices = [maps.narrow(axis, start, end - start) for start, end in spans]
                maps = torch.cat([one.amax(axis, keepdim=True) for one in slices], axis)
            return maps
        rows, columns = (_cells(side, cells) for side, cells in zip(maps.shape[2:], self.grid, strict=True))
        return rows @ maps @ columns.T


def _cells(side: int, cells: int) -> Tensor:
    """Weights `[cells, side]` that average along one side as `adaptive_avg_pool2d` does."""
    pixel = torch.arange(side)
    start, end = _span(torch.arange(cells)[:, None], side, cells)
    return ((pixel >= start) & (pixel < end)) / (end - start)


def _span(cell: Cell, side: int, cells: int) -> tuple[Cell, Cell]:
    """The first pixel of a cell along one side, and the first after it; adaptive pooling has the same cells."""
    return cell * side // cells, ((cell + 1) * side + cells - 1) // cells


def export_onnx(encoder: str, output: Path, any_size: bool, force: bool) -> None:
    """Write an encoder to ONNX and check that onnxruntime computes the same features (`convae export --onnx`).

    Args:
        encoder: folder or address of the encoder.
        output: file to write.
        any_size: accept images of any size, not only of the size trained on.
        force: overwrite `output`.

    Raises:
        ConvaeError: the encoder has no readout, or a readout that does not support `any_size`; `output` is a folder, or
            exists without `force`; onnx, onnxscript or onnxruntime is missing; or the features differ.
    """
    try:
        import onnx  # noqa: F401, torch needs it
        import onnxruntime
        import onnxscript  # noqa: F401, torch needs it
    except ImportError as error:
        raise ConvaeError(f"{error}; install convae[onnx]") from None
    check_free(output, force)
    loaded = load_encoder(encoder)
    images = _check_images(loaded)
    expected = [loaded.features(images)]  # also rejects an encoder without a readout
    if loaded.code:
        expected.append(loaded.features(images, code=True))
    if any_size and loaded.config["readout"]["pooling"] == "max":
        raise ConvaeError("--any-size: the cells over which maxima are taken are fixed in the file; omit the option")
    with new_file(output) as scratch:
        try:
            _export(loaded, images, scratch, any_size)
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConvaeError(f"{output}: not written, torch can't export this encoder: {reason}") from None
        session = onnxruntime.InferenceSession(scratch, providers=["CPUExecutionProvider"])
        found = session.run(None, {"images": images})
        deviation = max(map(_deviation, found, expected))
        if not deviation <= TOLERANCE:  # true for NaN too
            raise ConvaeError(f"{output}: not written, its features differ from the encoder's by {deviation:.2g}")
    print(f"{output}: features of onnxruntime and torch differ by {deviation:.1e} of their length")


def _check_images(encoder: Encoder) -> np.ndarray:
    """Noise, a ramp and a flat image `[3, C, H, W]`; rounding errors are largest where an image is flat."""
    config = encoder.config
    noise = np.random.default_rng(0).integers(0, 256, (config["channels"], *config["image_size"]))
    ramp = np.broadcast_to(np.linspace(0, 255, noise.shape[2]), noise.shape)
    images = np.stack([noise, ramp, np.full_like(noise, 128)])
    if encoder.image_type == np.uint8:
        return images.astype(np.uint8)
    fractions = (images / 255).astype(np.float32)
    return encoder.scale.undo(fractions) if encoder.scale else fractions


def _deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance between two rows `[N, D]`, relative to the length of the expected one."""
    lengths = np.linalg.norm(expected, axis=1)
    return float(np.max(np.linalg.norm(found - expected, axis=1) / np.where(lengths == 0, 1, lengths)))


def _export(encoder: Encoder, images: np.ndarray, path: Path, any_size: bool) -> None:
    dynamic = {0: torch.export.Dim("N")}
    if any_size:
        dynamic |= {2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    torch.onnx.export(
        _FeatureModel(encoder).eval(),
        (torch.from_numpy(images),),
        path,
        input_names=["images"],
        output_names=["features", "code"][: 2 if encoder.code else 1],
        dynamic_shapes={"images": dynamic},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
    )
