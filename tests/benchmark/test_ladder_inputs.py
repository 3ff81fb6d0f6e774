"""What makes a cell stale, and what does not."""

import json
import re
from pathlib import Path

import pytest

from benchmark.ladder import parameters
from benchmark.ladder.parameters import experiment, load_settings
from convae.names import flatten
from convae.params import parse_sections

# Modules that a cell imports but that decide no number of its row.
NO_NUMBER = {
    "__init__", "addresses", "environment", "errors", "experiment", "history", "names", "params", "remote", "stages",
    "terminal", "tracking",
}  # fmt: skip


@pytest.fixture
def settings(repository, monkeypatch):
    monkeypatch.chdir(repository)
    return load_settings()


@pytest.fixture
def edited(repository, tmp_path, monkeypatch, settings):
    """`edited({"epochs: 1": "epochs: 2"})`: the key of `default` after this edit of its file."""

    def key(changes):
        text = (repository / "systems/default.yaml").read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "default.yaml").write_text(text)
        monkeypatch.setattr(parameters, "SYSTEMS", tmp_path)
        return experiment(settings, "digits", "default").key

    return key


def test_the_committed_hashes_are_those_of_the_systems(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "INPUTS", tmp_path / "inputs.json")
    parameters.main()
    assert json.loads((tmp_path / "inputs.json").read_text()) == json.loads(
        Path("benchmark/ladder/inputs.json").read_text()
    ), "run `dvc --cd benchmark/ladder repro inputs`"


@pytest.mark.parametrize(
    "changes",
    [
        {"# One complete experiment": "# Another comment"},
        {"experiment: convae": "experiment: mine"},
        {"devices: 1": "devices: 4", "checkpoint_minutes: 5": "checkpoint_minutes: 9"},
        {"probe_every: 5": "probe_every: null", "embedding: pca": "embedding: tsne"},
        {"seed: 0": "seed: 7"},
        {"  trust: false": "  # as before the key existed"},
    ],
)
def test_an_edit_that_changes_no_number_leaves_cells_valid(edited, changes):
    assert edited(changes) == edited({})


@pytest.mark.parametrize(
    "changes", [{"filters: 64": "filters: 32"}, {"power: 0.5": "power: 1.0"}, {"threads: 2": "threads: 1"}]
)
def test_an_edit_that_may_change_a_number_makes_cells_stale(edited, changes):
    assert edited(changes) != edited({})


def test_a_raised_version_makes_stale_the_cells_that_depend_on_it(settings):
    def keys():
        return {system: experiment(settings, "digits", system).key for system in ("default", "default_untrained")}

    before = keys()
    settings["versions"]["training"] += 1
    assert {system for system, key in keys().items() if key != before[system]} == {"default"}
    settings["versions"]["measures"] += 1
    assert not set(before.values()) & set(keys().values())


def test_ladder_yaml_leaves_no_key_to_a_default(settings, monkeypatch):
    def parse(path, text, model):
        params = parse_sections(path, text, model)
        assert flatten(json.loads(text)).keys() == flatten(params.model_dump(mode="json")).keys()
        return params

    monkeypatch.setattr(parameters, "parse_sections", parse)
    for dataset, system in of_groups(settings):
        experiment(settings, dataset, system)


def test_texts_make_no_cell_stale(settings):
    def keys():
        return {
            system: experiment(settings, "fashion_mnist", system).key
            for system in ("default_untrained", "finetuned_cnn")
        }

    before = keys()
    settings["variants"]["default_untrained"]["control"] = "reworded"
    settings["initialized_by"]["finetuned_cnn"] = "another"
    assert keys() == before


def test_another_shared_readout_makes_every_cell_stale(settings):
    before = experiment(settings, "digits", "pixels").key
    settings["data"]["digits"]["features.grid"] = 5
    assert experiment(settings, "digits", "pixels").key != before


def test_a_control_keeps_only_the_layers_that_it_asks_for(settings):
    for dataset, border, filters in (("fashion_mnist", "zeros", 96), ("cifar10", "reflect", 384)):
        both = experiment(settings, dataset, "default_unwhitened").params.model.layers
        assert [layer.input.whitening for layer in both] == [None, None]
        assert [layer.filters for layer in both] == [64, filters]
        (layer,) = experiment(settings, dataset, "one_layer_patches").params.model.layers
        assert (layer.border, layer.output) == (border, None)
        assert layer.input == experiment(settings, dataset, "default").params.model.layers[0].input


def test_the_readout_is_shared_except_for_what_depends_on_the_maps(settings):
    def readout(dataset, system):
        return experiment(settings, dataset, system).params.features

    assert readout("fashion_mnist", "kmeans").code == readout("fashion_mnist", "default").code
    assert readout("cifar10", "filter_bank").mirror == readout("cifar10", "default").mirror == "average"
    assert (readout("fashion_mnist", "default").threshold, readout("fashion_mnist", "kmeans").threshold) == (0.75, 0)
    assert (readout("fashion_mnist", "pca").code.components, readout("cifar10", "pixels").grid) == (50, (32, 32))
    assert experiment(settings, "digits", "pca").params.classifier.reads == "code"


def of_groups(settings):
    return [
        (dataset, system)
        for group in parameters.GROUPS
        for dataset in settings[group]["datasets"]
        for system in settings[group]["systems"]
    ]


def test_all_systems_share_the_images_of_a_data_set(settings):
    for dataset in settings["data"]:
        systems = {name for group in parameters.GROUPS for name in settings[group]["systems"]}
        assert len({experiment(settings, dataset, system).images_key for system in systems}) == 1


def test_every_module_that_decides_a_number_belongs_to_a_version(repository, settings):
    comments = (repository / parameters.SETTINGS).read_text().partition("versions:")[2].partition("\n\n")[0]
    components = [repository / path for path in re.findall(r"(?:src|benchmark)/[\w/.]+", comments)]
    assert len(components) >= len(settings["versions"])
    assert [path for path in components if not path.exists()] == []
    source, found = repository / "src/convae", set()
    waiting = {repository / "benchmark/ladder/cell.py", repository / "benchmark/ladder/measure.py"}
    while waiting:
        path = waiting.pop()
        found.add(path)
        names = re.findall(r"^ *from convae\.([\w.]+) import", path.read_text(), re.MULTILINE)
        files = {source / f"{name.replace('.', '/')}.py" for name in names}
        waiting |= {file for file in files if file.exists()} - found
    for path in found - components_of(found, components):
        part = path.relative_to(source).parts[0] if path.is_relative_to(source) else "__init__"
        assert part.removesuffix(".py") in NO_NUMBER, f"{path}: name it in ladder.yaml, or in NO_NUMBER"


def components_of(files, components):
    return {file for file in files if any(file.is_relative_to(path) for path in components)}
