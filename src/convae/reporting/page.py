"""HTML pages that need neither server nor internet; the same values give the same bytes."""

import base64
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from convae.files import new_file
from convae.reporting.drawing import DPI

TEMPLATES = Path(__file__).parent
NOTHING = "–"


class Exhibit(NamedTuple):
    """A figure, its file name without `.png`, its title on the page, and its caption."""

    name: str
    figure: Figure
    title: str
    caption: str


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill in a template, which may extend `base.html`; every value is escaped.

    Example:
        >>> _ = Path("template.html").write_text("{{ name }}: {{ percent(accuracy) }}")
        >>> write_page(Path("page.html"), Path("template.html"), name="<default>", accuracy=0.9241)
        >>> Path("page.html").read_text("utf-8")
        '&lt;default&gt;: 92.41 %'
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(percent=percent, number=number, signed=signed)
    page = environment.get_template(template.name).render(values)
    with new_file(path) as scratch:
        scratch.write_text(page, "utf-8", newline="\n")  # the same bytes on Windows


def embed(png: bytes) -> tuple[str, int]:
    """A PNG file in base64, and the width in CSS pixels at which its text is as large as the page's.

    Example:
        >>> embed(Path("picture.png").read_bytes())[1]  # 8 pixels
        5
    """
    width = int.from_bytes(png[16:20], "big")  # the first field of the first chunk
    return base64.b64encode(png).decode(), round(width * 96 / DPI)


def percent(fraction: float | None) -> str:
    """A fraction in percent, or a dash.

    Example:
        >>> percent(0.9241), percent(None)
        ('92.41 %', '–')
    """
    return NOTHING if fraction is None else f"{100 * fraction:.2f} %"


def number(count: float | None) -> str:
    """`54 000` for 54000, with narrow spaces, or a dash for None.

    Example:
        >>> number(54_000).split(), number(None)
        (['54', '000'], '–')
    """
    return NOTHING if count is None else f"{count:,.0f}".replace(",", "\u202f")


def signed(difference: float) -> str:
    """A difference of two fractions in percentage points.

    Example:
        >>> signed(0.009), signed(-0.002)
        ('+0.90', '−0.20')
    """
    return f"{100 * difference:+.2f}".replace("-", "−")
