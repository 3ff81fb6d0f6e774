"""Names of classes, files and systems that are HTML: a real browser shows them as text and runs none of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import chromium, needs_chromium
from ladder_rows import ladder_rows

from benchmark.ladder.page import write_ladder

PWNED = "document.title='pwned'"
HOSTILE = [
    f"<script>{PWNED}<!--",
    f"<img src=x onerror={PWNED}>",
    f'"><svg onload={PWNED}>',
    f"' onmouseover={PWNED} '",
    f"javascript:{PWNED}",
    f"[x](javascript:{PWNED})",
    "{{ 7 * 7 }}{% raw %}",
    "$\\input{/etc/passwd}$",
    "--></style><h1>",
]

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Any]]:
    """A page in a browser; dialogs, requests and errors fail the test."""
    with chromium() as browser:
        page = browser.new_page()
        asked: list[str] = []
        loaded: list[str] = []
        page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: loaded.append(request.url))

        def show(path: Path) -> Any:
            page.goto(path.as_uri())
            for element in page.locator("summary").all():
                element.click()
            page.wait_for_timeout(300)
            assert asked == []
            assert [url for url in loaded if not url.startswith("data:")] == [path.as_uri()]
            assert "pwned" not in page.title()
            assert page.locator("script, svg[onload], img[onerror], [onmouseover], a[href^=javascript]").count() == 0
            return page

        yield show


def test_the_report(
    evaluated: Callable[..., Any], change_description: Callable[..., None], opened: Callable[[Path], Any]
) -> None:
    experiment = evaluated(classes=HOSTILE, shape=(1, 8, 8))
    change_description(rejected=[{"path": f"train/{name}.png", "reason": name} for name in HOSTILE])
    page = opened(experiment.write() / "report.html")
    text = page.locator("body").inner_text()
    for name in HOSTILE:
        assert name in text


def test_the_ladder(tmp_path: Path, opened: Callable[[Path], Any]) -> None:
    rows = ladder_rows()
    systems = dict(zip(sorted({row["system"] for row in rows}), HOSTILE, strict=False))
    for row in rows:
        row["control_of"] = systems.get(row["control_of"], row["control_of"])
        row["system"] = systems.get(row["system"], row["system"])
        row["note"] = HOSTILE[0]
        row["protocol"] = HOSTILE[1]
    write_ladder(rows, tmp_path / "ladder.html")
    text = opened(tmp_path / "ladder.html").locator("body").inner_text()
    assert HOSTILE[1] in text
    assert [name for name in systems.values() if name not in text] == []
