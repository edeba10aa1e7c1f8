"""Names from outside in terminals, Markdown and CSV."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnet.text import csv_row, markdown, on_one_line, unmarked, visible


@pytest.mark.parametrize(("text", "shown", "line"), [
    ("plain, é 漢 ‏עברית", "plain, é 漢 ‏עברית", "plain, é 漢 ‏עברית"),
    ("\x1b[31mred\x07", r"\x1b[31mred\x07", r"\x1b[31mred\x07"),
    ("a\r\n\tb", "a\\r\n\tb", r"a\r\n\tb"),
    ("\x9b2J\x7f\u2028\u202egpj.exe", r"\x9b2J\x7f\u2028\u202egpj.exe", r"\x9b2J\x7f\u2028\u202egpj.exe"),
    ("caf\udce9", r"caf\udce9", r"caf\udce9"),
])  # fmt: skip
def test_control_characters_are_shown_as_escapes(text: str, shown: str, line: str) -> None:
    assert (visible(text), on_one_line(text)) == (shown, line)


@given(st.text())
def test_terminals_get_nothing_but_printable_text(text: str) -> None:
    line = on_one_line(text)
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in line)
    line.encode("utf-8")
    assert on_one_line(line) == line


@pytest.mark.parametrize(("name", "shown"), [
    ("mobilenetv2_100, TNet (3 looks) 12.5 %", "mobilenetv2_100, TNet (3 looks) 12.5 %"),
    ("a|b", r"a\|b"),
    ("<script>x</script>", r"&lt;script\>x&lt;/script\>"),
    ("# big #", r"\# big \#"),
    ("*x* `y` [z](u) ~~w~~ \\", r"\*x\* \`y\` \[z\](u) \~\~w\~\~ \\"),
    ("__init__ a_b _c_", r"\_\_init\_\_ a_b \_c\_"),
    ("&lt; AT&T a & b", r"\&lt; AT\&T a & b"),
    ("x\n\n## y", r"x\\n\\n## y"),
])  # fmt: skip
def test_markdown_shows_a_name_as_it_is(name: str, shown: str) -> None:
    # The backslash of an escape for a control character is escaped in turn, so that it is shown.
    assert markdown(name) == shown


FORMULAS = ["=cmd|' /C calc'!A0", "+1+2", "-2+3", "@SUM(1)", "\t=1", "\r=1", "'=1", "''-x"]


def test_formulas_are_marked_and_numbers_are_not() -> None:
    assert csv_row(["=1", "-1.5", -1.5, "'x", "a=b", None, "", "+1e5", "-x"]) == "'=1,-1.5,-1.5,'x,a=b,,,+1e5,'-x\n"
    for text in FORMULAS:
        (cell,) = next(csv.reader(io.StringIO(csv_row([text]), newline="")))
        assert cell == "'" + text and unmarked(cell) == text


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2))
def test_a_row_reads_back_as_it_was(cells: list[str]) -> None:
    rows = list(csv.reader(io.StringIO(csv_row(cells) + csv_row(["end", ""]), newline=""), strict=True))
    assert [list(map(unmarked, row)) for row in rows] == [cells, ["end", ""]]
