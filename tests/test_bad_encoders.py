"""`convae` on folders of encoders that are damaged or forged: one line, exit code 1, nothing unpickled."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_models import change, sha256, weights, write

from convae.files import content_sha256

COMMANDS = {
    "features": ["features", "picture.png", "-o", "features.npy", "--force"],
    "info": ["info"],
    "reconstruct": ["reconstruct", "picture.png", "-o", "made", "--force"],
    "export": ["export", "--onnx", "encoder.onnx"],
    "classify": ["classify", "picture.png"],
}


def test_what_belongs_together_works(convae: Callable[..., str]) -> None:
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
    "later format": (change(99, "format"), "format 99; this version of convae reads formats 3 and 4"),
    "format in words": (change("3", "format"), "format '3'; this version of convae reads formats 3 and 4"),
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
    "block without pixels": (change([0, 0], "sparsity", "block"), "do not belong together"),
    "images beyond memory": (change([10**9, 10**9], "image_size"), "are too large"),
    "layers as words": (change("many", "layers"), "do not belong together"),
    "filters as words": (change("many", "layers", 0, "filters"), "do not belong together"),
    "channels beyond memory": (change(30_000, "channels"), "there are fewer weights than described"),
    "no filters": (change(0, "layers", 0, "filters"), "do not belong together"),
    "filters beyond memory": (change(10**15, "layers", 0, "filters"), "do not belong together"),
    "kernel of one side": (change([3], "layers", 0, "kernel"), "do not belong together"),
    "unknown activation": (change("__import__", "layers", 0, "activation"), "do not belong together"),
    "no channels": (change(0, "channels"), "do not belong together"),
    "grid without cells": (change([0, 0], "readout", "grid"), "do not belong together"),
    "layer that is not there": (change([7], "readout", "layers"), "do not belong together"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", ENCODERS)
def test_encoders(convae: Callable[..., str], case: str, command: str) -> None:
    damage, message = ENCODERS[case]
    damage()
    Path("features.npy").write_bytes(b"earlier")
    assert message in convae(*COMMANDS[command])
    assert Path("features.npy").read_bytes() == b"earlier"
    assert not list(Path().rglob("*.partial"))


@pytest.mark.parametrize("keys", [("trained_on",), ("trained_on", "classes"), ("versions",), ("preprocessing",)])
def test_info_refuses_a_description_that_says_nothing(convae: Callable[..., str], keys: tuple[str, ...]) -> None:
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
    """Not even with the hashes that belong to it."""
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
