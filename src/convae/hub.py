"""`convae push`: upload a model to the Hugging Face Hub."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from convae.classifier import load_image_classifier
from convae.encoder import load_encoder
from convae.errors import ConvaeError
from convae.history.lineage import find_producer
from convae.model_card import model_card
from convae.names import code
from convae.remote import FILES

TAGS = ["convae", "convolutional-autoencoder", "feature-extraction"]


def push(address: str, folder: Path) -> None:
    """Upload encoder, classifier and a model card, and print the page's address.

    The repository is made if it does not exist. Files in it that are not part of a model stay.

    Args:
        address: `hf://owner/name`.
        folder: a folder with `encoder/`, and `classifier/` if the images had labels.

    Raises:
        ConvaeError: the models are damaged or were not made in this repository, or the Hub refuses them.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConvaeError(f"{address}: {error}; install convae[hub]") from None

    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", address)
    if not match:
        raise ConvaeError(f"{address}: hf://owner/name is needed")
    has_classifier = (folder / "classifier/classifier.skops").exists()
    if has_classifier:
        model = load_image_classifier(folder)
        encoder, about = model.encoder, model.description
    else:
        encoder, about = load_encoder(folder / "encoder"), None
    place, _ = find_producer(folder / ("classifier" if has_classifier else "encoder"))
    origin = f"Made from commit {code(place.commit[:7])}." if place.commit else "Made from code that is not committed."
    with TemporaryDirectory() as scratch:
        # Without the reference: features of training images could tell what these were.
        for part in ("encoder", "classifier") if has_classifier else ("encoder",):
            shutil.copytree(folder / part, Path(scratch) / part)
        dataset = encoder.config["trained_on"]["dataset"]
        card = (
            _metadata(match[1], dataset, about) + model_card(dataset, encoder, about, origin) + _usage(address, about)
        )
        (Path(scratch) / "README.md").write_text(card, "utf-8")
        api = HfApi(library_name="convae")
        try:
            api.create_repo(match[1], exist_ok=True)
            told = f"Encoder {encoder.sha256[:12]}"
            # Parts of an earlier model would not belong to this one.
            api.upload_folder(repo_id=match[1], folder_path=scratch, commit_message=told, delete_patterns=list(FILES))
        except Exception as error:  # the Hub's client lets errors of its HTTP library through
            advice = "; sign in with `hf auth login`, or set HF_TOKEN" if "401" in str(error) else ""
            raise ConvaeError(f"{address}: {' '.join(str(error).split())}{advice}") from None
    print(f"{api.endpoint}/{match[1]}")


def _metadata(repository: str, dataset: str, about: Mapping[str, Any] | None) -> str:
    """The card's head, which the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    known: dict[str, Any] = {} if dataset in ("image_folder", "arrays") else {"datasets": [dataset]}
    if about:
        accuracy = EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=about["test"]["accuracy"],
        )
        known |= {"metrics": ["accuracy"], "model_name": repository.partition("/")[2], "eval_results": [accuracy]}
    task = "image-classification" if about else "image-feature-extraction"
    data = ModelCardData(library_name="convae", tags=TAGS, pipeline_tag=task, **known)
    return f"---\n{data.to_yaml()}\n---\n\n"


def _usage(address: str, about: Mapping[str, Any] | None) -> str:
    predict = f'\nload_image_classifier("{address}").predict(["photo.png"])' if about else ""
    names = "load_encoder, load_image_classifier" if about else "load_encoder"
    return f"""
```python
from convae import {names}

load_encoder("{address}").features(["photo.png"]){predict}
```
"""
