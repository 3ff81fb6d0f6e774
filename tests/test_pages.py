"""README, docs/ and the other pages: links resolve, commands and keys exist, and figures match the measurements."""

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from helpers import REPOSITORY
from ruamel.yaml import YAML

from convae.cli import main
from convae.files import read_json
from convae.names import flatten
from convae.params import load_params

NAMES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "data/local/README.md",
    "models/initial/README.md",
)
PAGES = [REPOSITORY / name for name in NAMES] + sorted((REPOSITORY / "docs").glob("*.md"))
README = (REPOSITORY / "README.md").read_text("utf-8")
WORDS = " ".join(README.split())
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def commands(text: str) -> set[str]:
    """The lines of a page's shell blocks, without comments and alignment."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in blocks if kind in ("", "sh", "bash") for line in block.splitlines()]
    return {re.sub(r"\s+#.*", "", line).strip() for line in lines}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub derives from a page's headings."""
    titles = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1500


@pages
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


@pages
def test_commands_and_keys_exist(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    monkeypatch.setattr("sys.argv", ["convae", "--help"])
    with pytest.raises(SystemExit):
        main()
    known = set(re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, re.MULTILINE))
    assert set(re.findall(r"(?:^|`)convae ([a-z]+)", text, re.MULTILINE)) <= known
    for module in re.findall(r"python -m ((?:benchmark|pipeline)[\w.]*)", text):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    keys = flatten(load_params(REPOSITORY / "params.yaml").model_dump(mode="json"))
    for key in re.findall(r"(?:-S|--set-param) '?([\w.]+)=", text):
        assert key in keys or any(name.startswith(f"{key}.") for name in keys), key


def test_the_commands_to_reuse_an_encoder_are_tested() -> None:
    section = README.split("## Reuse the encoder")[1].split("\n## ")[0]
    assert commands(section)
    assert commands(section) <= commands((REPOSITORY / "docs/reuse.md").read_text("utf-8"))


def test_the_accuracy_matches_the_committed_results() -> None:
    metrics = read_json(REPOSITORY / "reports/metrics.json")
    figures = [100 * metrics["test"][name] for name in ("accuracy", "accuracy_low", "accuracy_high")]
    assert (
        "{:.2f} % of Fashion-MNIST's test images correctly (95 % interval {:.2f} to {:.2f};".format(*figures) in WORDS
    )
    assert f"(1, {metrics['features']['dimension']})" in README
    cost = 100 * (metrics["test"]["accuracy"] - metrics["code"]["accuracy"])
    assert f"the code alone lowers its accuracy by {cost:.2f} points" in WORDS


def test_the_concern_matches_the_committed_results() -> None:
    report = (REPOSITORY / "reports/report.html").read_text("utf-8")
    (similar,) = re.findall(r"Test images that look like a copy of [^:]*: (\d+) of 10000\.", report)
    assert f"{similar} of the 10 000 test images look like copies of other images" in WORDS


def test_speeds_match_the_committed_benchmark() -> None:
    rows = {row["name"]: row for row in read_json(REPOSITORY / "reports/benchmark.json")}

    def speedup(name: str) -> float:
        return float(rows[name]["ours"] / rows[name]["usual"])

    for training in ("seed_cae", "whitened_wta_cae"):
        assert 4.5 <= speedup(f"training {training}, images/s, to the usual") < 5
    assert 2.5 <= speedup("extraction whitened_wta_cae, to disk, images/s, to the forward passes") < 3
    assert speedup("image folder, JPEG files/s, to one core's times cores") == pytest.approx(1.1, abs=0.05)
    assert 3 <= 1 / speedup("logistic regression, seconds, of the usual") < 3.5
    assert "`whitened_wta_cae` train almost five times as fast as in plain Lightning with a DataLoader" in WORDS
    assert "features of the latter are computed almost three times as fast" in WORDS
    speed = " ".join((REPOSITORY / "docs/reproducibility.md").read_text("utf-8").split())
    assert "train almost five times as fast as in plain Lightning with a DataLoader" in speed
    assert "Features of the latter are computed almost three times as fast" in speed
    assert "fitted three times as fast as by scikit-learn's own solver" in speed
    assert "JPEG files are decoded a tenth faster" in speed


def test_the_diagram_shows_the_stages() -> None:
    (diagram,) = re.findall(r"^```mermaid\nflowchart LR\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    stages = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"]
    assert re.split(r" -- \w+ --> | --> ", diagram.strip()) == list(stages)


def test_the_table_lists_the_systems() -> None:
    section = README.split("## Systems")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    systems = {path.stem for path in (REPOSITORY / "systems").glob("*.yaml")}
    assert {name for row in rows for name in re.findall(r"\w+", row)} == systems


def test_the_ladder_claims_match_its_results() -> None:
    rows = read_json(REPOSITORY / "reports/ladder.json")

    def leading(dataset: str, accuracy: Callable[[dict[str, Any]], float]) -> float:
        """Points of the default over the control that is strongest by this measure, over the seeds of both."""
        measured = [row for row in rows if row["dataset"] == dataset and row["by_labels"]]
        default = {row["seed"]: accuracy(row) for row in measured if row["system"] == "default"}
        leads = defaultdict(list)
        for row in measured:
            if row.get("control_of") == "default" and row["seed"] in default:
                leads[row["system"]].append(default[row["seed"]] - accuracy(row))
        strongest = min(leads, key=lambda name: mean(leads[name]))
        assert strongest in ("one_layer_patches", "default_patches")
        return 100 * mean(leads[strongest])

    def whole(row: dict[str, Any]) -> float:
        return float(row["test_accuracy"])

    def with_few(row: dict[str, Any]) -> float:
        return mean(entry["test_accuracy"] for entry in row["by_labels"] if entry["labels_per_class"] == 100)

    assert f"by {leading('cifar10', whole):.2f} points on CIFAR-10 (one seed)" in WORDS
    assert f"and trails it by {-leading('fashion_mnist', whole):.2f} on Fashion-MNIST" in WORDS
    few = [leading(dataset, with_few) for dataset in ("cifar10", "fashion_mnist")]
    assert "with 100 labels per class it leads by {:.2f} and {:.2f}".format(*few) in WORDS
