"""`convae classify` with classifiers that are damaged, forged or of another encoder: one line, and exit code 1."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_models import ABOUT, FEATURES, fitted, sha256, write
from sklearn.base import BaseEstimator

from convae.evaluation.classifiers import make_classifier
from convae.evaluation.saving import save_classifier


def saved(estimator: BaseEstimator | None = None, **about: Any) -> Callable[[], None]:
    """Another classifier or description, saved with the right hash."""

    def save() -> None:
        content = {"encoder": sha256(), **ABOUT, **about}
        save_classifier(Path("models/classifier"), estimator or fitted(), content)

    return save


def altered(kind: str = "ridge", **attributes: Any) -> BaseEstimator:
    estimator = fitted(kind=kind)
    for name, value in attributes.items():
        setattr(estimator, name, value)
    return estimator


LOGISTIC = "logistic_regression"
TOGETHER = "encoder/ and classifier/ do not belong together"
SKOPS, JSON = "classifier/classifier.skops", "classifier/classifier.json"
CLASSIFIERS: dict[str, tuple[Callable[[], object], str]] = {
    "no folder": (lambda: shutil.rmtree("models/classifier"), "not a classifier"),
    "no description": (lambda: Path("models", JSON).unlink(), "not a classifier"),
    "no classifier": (lambda: Path("models", SKOPS).unlink(), "not a classifier"),
    "description is no JSON": (write(JSON, b"{"), "not a classifier"),
    "description is deep": (write(JSON, b"[" * 100_000), "not a classifier"),
    "description is a list": (write(JSON, b"[]"), "not a classifier"),
    "description is a number": (write(JSON, b"3"), "not a classifier"),
    "classifier cut": (write(SKOPS, b"PK"), "damaged"),
    "pickled classifier": (write(SKOPS, pickle.dumps({})), "damaged"),
    "of another encoder": (saved(encoder="0" * 64), "was fitted on the features of another encoder"),
    "kind as a list": (saved(kind=["ridge"]), "a RidgeClassifier, described as ['ridge']"),
    "of another kind": (saved(kind="mlp"), "a RidgeClassifier, described as mlp"),
    "of no kind": (saved(kind="oracle"), "a RidgeClassifier, described as oracle"),
    "of other features": (saved(fitted(5)), TOGETHER),
    "not fitted": (saved(make_classifier("ridge", 0)), TOGETHER),
    "NaN": (saved(altered(coef_=np.full((3, FEATURES), np.nan))), f"{TOGETHER}: a score is not a number"),
    "words for weights": (saved(altered(coef_="weights")), TOGETHER),
    "classes beyond": (saved(altered(classes_=np.array([0, 1, 77]))), TOGETHER),
    "classes in words": (saved(altered(classes_=np.array(["a", "b", "c"]))), TOGETHER),
    "logistic of other features": (saved(fitted(5, LOGISTIC), kind=LOGISTIC), TOGETHER),
    "logistic with NaN": (
        saved(altered(LOGISTIC, coef_=np.full((3, FEATURES), np.nan)), kind=LOGISTIC),
        f"{TOGETHER}: a score is not a number",
    ),
    "logistic with classes beyond": (saved(altered(LOGISTIC, classes_=np.array([0, 1, 77])), kind=LOGISTIC), TOGETHER),
    "logistic with too few names": (saved(fitted(kind=LOGISTIC), kind=LOGISTIC, classes=["a"]), TOGETHER),
    "logistic of another encoder": (
        saved(fitted(kind=LOGISTIC), kind=LOGISTIC, encoder="0" * 64),
        "was fitted on the features of another encoder",
    ),
    "ridge as logistic": (saved(kind=LOGISTIC), "a RidgeClassifier, described as logistic_regression"),
    "too few names": (saved(classes=["a"]), TOGETHER),
    "a number of names": (saved(classes=3), TOGETHER),
    "names that are numbers": (saved(classes=[1, 2, 3]), f"{TOGETHER}: class names must be text"),
}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_damaged_classifiers_are_refused_in_one_line(convae: Callable[..., str], case: str) -> None:
    damage, message = CLASSIFIERS[case]
    damage()
    assert message in convae("classify", "picture.png")
    convae("info")  # prints the encoder's description, or one line


@pytest.mark.parametrize("about", [{"test": 3}, {"test": {}}, {"validation": None}, {"test": {"accuracy": "high"}}])
def test_info_refuses_invalid_accuracies(convae: Callable[..., str], about: dict[str, Any]) -> None:
    saved(**about)()
    assert "its description is not one that `dvc repro` writes" in convae("info")


def test_a_class_name_cannot_steer_the_terminal(convae: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    saved(classes=["\x1b[2J", "\x1b[2J", "\x1b[2J"])()
    assert not convae("classify", "picture.png")
    assert "\x1b" not in capsys.readouterr().out
