"""The saved classifier: `classifier.json` and, if there were labels, `classifier.skops`. No pickle."""

import hashlib
import io
import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy

from convae.errors import ConvaeError
from convae.evaluation.scores import LogisticScores, class_scores
from convae.files import content_sha256, new_folder, read_file, write_json
from convae.names import printable

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator
    from sklearn.svm import SVC

FORMAT = 2
MOST_DESCRIPTION_BYTES = 1 << 24
MOST_CLASSES = 1 << 16
MOST_TIMES_READ = 10  # average reads per byte of an archive; equal arrays are stored once, and an MLP has three equal

# In addition to what skops trusts itself: NumPy arrays and scikit-learn's public estimators.
TRUSTED = [
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
]


def save_classifier(folder: Path, estimator: "BaseEstimator | None", description: dict[str, Any]) -> None:
    """Write a fitted classifier, or only its description if there is none; equal classifiers give equal bytes.

    Args:
        folder: folder to write, replaced as a whole.
        estimator: a fitted classifier of one of the seven kinds, or None.
        description: information for readers, JSON; `kind` is None without a classifier.

    Example:
        >>> estimator, description = load_classifier(Path("models/classifier"))
        >>> save_classifier(Path("copy"), estimator, {"kind": "ridge", "classes": description["classes"]})
        >>> Path("copy/classifier.skops").read_bytes() == Path("models/classifier/classifier.skops").read_bytes()
        True
    """
    import skops.io

    content = b"" if estimator is None else _canonical(skops.io.dumps(estimator))
    with new_folder(folder) as scratch:
        if estimator is not None:
            (scratch / "classifier.skops").write_bytes(content)
        about = {"format": FORMAT, "scikit_learn": version("scikit-learn"), **description}
        write_json(scratch / "classifier.json", about | {"sha256": content_sha256(about, content)})


def load_classifier(folder: Path) -> "tuple[BaseEstimator, dict[str, Any]]":
    """Load what `save_classifier` wrote: the fitted classifier and its description.

    Raises:
        ConvaeError: there is no classifier, or it is damaged, has another format, holds foreign types, would take more
            memory than its size explains, or does not work with the installed scikit-learn.

    Example:
        >>> estimator, description = load_classifier(Path("models/classifier"))
        >>> type(estimator).__name__, description["classes"], description["test"]["accuracy"]
        ('RidgeClassifier', ['a', 'b', 'c'], 0.5)
    """
    description, content = _read(folder)
    return _estimator(folder, description, content), description


def load_scores(folder: Path) -> "tuple[LogisticScores | BaseEstimator, dict[str, Any]]":
    """Load what `class_scores` needs of a saved classifier, and its description.

    Logistic regression, the default, becomes `LogisticScores`, which needs neither skops nor any version of
    scikit-learn; other kinds are loaded as by `load_classifier`.

    Raises:
        ConvaeError: as `load_classifier`.

    Example:
        >>> type(load_scores(Path("models/classifier"))[0]).__name__
        'RidgeClassifier'
    """
    description, content = _read(folder)
    if description["kind"] != "logistic_regression":
        return _estimator(folder, description, content), description
    try:
        _check_archive(content)
        with ZipFile(io.BytesIO(content)) as archive:
            schema = json.loads(archive.read("schema.json"))
            if schema["__class__"] != "LogisticRegression":
                raise _misnamed(folder, schema["__class__"], description)
            files = [schema["content"]["content"][name]["file"] for name in ("classes_", "coef_", "intercept_")]
            arrays = [np.load(io.BytesIO(archive.read(file)), allow_pickle=False) for file in files]
        return LogisticScores(*arrays), description
    except ConvaeError:
        raise
    except Exception as error:  # a forged archive
        raise _unreadable(folder, error) from None


def _estimator(folder: Path, description: dict[str, Any], content: bytes) -> "BaseEstimator":
    import skops.io
    from sklearn.svm import SVC

    from convae.evaluation.classifiers import CLASSIFIERS

    another = _another_version(description)
    try:
        _check_archive(content)
        untrusted = set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED)
        if untrusted:
            names = printable(", ".join(sorted(untrusted))[:200])
            raise ConvaeError(f"{folder}/classifier.skops: refused, it holds {names}{another}")
        estimator = skops.io.loads(content, trusted=TRUSTED)
        _check_trees(estimator)
        if isinstance(estimator, SVC):
            _check_support(estimator)
        # Another version of scikit-learn may load it and then fail to predict; better here than in the middle of a job.
        if another:
            features = np.zeros((1, estimator.n_features_in_), np.float32)
            class_scores(estimator, features, int(estimator.classes_.max()) + 1)
    except ConvaeError:
        raise
    except Exception as error:  # a forged archive, or one of another version, can make skops raise nearly anything
        raise _unreadable(folder, error, another) from None
    if type(estimator) is not CLASSIFIERS.get(str(description["kind"])):
        raise _misnamed(folder, type(estimator).__name__, description)
    return estimator


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The description of a saved classifier and the content of its archive, checked against their hash."""
    try:
        description = json.loads(read_file(folder / "classifier.json", MOST_DESCRIPTION_BYTES))
        kind, format_ = description["kind"], description["format"]
        content = b"" if kind is None else read_file(folder / "classifier.skops")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ConvaeError(f"{folder}: not a classifier: {error}") from None
    if format_ != FORMAT:
        raise ConvaeError(f"{folder}/classifier.json: format {format_!r}; this version of convae reads format {FORMAT}")
    if description.get("reads", "features") not in ("features", "code"):
        raise ConvaeError(
            f"{folder}/classifier.json: reads {printable(str(description['reads'])[:100])}; features or code is allowed"
        )
    if isinstance(description.get("classes"), list) and len(description["classes"]) > MOST_CLASSES:
        raise ConvaeError(f"{folder}/classifier.json: more than {MOST_CLASSES} classes")
    if kind is None:
        raise ConvaeError(f"{folder}: holds no classifier, as the images had no labels")
    about = {name: value for name, value in description.items() if name != "sha256"}
    if content_sha256(about, content) != description.get("sha256"):
        raise ConvaeError(f"{folder}: damaged, classifier.json and classifier.skops are not as they were saved")
    return description, content


def _misnamed(folder: Path, found: object, description: dict[str, Any]) -> ConvaeError:
    found, kind = (printable(str(name)[:100]) for name in (found, description["kind"]))
    return ConvaeError(f"{folder}/classifier.skops: a {found}, described as {kind}")


def _unreadable(folder: Path, error: Exception, remedy: str = "") -> ConvaeError:
    reason = printable(" ".join(str(error).split())[:200]) or type(error).__name__
    return ConvaeError(f"{folder}/classifier.skops: not readable: {reason}{remedy}")


def _another_version(description: dict[str, Any]) -> str:
    """End of a message that names the scikit-learn version of a saved classifier; empty if it is the installed one."""
    saved, installed = str(description.get("scikit_learn", "of an unknown version")), version("scikit-learn")
    if saved == installed:
        return ""
    return (
        f"; it was saved by scikit-learn {saved[:40]}, and {installed} is installed: install the former, or fit it "
        "again with `dvc repro --force evaluate`"
    )


def _check_archive(content: bytes) -> None:
    """Reject a skops archive that `_canonical` would not write, such as one that would fill the memory.

    `_canonical` compresses nothing, arrays have the size in their headers, and no objects are shared. So neither a few
    bytes nor a few objects can stand for many.

    Raises:
        ValueError: the archive has another form.
    """
    with ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
            raise ValueError("it is compressed")
        sizes = {entry.filename: entry.file_size for entry in entries}
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("it would unpack to more than its size")
        for name in sizes.keys() - {"schema.json"}:
            with archive.open(name) as stream:
                if npy.read_magic(stream) != (1, 0):
                    raise ValueError("an array is not in NumPy's format 1.0")
                shape, _, dtype = npy.read_array_header_1_0(stream)
                if math.prod(shape) * dtype.itemsize != sizes[name] - stream.tell():
                    raise ValueError("an array does not have the size in its header")
        schema = json.loads(archive.read("schema.json"))
    if sum(sizes.get(text, 0) for text in _texts(schema)) > MOST_TIMES_READ * len(content):
        raise ValueError("its arrays are read again and again")


def _texts(node: Any) -> Iterator[str]:
    """All strings in a JSON value except keys."""
    if isinstance(node, str):
        yield node
    if isinstance(node, dict) and "__id__" in node:
        raise ValueError("its objects are shared")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _texts(child)


def _canonical(content: bytes) -> bytes:
    """The same skops archive with arrays named by their hashes, and without object identities and dates.

    skops names arrays and numbers objects by memory address, and dates the arrays, so no two files are equal. Readers
    use the numbers to share objects that are identical, which our classifiers do not rely on.
    """
    with ZipFile(io.BytesIO(content)) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(arrays.pop("schema.json"))
    names = {name: hashlib.sha256(data).hexdigest() + Path(name).suffix for name, data in arrays.items()}
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, data in sorted({names[name]: data for name, data in arrays.items()}.items()):
            archive.writestr(ZipInfo(name), data)
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


def _check_support(estimator: "SVC") -> None:
    """Reject inconsistent support vectors: libsvm would read past the end of their memory."""
    classes, vectors = len(estimator.classes_), len(estimator.support_vectors_)
    shapes = {
        "support_": (vectors,),
        "support_vectors_": (vectors, estimator.n_features_in_),
        "_n_support": (classes,),
        "_dual_coef_": (classes - 1, vectors),
        "_intercept_": (classes * (classes - 1) // 2,),
        "_probA": (0,),
        "_probB": (0,),
    }
    for name, shape in shapes.items():
        if (found := getattr(estimator, name).shape) != shape:
            raise ValueError(f"{name} has the shape {found}, expected {shape}")
    if (estimator._n_support < 0).any() or estimator._n_support.sum() != vectors:
        raise ValueError("the numbers of support vectors do not add up")


def _check_trees(estimator: "BaseEstimator") -> None:
    """Reject trees that point outside themselves: scikit-learn would read past the end of their memory."""
    for trees in getattr(estimator, "_predictors", []):
        for tree in trees:
            own = np.flatnonzero(tree.nodes["is_leaf"] == 0)
            inner = tree.nodes[own]
            # Children come after their parent, so that no walk through the tree can go round in a circle.
            for child in (inner["left"], inner["right"]):
                if (child <= own).any() or (child >= len(tree.nodes)).any():
                    raise ValueError("a tree's nodes point outside it")
            if (inner["feature_idx"] >= estimator.n_features_in_).any() or inner["is_categorical"].any():
                raise ValueError("a tree asks for features that do not exist")
