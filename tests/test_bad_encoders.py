"""`convae` on folders of encoders that are damaged or forged: one line, exit code 1, nothing unpickled."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layers import layer
from saved_models import CONFIG, READOUT, change, sha256, weights, write

from convae.encoder import Encoder, build_autoencoder
from convae.files import content_sha256
from convae.models.readout import Readout

COMMANDS = {
    "features": ["features", "picture.png", "-o", "features.npy", "--force"],
    "info": ["info", "models/encoder"],
    "reconstruct": ["reconstruct", "picture.png", "-o", "made", "--force"],
    "export": ["export", "--onnx", "encoder.onnx"],
    "classify": ["classify", "picture.png"],
}


def test_matching_encoder_and_classifier_work(convae: Callable[..., str]) -> None:
    for command in COMMANDS.values():
        assert not convae(*command)


FILTERS = "autoencoder.layers.0.convolution.weight"
ENCODERS: dict[str, tuple[Callable[[], object], str]] = {
    "no folder": (lambda: shutil.rmtree("models/encoder"), "not an encoder"),
    "no config": (lambda: Path("models/encoder/config.json").unlink(), "not an encoder"),
    "no weights": (lambda: Path("models/encoder/model.safetensors").unlink(), "not an encoder"),
    "config is no JSON": (write("encoder/config.json", b"{"), "not an encoder"),
    "config is no text": (write("encoder/config.json", b"\xff\xfe"), "not an encoder"),
    "config is deep": (write("encoder/config.json", b"[" * 100_000), "not an encoder"),
    "config is a list": (
        write("encoder/config.json", b"[]"),
        "format None; this version of convae reads",
    ),
    "config is a number": (
        write("encoder/config.json", b"3"),
        "format None; this version of convae reads",
    ),
    "later format": (change(99, "format"), "format 99; this version of convae reads formats 3 to 5"),
    "format in words": (change("3", "format"), "format '3'; this version of convae reads formats 3 to 5"),
    "weights cut": (write("encoder/model.safetensors", b"\x10"), "damaged"),
    "pickled weights": (write("encoder/model.safetensors", pickle.dumps({})), "damaged"),
    "weights of another shape": (
        weights(lambda tensors: tensors.update({FILTERS: tensors[FILTERS][:, :, 1:]})),
        "do not belong together",
    ),
    "weights left out": (weights(lambda tensors: tensors.pop(FILTERS)), "do not belong together"),
    "weights added": (weights(lambda tensors: tensors.update({"autoencoder.x": tensors[FILTERS]})), "do not belong"),
    "no scale": (weights(lambda tensors: tensors.pop("readout.scale")), "do not belong together"),
    "scale of another length": (
        weights(lambda tensors: tensors.update({"readout.scale": np.ones(3, np.float32)})),
        "do not belong together",
    ),
    "NaN": (weights(lambda tensors: tensors[FILTERS].fill(np.nan)), "holds NaN or infinity"),
    "infinity": (weights(lambda tensors: tensors["readout.mean"].fill(np.inf)), "holds NaN or infinity"),
    "stride of one side": (change([1], "layers", 0, "stride"), "do not belong together"),
    "block of words": (change("all", "sparsity", "block"), "do not belong together"),
    "block without pixels": (change([0, 0], "sparsity", "block"), "is not a number of pixels"),
    "images beyond memory": (change([10**9, 10**9], "image_size"), "1000000000 is not a number of pixels"),
    "images beyond what is encoded": (
        change([2**16, 2**16], "image_size"),
        "would take 1.98e+11 multiplications and",
    ),
    "layers as words": (change("many", "layers"), "do not belong together"),
    "filters as words": (change("many", "layers", 0, "filters"), "is not a number of pixels"),
    "channels beyond memory": (change(30_000, "channels"), "there are fewer weights than described"),
    "no filters": (change(0, "layers", 0, "filters"), "is not a number of pixels"),
    "filters beyond memory": (change(10**15, "layers", 0, "filters"), "is not a number of pixels"),
    "kernel of one side": (change([3], "layers", 0, "kernel"), "do not belong together"),
    "unknown activation": (change("__import__", "layers", 0, "activation"), "do not belong together"),
    "no channels": (change(0, "channels"), "is not a number of pixels"),
    "grid without cells": (change([0, 0], "readout", "grid"), "is not a number of pixels"),
    "layer that is not there": (change([7], "readout", "layers"), "do not belong together"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", ENCODERS)
def test_damaged_encoders_are_refused_in_one_line(convae: Callable[..., str], case: str, command: str) -> None:
    damage, message = ENCODERS[case]
    damage()
    Path("features.npy").write_bytes(b"earlier")
    assert message in convae(*COMMANDS[command])
    assert Path("features.npy").read_bytes() == b"earlier"
    assert not list(Path().rglob("*.partial"))


LAYER = layer(filters=1, kernel=[1, 1])
HALVED = LAYER | {"pool": {"kind": "max", "size": [2, 2]}}
PLAIN = {"local_contrast": None, "whitening": None}
BUSY: dict[str, tuple[dict[str, Any], str]] = {
    "halved too often": ({"layers": [HALVED] * 21}, "model.layers[3]: pooling over 2×2 turns 1×1 into 0×0"),
    "halved often": ({"layers": [HALVED] * 14, "image_size": [16384, 16384]}, "even the smallest image, 16384×16384"),
    "strides": (
        {"layers": [LAYER | {"stride": [10, 10]}] * 4 + [LAYER | {"kernel": [2, 2], "padding": "valid"}]}
        | {"image_size": [20000, 10001]},
        "even the smallest image, 10001×10001 pixels, would take too much",
    ),
    "many layers": ({"layers": [LAYER] * 101}, "more than 100 layers"),
    "large maps": ({"layers": [LAYER] * 100, "image_size": [16000, 16000]}, "would take 2.59e+10 multiplications"),
    "long kernel": (
        {"layers": [LAYER | {"kernel": [1, 65535], "padding": "full"}]},
        "even the smallest image, 1×1 pixels, would take too much",
    ),
    "fine grid": ({"readout": READOUT | {"grid": [65535, 65535]}}, "more features than fit into 1073741824 bytes"),
    "read often": ({"readout": READOUT | {"layers": [-1] * 101}}, "more than 100 layers"),
    "wide window": (
        {"preprocessing": PLAIN | {"local_contrast": {"window": 65535, "floor": 0.1}}, "image_size": [3000, 3000]},
        "an image of 3000×3000 pixels would take 6.48e+14 multiplications",
    ),
    "large block": ({"sparsity": {"block": [2**17, 1], "lifetime": None}}, "131072 is not a number of pixels"),
    "small factors of large filters": (
        {
            "layers": [
                layer(filters=60000, kernel=[201, 201], input={
                    "normalization": None,
                    "whitening": {"kind": "pca", "components": 1, "epsilon": 0.1, "corruption": None},
                })
            ],
            "decoder": False,
        },
        "the filters of a layer would take 9.70e+09 bytes; 1073741824 are allowed",
    ),
    "true": ({"image_size": [True, True]}, "True is not a number of pixels, channels or filters from 1 to 65536"),
}  # fmt: skip


@pytest.mark.parametrize("case", BUSY)
def test_an_encoder_that_would_take_too_long_is_refused(convae: Callable[..., str], case: str) -> None:
    """These are encoders with all their weights, in a few kilobytes."""
    changes, message = BUSY[case]
    config = CONFIG | {"preprocessing": PLAIN, "sparsity": None} | changes
    Encoder(build_autoencoder(config), Readout(**config["readout"]), config).save(Path("models/encoder"))
    assert message in convae("info")


def whitened(**changes: Any) -> dict[str, Any]:
    """What a layer reads: two components of its windows, with these keys of the whitening changed."""
    whitening = {"kind": "denoising", "components": 2, "epsilon": 0.1, "corruption": {"flip": True, "shift": 1}}
    return {"normalization": {"centered": True, "floor": 0.1}, "whitening": whitening | changes}


POOLED = {"rectification": "both", "threshold": 0.5, "pool": {"kind": "mean", "size": [2, 2]}, "power": 0.5}
WHITENED = CONFIG | {
    "preprocessing": PLAIN,
    "layers": [
        layer(filters=4, kernel=[3, 3], input=whitened(), output=POOLED | {"standardize": True}),
        layer(filters=4, kernel=[3, 3], input=whitened(), output=None),
    ],
    "sparsity": {"block": None, "lifetime": None, "per_place": 2},
    "decoder": False,
    "mirror": "average",
    "code": {"kind": "pca", "components": 3, "corruption": None, "ridge": 0.1, "scale": "equal", "images": None},
}
FIRST, SECOND = ("layers", 0), ("layers", 1)
FORGED: dict[str, tuple[Callable[[], object], str]] = {
    "components beyond memory": (change(10**15, *FIRST, "input", "whitening", "components"), "is not a number of"),
    "no components": (change(0, *SECOND, "input", "whitening", "components"), "is not a number of pixels"),
    "components as words": (change("all", *SECOND, "input", "whitening", "components"), "is not a number of pixels"),
    "more components": (change(60000, *SECOND, "input", "whitening", "components"), "there are fewer weights than"),
    "other components": (change(3, *SECOND, "input", "whitening", "components"), "do not belong together"),
    "all components": (change(None, *SECOND, "input", "whitening", "components"), "do not belong together"),
    "no whitening": (change(None, *SECOND, "input", "whitening"), "do not belong together"),
    "no input": (change(None, *SECOND, "input"), "do not belong together"),
    "input as words": (change("all", *SECOND, "input"), "do not belong together"),
    "floor as words": (change("low", *SECOND, "input", "normalization", "floor"), "do not belong together"),
    "pool beyond memory": (change([10**9, 2], *FIRST, "output", "pool", "size"), "is not a number of pixels"),
    "pool without pixels": (change([0, 0], *FIRST, "output", "pool", "size"), "is not a number of pixels"),
    "pool larger than the map": (change([9, 9], *FIRST, "output", "pool", "size"), "pooling over 9×9 turns 8×8 into"),
    "unknown pool": (change("sum", *FIRST, "output", "pool", "kind"), "do not belong together"),
    "no output": (change(None, *FIRST, "output"), "do not belong together"),
    "winners beyond memory": (change(10**12, "sparsity", "per_place"), "is not a number of pixels"),
    "winners as words": (change("many", "sparsity", "per_place"), "is not a number of pixels"),
    "another border": (change("reflect", *FIRST, "border"), ""),
    "code without weights": (weights(lambda tensors: tensors.pop("code.weight")), "do not belong together"),
    "weights without a code": (change(None, "code"), "weights of a compact code, which is not described"),
    "code of other features": (
        weights(lambda tensors: tensors.update({"code.weight": np.ones((3, 7), np.float32)})),
        "do not belong together",
    ),
    "code of a vector": (
        weights(lambda tensors: tensors.update({"code.weight": np.ones(16, np.float32)})),
        "do not belong together",
    ),
    "code of NaN": (weights(lambda tensors: tensors["code.bias"].fill(np.nan)), "holds NaN or infinity"),
    "whitening of infinity": (
        weights(lambda tensors: tensors["autoencoder.layers.1.input.matrix"].fill(np.inf)),
        "holds NaN or infinity",
    ),
}  # fmt: skip


@pytest.fixture
def convae_with_a_code(convae: Callable[..., str]) -> Callable[..., str]:
    autoencoder, generator = build_autoencoder(WHITENED), torch.Generator().manual_seed(0)
    autoencoder.initialize(generator)
    code = torch.nn.Linear(16, 3)
    Encoder(autoencoder, Readout(**READOUT), WHITENED, code=code).save(Path("models/encoder"))
    return convae


def test_an_encoder_with_a_code_works(convae_with_a_code: Callable[..., str]) -> None:
    assert not convae_with_a_code("info")
    assert not convae_with_a_code("features", "picture.png", "-o", "features.npy")
    assert np.load("features.npy").shape == (1, 16)
    assert "no trained decoder" in convae_with_a_code(*COMMANDS["reconstruct"])


@pytest.mark.parametrize("case", FORGED)
def test_forged_whitening_and_codes_are_refused_in_one_line(convae_with_a_code: Callable[..., str], case: str) -> None:
    damage, message = FORGED[case]
    damage()
    assert message in convae_with_a_code("info")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("replace", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(convae: Callable[..., str], name: str, replace: Callable[[Path], object]) -> None:
    path = Path("models/encoder", name)
    path.unlink()
    replace(path)
    assert f"not an encoder: there is no file {name}" in convae("info")


def test_a_huge_description_is_not_read(convae: Callable[..., str]) -> None:
    with Path("models/encoder/config.json").open("r+b") as stream:
        stream.truncate(1 << 34)
    assert "not an encoder: config.json is larger than 16777216 bytes" in convae("info")


def test_a_mean_of_the_wrong_shape_is_not_broadcast(convae: Callable[..., str]) -> None:
    weights(lambda tensors: tensors.update({"readout.mean": np.zeros((1000, 1), np.float32)}))()
    assert "means and scales of features must be vectors" in convae("info")


@pytest.mark.parametrize("keys", [("trained_on",), ("trained_on", "classes"), ("versions",), ("preprocessing",)])
def test_info_refuses_an_empty_description(convae: Callable[..., str], keys: tuple[str, ...]) -> None:
    change(3, *keys)()
    assert convae("info")


def test_features_that_are_all_zero_are_exported(convae: Callable[..., str]) -> None:
    weights(lambda tensors: tensors[FILTERS].fill(0))()
    assert not convae(*COMMANDS["export"])


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("name", ["encoder/model.safetensors", "classifier/classifier.skops"])
@pytest.mark.parametrize("dump", [pickle.dumps, lambda trap: (torch.save(trap, "x.pt"), Path("x.pt").read_bytes())[1]])
def test_nothing_is_unpickled(convae: Callable[..., str], name: str, dump: Callable[[object], bytes]) -> None:
    """Not even with matching hashes."""
    content = dump(Trap())
    write(name, content)()
    change(3, "format")()
    about = json.loads(Path("models", "classifier/classifier.json").read_text()) | {"encoder": sha256()}
    del about["sha256"]
    skops = Path("models", "classifier/classifier.skops").read_bytes()
    Path("models", "classifier/classifier.json").write_text(
        json.dumps(about | {"sha256": content_sha256(about, skops)})
    )
    for command in COMMANDS.values():
        convae(*command)
    assert not Path("unpickled").exists()
    assert convae("classify", "picture.png")
