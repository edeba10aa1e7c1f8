"""Pages: sections of sentences, tables, plots and images, written as one HTML file that loads nothing."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import matplotlib
import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from tnet.explain.layout import clamped
from tnet.files import write_text
from tnet.text import on_one_line

_JPEG_QUALITY = 82
_MOST_STRETCH = 4.0  # largest aspect of an image on a page


@dataclass(frozen=True)
class Mark:
    """A cell of a table that says whether something holds."""

    text: str
    good: bool


@dataclass(frozen=True)
class Table:
    """A table; numbers are aligned right, from column ``texts`` on."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Mark]]
    texts: int = 1
    strong: frozenset[int] = frozenset()  # rows that are emphasized
    heading: str = ""
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Plot:
    """A plot or a drawn figure, as a data URI."""

    uri: str
    alt: str
    caption: str = ""
    invert: bool = True  # in the dark; a figure with photographs stays as it is
    kind: ClassVar[str] = "plot"


@dataclass(frozen=True)
class Box:
    """A box over an image, with its number; a share of the image's height and width."""

    y0: float
    x0: float
    y1: float
    x1: float
    number: str
    color: str


@dataclass(frozen=True)
class Shot:
    """An image with boxes over it and magnified regions below it, as data URIs."""

    uri: str
    width: int  # pixels on the page
    height: int
    title: str
    caption: str
    good: bool | None = None  # whether the answer is right, if known
    boxes: Sequence[Box] = ()
    looks: Sequence[tuple[str, str]] = ()  # number and image


@dataclass(frozen=True)
class Gallery:
    """Images side by side."""

    shots: Sequence[Shot]
    heading: str = ""
    small: bool = False
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Commands:
    """Commands to try, with descriptions."""

    lines: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "commands"


@dataclass(frozen=True)
class Section:
    """A part of a page. Its first sentences say what its tables and figures mean."""

    title: str
    lead: str
    blocks: Sequence[Table | Plot | Gallery | Commands] = ()
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A page; ``facts`` are the numbers at its head, each with what it counts."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    foot: Sequence[str] = field(default=())


def write_page(page: Page, path: Path) -> None:
    """Write a page as HTML, replacing the file. All text is escaped."""
    environment = Environment(
        loader=PackageLoader("tnet.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_harmless,
    )  # fmt: skip
    write_text(path, environment.get_template("page.html.j2").render(page=page))


def _harmless(value: object) -> object:
    return on_one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def plot(figure: Figure, alt: str, caption: str = "") -> Plot:
    """Return a figure as SVG without a background, whose text takes the fonts of the reader."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tnet"}), warnings.catch_warnings():
        # The font that measures text may lack characters of class names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return Plot(_uri("svg+xml", stream.getvalue()), alt, caption)


def png_file(path: Path, alt: str, caption: str = "") -> Plot:
    """Return a figure that was written as PNG, in its own colours."""
    return Plot(_uri("png", path.read_bytes()), alt, caption, invert=False)


def thumbnail(
    pixels: UInt8[np.ndarray, "height width *channels"], size_hw: tuple[int, int], side_px: int
) -> tuple[str, int, int]:
    """Return pixels as a JPEG of the aspect of ``size_hw``, with its width and height, up to ``side_px``."""
    aspect = clamped(size_hw[1] / max(1, size_hw[0]), _MOST_STRETCH)
    width, height = (max(1, round(side_px * min(1, share))) for share in (aspect, 1 / aspect))
    stream = io.BytesIO()
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX, reducing_gap=None)
    image.save(stream, "jpeg", quality=_JPEG_QUALITY)
    return _uri("jpeg", stream.getvalue()), width, height


def heat(values: np.ndarray, most: float) -> str:
    """Return a map of values from 0 to ``most`` as a small PNG, which a page enlarges smoothly."""
    colors = matplotlib.colormaps["magma"](np.clip(values / max(most, 1e-12), 0, 1), bytes=True)
    stream = io.BytesIO()
    Image.fromarray(colors[..., :3]).save(stream, "png")
    return _uri("png", stream.getvalue())


def percent(share: float) -> str:
    """Format a share as per cent; lines do not break before the sign."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
