"""Careless and malicious edits of params.yaml: one line for each mistake."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from convae.errors import ConvaeError
from convae.experiment import load_experiment

Text = str | bytes
Change = Callable[[str], Text]


def by(old: str, new: str) -> Change:
    """Replace the only occurrence of `old`."""

    def change(text: str) -> str:
        assert text.count(old) == 1, old
        return text.replace(old, new)

    return change


def layer(**keys: object) -> Change:
    """Give the only layer just these keys; the others have defaults."""
    entries = ", ".join(f"{key}: {value}" for key, value in keys.items())

    def change(text: str) -> str:
        start, end = text.index("    - filters:"), text.index("  initialization:")
        return f"{text[:start]}    - {{{entries}}}\n{text[end:]}"

    return change


def last_layer(old: str, new: str) -> Change:
    """Replace the last occurrence of `old` in the layers."""

    def change(text: str) -> str:
        place = text.rindex(old, 0, text.index("  initialization:"))
        return text[:place] + new + text[place + len(old) :]

    return change


def several(*changes: Change) -> Change:
    def change(text: str) -> Text:
        for one in changes:
            text = one(text)  # type: ignore[assignment]
        return text

    return change


def laughs(kind: str, first: str) -> str:
    """Thirty values, each nine times the previous one: written out, they would exceed any memory."""
    levels = (kind.format(index=i, many=", ".join([f"*x{i - 1}"] * 9)) for i in range(1, 30))
    return f"[&x0 {first}, {', '.join(levels)}]"


PLAIN = "systems/whitened_wta_cae.yaml"  # one layer that learns from whole maps
C = "C: [0.001, 0.003]"
FOLDER = by("dataset: fashion_mnist", "dataset: image_folder")

UNREADABLE = "not readable as YAML:"
YAML = {
    "billion laughs": (by(C, f"C: {laughs('&x{index} [{many}]', '[lol]')}"), "more than 20 aliases"),
    "billion merges": (by(C, f"C: {laughs('&x{index} {{<<: [{many}]}}', '{a: 1}')}"), "more than 20 aliases"),
    "a list in itself": (by(C, "C: &c [*c]"), "classifier.logistic_regression.C[0] = [[...]]: must"),
    "unknown alias": (by("seed: 0", "seed: *nowhere"), f"{UNREADABLE} … nowhere"),
    "merged scalar": (by(C, "<<: 3"), UNREADABLE),
    "duplicate key": (by("epochs: 1", "epochs: 1\n  epochs: 2"), f"{UNREADABLE} … epochs"),
    "Python call": (by("seed: 0", "seed: !!python/object/apply:os.abort []"), UNREADABLE),
    "Python name": (by("seed: 0", "seed: !!python/name:os.system"), UNREADABLE),
    "unknown tag": (by("seed: 0", "seed: !mine 0"), f"{UNREADABLE} … !mine"),
    "no boolean": (by("seed: 0", "seed: !!bool maybe"), UNREADABLE),
    "no integer": (by("seed: 0", "seed: !!int ''"), UNREADABLE),
    "no float": (by("seed: 0", "seed: !!float many"), UNREADABLE),
    "impossible date": (by("seed: 0", "seed: 2001-99-99"), UNREADABLE),
    "date": (by("seed: 0", "seed: 2001-01-01"), "seed = datetime.date(2001, 1, 1): must"),
    "bytes": (by("seed: 0", "seed: !!binary aGk="), "seed = b'hi': must"),
    "sexagesimal": (by("seed: 0", "seed: 1:30"), "seed = '1:30': must"),
    "yes is text": (by("standardize: true", "standardize: yes"), "features.standardize = 'yes': must"),
    "no is text": (by("batch_norm: false", "batch_norm: no"), "model.layers[0].batch_norm = 'no': must"),
    "0 is no boolean": (by("tied_weights: true", "tied_weights: 0"), "model.tied_weights = 0: must"),
    "tab": (by("  epochs:", "\tepochs:"), UNREADABLE),
    "UTF-16": (lambda text: text.encode("utf-16"), UNREADABLE),
    "Latin-1": (lambda text: f"{text}# é".encode("latin-1"), UNREADABLE),
    "zero byte": (by("seed: 0", "seed: 0\0"), UNREADABLE),
    "bell": (by("seed: 0", "seed: \x07"), UNREADABLE),
    "two documents": (lambda text: f"{text}---\n{text}", UNREADABLE),
    "future YAML": (lambda text: f"%YAML 9.9\n---\n{text}", UNREADABLE),
    "lists in lists": (by("seed: 0", f"seed: {'[' * 1000}{']' * 1000}"), UNREADABLE),
    "unclosed lists": (lambda text: "[" * 1000, UNREADABLE),
    "sections in sections": (by("seed: 0", f"seed: {'{a: ' * 3000}{'}' * 3000}"), UNREADABLE),
    "lists of lists": (lambda text: "- " * 20_000, UNREADABLE),
    "endless key": (by("seed:", "s" * 100_000 + ":"), UNREADABLE),
    "section as key": (lambda text: f"{text}? {{a: 2}}\n: 3\n", UNREADABLE),
    "list as key": (lambda text: f"{text}? [1, 2]\n: 3\n", "unknown key (1, 2); the nearest known key is 'train'"),
    "null as key": (lambda text: f"{text}null: 3\n", "unknown key None; the nearest known key is"),
    "line break in a key": (lambda text: f'{text}"a\\nb": 3\n', "unknown key 'a\\nb'; the nearest known key is"),
    "5000 digits": (by("seed: 0", f"seed: {'9' * 5000}"), UNREADABLE),
}  # fmt: skip

KEYS = {
    "at the top": (by("tracking:", "trucking: {}\ntracking:"), "unknown key 'trucking'; the nearest known key is"),
    "in a section": (by("  grid: 7", "  grids: 7\n  grid: 7"), "features: unknown key 'grids'; the nearest known key"),
    "in a layer": (layer(filters=8, filter=8), "model.layers[0]: unknown key 'filter'; the nearest known key is"),
    "in a pool": (layer(filters=8, pool="{kind: max, sizes: 2, size: 2}"), "model.layers[0].pool: unknown key 'sizes'"),
    "in a classifier": (by(C, f"{C}\n    penalty: l1"), "classifier.logistic_regression: unknown key 'penalty'"),
    "in preprocessing": (by("floor: 0.03", "floor: 0.03\n    flor: 1"), "preprocessing.local_contrast: unknown key"),
    "in corruption": (by("corruption: null", "corruption: {levl: 1}"), "objective.corruption: unknown key 'levl'"),
    "section left out": (lambda text: text[: text.index("tracking:")], "tracking: missing"),
    "section of nothing": (lambda text: text[: text.index("tracking:")] + "tracking:\n", "tracking = None: must be a"),
    "list for a section": (lambda text: text[: text.index("tracking:")] + "tracking: []\n", "tracking = []: must be"),
    "key left out": (by("  power: 0.5", ""), "features.power: missing"),
}  # fmt: skip

VALUES = {
    "list for a number": (by("epochs: 1", "epochs: [1]"), "train.epochs = [1]: must"),
    "number for a list": (by(C, "C: 0.1"), "classifier.logistic_regression.C = 0.1: must"),
    "text for a list": (by("layers: [-1]", "layers: '-1'"), "features.layers = '-1': must"),
    "section for a list": (by("layers: [-1]", "layers: {a: 1}"), "features.layers = {'a': 1}: must"),
    "nothing for a list": (by("layers: [-1]", "layers:"), "features.layers = None: must"),
    "weights of neighbours": (
        several(by("weight: null", "weight: balanced"), by("kind: logistic", "kind: k_nearest_neighbors #")),
        "classifier: class_weight = balanced: k_nearest_neighbors can't weight classes; set it to null or choose",
    ),
    "weights of an MLP": (
        several(by("weight: null", "weight: balanced"), by("kind: logistic", "kind: mlp #")),
        "classifier: class_weight = balanced: mlp can't weight classes; set it to null or choose another classifier",
    ),
    "another figure": (by("select_by: accuracy", "select_by: f1"), "classifier.select_by = 'f1': must be 'accuracy'"),
    "another weight": (by("class_weight: null", "class_weight: 2"), "classifier.class_weight = 2: must be 'balanced'"),
    "empty list": (by("layers: [-1]", "layers: []"), "features.layers = []: must"),
    "number for text": (by("experiment: convae", "experiment: 3"), "tracking.experiment = 3: must"),
    "text in a list of numbers": (by(C, "C: ['1']"), "classifier.logistic_regression.C[0] = '1': must"),
    "NaN in a list": (by(C, "C: [.nan]"), "classifier.logistic_regression.C[0] = nan: must"),
    "infinity": (by("floor: 0.03", "floor: .inf"), "preprocessing.local_contrast.floor = inf: must"),
    "overflow": (by("learning_rate: 0.003", "learning_rate: 1e999"), "train.learning_rate = inf: must"),
    "integer beyond floats": (by("learning_rate: 0.003", f"learning_rate: {'9' * 400}"), "train.learning_rate = 9999"),
    "minus infinity": (by("threshold: 0.0", "threshold: -.inf"), "features.threshold = -inf: must be"),
    "negative zero epochs": (by("epochs: 1", "epochs: -0"), "train.epochs = 0: must"),
    "fraction for a count": (by("batch_size: 64", "batch_size: 64.0"), "train.batch_size = 64.0: must"),
    "truth for a count": (by("devices: 1", "devices: true"), "train.devices = True: must be"),
    "empty root": (by("root: data/local", "root: ''"), "data.root: found ''; at least one character is needed"),
    "zero byte in a path": (by("root: data/local", 'root: "a\\0b"'), "data.root: found 'a\\x00b'; at least one"),
    "line break in a path": (by("initialize_from: models/initial", 'initialize_from: "a\\nb"'), "model.initialize_fro"),
    "half a character": (by("root: data/local", 'root: "\\ud800"'), "data.root: found '\\ud800'; at least one"),
    "endless path": (by("initialize_from: models/initial", f"initialize_from: {'a' * 5000}"), "model.initialize_from:"),
    "empty experiment": (by("experiment: convae", "experiment: ''"), "tracking.experiment: found ''"),
    "line break in a choice": (by("dataset: fashion_mnist", 'dataset: "a\\nb"'), "data.dataset = 'a\\nb': must be"),
    "upper case": (by("pooling: mean", "pooling: Mean"), "features.pooling = 'Mean': must be 'mean'"),
    "three sides": (layer(filters=8, stride="[1, 1, 1]"), "model.layers[0].stride: found [1, 1, 1]; one number or"),
    "negative side": (layer(filters=8, kernel="[-3, 3]"), "model.layers[0].kernel: found [-3, 3]; one number or"),
    "share above one": (by("test_size: 0.2", "test_size: 1.0"), "data.test_size = 1.0: must"),
    "nothing to validate on": (by("validation_size: 0.1", "validation_size: 0.000001"), "data.validation_size ="),
    "nothing to learn from": (by("validation_size: 0.1", "validation_size: 0.9999999"), "data.validation_size ="),
    "nothing left over": (
        several(
            by("dataset: fashion_mnist", "dataset: digits"),
            by("test_size: 0.2", "test_size: 1000"),
            by("validation_size: 0.1", "validation_size: 1000"),
        ),
        "data.validation_size = 1000: digits has 797 training images, so 1 to 796 can be held out",
    ),
}  # fmt: skip

SHORTHANDS = {
    "home": ("root: data/local", "root: ~/pictures", "found '~/pictures'; {why}write '/home/ada/pictures'"),
    "home alone": ("root: data/local", "root: '~'", "data.root: found '~'; {why}write '/home/ada'"),
    "nobody's home": ("root: data/local", "root: ~nobody-here/x", "'~nobody-here/x'; {why}write the full path"),
    "variable": ("root: data/local", "root: $HOME/pictures", "found '$HOME/pictures'; {why}write '/home/ada/pictures'"),
    "variable in braces": ("root: data/local", "root: /x/${HOME}", "found '/x/${HOME}'; {why}write '/x//home/ada'"),
    "unknown variable": ("root: data/local", "root: $NOWHERE/x", "found '$NOWHERE/x'; {why}write the full path"),
    "first encoder": ("initialize_from: models/initial", "initialize_from: ~/e", "'~/e'; {why}write '/home/ada/e'"),
    "shards": ("shards: null", "shards: ~/shards", "data.shards: found '~/shards'; {why}write '/home/ada/shards'"),
    "database": ("uri: null", "uri: sqlite:///~/m.db", "{why}write 'sqlite:////home/ada/m.db'"),
    "web": ("root: data/local", "root: https://x.org/p", "found 'https://x.org/p'; it must be the path of a folder"),
    "store": ("root: data/local", "root: s3://bucket/p", "found 's3://bucket/p'; it must be the path of a folder"),
    "model": ("initialize_from: models/initial", "initialize_from: models:/x@y", "'models:/x@y'; it must be the path"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHORTHANDS)
def test_shorthands_unknown_to_dvc_are_expanded(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    old, new, message = SHORTHANDS[case]
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("NOWHERE", raising=False)
    path = tmp_path / "params.yaml"
    path.write_text(str(by(old, new)((repository / "params.yaml").read_text("utf-8"))))
    with pytest.raises(ConvaeError) as refusal:
        load_experiment(path)
    assert message.replace("{why}", "~ and variables are not expanded here; ") in str(refusal.value)


@pytest.mark.parametrize("root", ["./~", "a~b", "data/~x", "/data/$", "a$b"])
def test_other_paths_are_left_alone(tmp_path: Path, repository: Path, root: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(str(by("root: data/local", f"root: '{root}'")((repository / "params.yaml").read_text("utf-8"))))
    assert load_experiment(path).data.root == root


ABSURD = {
    "filters": (layer(filters=65537), "model.layers[0].filters = 65537: must … 65536"),
    "filters of one layer": (layer(filters=9, kernel=9001, padding="full"), "model.layers[0]: its filters would take"),
    "maps": (
        several(
            FOLDER, by("image_size: null", "image_size: 15000"), by("color: rgb", "color: grey"), layer(filters=2)
        ),
        "model.layers[0]: its maps would take 1.7 GiB; at most 1 GiB is allowed",
    ),
    "deep filters": (
        several(
            layer(filters=60000, kernel=1),
            by("  initialization:", "    - {filters: 60000, kernel: 1}\n  initialization:"),
        ),
        "model.layers[1]: its filters would take 13.4 GiB; at most 1 GiB is allowed",
    ),
    "image": (several(FOLDER, by("image_size: null", "image_size: 65535")), "data.image_size: an image would take"),
    "image side": (several(FOLDER, by("image_size: null", "image_size: 100000")), "data.image_size: found 100000;"),
    "kernel": (layer(filters=8, kernel=1000001), "model.layers[0].kernel: found 1000001; one number or [height,"),
    "stride": (layer(filters=8, stride=10**22), "model.layers[0].stride: found 10000000000000000000000; one number"),
    "layers": (by("  initialization:", "    - {filters: 8}\n" * 2000 + "  initialization:"), "model.layers = … 100"),
    "layers read": (by("layers: [-1]", f"layers: [{'-1, ' * 3000}]"), "features.layers = … must … 100"),
    "epochs": (by("epochs: 1", f"epochs: {'9' * 400}"), "train.epochs = … must … 2147483648"),
    "huge number": (by("learning_rate: 0.003", "learning_rate: 1.0e+30"), "train.learning_rate: found 1e+30; a magn"),
    "tiny number": (by(C, "C: [1.0e-30]"), "logistic_regression.C[0]: found 1e-30; a magnitude from 1e-12 to 1e+12 is"),
    "masking": (
        by("corruption: null", "corruption: {kind: masking, level: 0.5, block: [4, 29]}"),
        "objective.corruption.block = 4×29: images are 28×28, and a block can't be larger",
    ),
    "batch": (by("batch_size: 64", "batch_size: 9999999999"), "train.batch_size = 9999999999: must"),
    "one image to classify": (
        several(by("batch_size: 64", "batch_size: 1"), by("kind: reconstruct ", "kind: classify ")),
        "train.batch_size = 1: objective.kind = classify normalises over a batch, and one image gives a single value;",
    ),
    "one image to normalise": (
        several(
            by("batch_size: 64", "batch_size: 1"),
            layer(filters=8, kernel="image", padding="valid", batch_norm="true"),
        ),
        "train.batch_size = 1: model.layers[0] normalises over a batch, and one image gives a single value; at least 2",
    ),
    "threads": (by("threads: 2", "threads: 2000"), "train.threads = 2000: must … 1024"),
    "shift": (by("augmentation: null", "augmentation: {flip: true, shift: 99999999999}"), "train.augmentation.shift"),
    "window": (by("window: 9", "window: 1000001"), "preprocessing.local_contrast.window = 1000001: must"),
    "whitening": (by("window: 7", "window: 17"), "preprocessing.whitening.window = 17: must"),
    "winners": (by("block: 14", "block: 999999"), "objective.sparsity.block: found 999999; one number or [height,"),
    "hidden layer": (by("hidden_layer_sizes: [512]", "hidden_layer_sizes: [9999999999]"), "mlp.hidden_layer_sizes[0]"),
    "neighbours": (by("n_neighbors: [5, 10]", "n_neighbors: [9999999999]"), "n_neighbors[0] = 9999999999: must be"),
}  # fmt: skip

SHIPPED = "params.yaml"  # two layers that learn place by place
PLACES = by("  places: 32 ", "  places: null ")
OUTPUT = "{rectification: both, threshold: 0.5, pool: null, power: 0.5, standardize: true}"
TWO_LAYERS = {
    "no places": (PLACES, "model.layers[0].input: normalised windows are learned place by place; set train.places"),
    "a plain layer": (
        layer(filters=8),
        "train.places = 32: model.layers[0].input is null; add it or set train.places to null",
    ),
    "activation": (
        last_layer("activation: linear", "activation: relu"),
        "model.layers[1].input: needs activation: linear, batch_norm: false and dropout: 0.0",
    ),
    "batch norm": (last_layer("batch_norm: false", "batch_norm: true"), "model.layers[1].input: needs activation:"),
    "dropout": (last_layer("dropout: 0.0", "dropout: 0.5"), "model.layers[1].input: needs activation: linear,"),
    "output of the last": (
        last_layer("output: null", f"output: {OUTPUT}"),
        "model.layers[1].output: no layer above reads it; set it to null",
    ),
    "on reconstructions": (
        by("stacked_on: maps", "stacked_on: reconstructions"),
        "model.layers[0]: input and output need model.stacked_on: maps",
    ),
    "order": (
        by("order: greedy ", "order: end_to_end "),
        "train.order = end_to_end: model.layers[0].input can't be decoded; set order to greedy",
    ),
    "order without places": (
        several(
            layer(filters=8, output=OUTPUT),
            by("  initialization:", "    - {filters: 8}\n  initialization:"),
            PLACES,
            by("order: greedy ", "order: simultaneous "),
        ),
        "train.order = simultaneous: model.layers[0].output can't be decoded; set order to greedy",
    ),
    "untied": (by("tied_weights: true", "tied_weights: false"), "train.places = 32: needs model.tied_weights: true"),
    "corrupted": (
        by("corruption: null               # or {kind: gaussian", "corruption: {kind: gaussian, level: 0.1} # or"),
        "train.places = 32: needs objective.corruption: null",
    ),
    "blocks": (
        several(by("block: null ", "block: 14 "), by("per_place: 3 ", "per_place: null ")),
        "train.places = 32: needs objective.sparsity: null, or its per_place",
    ),
    "both competitions": (
        by("block: null ", "block: 14 "),
        "objective.sparsity: per_place = 3: set block and lifetime to null, or per_place",
    ),
    "lifetime": (by("lifetime: null ", "lifetime: 0.3 "), "objective.sparsity: per_place = 3: set block and lifetime"),
    "winners": (
        by("per_place: 3 ", "per_place: 65 "),
        "objective.sparsity.per_place = 65: model.layers[0] has 64 filters; lower it",
    ),
    "no winner": (by("per_place: 3 ", "per_place: 0 "), "objective.sparsity.per_place = 0: must"),
    "zca components": (
        several(by("kind: pca ", "kind: zca "), by("components: null ", "components: 9 ")),
        "model.layers[0].input.whitening: components = 9: zca keeps all of them; set it to null or use pca",
    ),
    "pca of copies": (
        by("corruption: null       # denoising", "corruption: {flip: true, shift: 0} #"),
        "model.layers[0].input.whitening: kind = pca: has no corrupted copy; set corruption to null or use denoising",
    ),
    "denoising of nothing": (
        by("components: 256, epsilon: 0.1, corruption: {flip: false, shift: 1}", "components: 256, epsilon: 0.1"),
        "model.layers[1].input.whitening: kind = denoising: needs a corrupted copy, such as corruption: {flip: false,",
    ),
    "denoising of equal copies": (
        by("epsilon: 0.1, corruption: {flip: false, shift: 1}", "epsilon: 0.1, corruption: {flip: false, shift: 0}"),
        "model.layers[1].input.whitening: kind = denoising: needs a corrupted copy, such as",
    ),
    "components": (
        by("components: null ", "components: 50 "),
        "model.layers[0].input.whitening.components = 50: its windows hold 49 values; lower it",
    ),
    "components of maps": (
        by("components: 256, epsilon", "components: 1153, epsilon"),
        "model.layers[1].input.whitening.components = 1153: its windows hold 1152 values; lower it",
    ),
    "covariance": (
        by("    - filters: 64", "    - filters: 4096"),
        "model.layers[1].input.whitening: its covariance would take 20.2 GiB; at most 1 GiB is allowed",
    ),
    "filter bank": (
        by("initialization: normal ", "initialization: filter_bank "),
        "model.initialization = filter_bank: layer 0 must read plain images; set model.layers[0].input to null",
    ),
    "border": (
        several(by("kernel: 7 ", "kernel: [57, 7] "), by("border: zeros              #", "border: reflect #")),
        "model.layers[0]: border 'reflect' mirrors 28×3 pixels, more than 28×28 have; use zeros",
    ),
    "floor": (by("floor: 0.316", "floor: 0"), "model.layers[1].input.normalization.floor = 0: must"),
    "floor of rounding errors": (
        by("floor: 0.0124", "floor: 0.0001"),
        "model.layers[0].input.normalization.floor = 0.0001: must … 0.001",
    ),
    "epsilon of rounding errors": (
        by("epsilon: 0.1           # added", "epsilon: 1.0e-6 # added"),
        "model.layers[0].input.whitening.epsilon = 1e-06: must … 0.00001",
    ),
    "a layer named twice": (by("[-1] ", "[1, -1] "), "features.layers = [1, -1]: it names a layer twice"),
    "frozen without an encoder": (
        by("freeze: none", "freeze: 1"),
        "train.freeze = 1: models/initial holds no encoder whose filters could be frozen",
    ),
    "frozen whole": (
        by("freeze: none", "freeze: all"),
        "train.freeze = all: models/initial holds no encoder whose filters could be frozen",
    ),
    "shift beyond the image": (
        by("corruption: {flip: false, shift: 1}}", "corruption: {flip: false, shift: 28}}"),
        "model.layers[1].input.whitening.corruption.shift = 28: images are 28×28; a shift must be smaller",
    ),
    "images of the code": (by("images: null ", "images: 2 "), "features.code.images = 2: must … 3"),
    "a code of one number": (by("components: 256  ", "components: 1  "), "features.code.components = 1: must … 2"),
    "copies that are equal": (
        several(
            by("mirror: null ", "mirror: average "),
            by("corruption: {flip: false, shift: 1} # mirror", "corruption: {flip: true, shift: 0} # mirror"),
        ),
        "features: code.corruption: with mirror = average, a mirrored copy has the same features; set shift",
    ),
    "key of an input": (by("{centered: false, ", "{centred: false, "), "normalization: unknown key 'centred'"),
    "former key": (
        by("  mirror: null ", "  pca: null\n  mirror: null "),
        "features: features.pca is now features.code; remove the line",
    ),
    "former components": (
        by("  mirror: null ", "  pca: 256\n  mirror: null "),
        "features: features.pca is now features.code; write code: {kind: pca, components: 256, corruption: null, "
        "ridge: 1.0e-6, scale: equal, images: null} and classifier.reads: code",
    ),
    "code of copies": (
        by("kind: denoising              #", "kind: pca #"),
        "features.code: kind = pca: has no corrupted copy; set corruption to null or use denoising",
    ),
    "code without copies": (
        by("corruption: {flip: false, shift: 1} # mirror", "corruption: null # mirror"),
        "features.code: kind = denoising: needs a corrupted copy, such as corruption: {flip: false, shift: 1}",
    ),
    "numbers of the code": (
        by("    components: 256   ", "    components: 999999999999   "),
        "features.code.components = 999999999999: must … 2147483648",
    ),
    "too many features for a code": (
        by("grid: 7 ", "grid: 14 "),
        "features.code: a covariance of 37632 features would take 5.3 GiB; at most 1 GiB is allowed; lower",
    ),
    "a code to read that is not there": (
        lambda text: re.sub(r"  code:  .*\n(    .*\n)+", "  code: null\n", by("reads: features", "reads: code")(text)),
        "classifier.reads = code: features.code is null; describe a code there, or read features",
    ),
    "mirror": (by("mirror: null ", "mirror: true "), "features.mirror = True: must be 'average'"),
}  # fmt: skip

CASES = {
    f"{topic}: {name}": case
    for topic, table in {
        "YAML": YAML,
        "keys": KEYS,
        "values": VALUES,
        "absurd": ABSURD,
        "places": TWO_LAYERS,
    }.items()
    for name, case in table.items()
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_reported_in_one_line(repository: Path, tmp_path: Path, case: str) -> None:
    change, message = CASES[case]
    content = change((repository / (SHIPPED if case.startswith("places") else PLAIN)).read_text("utf-8"))
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConvaeError) as mistake:
        load_experiment(path)
    lines = str(mistake.value).splitlines()
    assert any(all(part in line for part in message.split(" … ")) for line in lines)
    for line in lines:
        assert line.startswith(f"{path}: ")
        assert line.isprintable()


ALLOWED = {
    "alias": several(by("C: [0.0001, 0.001]", "C: &c [0.0001]"), by("C: [1.0, 10.0]", "C: *c")),
    "merge": several(by("  linear_svm:", "  linear_svm: &svm"), by("C: [1.0, 10.0]", "<<: *svm")),
    "byte order mark": lambda text: "\ufeff" + text,
    "Windows line ends": lambda text: text.replace("\n", "\r\n"),
    "end of the document": lambda text: f"---\n{text}...\n",
    "path of any language": by("root: data/local", "root: /メディア/mes photos\u00a0d'été"),
}  # fmt: skip


@pytest.mark.parametrize("case", ALLOWED)
def test_valid_yaml_is_read(repository: Path, tmp_path: Path, case: str) -> None:
    text = ALLOWED[case]((repository / PLAIN).read_text("utf-8"))
    assert isinstance(text, str)
    (tmp_path / "params.yaml").write_text(text, "utf-8", newline="")
    load_experiment(tmp_path / "params.yaml")


@pytest.mark.parametrize(("written", "read"), [("010", 10), ("0o10", 8), ("0x10", 16), ("1_000", 1000)])
def test_integers_follow_yaml_1_2(repository: Path, tmp_path: Path, written: str, read: int) -> None:
    text = (repository / "params.yaml").read_text("utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("seed: 0", f"seed: {written}"), "utf-8")
    assert load_experiment(tmp_path / "params.yaml").seed == read


def test_a_folder_instead_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConvaeError, match=f"^{tmp_path}: "):
        load_experiment(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"channels": 1}', b"[" * 100_000, b"\xff"])
def test_an_invalid_initial_encoder_is_refused(repository: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "initial").mkdir()
    (tmp_path / "initial/config.json").write_bytes(content)
    text = (repository / "params.yaml").read_text("utf-8").replace("models/initial ", f"{tmp_path}/initial ")
    (tmp_path / "params.yaml").write_text(text, "utf-8")
    with pytest.raises(ConvaeError, match=r"initial/config\.json does not describe an encoder") as mistake:
        load_experiment(tmp_path / "params.yaml")
    assert "\n" not in str(mistake.value)


def test_a_grid_with_more_cells_than_pixels_is_allowed(repository: Path, tmp_path: Path) -> None:
    text = (repository / PLAIN).read_text("utf-8").replace("  grid: 7 ", "  grid: 65535 ")
    (tmp_path / "params.yaml").write_text(text, "utf-8")
    assert load_experiment(tmp_path / "params.yaml").features.grid == (65535, 65535)
