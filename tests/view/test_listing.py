"""The list of images, what is known of them, and labels that people type."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tests.view.conftest import HOSTILE, Viewer

from tnet.errors import ConfigError, DataError, OutputError
from tnet.models import TNet
from tnet.view import listing
from tnet.view.labels import Labels
from tnet.view.listing import Listing, natural_order

ALL = [HOSTILE, "ant/image1.png", "ant/image2.png", "ant/image10.png", "bee/broken.png", "bee/tall.png", "inner.png"]


def paths(found: dict) -> list[str]:
    return [item["path"] for item in found["items"]]


def test_images_in_natural_order(shared: Viewer) -> None:
    found = shared.get("/api/images")
    # Neither hidden ones, nor those behind links that lead out of the root.
    assert paths(found) == [*ALL, "slide.tif"] and found["total"] == 8
    assert found["items"][0] == {"path": HOSTILE, "label": None, "predicted": None, "probability": None}
    assert paths(shared.get("/api/images", search="IMAGE1")) == ["ant/image1.png", "ant/image10.png"]
    page = shared.get("/api/images", offset=6, limit=1)
    assert paths(page) == ["inner.png"] and page["total"] == 8
    assert paths(shared.get("/api/images", offset=99)) == []
    assert paths(shared.get("/api/images", filter="wrong")) == []


def test_natural_order() -> None:
    names = ["b", "a10", "A9", "a", "10", "9", "a9b", "", "a²"]
    assert sorted(names, key=natural_order) == ["", "9", "10", "a", "A9", "a9b", "a10", "a²", "b"]


@pytest.mark.parametrize(
    ("query", "problem"),
    [({"limit": 0}, "limit"), ({"limit": 501}, "limit"), ({"offset": -1}, "offset"), ({"filter": "best"}, "filter"),
     ({"search": "x" * 201}, "search"), ({"label": "x" * 1001}, "label")],
)  # fmt: skip
def test_limits(shared: Viewer, query: dict, problem: str) -> None:
    answer = shared.client.get("/api/images", params=query)
    assert answer.status_code == 400 and answer.json()["error"].startswith(f"{problem} is not valid")


@pytest.fixture
def predictions(tmp_path: Path, root: Path) -> Path:
    rows = [
        [str(root / "ant" / "image1.png"), "ant", "0.9", ""], ["ant/image2.png", "bee", "0.8", ""],
        ["ant/image10.png", "ant", "0.35", ""], ["bee/tall.png", "bee", "0.55", ""],
        ["elsewhere.png", "bee", "0.1", ""], ["bee/broken.png", "", "", "it is damaged"],
    ]  # fmt: skip
    with (tmp_path / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "label", "probability", "error"], *rows])
    return tmp_path / "predictions.csv"


def test_filters(model: TNet, root: Path, predictions: Path) -> None:
    viewer = Viewer(model, root, predictions=predictions, truth=root)
    first = viewer.get("/api/images", search="image1.png")["items"][0]
    assert first == {"path": "ant/image1.png", "label": "ant", "predicted": "ant", "probability": 0.9}
    assert paths(viewer.get("/api/images", filter="wrong")) == ["ant/image2.png"]
    assert paths(viewer.get("/api/images", filter="unsure")) == ["ant/image10.png", "bee/tall.png"]
    assert paths(viewer.get("/api/images", label="bee")) == ["bee/broken.png", "bee/tall.png"]
    assert paths(viewer.get("/api/images", predicted="bee")) == ["ant/image2.png", "bee/tall.png"]
    assert paths(viewer.get("/api/images", label="ant", predicted="ant", search="10")) == ["ant/image10.png"]
    assert viewer.get("/api/image", path="bee/tall.png")["label"] == "bee"
    unknown = viewer.get("/api/images", search="slide")["items"][0]
    assert unknown["label"] is None and unknown["predicted"] is None


def test_predictions_as_json_lines(root: Path, tmp_path: Path) -> None:
    lines = [
        {"path": "ant/image1.png", "label": "", "probability": 0.3, "regions": []}, {"path": "a\0.png", "label": "ant",
        "probability": 0.9}, {"path": "bee/broken.png", "error": "it is damaged"}, {"path": "slide.tif", "label": "bee",
        "probability": 0.7},
    ]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    known = Listing(root, tmp_path / "p.jsonl")
    assert [entry.path for entry in known.query(kind="unsure")] == ["ant/image1.png"]
    assert [(entry.path, entry.probability) for entry in known.query(predicted="bee")] == [("slide.tif", 0.7)]


def test_true_classes_from_a_table(root: Path, tmp_path: Path, predictions: Path) -> None:
    table = tmp_path / "truth.csv"
    table.write_text("path,label\nant/image1.png,bee|ant\nant/image2.png,bee\n", encoding="utf-8")
    known = Listing(root, predictions, table)
    assert [entry.path for entry in known.query(kind="wrong")] == ["ant/image1.png"]
    assert [entry.path for entry in known.query(label="bee")] == ["ant/image1.png", "ant/image2.png"]


def test_tables_that_do_not_fit(root: Path, tmp_path: Path) -> None:
    table = tmp_path / "other.csv"
    table.write_text("path,label,probability\nmissing.png,ant,0.5\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"none of the 1 paths .* is an image below .* \(first: 'missing.png'\)"):
        Listing(root, table)
    table.write_text("path,label,probability\nslide.tif,ant,sure\n", encoding="utf-8")
    with pytest.raises(DataError, match="probability 'sure' in prediction 1; it must be from 0 to 1"):
        Listing(root, table)
    table.write_text("file,label\nslide.tif,ant\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'path' \(columns: 'file', 'label'\); rename one$"):
        Listing(root, truth=table)
    with pytest.raises(DataError, match="does not exist"):
        Listing(root, tmp_path / "missing.csv")


def test_a_root_that_is_none(model: TNet, tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError, match="does not exist; correct the path"):
        Viewer(model, tmp_path / "missing")
    with pytest.raises(DataError, match="is not a folder"):
        Viewer(model, root / "slide.tif")
    assert Viewer(model, tmp_path).get("/api/images") == {"total": 0, "items": []}


def test_new_images_are_found(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Listing(tmp_path)
    (tmp_path / "new.png").write_bytes((root / "ant" / "image1.png").read_bytes())
    (tmp_path / b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(b"")  # cannot be named in an address
    assert images.query() == []
    monkeypatch.setattr(listing, "_REFRESH_SECONDS", 0)
    assert [entry.path for entry in images.query()] == ["new.png"]


# --- labels


def test_labels_are_appended(model: TNet, root: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    viewer = Viewer(model, root, labels=table)
    assert viewer.get("/api/model")["labels"] and not table.exists()
    for path, label in ((HOSTILE, '  =cmd, <b>"x" '), ("slide.tif", "ant"), ("slide.tif", "bee")):
        answer = viewer.post("/api/label", {"path": path, "label": label})
        assert answer.status_code == 200 and answer.json() == {"path": path, "typed_label": label.strip()}
    with table.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["path", "label", "time"]
    assert [row[:2] for row in rows] == [[HOSTILE, '\'=cmd, <b>"x"'], ["slide.tif", "ant"], ["slide.tif", "bee"]]
    assert all(row[2].endswith("+00:00") for row in rows)
    again = Viewer(model, root, labels=table)
    assert again.get("/api/image", path="slide.tif")["typed_label"] == "bee"
    assert again.get("/api/image", path=HOSTILE)["typed_label"] == '=cmd, <b>"x"'
    assert again.get("/api/image", path="inner.png")["typed_label"] is None


def test_labels_need_a_table_and_an_image(shared: Viewer, model: TNet, root: Path, tmp_path: Path) -> None:
    assert not shared.get("/api/model")["labels"]
    assert shared.post("/api/label", {"path": "slide.tif", "label": "ant"}).status_code == 404
    viewer = Viewer(model, root, labels=tmp_path / "labels.csv")
    for path, label, status in (("../outside.png", "ant", 404), ("slide.tif", " ", 400), ("slide.tif", "a\nb", 400),
                                ("slide.tif", "x" * 201, 400), ("slide.tif", "x" * 5000, 400)):  # fmt: skip
        answer = viewer.post("/api/label", {"path": path, "label": label})
        assert answer.status_code == status and answer.json()["error"]
    answer = viewer.post("/api/label", {"path": "slide.tif", "label": "ant"}, **{"x-tnet-token": "guess"})
    assert answer.status_code == 403
    assert not (tmp_path / "labels.csv").exists()


def test_a_table_of_others_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    for content in ("path,label\nslide.tif,ant\n", "label,path,time\n", "\xff", "x"):
        file.write_text(content, encoding="latin-1")
        with pytest.raises(DataError, match="is not a table of labels"):
            Labels(file)
        assert file.read_text(encoding="latin-1") == content
    with pytest.raises(DataError, match=r"ends with \.csv"):
        Labels(tmp_path / "labels.xlsx")
    with pytest.raises(OutputError, match="is a folder"):
        (tmp_path / "folder.csv").mkdir()
        Labels(tmp_path / "folder.csv")


def test_rows_of_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("path,label,time\na.png,ant,now", encoding="utf-8")  # an editor left out the last line feed
    labels = Labels(file)
    with file.open("a", encoding="utf-8") as other:
        other.write("\nb.png,bee,now")
    labels.add("c.png", "cat")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["path,label,time", "a.png,ant,now", "b.png,bee,now"] and lines[3].startswith("c.png,cat,")
    assert labels.get("a.png") == "ant"


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels(tmp_path / "labels.csv")
    labels.add("a.png", "ant")
    before = labels.file.read_bytes()
    labels.file.chmod(0o444)
    real = Path.open

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, content: bytes) -> int:
            return int(self.file.write(content[:3]))

    monkeypatch.setattr(Path, "open", lambda self, *more, **options: Full(real(self, *more, **options)))
    labels.file.chmod(0o644)
    with pytest.raises(OutputError, match="cannot be written"):
        labels.add("b.png", "bee")
    monkeypatch.undo()
    assert labels.file.read_bytes() == before and labels.get("b.png") is None
    with pytest.raises(ConfigError, match="1 to 200 characters"):
        labels.add("b.png", "")
