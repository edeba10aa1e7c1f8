"""Tables and lists that would take endless time or memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tnet.data.file_lists import read_text
from tnet.data.table import ImageTable, read_columns
from tnet.errors import DataError
from tnet.inference.inputs import find_inputs


def refused(call: Callable[[], object], message: str) -> None:
    start = time.process_time()
    with pytest.raises(DataError, match=message) as error:
        call()
    assert time.process_time() - start < 2 and "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("name", ["m.csv", "m.txt", "m.parquet"])
def test_pipes_and_devices_are_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    refused(lambda: find_inputs([tmp_path / name]), f"{name} .*not a regular file")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    refused(lambda: find_inputs([tmp_path / name]), f"{name} .*not a regular file")
    refused(lambda: read_text(tmp_path / name), f"{name} .*not a regular file")


@pytest.mark.parametrize("start", [b"", b"path\na.png\n"])
@pytest.mark.parametrize("name", ["m.csv", "m.txt"])
def test_sparse_file(tmp_path: Path, name: str, start: bytes) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(start)
        file.truncate(2**36)
    refused(lambda: find_inputs([tmp_path / name]), f"{name} has a zero byte in line {1 + start.count(10)}")


@pytest.mark.parametrize("name", ["m.csv", "m.txt"])
def test_long_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("path\n" + "x" * 2**21)
    refused(lambda: find_inputs([tmp_path / name]), f"{name} is too long in line 2")


def test_quotation_mark_that_is_never_closed(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('path\n"a.png\n' + "xxxxxxxxxx\n" * 100_000)
    refused(lambda: find_inputs([tmp_path / "m.csv"]), "m.csv cannot be read .*field larger than field limit")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", ["m.csv", "m.txt"])
def test_other_encodings(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_text("path\nä.png\n", encoding=encoding)
    refused(lambda: find_inputs([tmp_path / name]), "UTF-8")


def test_zero_byte_in_a_name(tmp_path: Path) -> None:
    refused(lambda: find_inputs([tmp_path / "m\0.csv"]), "null byte")


def test_parquet_of_many_rows_in_few_bytes(tmp_path: Path) -> None:
    rows = 10_000_001
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), ["a.png"])
    pyarrow.parquet.write_table(pa.table({"path": column}), tmp_path / "m.parquet")
    assert (tmp_path / "m.parquet").stat().st_size < 1e6
    refused(lambda: find_inputs([tmp_path / "m.parquet"]), "10,000,001 rows .*at most 10,000,000 rows")


def test_parquet_of_much_text_in_few_bytes(tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), 30_000), ["x" * 100_000])
    pyarrow.parquet.write_table(pa.table({"path": column}), tmp_path / "m.parquet")
    refused(lambda: find_inputs([tmp_path / "m.parquet"]), "characters in column 'path'")


def test_labels_that_make_a_huge_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"a.png,{row}|\u00e4{row}\n" for row in range(40_000)))
    refused(lambda: ImageTable(tmp_path / "m.csv", label_separator="|"), "40,000 rows and 80,000 labels")


def test_parquet_dictionaries_nulls_and_numbers_are_text(tmp_path: Path) -> None:
    paths, texts = pa.array(["a", "b", None, "a"]).dictionary_encode(), ["013", "NA", "", None]
    table = pa.table({"path": paths, "n": [3, None, 0, -1], "text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet", row_group_size=2)
    expected = {"path": ["a", "b", "", "a"], "n": ["3", "", "0", "-1"], "text": ["013", "NA", "", ""]}
    assert read_columns(tmp_path / "m.parquet", ["path", "n", "text"]) == expected


MANY = """
import sys, time
from tnet.inference.inputs import find_inputs
start = time.process_time()
print(len(find_inputs([sys.argv[1]])), time.process_time() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".txt"])
def test_many_rows_take_seconds(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a.png").touch()
    manifest = tmp_path / f"m{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table({"path": ["a.png"] * 300_000}), manifest)
    else:
        manifest.write_text(("path\n" if suffix == ".csv" else "") + "a.png\n" * 300_000)
    # In another process, where types are not checked on every call.
    done = subprocess.run([sys.executable, "-c", MANY, manifest], capture_output=True, text=True, check=True)
    count, seconds = done.stdout.split()
    assert int(count) == 300_000 and float(seconds) < 6
