"""Pages: HTML files that need neither server nor internet and have the same bytes every time."""

import base64
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from convae.files import new_file
from convae.reporting.drawing import DPI

TEMPLATES = Path(__file__).parent
NOTHING = "–"


class Picture(NamedTuple):
    """A figure, its name (of the file without `.png`, and on the page), and what one sees."""

    name: str
    figure: Figure
    title: str
    caption: str


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill a template, which may extend `base.html`; every value is escaped."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(percent=percent, number=number, signed=signed)
    page = environment.get_template(template.name).render(values)
    with new_file(path) as scratch:
        scratch.write_text(page, "utf-8", newline="\n")


def embed(png: bytes) -> tuple[str, int]:
    """A PNG file in base64, and the width in CSS pixels at which its text has the size of the page's."""
    width = int.from_bytes(png[16:20], "big")  # in the header, which stands first
    return base64.b64encode(png).decode(), round(width * 96 / DPI)


def percent(part: float | None) -> str:
    """`92.41 %` of 0.9241."""
    return NOTHING if part is None else f"{100 * part:.2f} %"


def number(count: float | None) -> str:
    """`54 000` of 54000, with narrow spaces."""
    return NOTHING if count is None else f"{count:,.0f}".replace(",", "\u202f")


def signed(difference: float) -> str:
    """A difference of two parts in points: `+0.90` of 0.009, `−0.20` of -0.002."""
    return f"{100 * difference:+.2f}".replace("-", "−")
