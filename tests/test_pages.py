"""README, CONTRIBUTING and docs/: links lead somewhere, commands and keys exist, figures are as measured."""

import re
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest

from convae.cli import main
from convae.files import read_json
from convae.names import flatten
from convae.params import load_params

REPOSITORY = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "data/local/README.md", "models/initial/README.md")
PAGES = [REPOSITORY / name for name in NAMES] + sorted((REPOSITORY / "docs").glob("*.md"))
README = (REPOSITORY / "README.md").read_text("utf-8")
WORDS = " ".join(README.split())
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))


def commands(text: str) -> set[str]:
    """The lines of a page's shell blocks, without comments and alignment."""
    blocks = re.findall(r"^```(?:sh|bash)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return {re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()}


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1500


@pages
def test_links_lead_somewhere(page: Path) -> None:
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


def test_the_commands_to_reuse_an_encoder_are_those_that_are_tested() -> None:
    section = README.split("## Reuse the encoder")[1].split("\n## ")[0]
    assert commands(section)
    assert commands(section) <= commands((REPOSITORY / "docs/reuse.md").read_text("utf-8"))


def test_the_accuracy_is_that_of_the_committed_results() -> None:
    metrics = read_json(REPOSITORY / "reports/metrics.json")
    figures = [100 * metrics["test"][name] for name in ("accuracy", "accuracy_low", "accuracy_high")]
    assert (
        "{:.2f} % of Fashion-MNIST's test images correctly (95 % interval {:.2f} to {:.2f};".format(*figures) in WORDS
    )
    assert f"(4, {metrics['features']['dimension']})" in README


def test_the_ladder_is_told_as_it_is() -> None:
    accuracies = defaultdict(list)
    for row in read_json(REPOSITORY / "reports/ladder.json"):
        accuracies[row["dataset"], row["system"]].append(row["test_accuracy"])

    def lead(dataset: str) -> str:
        return f"{100 * (mean(accuracies[dataset, 'default']) - mean(accuracies[dataset, 'default_patches'])):.2f}"

    assert (lead("cifar10"), lead("fashion_mnist")) == ("1.30", "-0.21")
    assert "On CIFAR-10, the default beats its strongest untrained control, random whitened patches, by 1.30" in WORDS
    assert "on Fashion-MNIST, those patches beat the default by 0.21" in WORDS
