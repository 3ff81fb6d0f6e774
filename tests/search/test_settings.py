"""search.yaml: what is shipped is valid, and a mistake is one line before anything runs."""

import re

import pytest

from convae.errors import ConvaeError
from convae.params import load_params
from convae.search.settings import change, load_search

SEARCH = """\
study: small
storage: null
trials: 3
pruning: {startup_trials: 1, warmup_epochs: 0}
space:
  train.learning_rate: {low: 0.0003, high: 0.01, log: true}
  train.batch_size: {choices: [32, 64]}
"""
MISTAKES = {
    "unknown key": ("trials: 3", "trails: 3", "unknown key 'trails'; the nearest known key is 'trials'"),
    "wrong type": ("trials: 3", "trials: three", "trials = 'three': must"),
    "a database at home": (
        "storage: null",
        "storage: sqlite:///~/s.db",
        "storage: found 'sqlite:///~/s.db'; ~ and variables",
    ),
    "a name that git refuses": ("study: small", "study: a b", "study: found 'a b'; letters, digits, - and _"),
    "nothing to vary": (r"space:\n(.*\n)*", "space: {}\n", "space = {}: must"),
    "unknown parameter": ("train.batch_size", "train.batchsize", "space: train: unknown key 'batchsize'"),
    "unknown section": (
        "train.batch_size",
        "training.batch_size",
        "space: training.batch_size: params.yaml has no such",
    ),
    "a layer too many": (
        "train.batch_size",
        "model.layers.2.filters",
        "space: model.layers.2.filters: params.yaml has",
    ),
    "a value that is refused": (r"\[32, 64\]", "[32, 0]", "space: train.batch_size = 0: must"),
    "a type that is refused": (
        r"\[32, 64\]",
        "[32, many]",
        "space: train.batch_size = 'many': must",
    ),
    "an end that is refused": (
        "high: 0.01, log: true",
        "high: .inf",
        "space.train.learning_rate.high = inf: must",
    ),
    "images too small": (
        "train.batch_size: .*",
        "model.layers.0.pool: {choices: [null, {kind: max, size: 29}]}",
        "space: model.layers[0]: pooling over 29×29 turns 28×28",
    ),
    "both ways": ("log: true", "choices: [1.0]", "space.train.learning_rate: either choices, or low and high"),
    "half a range": ("high: 0.01, ", "", "space.train.learning_rate: either choices, or low and high"),
    "low above high": ("low: 0.0003", "low: 0.3", "low = 0.3 is more than high = 0.01"),
    "step and log": ("log: true", "log: true, step: 0.001", "log needs low above 0 and no step"),
    "losses of another kind": (
        "train.batch_size: .*",
        "preprocessing.whitening.epsilon: {choices: [0.1, 0.01]}",
        "validation losses of the same epoch, but preprocessing.whitening.epsilon changes their definition",
    ),
    "losses of other windows": (
        "train.batch_size: .*",
        "model.layers.1.input.whitening.epsilon: {choices: [0.1, 0.01]}",
        "model.layers.1.input.whitening.epsilon changes their definition; set pruning to null",
    ),
    "losses of other layers": (
        "train.batch_size: .*",
        "train.epochs: {low: 1, high: 3}",
        "train.epochs changes which layer learns then; set pruning to null",
    ),
}


@pytest.fixture
def written(repository, tmp_path, monkeypatch):
    """Write a search file next to the shipped params.yaml and return its path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())

    def write(text):
        (tmp_path / "search.yaml").write_text(text)
        return tmp_path / "search.yaml"

    return write


def test_the_shipped_search_is_valid(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert load_search(repository / "search.yaml").storage is None


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_in_one_line(written, old, new, message):
    text, count = re.subn(old, lambda match: new, SEARCH)
    assert count == 1
    path = written(text)
    with pytest.raises(ConvaeError) as raised:
        load_search(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def test_a_change_keeps_everything_else(written):
    params = written(SEARCH).with_name("params.yaml")
    before, comments = load_params(params).model_dump(), params.read_text().count("#")
    change(params, {"train.epochs": 7, "model.layers.0.filters": 5, "features.grid": [2, 3], "seed": 1})
    before["train"]["epochs"], before["model"]["layers"][0]["filters"] = 7, 5
    before["features"]["grid"], before["seed"] = (2, 3), 1
    assert load_params(params).model_dump() == before
    assert params.read_text().count("#") == comments
