"""Tables of images: what is read from CSV and Parquet, and what is rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tnet.data.sample import collate
from tnet.data.table import ImageTable, read_columns
from tnet.errors import DataError
from tnet.scenes.reading import ReadOptions

ROWS = {"path": ["a.png", "sub/b.png", "c.png"], "label": ["dog", "cat", "dog"], "split": ["train", " val ", "train"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, the second in a folder of its own."""
    (tmp_path / "sub").mkdir()
    for level, name in enumerate(ROWS["path"]):
        Image.fromarray(np.full((4, 6, 3), level * 10, np.uint8)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, kind: str, columns: dict[str, list[Any]], name: str = "table") -> Path:
    path = folder / f"{name}.{kind}"
    if kind == "csv":
        lines = [
            ",".join(columns),
            *(",".join(str(value) for value in row) for row in zip(*columns.values(), strict=True)),
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def write_text(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


both = pytest.mark.parametrize("kind", ["csv", "parquet", "pq"])


@both
def test_optional_columns_are_read_if_there(folder: Path, kind: str) -> None:
    table = write(folder, kind, ROWS)
    wanted = {"path": ROWS["path"], "split": ROWS["split"]}
    assert read_columns(table, ["path"], optional=["split", "regions"]) == wanted
    with pytest.raises(DataError, match="'regions'.*; rename one$"):
        read_columns(table, ["path", "regions"], optional=["split"])


@both
def test_paths_targets_and_classes(folder: Path, kind: str) -> None:
    data = ImageTable(write(folder, kind, ROWS))
    assert data.classes == ["cat", "dog"] and not data.multilabel and len(data) == 3
    assert data.targets.tolist() == [1, 0, 1] and data.targets.dtype == torch.int64
    image, target, name = data[1]
    assert (image == 10).all() and image.shape == (3, 4, 6)
    assert target == 0 and name == str(folder / "sub" / "b.png")
    assert ImageTable(folder / f"table.{kind}", reading=ReadOptions(channels=1, max_side_px=3))[0].image.shape == (
        1,
        2,
        3,
    )


@both
def test_columns_classes_and_image_root_as_given(folder: Path, kind: str) -> None:
    (folder / "lists").mkdir()
    table = write(folder / "lists", kind, {"file": ["b.png"], "kind": ["x"], "other": [1.5]})
    data = ImageTable(
        table, path_column="file", label_column="kind", image_root=folder / "sub", classes=["y", "x", "z"]
    )
    assert data.classes == ["y", "x", "z"] and data.targets.tolist() == [1]
    assert data.paths == [folder / "sub" / "b.png"]


@both
def test_absolute_paths_are_taken_as_they_are(folder: Path, kind: str) -> None:
    table = write(folder / "sub", kind, {"path": [str(folder / "a.png")], "label": ["x"]})
    assert ImageTable(table).paths == [folder / "a.png"]


@both
def test_one_column_can_serve_twice(folder: Path, kind: str) -> None:
    table = write(folder, kind, {"path": ["a.png", "c.png"]})
    assert ImageTable(table, label_column="path").classes == ["a.png", "c.png"]


@both
def test_rows_of_a_split_share_the_classes_of_the_table(folder: Path, kind: str) -> None:
    table = write(folder, kind, ROWS)
    train, val = (ImageTable(table, split=split) for split in ("train", "val"))
    assert train.classes == val.classes == ["cat", "dog"]
    assert train.paths == [folder / "a.png", folder / "c.png"] and train.targets.tolist() == [1, 1]
    assert val.paths == [folder / "sub/b.png"] and val.targets.tolist() == [0]
    (folder / "c.png").unlink()
    assert len(ImageTable(table, split="val")) == 1  # an image missing from another split is not its business
    with pytest.raises(DataError, match="'test' in column 'split'.* 'train', 'val'"):
        ImageTable(table, split="test")


@both
def test_several_labels_per_image(folder: Path, kind: str) -> None:
    table = write(folder, kind, {"path": ROWS["path"], "label": ["b|a", "c", " a | b|a"]})
    data = ImageTable(table, label_separator="|")
    assert data.classes == ["a", "b", "c"] and data.multilabel
    assert data.targets.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]] and data.targets.dtype == torch.float32
    assert data[0].target.tolist() == [1, 1, 0]
    assert collate([data[0], data[1]]).targets.shape == (2, 3)
    train, val = data.split_off(0.3)
    assert len(train) == 2 and len(val) == 1 and train.multilabel
    assert torch.equal(val.targets[0], data.targets[data.paths.index(val.paths[0])])
    whole = ImageTable(table)  # without a separator, a label is a label
    assert whole.classes == ["a | b|a", "b|a", "c"] and not whole.multilabel


def test_csv_text_is_taken_as_it_stands(folder: Path) -> None:
    table = write_text(folder, '\ufeffpath,label,note\r\na.png,013,"x, ""y""\nz"\r\nc.png,NA,1\r\nc.png, true ,\r\n')
    assert ImageTable(table).classes == ["013", "NA", "true"]


def test_whole_numbers_and_categories_of_parquet_are_labels(folder: Path) -> None:
    numbers = write(folder, "parquet", {"path": ROWS["path"], "label": [10, 9, 10]}, "numbers")
    assert ImageTable(numbers).classes == ["10", "9"]
    columns = pa.table({"path": ROWS["path"], "label": pa.array(ROWS["label"]).dictionary_encode()})
    pyarrow.parquet.write_table(columns, folder / "categories.parquet")
    assert ImageTable(folder / "categories.parquet").targets.tolist() == [1, 0, 1]


@settings(max_examples=15)
@given(labels=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1), min_size=1))
def test_csv_and_parquet_give_the_same(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    labels = [label.strip() or "blank" for label in labels]
    folder = tmp_path_factory.mktemp("same")
    (folder / "a.png").touch()
    parquet = write(folder, "parquet", {"path": ["a.png"] * len(labels), "label": labels})
    quoted = ['"' + label.replace('"', '""') + '"' for label in labels]
    csv = write(folder, "csv", {"path": ["a.png"] * len(labels), "label": quoted})
    for data in (ImageTable(csv), ImageTable(parquet)):
        assert [data.classes[target] for target in data.targets.tolist()] == labels
        assert data.classes == sorted(set(labels))


# --- what is rejected


def test_tables_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("csv", "parquet"):
        with pytest.raises(DataError, match=rf"gone\.{kind}"):
            ImageTable(folder / f"gone.{kind}")
        (folder / f"folder.{kind}").mkdir()
        with pytest.raises(DataError, match="is a folder"):
            ImageTable(folder / f"folder.{kind}")
        (folder / f"empty.{kind}").touch()
        with pytest.raises(DataError, match="0 bytes"):
            ImageTable(folder / f"empty.{kind}")
    with pytest.raises(DataError, match=r"'\.xlsx'.*\.csv, \.parquet, \.pq"):
        ImageTable(folder / "table.xlsx")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    table = write(folder, "csv", ROWS)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="permission denied"):
        ImageTable(table)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("quoted.csv", b'path,label\na.png,"x\n'),
        ("cut.parquet", b"PAR1 and then nothing of use PAR1"),
        ("text.parquet", b"path,label\na.png,x\n"),
    ],
)
def test_damaged_tables(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        ImageTable(folder / name)


@pytest.mark.parametrize("line", ["c.png", "c.png,x,y"])
def test_csv_line_of_another_length(folder: Path, line: str) -> None:
    count = line.count(",") + 1
    with pytest.raises(DataError, match=f"{count} values in line 4"):
        ImageTable(write_text(folder, f"path,label\na.png,x\n\n{line}\n"))


@given(cut=st.floats(0.01, 0.99))
def test_cut_parquet_is_rejected(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    path = write(tmp_path_factory.mktemp("cut"), "parquet", ROWS)
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(len(content) * cut))])
    with pytest.raises(DataError, match="cannot be read"):
        ImageTable(path)


@both
def test_columns_that_are_not_there(folder: Path, kind: str) -> None:
    table = write(folder, kind, ROWS)
    with pytest.raises(DataError, match=r"'file' \(columns: 'path', 'label', 'split'\).*\(data.path_column and"):
        ImageTable(table, path_column="file")
    with pytest.raises(DataError, match="'class'"):
        ImageTable(table, label_column="class")
    with pytest.raises(DataError, match="'fold'"):
        ImageTable(table, split="train", split_column="fold")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path;label\na.png;cat\n", "'path' .*not ';'"),
        ("path,label\na.png,cat\n".encode("utf-16"), "UTF-8"),
        ("path,label\na.png,\xe9t\xe9\n".encode("latin1"), "UTF-8"),
    ],
)
def test_tables_as_other_programs_save_them(folder: Path, text: bytes, message: str) -> None:
    (folder / "other.csv").write_bytes(text)
    with pytest.raises(DataError, match=message):
        ImageTable(folder / "other.csv")


def test_column_that_is_there_twice(folder: Path) -> None:
    with pytest.raises(DataError, match="more than one column 'label'"):
        ImageTable(write_text(folder, "path,label,label\na.png,x,y\n"))


@both
def test_table_without_rows(folder: Path, kind: str) -> None:
    with pytest.raises(DataError, match="no rows"):
        ImageTable(write(folder, kind, {"path": [], "label": []}))


@both
def test_empty_labels_and_paths_are_counted_and_placed(folder: Path, kind: str) -> None:
    empty = "" if kind == "csv" else None
    labels = ["x", empty, " ", "y", empty, empty]
    table = write(folder, kind, {"path": ["a.png"] * 6, "label": labels})
    with pytest.raises(DataError, match=r"'label'\) in 4 rows, first row 2, 3, 5;"):
        ImageTable(table)
    table = write(folder, kind, {"path": ["a.png", "a.png"], "label": [empty, empty]})
    with pytest.raises(DataError, match="in 2 rows, first row 1, 2"):
        ImageTable(table)
    table = write(folder, kind, {"path": ["a.png", empty], "label": ["x", "x"]})
    with pytest.raises(DataError, match=r"'path'\) in 1 rows, first row 2 \(''\)"):
        ImageTable(table)
    table = write(folder, kind, {"path": ["a.png"] * 2, "label": ["x|y", "x||y"]})
    with pytest.raises(DataError, match=r"in 1 rows, first row 2"):
        ImageTable(table, label_separator="|")
    with pytest.raises(DataError, match="label_separator"):
        ImageTable(table, label_separator="")


@both
@pytest.mark.parametrize("url", ["http://host/a.png", "s3://bucket/a.png", "HTTPS://host/a.png", "file:///a.png"])
def test_urls_are_rejected(folder: Path, kind: str, url: str) -> None:
    table = write(folder, kind, {"path": ["a.png", url, url], "label": ["x", "x", "x"]})
    with pytest.raises(DataError, match=rf"URL \(column 'path'\) in 2 rows, first row 2 \('{url}'\), row 3 "):
        ImageTable(table)


@both
def test_missing_images_are_named_and_counted(folder: Path, kind: str) -> None:
    paths = ["a.png", "g1.png", "g2.png", "g3.png", "g4.png", "g5.png", "sub"]
    table = write(folder, kind, {"path": paths, "label": ["x"] * 7})
    with pytest.raises(DataError, match=r"6 of the 7 .*g1\.png', .*g2\.png', .*g3\.png' and 3 more.*data\.root"):
        ImageTable(table)
    with pytest.raises(DataError, match="image_root=.*nowhere"):
        ImageTable(table, image_root=folder / "nowhere")


@both
def test_labels_that_are_not_a_class(folder: Path, kind: str) -> None:
    table = write(folder, kind, ROWS)
    with pytest.raises(DataError, match="2 classes: 'cat'"):
        ImageTable(table, classes=["dog", "cow"])
    with pytest.raises(DataError, match="list of classes is empty"):
        ImageTable(table, classes=[])


def test_parquet_columns_of_other_types_are_rejected(folder: Path) -> None:
    for labels in ([1.0, 2.0], [["a"], ["b"]], [True, False]):
        table = write(folder, "parquet", {"path": ["a.png", "c.png"], "label": labels})
        with pytest.raises(DataError, match="column 'label'"):
            ImageTable(table)
