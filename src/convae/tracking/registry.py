"""Publish encoder and classifier to MLflow's model registry."""

import json
import re
import shutil
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from convae.classifier import ImageClassifier, load_image_classifier
from convae.datasets.image_set import ImageSet
from convae.datasets.reading import Reading
from convae.errors import ConvaeError
from convae.evaluation.concerns import beside_accuracy
from convae.history.git import Place
from convae.history.lineage import find_producer
from convae.models.geometry import show
from convae.params import load_params
from convae.tracking.fetch import MODEL
from convae.tracking.records import KEY, Records
from convae.tracking.store import known_store, one_at_a_time, store_errors
from convae.tracking.sync import sync
from convae.tracking.wording import code

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

ENCODER, CLASSIFIER = "convae-encoder", "convae-classifier"
CHAMPION = "champion"
# Names of tags.
CONTENT, ACCURACY, IMAGES = "convae.content", "convae.validation_accuracy", "convae.images"

VALIDATION = Path("data/prepared/validation")
EXAMPLES = 2  # images shown as an input example


class Published(NamedTuple):
    """A version in the registry, and whether it was there already."""

    version: str
    before: bool


def publish(folder: Path) -> None:
    """`convae publish`: a new version of both models, unless they are there; the champion where they are better.

    Raises:
        ConvaeError: encoder or classifier are not whole, no dvc.lock knows them, or the store can't be used.
    """
    classifier = load_image_classifier(folder)
    place, execution = find_producer(folder / "classifier")
    validation = ImageSet.load(VALIDATION)
    if validation.sha256 != classifier.description["images"]["validation"]:
        raise ConvaeError(
            f"{VALIDATION}: not the images that {folder} was chosen on; two of them are to be its example"
        )
    example = validation.images[:EXAMPLES]
    tracking = load_params().tracking
    uri = known_store(tracking)
    with store_errors():
        records = Records(uri, tracking.experiment)
        if records.find(records.stages, KEY, execution.key) is None:
            sync(records)  # before the lock is taken, which it takes as well
        run = records.find(records.stages, KEY, execution.key)
        assert run is not None, "sync adds every execution"
        card = _card(classifier, place)
        versions = {}
        with one_at_a_time():
            for name, parts in ((ENCODER, ("encoder",)), (CLASSIFIER, ("encoder", "classifier"))):
                with TemporaryDirectory() as scratch:
                    data = Path(scratch) / MODEL
                    for part in parts:
                        shutil.copytree(folder / part, data / part)
                    (data / "README.md").write_text(card, "utf-8")
                    model = Path(scratch) / name
                    _save(model, data, example, _signature(classifier, name))
                    tags = _tags(classifier, parts)
                    versions[name] = _register(records.client, name, model, run.info.run_id, card, tags)
                known = " already" if versions[name].before else ""
                print(f"{name} version {versions[name].version}{known}: models:/{name}/{versions[name].version}")
            print(_move_champion(records.client, versions, tags))


def _save(model: Path, data: Path, example: Any, signature: "ModelSignature") -> None:
    """A model of MLflow's that says which module of the installed package loads it: with no code and no pickle."""
    from mlflow.pyfunc import save_model

    save_model(
        model,
        loader_module="convae.serving",
        data_path=str(data),
        signature=signature,
        input_example=example,
        pip_requirements=[f"{name}=={number.partition('+')[0]}" for name, number in _needed().items()],
    )


def _needed() -> dict[str, str]:
    """Packages that load a published model: the library, what it depends on, and what MLflow's server adds."""
    own = [re.split(r"[<>=!~ ]", text)[0] for text in requires("convae") or () if "extra ==" not in text]
    return {name: version(name) for name in sorted(("convae", "mlflow", "pandas", *own))}


def _signature(classifier: ImageClassifier, name: str) -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    config = classifier.encoder.config
    # MLflow refuses images of another size, of which the features would mean something else.
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, config["channels"], *config["image_size"]))])
    if name == ENCODER:
        dimension = classifier.description["dimension"]
        return ModelSignature(images, Schema([TensorSpec(np.dtype(np.float32), (-1, dimension))]))
    from convae.serving import LABEL, score_columns

    columns: list[ColSpec | TensorSpec] = [ColSpec("string", LABEL)]
    columns += [ColSpec("double", column) for column in score_columns(classifier)]
    return ModelSignature(images, Schema(columns))


def _tags(classifier: ImageClassifier, parts: tuple[str, ...]) -> dict[str, str]:
    about = classifier.description
    hashes = {"encoder": classifier.encoder.sha256, "classifier": about["sha256"]}
    return {
        CONTENT: _hash([hashes[part] for part in parts]),
        ACCURACY: str(about["validation"]["accuracy"]),
        IMAGES: _hash(about["images"]),
    }


def _hash(content: Any) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _register(
    client: "MlflowClient", name: str, model: Path, run_id: str, card: str, tags: Mapping[str, str]
) -> Published:
    """The version with this content; where there is none, the model goes to the run's artifacts and becomes one."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.get(CONTENT) == tags[CONTENT]:
            return Published(str(known.version), before=True)
    client.log_artifacts(run_id, str(model), name)
    source = f"{client.get_run(run_id).info.artifact_uri}/{name}"
    made = client.create_model_version(name, source, run_id, dict(tags), description=card)
    return Published(str(made.version), before=False)


def _move_champion(client: "MlflowClient", versions: Mapping[str, Published], tags: Mapping[str, str]) -> str:
    """Give both versions the alias if they earn it, and say so."""
    aliases = client.get_registered_model(CLASSIFIER).aliases
    if CHAMPION in aliases:
        champion = client.get_model_version(CLASSIFIER, aliases[CHAMPION])
        stays = f"{CHAMPION} stays with version {champion.version}"
        if str(champion.version) == versions[CLASSIFIER].version:
            return f"{stays}, which is this one"
        if champion.tags.get(IMAGES) != tags[IMAGES]:
            return f"{stays}, which learned from or was measured on other images; MLflow's page of the model moves it"
        before, now = float(champion.tags[ACCURACY]), float(tags[ACCURACY])
        if now <= before:
            return f"{stays}: {100 * before:.2f} % of the validation images against {100 * now:.2f} %"
    for name, published in versions.items():
        client.set_registered_model_alias(name, CHAMPION, published.version)
    return f"{CHAMPION} is version {versions[CLASSIFIER].version}: models:/{CLASSIFIER}@{CHAMPION}"


def _reading(reading: Reading) -> str:
    white = f", {reading.white_level} white where there are more than 8 bits" if reading.white_level else ""
    return f"fit by {reading.fit}{white}"


def _card(classifier: ImageClassifier, place: Place) -> str:
    """A model card in Markdown."""
    about, config = classifier.description, classifier.encoder.config
    data, test = config["trained_on"], about["test"]
    layers = ", ".join(f"{layer['filters']} filters of {show(layer['kernel'])} pixels" for layer in config["layers"])
    size = " × ".join(map(str, (config["channels"], *config["image_size"])))
    back = f"{code(place.command)} brings the experiment back." if place.command else "Not committed when published."
    return f"""# Convolutional autoencoder of {data["dataset"]}

| | |
| --- | --- |
| encoder | {layers or "no layers"}; {about["dimension"]} features |
| learned from | {data["images"]} images of {size}, hash `{data["sha256"][:12]}` |
| classifier | {about["kind"].replace("_", " ")}, {len(about["classes"])} classes |
| accuracy | test {100 * test["accuracy"]:.2f} % (95 % interval {100 * test["accuracy_low"]:.2f} to \
{100 * test["accuracy_high"]:.2f}), validation {100 * about["validation"]["accuracy"]:.2f} % |
| beside it | {code(beside_accuracy(test)) if "balanced_accuracy" in test else "not measured"} |
| versions | {", ".join(f"{name} {number}" for name, number in config["versions"].items())} |

{back} Images are `uint8 [N, C, H, W]`. Classes: {code(json.dumps(about["classes"], ensure_ascii=False))}.

Learned from images of this kind and of {show(tuple(config["image_size"]))} pixels alone. Features of images of another
size mean something else: bring them to this one first ({_reading(classifier.encoder.reading())}). What it says of
images of another kind is not measured, and it has no class for what belongs to none.
"""
