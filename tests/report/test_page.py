"""Pages: everything is escaped, inside the file, and says the same without colours."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tests.report.reader import Reader, check_self_contained

from tnet.errors import OutputError
from tnet.report.page import (
    Box,
    Commands,
    Gallery,
    Mark,
    Page,
    Section,
    Shot,
    Table,
    heat,
    percent,
    plot,
    png_file,
    thumbnail,
    write_page,
)  # fmt: skip

EVIL = "<img src=x onerror=alert(1)>"


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def page_with(text: str) -> Page:
    """A page with a text in every place that takes one."""
    uri, width, height = thumbnail(np.zeros((8, 8), dtype=np.uint8), (8, 8), 8)
    shots = [Shot(uri, width, height, text, text, good, [Box(0, 0, 0.5, 1, text, text)], [(text, uri)])
             for good in (True, False, None)]  # fmt: skip
    blocks = [
        Table([text, text], [[text, Mark(text, True)], [text, Mark(text, False)]], heading=text, note=text),
        Gallery(shots, heading=text), Commands([(text, text)]), plot(Figure(), text, text),
    ]  # fmt: skip
    return Page(text, [text], [Section(text, text, blocks, text)], [(text, text)], [text])


def test_text_is_escaped_in_every_place(tmp_path: Path) -> None:
    write_page(page_with(EVIL), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    harmless, evil = Reader(text), Reader(text.replace("&lt;", "<"))
    assert evil.tags.count("img") > harmless.tags.count("img")  # it would show
    write_page(page_with("x"), tmp_path / "plain.html")
    plain = Reader((tmp_path / "plain.html").read_text(encoding="utf-8"))
    assert harmless.tags == plain.tags and harmless.text.count(EVIL) == plain.text.split().count("x")
    check_self_contained(text)


def test_attributes_cannot_be_left(tmp_path: Path) -> None:
    write_page(page_with('" onload="alert(1)'), tmp_path / "page.html")
    assert not any(name.startswith("on") for name in Reader((tmp_path / "page.html").read_text()).attributes)


def test_control_characters_and_bytes_are_shown(tmp_path: Path) -> None:
    write_page(page_with("a\x1b[31m\u202eb\udce9"), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a\\x1b[31m\\u202eb\\udce9" in text and not re.search("[\x1b\u202e]", text)


def test_marks_do_not_need_colours(tmp_path: Path) -> None:
    write_page(page_with("x"), tmp_path / "page.html")
    text = Reader((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert text.count("✓ x") == 2 and text.count("✗ x") == 2  # a cell and an image each


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--out"):
        write_page(page_with("x"), tmp_path / "file" / "page.html")


@pytest.mark.parametrize(
    ("size_hw", "shown"),
    [((50, 100), (80, 40)), ((100, 50), (40, 80)), ((7, 7), (80, 80)), ((1, 1000), (80, 20)), ((1000, 1), (20, 80))],
)
def test_thumbnails_keep_the_aspect(size_hw: tuple[int, int], shown: tuple[int, int]) -> None:
    uri, width, height = thumbnail(np.full((30, 30, 3), 200, dtype=np.uint8), size_hw, 80)
    image = decoded(uri)
    assert image.size == (width, height) == shown and image.format == "JPEG"
    assert abs(int(np.asarray(image).mean()) - 200) < 3


def test_maps_are_brighter_where_values_are_larger() -> None:
    pixels = np.asarray(decoded(heat(np.array([[0.0, 1.0], [2.0, 9.0]]), 2.0))).sum(axis=2)
    assert pixels[0, 0] < pixels[0, 1] < pixels[1, 0] == pixels[1, 1]


@pytest.mark.figures
def test_plots_are_the_same_every_time_and_keep_their_text() -> None:
    def draw() -> str:
        figure = Figure()
        figure.subplots().set(xlabel="looks <b>")
        return plot(figure, "a plot").uri

    svg = base64.b64decode(draw().partition(",")[2]).decode()
    assert draw() == draw() and "looks &lt;b&gt;" in svg and "<script" not in svg


def test_figures_in_files_keep_their_bytes(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    shown = png_file(tmp_path / "a.png", "a")
    assert base64.b64decode(shown.uri.partition(",")[2]) == (tmp_path / "a.png").read_bytes() and not shown.invert


def test_per_cent() -> None:
    assert [percent(share) for share in (0, 0.1234, 1)] == ["0.0\xa0%", "12.3\xa0%", "100.0\xa0%"]
