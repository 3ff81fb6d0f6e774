"""The saved classifier: `classifier.json` and, where there are labels, `classifier.skops`. No pickle."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
import skops.io
from sklearn.base import BaseEstimator

from convae.errors import ConvaeError
from convae.evaluation.classifiers import CLASSIFIERS
from convae.files import content_sha256, new_folder, read_json, write_json

FORMAT = 2

# Beyond what skops trusts by itself (NumPy arrays and scikit-learn's public estimators).
TRUSTED = [
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
]


def save_classifier(folder: Path, estimator: BaseEstimator | None, description: dict[str, Any]) -> None:
    """Write a fitted classifier, or only the description where there is none; equal ones give equal bytes.

    Args:
        folder: replaced as a whole.
        estimator: one of the seven kinds, fitted.
        description: what readers want to know, as JSON; has `kind`, null where there is no classifier.
    """
    content = b"" if estimator is None else _canonical(skops.io.dumps(estimator))
    with new_folder(folder) as scratch:
        if estimator is not None:
            (scratch / "classifier.skops").write_bytes(content)
        about = {"format": FORMAT, **description}
        write_json(scratch / "classifier.json", about | {"sha256": content_sha256(about, content)})


def load_classifier(folder: Path) -> tuple[BaseEstimator, dict[str, Any]]:
    """Load what `save_classifier` wrote: the fitted classifier and its description.

    Raises:
        ConvaeError: there is no classifier, or it is damaged, of another format, or holds foreign types.
    """
    try:
        description = read_json(folder / "classifier.json")
        kind, format_ = description["kind"], description["format"]
        content = b"" if kind is None else (folder / "classifier.skops").read_bytes()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConvaeError(f"{folder}: not a classifier: {error}") from None
    if format_ != FORMAT:
        raise ConvaeError(f"{folder}/classifier.json: format {format_!r}; this convae reads format {FORMAT}")
    if kind is None:
        raise ConvaeError(f"{folder}: holds no classifier, as the images had no labels")
    about = {name: value for name, value in description.items() if name != "sha256"}
    if content_sha256(about, content) != description.get("sha256"):
        raise ConvaeError(f"{folder}: damaged, classifier.json and classifier.skops are not as they were saved")
    try:
        untrusted = set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED)
        if untrusted:
            raise ConvaeError(f"{folder}/classifier.skops: refused, it holds {', '.join(sorted(untrusted))}")
        estimator = skops.io.loads(content, trusted=TRUSTED)
        _check_trees(estimator)
    except (BadZipFile, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ConvaeError(f"{folder}/classifier.skops: not readable: {str(error).splitlines()[0]}") from None
    if type(estimator) is not CLASSIFIERS.get(str(kind)):
        raise ConvaeError(f"{folder}/classifier.skops: a {type(estimator).__name__}, described as {kind}")
    return estimator, description


def _canonical(content: bytes) -> bytes:
    """The same skops archive with arrays named after their bytes, no object identities and no dates.

    skops names arrays after their memory addresses, dates them and numbers objects by address, so that no two
    files are alike. Readers use the numbers to share equal objects, which nothing here relies on.
    """
    with ZipFile(io.BytesIO(content)) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(arrays.pop("schema.json"))
    names = {name: hashlib.sha256(data).hexdigest() + Path(name).suffix for name, data in arrays.items()}
    renamed = {names[name]: data for name, data in arrays.items()}
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name in sorted(renamed):
            archive.writestr(ZipInfo(name), renamed[name])
        archive.writestr(ZipInfo("schema.json"), json.dumps(_without_identities(schema, names), indent=1))
    return buffer.getvalue()


def _without_identities(node: Any, names: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_without_identities(item, names) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: names[value] if key == "file" and isinstance(value, str) else _without_identities(value, names)
        for key, value in node.items()
        if key != "__id__"
    }


def _check_trees(estimator: BaseEstimator) -> None:
    """Refuse trees that point outside themselves: scikit-learn would follow them into foreign memory."""
    for trees in getattr(estimator, "_predictors", []):
        for tree in trees:
            inner = tree.nodes[tree.nodes["is_leaf"] == 0]
            own = np.flatnonzero(tree.nodes["is_leaf"] == 0)
            for child in (inner["left"], inner["right"]):
                if (child <= own).any() or (child >= len(tree.nodes)).any():
                    raise ValueError("a tree's nodes point outside it")
            if (inner["feature_idx"] >= estimator.n_features_in_).any() or inner["is_categorical"].any():
                raise ValueError("a tree asks for features that there are not")
