"""params.yaml: the shipped file is valid, and a mistake gives one line that says what is allowed."""

import re

import pytest

from convae.errors import ConvaeError
from convae.experiment import load_experiment
from convae.names import flatten
from convae.params import load_params


def changed(repository, tmp_path, old, new):
    """A file in which one place of the system with a single layer that learns from whole maps is replaced."""
    text = (repository / "systems/whitened_wta_cae.yaml").read_text()
    assert len(re.findall(old, text, flags=re.MULTILINE)) == 1, f"{old} is not once in the file"
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(old, lambda match: new, text, flags=re.MULTILINE))
    return path


def test_the_shipped_experiments_are_valid(repository):
    for path in [repository / "params.yaml", *sorted((repository / "systems").glob("*.yaml"))]:
        load_experiment(path)


def test_the_seed_cae_follows_the_article(repository):
    params = flatten(load_experiment(repository / "systems/seed_cae.yaml").model_dump(mode="json"))
    recipe = {
        "data.dataset": "mnist",
        "data.validation_size": 5000,
        "model.layers.0.filters": 32,
        "model.layers.0.kernel": [3, 3],
        "model.layers.0.padding": "full",
        "model.layers.0.activation": "tanh",
        "model.tied_weights": False,
        "preprocessing.local_contrast": None,
        "preprocessing.whitening": None,
        "objective.sparsity": None,
        "train.optimizer": "adam",
        "train.learning_rate": 1e-5,
        "train.batch_size": 1024,
        "train.epochs": 150,
    }
    assert {key: params[key] for key in recipe} == recipe


def test_numbers_are_read_as_by_dvc(repository, tmp_path):
    path = changed(repository, tmp_path, r"learning_rate: 0.003", "learning_rate: 1e-5")
    assert load_params(path).train.learning_rate == 1e-5


MISTAKES = [
    # what is replaced, what by, what the line says
    (r"^  epochs: .*", "  epochz: 3", "train: unknown key 'epochz'; the nearest known key is 'epochs'"),
    (r"^train:", "trian:", "unknown key 'trian'; the nearest known key is 'train'"),
    (r"^seed: 0", "seed: zero", "seed = 'zero': must"),
    (r"^seed: 0", "seed: -1", "seed = -1: must"),
    (r"^seed: 0", "", "seed: missing"),
    (r"^  epochs: \d+", "  epochs: ten", "train.epochs = 'ten': must"),
    (r"^  epochs: \d+", "  epochs: 0", "train.epochs = 0: must"),
    (r"^  epochs: \d+", "  epochs: 2.5", "train.epochs = 2.5: must"),
    (r"^  epochs: \d+", "  epochs: true", "train.epochs = True: must"),
    (r"learning_rate: 0.003", "learning_rate: .nan", "train.learning_rate = nan: must"),
    (r"learning_rate: 0.003", "learning_rate: -1", "train.learning_rate = -1: must"),
    (r"dataset: fashion_mnist", "dataset: fashon", "data.dataset = 'fashon': must be 'fashion_mnist'"),
    (r"dataset: fashion_mnist", "dataset: image_folder", "data: image_size is needed for image_folder"),
    (r"image_size: null", "image_size: 32", "data: image_size must be null for fashion_mnist"),
    (r"validation_size: 0.1", "validation_size: 0", "data.validation_size = 0: must"),
    (r"validation_size: 0.1", "validation_size: 1.5", "data.validation_size = 1.5: must"),
    (r"kernel: 7 ", "kernel: [7, 7, 7] ", "model.layers[0].kernel: found [7, 7, 7]; one number or [height, width]"),
    (r"kernel: 7 ", "kernel: 7.5 ", "model.layers[0].kernel: found 7.5; one number or [height, width]"),
    (r"pool: null ", "pool: max ", "model.layers[0].pool = 'max': must be a section with keys and values"),
    (r"validation_size: 0.1", "validation_size: 60000", "data.validation_size = 60000: fashion_mnist has 60000"),
    (r"kernel: 7 ", "kernel: 6 ", "'same' needs an odd kernel, found 6×6"),
    (r"stride: 1 ", "stride: 0 ", "model.layers[0].stride: found 0; one number or [height, width]"),
    (r"padding: same ", "padding: some ", "model.layers[0].padding = 'some': must be 'full'"),
    (r"pool: null ", "pool: {kind: max, size: 40} ", "model.layers[0]: pooling over 40×40 turns 28×28 into 0×0"),
    (r"layers: \[-1\]", "layers: [1]", "features.layers = 1: model.layers has 1, so -1 to 0 are allowed"),
    (r"power: 0.5", "power: 2", "features.power = 2: must"),
    (r"window: 9", "window: 8", "preprocessing.local_contrast.window: 8 is even; an odd number"),
    (r"lifetime: 0.3", "lifetime: 10", "objective.sparsity.lifetime = 10: must"),
    (r"kind: logistic_regression ", "kind: logistic ", "classifier.kind = 'logistic': must be 'logistic_regression'"),
    (r"C: \[0.001, 0.003\]", "C: []", "classifier.logistic_regression.C = []: must"),
    (r"devices: 1 ", "devices: many ", "train.devices = 'many': must be"),
    (r"kernel: 7 ", "kernel: images ", "model.layers[0].kernel: found 'images'; one number or [height, width]"),
    (r"dropout: 0.0", "dropout: 1", "model.layers[0].dropout = 1: must"),
    (r"initialization: normal", "initialization: zero", "model.initialization = 'zero': must be 'normal'"),
    (r"stacked_on: maps", "stacked_on: images", "model.stacked_on = 'images': must be 'maps'"),
    (r"(?s)  layers:  .*?  initialization", "  layers: []\n  initialization", "objective.kind = reconstruct: model."),
    (r"corruption: null", "corruption: {kind: masking, level: 1.5, block: 4}", "objective.corruption: level = 1.5:"),
    (r"corruption: null", "corruption: {kind: snow, level: 1, block: 4}", "objective.corruption.kind = 'snow':"),
    (r"kind: zca", "kind: pca", "preprocessing.whitening.kind = pca: principal components of patches are not an image"),
    (r"pretraining: 0", "pretraining: -1", "objective.pretraining = -1: must"),
    (r"order: end_to_end ", "order: random ", "train.order = 'random': must be 'end_to_end'"),
    (r"augmentation: null", "augmentation: {flip: 1, shift: 2}", "train.augmentation.flip = 1: must be"),
    (r"code: null", "code: {kind: pca, components: 0, ridge: 0.1, scale: equal}", "features.code.components = 0: must"),
    (r"^data:", "data: {", "not readable as YAML"),
    (r"^seed: 0", "seed: 0\nseed: 1", "not readable as YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_mistake_is_named_in_one_line(repository, tmp_path, old, new, message):
    with pytest.raises(ConvaeError) as mistake:
        load_experiment(changed(repository, tmp_path, old, new))
    lines = [line for line in str(mistake.value).splitlines() if message in line]
    assert len(lines) == 1, str(mistake.value)
    assert lines[0].startswith(f"{tmp_path / 'params.yaml'}: ")


@pytest.mark.parametrize(("filters", "fits"), [(3, False), (4, True), (28, True), (29, False)])
def test_a_filter_bank_has_four_to_28_filters_of_seven_pixels(repository, tmp_path, filters, fits):
    path = changed(repository, tmp_path, "initialization: normal", "initialization: filter_bank")
    path.write_text(path.read_text().replace("filters: 64", f"filters: {filters}"))
    if fits:
        load_experiment(path)
    else:
        with pytest.raises(ConvaeError, match=f"filter_bank: {filters} filters of 7×7 pixels; 4 to 28 are possible"):
            load_experiment(path)


@pytest.mark.parametrize("content", ["", "[1, 2]", "just words", "\udcff"])
def test_a_file_that_is_not_an_experiment_is_refused(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConvaeError) as mistake:
        load_params(path)
    assert "\n" not in str(mistake.value)


def test_a_missing_file_message_says_where_to_run(tmp_path):
    with pytest.raises(ConvaeError, match="run from the repository's top folder"):
        load_params(tmp_path / "params.yaml")
