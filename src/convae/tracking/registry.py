"""Publishing encoder and classifier in MLflow's model registry."""

import re
import shutil
from collections.abc import Mapping
from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from convae.classifier import ImageClassifier, load_image_classifier
from convae.datasets.image_set import ImageSet
from convae.errors import ConvaeError
from convae.history.lineage import find_producer
from convae.history.lock import content_hash
from convae.model_card import model_card
from convae.names import code
from convae.params import load_params
from convae.tracking.fetch import MODEL
from convae.tracking.records import Records
from convae.tracking.store import known_store, one_at_a_time, store_errors
from convae.tracking.sync import sync

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

ENCODER, CLASSIFIER = "convae-encoder", "convae-classifier"
CHAMPION = "champion"
# Names of tags.
CONTENT, ACCURACY, IMAGES = "convae.content", "convae.validation_accuracy", "convae.images"

VALIDATION = Path("data/prepared/validation")
EXAMPLES = 2  # images stored as the input example


class Published(NamedTuple):
    """A version in the registry, and whether it existed before."""

    version: str
    before: bool


def publish(folder: Path) -> None:
    """`convae publish`: register both models unless they are registered, and move the champion if they are better.

    Raises:
        ConvaeError: the encoder or classifier is incomplete, no dvc.lock has them, or the store can't be used.
    """
    classifier = load_image_classifier(folder)
    place, execution = find_producer(folder / "classifier")
    validation = ImageSet.load(VALIDATION)
    if validation.sha256 != classifier.description["images"]["validation"]:
        raise ConvaeError(f"{VALIDATION}: not the validation images of {folder}, from which the input example is taken")
    example = validation.images[:EXAMPLES]
    tracking = load_params().tracking
    with store_errors():
        records = Records(known_store(tracking), tracking.experiment)
        if records.find(records.stages, execution.key) is None:
            sync(records)  # before the lock below, which sync takes too
        run = records.find(records.stages, execution.key)
        assert run is not None, "sync adds every execution"
        back = (
            f"Restore the experiment with {code(place.command)}." if place.command else "Not committed when published."
        )
        back += " In MLflow, the model also accepts PNG, JPEG, WebP, BMP and TIFF files, as bytes or in base64."
        name = classifier.encoder.config["trained_on"]["dataset"]
        card = model_card(name, classifier.encoder, classifier.description, back)
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
    """Save an MLflow model that names the module of the installed package that loads it: no code and no pickle."""
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
    """Return packages and versions for loading a published model: this library, its dependencies, MLflow and pandas."""
    own = [re.split(r"[<>=!~ ]", text)[0] for text in requires("convae") or () if "extra ==" not in text]
    return {name: version(name) for name in sorted(("convae", "mlflow", "pandas", *own))}


def _signature(classifier: ImageClassifier, name: str) -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    # The one signature with which MLflow passes on both arrays of images and encoded pictures, in JSON, data frames and
    # Python; `convae.serving` checks them.
    images = Schema([TensorSpec(np.dtype(object), (-1,))])
    if name == ENCODER:
        dimension = classifier.encoder.features([]).shape[1]
        features = Schema([TensorSpec(np.dtype(np.float32), (-1, dimension))])
        if classifier.encoder.code:
            return ModelSignature(images, features, ParamSchema([ParamSpec("code", "boolean", False)]))
        return ModelSignature(images, features)
    from convae.serving import LABEL, score_columns

    columns: list[ColSpec | TensorSpec] = [ColSpec("string", LABEL)]
    columns += [ColSpec("double", column) for column in score_columns(classifier)]
    return ModelSignature(images, Schema(columns))


def _tags(classifier: ImageClassifier, parts: tuple[str, ...]) -> dict[str, str]:
    about = classifier.description
    hashes = {"encoder": classifier.encoder.sha256, "classifier": about["sha256"]}
    return {
        CONTENT: content_hash([hashes[part] for part in parts]),
        ACCURACY: str(about["validation"]["accuracy"]),
        IMAGES: content_hash(about["images"]),
    }


def _register(
    client: "MlflowClient", name: str, model: Path, run_id: str, card: str, tags: Mapping[str, str]
) -> Published:
    """Return the version with this content, or upload the model to the run's artifacts and register it."""
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
    """Move the alias to both versions if they are better; return a line that says what happened and why."""
    aliases = client.get_registered_model(CLASSIFIER).aliases
    if CHAMPION in aliases:
        champion = client.get_model_version(CLASSIFIER, aliases[CHAMPION])
        stays = f"{CHAMPION} stays with version {champion.version}"
        if str(champion.version) == versions[CLASSIFIER].version:
            return f"{stays}, this version"
        if champion.tags.get(IMAGES) != tags[IMAGES]:
            return f"{stays}: it was trained or measured on other images; to move it, use the model's page in MLflow"
        before, now = float(champion.tags[ACCURACY]), float(tags[ACCURACY])
        if now <= before:
            return f"{stays}: validation accuracy {100 * before:.2f} %, this version {100 * now:.2f} %"
    for name, published in versions.items():
        client.set_registered_model_alias(name, CHAMPION, published.version)
    return f"{CHAMPION} is version {versions[CLASSIFIER].version}: models:/{CLASSIFIER}@{CHAMPION}"
