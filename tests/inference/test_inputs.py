from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tnet.errors import DataError, PassedOverWarning
from tnet.inference.inputs import find_inputs


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Empty files suffice: nothing is opened."""
    folder = tmp_path / "pictures"
    for name in ("b.png", "a.jpg", "deep/er/c.PNG", "notes.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_pictures_folders_and_manifests_come_in_the_order_given(pictures: Path) -> None:
    (pictures / "list.txt").write_text("\n  deep/er/c.PNG \n\na.jpg\n")
    with pytest.warns(PassedOverWarning, match="2 .* in .* are passed over: 1 .md, 1 .txt|1 .txt, 1 .md"):
        found = find_inputs([pictures / "list.txt", pictures / "b.png", pictures])
    names = ["deep/er/c.PNG", "a.jpg", "b.png", "a.jpg", "b.png", "deep/er/c.PNG"]
    assert found == [pictures / name for name in names]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".pq"])
def test_a_table_lists_pictures_relative_to_itself(pictures: Path, suffix: str) -> None:
    manifest = pictures / f"table{suffix}"
    paths = ["b.png", str(pictures / "a.jpg")]
    if suffix == ".csv":
        manifest.write_text("id,path\n" + "".join(f"{i},{path}\n" for i, path in enumerate(paths)))
    else:
        pyarrow.parquet.write_table(pa.table({"id": [0, 1], "path": paths}), manifest)
    assert find_inputs([manifest]) == [pictures / "b.png", pictures / "a.jpg"]


def test_a_list_may_begin_with_a_byte_order_mark(pictures: Path) -> None:
    (pictures / "list.txt").write_text("a.jpg\n", encoding="utf-8-sig")
    assert find_inputs([pictures / "list.txt"]) == [pictures / "a.jpg"]


def test_missing_images_are_reported_before_any_work(pictures: Path) -> None:
    inputs = [pictures / "a.jpg", pictures / "gone.png", pictures / "lost.png"]
    with pytest.raises(DataError, match=r"gone\.png"):
        find_inputs(inputs)
    assert find_inputs(inputs, check_exists=False) == inputs


def test_missing_images_of_a_manifest(pictures: Path) -> None:
    (pictures / "list.txt").write_text("a.jpg\ngone.png\n")
    with pytest.raises(DataError, match=r"list\.txt.*gone\.png"):
        find_inputs([pictures / "list.txt"])
    found = find_inputs([pictures / "list.txt"], check_exists=False)
    assert found == [pictures / "a.jpg", pictures / "gone.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"file,label\nb.png,1\n", r"m\.csv.*'path'.*'file'"),
        ("m.csv", b"path,n\n,1\n", r"m\.csv.*'path'.*row 1"),
        ("m.csv", b"", r"m\.csv"),
        ("m.csv", b"path\n", r"m\.csv"),
        ("m.parquet", b"no parquet", r"m\.parquet"),
        ("m.txt", b"\n \n", r"m\.txt"),
        ("m.txt", b"\xff\xfe\x00", r"m\.txt.*UTF-8"),
    ],
)
def test_a_manifest_that_cannot_serve_says_why(pictures: Path, name: str, content: bytes, message: str) -> None:
    (pictures / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_inputs([pictures / name])


@pytest.mark.parametrize("name", ["gone.csv", "gone.txt", "gone.parquet"])
def test_a_missing_manifest_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=name):
        find_inputs([tmp_path / name])


def test_nothing_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="manifest"):
        find_inputs([])
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        find_inputs([tmp_path])
