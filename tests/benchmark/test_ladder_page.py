import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import chromium, needs_chromium
from ladder_rows import ladder_rows

from benchmark.ladder.cell import SCRATCH, note
from benchmark.ladder.page import main, missing_cells, write_ladder
from benchmark.ladder.parameters import COMMITS, GROUPS

SCREENSHOTS = Path(__file__).parents[2] / "build/screenshots"


class Page(HTMLParser):
    """Text, the tags that occur, and whatever a browser would load."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.sources, self.text = set(), [], ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path):
    """`page(rows)`: the page as read."""

    def read(rows):
        write_ladder(rows, tmp_path / "ladder.html")
        return Page(tmp_path / "ladder.html")

    return read


def cell(system, seed, accuracy, **more):
    return {"dataset": "d", "protocol": "p", "system": system, "seed": seed, "objective": "none",
            "test_accuracy": accuracy, "test_images": 10000, **more}  # fmt: skip


def pair(own, controls):
    """A trained system and its control, of each seed the accuracies."""
    rows = [cell("cae", seed, accuracy, objective="reconstruct") for seed, accuracy in enumerate(own)]
    more = {"control_of": "cae", "control": "untrained twin"}
    return rows + [cell("twin", seed, accuracy, **more) for seed, accuracy in enumerate(controls)]


def test_the_committed_rows_are_those_of_the_cells(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setattr("benchmark.ladder.page.ROWS", tmp_path / "ladder.json")
    monkeypatch.setattr("benchmark.ladder.page.write_ladder", lambda rows, page, missing: None)
    main()
    assert (tmp_path / "ladder.json").read_bytes() == Path("reports/ladder.json").read_bytes()


def test_a_cell_notes_the_commit_that_measured_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    COMMITS.parent.mkdir(parents=True)
    SCRATCH.mkdir(parents=True)
    COMMITS.write_text('{"digits/b-0": "1111111", "digits/c-0": "1111111"}')
    note(COMMITS, "digits/c-0", "2222222")
    note(COMMITS, "digits/a-0", "3333333")
    found = list(json.loads(COMMITS.read_text()).items())
    assert found == [("digits/a-0", "3333333"), ("digits/b-0", "1111111"), ("digits/c-0", "2222222")]


def test_the_page_names_the_commits_that_measured_its_rows(page):
    assert "Measured at commit 1111111." in page([cell("a", 0, 0.9, commit="1111111")]).text
    both = page([cell("a", seed, 0.9, commit=commit) for seed, commit in enumerate(["2222222", "1111111", "2222222"])])
    assert "Measured at commits 1111111, 2222222." in both.text
    assert "Measured" not in page([cell("a", 0, 0.9)]).text


def test_the_page_loads_nothing_and_has_the_same_bytes(page, tmp_path):
    found = page(ladder_rows())
    assert not found.tags & {"script", "link", "iframe", "object", "base"}
    assert all(source.startswith(("data:image/png;base64,", "#ladder-")) for source in found.sources)
    text = (tmp_path / "ladder.html").read_text("utf-8")
    assert not re.search(r"(https?:)?//\w", re.sub(r"base64,[\w+/=]+", "", text))
    assert "Means over 1 to 5 seeds." in found.text
    assert "code of 64" in found.text
    assert "Not measured yet" not in found.text
    assert "over 1 to 5 seeds, lines" in found.text
    write_ladder(ladder_rows(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "ladder.html").read_bytes()


def test_every_text_stays_text(page):
    name = "<script>alert(1)</script>"
    rows = [row | {"system": name} for row in ladder_rows() if row["system"] == "default"]
    twins = [row | {"control_of": name, "system": "$\\frac"} for row in ladder_rows() if row["control"]]
    twins = [row | {"control": "<b>"} for row in twins if row["dimension"] and row["control"] == "untrained twin"]
    marked = {"note": "<img src=x>", "dataset": "<i>", "protocol": "<u>"}
    found = page([row | marked for row in rows + twins if row["dataset"] == "digits"])
    assert not found.tags & {"script", "b", "i", "u"}
    assert all(source.startswith(("data:", "#")) for source in found.sources)
    for text in (name, "<b>", "<i>", "<u>", "<img src=x>", "$\\frac"):
        assert text in found.text


def test_every_system_stands_once_in_the_table_of_its_protocol(page):
    found = page([cell("a", 0, 0.9), cell("a", 1, 0.92), cell("a", 0, 0.5, protocol="q")])
    assert "d, protocol 1" in found.text
    assert "d, protocol 2" in found.text
    assert found.text.count("91.00 %") == 2  # a tile and the table
    assert "Protocol: q" in found.text


def test_what_was_not_measured_is_not_on_the_page(page):
    rows = pair([0.91], [0.90])
    found = page([*rows, {"dataset": "d", "system": "later", "test_accuracy": None}])
    assert "1 cell has no test accuracy yet and is not shown" in found.text
    assert "later" not in found.text
    assert "none: 1 pair" in found.text
    for title in ("Accuracy and dimension", "Accuracy and labels", "10 labels per class"):
        assert title not in found.text
    assert "Nothing has been measured yet" in page([]).text


def test_the_page_names_what_is_missing(tmp_path):
    group = {"datasets": ["d"], "systems": ["a", "b"], "seeds": [0, 1, 2]}
    settings = {name: {"datasets": [], "systems": [], "seeds": []} for name in GROUPS}
    settings |= {"main": group, "quick": {**group, "datasets": ["q"]}}
    measured = ["d/a-0", "d/a-1", "d/a-2", "d/b-1"]
    assert missing_cells(settings, measured) == {"d": ["b (2 seeds)"]}
    both = missing_cells(settings, [*measured, "q/a-0"])
    assert both == {"d": ["b (2 seeds)"], "q": ["a (2 seeds)", "b (3 seeds)"]}
    write_ladder([], tmp_path / "ladder.html", both)
    assert "Not measured yet: d: b (2 seeds); q: a (2 seeds), b (3 seeds)." in Page(tmp_path / "ladder.html").text


def test_incomplete_curves_are_drawn_as_far_as_they_go(page):
    rows = ladder_rows()
    first = [row for row in rows if row["seed"] == 0 and row["system"] in ("default", "default_untrained")]
    first[0]["by_labels"] = first[0]["by_labels"][:1]
    first[1]["by_dimension"] = first[1]["by_dimension"][-1:]
    for index in range(1, 4):
        assert "Accuracy and labels" in page(first[:index]).text


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "light"), (1200, "dark")])
def test_the_page_fits_the_window(page, tmp_path, width, scheme):
    page(ladder_rows())
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        window = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        window.goto((tmp_path / "ladder.html").as_uri())
        assert window.evaluate("document.documentElement.scrollWidth") <= width
        loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
        assert window.evaluate(loaded)
        scrolled = "[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)"
        assert window.evaluate(scrolled) == (width < 1000)
        window.screenshot(path=SCREENSHOTS / f"ladder-{width}-{scheme}.png", full_page=True)
