from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convae.datasets.duplicates import find_duplicates
from convae.datasets.image_set import ImageSet, write_image_set
from convae.encoder import Encoder, build_autoencoder
from convae.evaluation.evaluate import evaluate
from convae.features.extract import extract_features
from convae.files import read_json, write_json
from convae.models.initialization import fit_layer
from convae.params import Params
from convae.reporting.report import write_report
from convae.training.module import COLUMNS


@dataclass
class Evaluated:
    """An evaluated experiment; its images are noise around one mean image per class."""

    root: Path
    params: Params
    encoder: Encoder

    def write(self, name: str = "reports") -> Path:
        """The report, in a copy of the reports' folder called `name`."""
        reports = self.root / name
        reports.mkdir(exist_ok=True)
        for file in (self.root / "reports").glob("*.*"):
            (reports / file.name).write_bytes(file.read_bytes())
        write_report(
            self.params,
            self.encoder,
            self.root / "prepared",
            classifier=self.root / "classifier",
            predictions=self.root / "test.parquet",
            reports=reports,
        )
        return reports


def write_parts(root: Path, shape: tuple[int, int, int], classes: Sequence[str], labelled: bool) -> None:
    generator = np.random.default_rng(0)
    means = generator.integers(30, 220, (len(classes), *shape))
    parts = {}
    for part, each in (("train", 6), ("validation", 2), ("test", 2)):
        labels = np.repeat(np.arange(len(classes)), each)
        images = (means[labels] + generator.integers(-30, 30, (len(labels), *shape))).astype(np.uint8)
        if part == "test":
            labels[0] = 1  # an image of class 0, so that a mistake is certain
        names, known = (classes, labels) if labelled else ((), None)
        content = write_image_set(root / part, images.shape, [images], known, names)
        parts[part] = {
            "images": len(images),
            "origin": "given",
            "levels": content["levels"],
            "sha256": content["sha256"],
        }
    write_image_set(root / "unlabelled", (0, *shape), [], None, [])
    parts["unlabelled"] = {"images": 0, "origin": "none", "sha256": ""}
    description = {
        "dataset": "image_folder",
        "shape": list(shape),
        "classes": list(classes) if labelled else [],
    }
    copies = find_duplicates({name: ImageSet.load(root / name) for name in parts})
    write_json(
        root / "description.json", {**description, "parts": parts, "rejected": [], "cropped": 0.0, "dim": 0, **copies}
    )


@pytest.fixture
def evaluated(experiment: Callable[..., Params], tmp_path: Path) -> Callable[..., Evaluated]:
    """`evaluated(shape=(3, 12, 16), classes=["a", "b"], model={...})`: an untrained encoder, evaluated."""

    def build(
        shape: tuple[int, int, int] = (1, 8, 8),
        classes: Sequence[str] = ("cat", "dog", "owl"),
        labelled: bool = True,
        history: str = "0,0,0,1,0.5,0.6,0.6,0.003,\n1,0,1,2,0.4,0.5,0.5,0.003,\n",
        **changes: Any,
    ) -> Evaluated:
        params = experiment(**changes)
        write_parts(tmp_path / "prepared", shape, classes, labelled)
        config: dict[str, Any] = {
            "channels": shape[0],
            "image_size": list(shape[1:]),
            "preprocessing": params.preprocessing.model_dump(mode="json"),
            "layers": [layer.model_dump(mode="json") for layer in params.model.layers],
            "tied_weights": params.model.tied_weights,
            "stacked_on": "maps",
            "sparsity": None,
            "decoder": params.objective.kind == "reconstruct" and not any(one.input for one in params.model.layers),
            "readout": None,
        }
        autoencoder = build_autoencoder(config)
        generator = np.random.default_rng(0)
        for parameter in autoencoder.parameters():
            parameter.data.copy_(parameter.new_tensor(generator.normal(scale=0.2, size=tuple(parameter.shape))))
        images = torch.from_numpy(np.load(tmp_path / "prepared/train/images.npy"))
        autoencoder.preprocessing.fit(images, torch.Generator().manual_seed(0))
        if any(layer.input for layer in params.model.layers):
            for index in range(len(params.model.layers)):
                fit_layer(autoencoder, index, params.model.initialization, images, params.seed)
        Encoder(autoencoder, None, config).save(tmp_path / "trained")
        encoder = extract_features(params, tmp_path / "trained", tmp_path / "prepared", tmp_path / "features")
        evaluate(
            params,
            encoder,
            tmp_path / "features",
            tmp_path / "prepared",
            classifier=tmp_path / "classifier",
            reference=tmp_path / "reference",
            predictions=tmp_path / "test.parquet",
            reports=tmp_path / "reports",
        )
        (tmp_path / "reports/training.csv").write_text(f"{','.join(COLUMNS)}\n{history}")
        return Evaluated(tmp_path, params, encoder)

    return build


@pytest.fixture
def change_description(tmp_path: Path) -> Callable[..., None]:
    """Change keys of data/prepared/description.json."""

    def change(**changes: Any) -> None:
        path = tmp_path / "prepared/description.json"
        write_json(path, {**read_json(path), **changes})

    return change
