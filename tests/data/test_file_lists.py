"""Lists that come with datasets: what is read, and what is rejected by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnet.data.cub import CUB
from tnet.data.file_lists import (
    parse_box,
    parse_whole_number,
    read_json,
    read_keyed_rows,
    read_rows,
    read_text,
    resolve_within,
)
from tnet.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "list.txt"


def test_rows(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf1 a b c \r\n\r\n 2  d\te\n")
    assert list(read_rows(path, 2)) == [(1, ["1", "a b c"]), (3, ["2", "d\te"])]
    assert read_keyed_rows(path, 2) == {"1": (1, ["a b c"]), "2": (3, ["d\te"])}
    with pytest.raises(DataError, match=r"list\.txt .*line 3"):
        list(read_rows(path, 4) if path.write_text("1 2 3 4\n\n1 2 3") else ())


def test_repeated_keys(path: Path) -> None:
    path.write_text("1 a\n2 b\n1 c\n")
    with pytest.raises(DataError, match="'1' in lines 1 and 3"):
        read_keyed_rows(path, 2)


def test_files_that_cannot_be_read(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list\.txt is missing"):
        read_text(path)
    with pytest.raises(DataError, match="Is a directory"):
        read_text(tmp_path)
    path.write_bytes(b"good\nb\xe4d\n")
    with pytest.raises(DataError, match="line 2"):
        read_text(path)
    assert read_text(path.with_name("b.txt") if path.with_name("b.txt").write_text("12345") else path, 5) == "12345"
    with pytest.raises(DataError, match="4 bytes"):
        read_text(path.with_name("b.txt"), 4)


@pytest.mark.parametrize(
    ("text", "reason"), [('{"a": \n}', "line 2 "), ("[" * 100_000, "recursion"), ("1" * 5000, "4300"), ("", "line 1")]
)
def test_invalid_json(path: Path, text: str, reason: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=rf"list\.txt .*{reason}"):
        read_json(path, 10**6)


def test_numbers(path: Path) -> None:
    assert parse_whole_number("0042", path, 1) == 42
    for text in ("", "-1", "1.0", "²", "1234567890", "x" * 1000):
        with pytest.raises(DataError, match="line 7"):
            parse_whole_number(text, path, 7)


def test_boxes() -> None:
    assert parse_box(["1.5", "2", "30", "4"], "x") == (2, 1.5, 6, 31.5)
    wrong = [[1, 2, 3], [1, 2, 3, 4, 5], [1, 2, -3, 4], [float("nan"), 1, 1, 1], [1, 1, 1, float("inf")], [None] * 4]
    for values in (*wrong, [True] * 4, ["a", 1, 1, 1], [1e9, 0, 1, 1], [10**400, 0, 1, 1], [[1], 0, 1, 1]):
        with pytest.raises(DataError, match="line 3"):
            parse_box(values, "line 3")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "..", "", "a\\b", "C:/x", "http://host/x", "a\0b", "a/.."]
)
def test_paths_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"images\.txt .* line 3"):
        resolve_within(tmp_path, name, tmp_path / "images.txt", 3)


@given(st.lists(st.sampled_from(["a", "b.c", "..", ".", "", "...", " "])))
def test_paths_stay_inside(parts: list[str]) -> None:
    folder = Path("/data/set")
    try:
        path = resolve_within(folder, "/".join(parts), folder / "list")
    except DataError:
        return
    assert ".." not in path.parts and path.is_relative_to(folder)


def test_root_may_be_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "CUB_200_2011" / "sub").mkdir(parents=True)
    (tmp_path / "CUB_200_2011" / "images.txt").touch()
    assert CUB.find_root(tmp_path) == tmp_path / "CUB_200_2011"
    assert CUB.find_root(tmp_path / "CUB_200_2011") == tmp_path / "CUB_200_2011"
    assert CUB.find_root(tmp_path / "CUB_200_2011" / "sub") == tmp_path / "CUB_200_2011" / "sub"
    with pytest.raises(DataError, match="nowhere"):
        CUB.find_root(tmp_path / "nowhere")
