from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tnet.data.boxes import read_boxes
from tnet.errors import DataError

IMAGES = [Path(f"/data/{name}") for name in ("val/cat/1.png", "val/dog/1.png", "val/dog/2.png")]


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("y0,x0,y1,x1", "10,20,30,60"),
        ("x0,y0,x1,y1", "20,10,60,30"),
        ("x1,y1,x2,y2,width,height", "20,10,60,30,640,480"),  # the image's size, as DeepPCB's table has it
        ("xmin,ymin,xmax,ymax", "20,10,60,30"),
        ("x,y,w,h", "20,10,40,20"),
        ("x,y,width,height", "20,10,40,20"),
    ],
)
def test_each_layout_gives_the_same_box(tmp_path: Path, header: str, cells: str) -> None:
    found = read_boxes(table(tmp_path, f"path,label,{header}\ncat/1.png,tail,{cells}\n"), IMAGES)
    assert found.unmatched == 0
    assert {image: boxes.tolist() for image, boxes in found.by_image.items()} == {0: [[10, 20, 30, 60]]}


def test_rows_belong_to_the_images_whose_paths_end_so(tmp_path: Path) -> None:
    text = (
        "path,y0,x0,y1,x1\n/data/val/dog/1.png,0,0,1,1\n./2.png,1.5,2.5,3,4\nval/dog/../dog/2.png,5,6,7,8\n"
        "train/cat/1.png,0,0,1,1\nog/2.png,0,0,1,1\ncat/1.png,,,,\n"
    )
    found = read_boxes(table(tmp_path, text), IMAGES)
    assert found.unmatched == 2  # an image of another split, and half a name
    assert {image: boxes.tolist() for image, boxes in found.by_image.items()} == {
        1: [[0, 0, 1, 1]], 2: [[1.5, 2.5, 3, 4], [5, 6, 7, 8]]
    }  # fmt: skip


def test_a_parquet_table_of_whole_numbers(tmp_path: Path) -> None:
    columns = {"path": ["dog/2.png"], "x": [1], "y": [2], "w": [3], "h": [4]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "boxes.parquet")
    assert read_boxes(tmp_path / "boxes.parquet", IMAGES).by_image[2].tolist() == [[2, 1, 6, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,y0,x0,y1,x1\n", "no rows"),
        ("path,y0,x0,y1\ncat/1.png,1,2,3\n", "has no boxes .x0, y0, y1.; give one of"),
        ("y0,x0,y1,x1\n1,2,3,4\n", "no column 'path'"),
        ("path,x0,y0,x1,y1,x2,y2\ncat/1.png,1,2,3,4,5,6\n", "boxes in several ways"),
        ("path,y0,x0,y1,x1\ncat/1.png,1,2,nan,4\n", r"row 1.*finite.*nan"),
        ("path,y0,x0,y1,x1\ncat/1.png,1,2,3,inf\n", "row 1.*finite"),
        ("path,y0,x0,y1,x1\ncat/1.png,1,2,3,4\ncat/1.png,1,2,three,4\n", "row 2.*three"),
        ("path,y0,x0,y1,x1\ncat/1.png,1,2,,4\n", "row 1"),
        ("path,y0,x0,y1,x1\ncat/1.png,3,2,3,4\n", "empty box in row 1.*y 3 to 3"),
        ("path,x,y,w,h\ncat/1.png,3,2,-1,4\n", "empty box in row 1"),
        ("path,y0,x0,y1,x1\n1.png,1,2,3,4\n", "fits 2 images.*cat/1.png.*dog/1.png.*longer"),
        ("path,y0,x0,y1,x1\nelsewhere.png,1,2,3,4\n", "no box.*3 images.*cat/1.png.*elsewhere.png"),
        ("path,y0,x0,y1,x1\ncat/1.png,,,,\n", "no box"),
        ("path;y0;x0;y1;x1\ncat/1.png;1;2;3;4\n", "save it with commas"),
        ("path,label\ncat/1.png,tail\n", "no boxes .none of their columns"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        read_boxes(table(tmp_path, text), IMAGES)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_boxes(tmp_path / "boxes.csv", IMAGES)
