"""Names from outside, such as those of files and classes, made harmless in terminals, tables and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Control characters but tab and line feed, line separators, changes of writing direction, bytes that are not UTF-8.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
# An underscore inside a word, as in mobilenetv2_100, means nothing.
_MARKUP = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])|^#|#$")
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # as spreadsheets recognize one, or ours marked
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)


def visible(text: str) -> str:
    """Return text for a terminal: control characters except tab and line feed become backslash escapes."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def on_one_line(text: str) -> str:
    """Return :func:`visible` text with tabs and line feeds escaped too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """Return one line of Markdown, for a sentence, heading or cell of a table, that shows the text as it is."""
    return _MARKUP.sub(lambda found: "&lt;" if found[0] == "<" else f"\\{found[0]}", on_one_line(text))


def csv_row(cells: Iterable[object]) -> str:
    """Return a line of CSV; text that a spreadsheet would run as a formula starts with ``'``, see :func:`unmarked`."""
    return ",".join(_csv_cell(cell) for cell in cells) + "\n"


def _csv_cell(cell: object) -> str:
    text = "" if cell is None else str(cell)
    if isinstance(cell, str) and _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    # Python's writer leaves a lone carriage return unquoted, which splits the row.
    return '"' + text.replace('"', '""') + '"' if re.search('[",\r\n]', text) else text


def unmarked(cell: str) -> str:
    """Return a cell of :func:`csv_row` as it was."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
