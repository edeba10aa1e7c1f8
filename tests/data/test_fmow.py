"""fMoW-rgb in its own layout: categories, metadata, the mapping of test images, boxes and their context."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.fakes import make_fake

from tnet.data.annotated import AnnotatedImages
from tnet.data.augment import Augment, AugmentConfig
from tnet.data.fmow import CATEGORIES, FMOW, read_boxes_json
from tnet.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake("fmow", tmp_path_factory.mktemp("made") / "fmow", classes=3, images_per_class=4, side_px=64)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "fmow-rgb"))


def test_the_categories() -> None:
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 62
    assert CATEGORIES[0] == "airport" and CATEGORIES[-1] == "zoo" and CATEGORIES[42] == "impoverished_settlement"
    assert [name for name in CATEGORIES if name != "impoverished_settlement"] == sorted(
        set(CATEGORIES) - {"impoverished_settlement"}
    )


def test_splits(root: Path) -> None:
    train, val, test = (FMOW.read(root, split) for split in ("train", "val", "test"))
    assert train.classes == val.classes == test.classes == list(CATEGORIES), "all, whichever there are images of"
    assert train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert val.targets.tolist() == [0, 0, 1, 1, 2, 2] == test.targets.tolist(), "false detections are no class"
    assert [path.name for path in train.paths[:3]] == [
        "airport_0_0_rgb.jpg",
        "airport_0_1_rgb.jpg",
        "airport_1_0_rgb.jpg",
    ]
    assert all(path.name.endswith("_rgb.jpg") for path in [*train.paths, *val.paths, *test.paths])
    assert len(FMOW.read(root.parent)) == 12


def test_test_images_are_mapped_to_their_truth(root: Path) -> None:
    test = FMOW.read(root, "test")
    mapping = {entry["output"]: entry["input"] for entry in json.loads((root / "test_gt_mapping.json").read_text())}
    for index, path in enumerate(test.paths):
        true = mapping[f"test/{path.parent.name}"]
        assert true.split("/")[1] == CATEGORIES[int(test.targets[index])]
        (metadata,) = (root / true).glob("*_rgb.json")
        assert test.boxes[index].tolist() == read_boxes_json(metadata, path).tolist() != []
    assert len({path.parent for path in test.paths}) == 6


def test_multispectral_images(root: Path) -> None:
    data = FMOW.list_split(root, "test", {}, variant="msrgb")
    assert len(data) == 6 and all(path.name.endswith("_msrgb.jpg") for path in data.paths)
    assert all(len(boxes) for boxes in data.boxes)


def test_a_sorted_test_split(root: Path) -> None:
    for folder in (root / "test", root / "test_gt"):
        shutil.rmtree(folder)
    (root / "test_gt_mapping.json").unlink()
    shutil.copytree(root / "val", root / "test")
    (root / "test" / "false_detection" / "false_detection_0").mkdir(parents=True)
    assert FMOW.read(root, "test").targets.tolist() == [0, 0, 1, 1, 2, 2]


def test_true_metadata_may_be_in_a_folder(root: Path) -> None:
    (root / "groundtruth").mkdir()
    for name in ("test_gt", "test_gt_mapping.json"):
        (root / name).rename(root / "groundtruth" / name)
    data = FMOW.read(root, "test")
    assert len(data) == 6 and all(len(boxes) for boxes in data.boxes)


# --- boxes


def metadata(folder: Path, content: Any, category: str = "zoo") -> Path:
    path = folder / category / f"{category}_3" / f"{category}_3_0_rgb.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def boxes_of(folder: Path, boxes: Any, **more: Any) -> list[list[float]]:
    path = metadata(folder, {"bounding_boxes": boxes, **more})
    return read_boxes_json(path, path.with_suffix(".jpg")).tolist()


def box(*values: Any, category: str = "zoo", number: int = 0) -> dict[str, Any]:
    return {"ID": number, "category": category, "box": list(values)}


def test_which_boxes_count(tmp_path: Path) -> None:
    assert boxes_of(tmp_path, [box(10, 20, 30, 40), box(1, 2, 3, 4, number=7)]) == [[20, 10, 60, 40], [2, 1, 6, 4]]
    assert boxes_of(tmp_path, box(10, 20, 30, 40)) == [[20, 10, 60, 40]], "one box need not be in a list"
    others = [box(0, 0, 9, 9, number=-1), box(0, 0, 9, 9, category="false_detection"), {"ID": 3, "box": [0, 0, 9, 9]}]
    assert boxes_of(tmp_path, others) == boxes_of(tmp_path, []) == []
    outside = [box(100, 0, 9, 9), box(0, 50, 9, 9), box(-20, 0, 9, 9), box(99, 49, 9, 9)]
    assert boxes_of(tmp_path, outside, img_width=100, img_height=50) == [[49, 99, 58, 108]]
    assert len(boxes_of(tmp_path, outside, img_width="?", img_height=10**400)) == 3


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"bounding_boxes": 3}', '{"bounding_boxes": [3]}', '{"bounding_boxes": null}']
)
def test_metadata_without_boxes(tmp_path: Path, content: str) -> None:
    path = metadata(tmp_path, content)
    with pytest.raises(DataError, match=r"zoo_3_0_rgb\.json .*bounding_boxes"):
        read_boxes_json(path, path)


def test_damaged_metadata(tmp_path: Path) -> None:
    for values in ([1, 2, 3], [1, 2, -3, 4], ["a", 2, 3, 4], [1, 2, 3, float("nan")], [1, 2, 3, 1e300]):
        with pytest.raises(DataError, match=r"zoo_3_0_rgb\.json"):
            boxes_of(tmp_path, [box(*values)])
    with pytest.raises(DataError, match="zoo_3_0_rgb"):
        boxes_of(tmp_path, [{"ID": 0, "category": "zoo"}])
    path = metadata(tmp_path, "{")
    with pytest.raises(DataError, match="JSON"):
        read_boxes_json(path, path)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        read_boxes_json(path, path)


def test_crops_with_the_published_context(root: Path) -> None:
    folder = root / "train" / "zoo" / "zoo_3"
    path = metadata(root / "train", {"bounding_boxes": [box(100, 40, 20, 90), box(0, 0, 2, 50), box(0, 0, 50, 3)]})
    Image.new("RGB", (200, 150)).save(folder / "zoo_3_0_rgb.jpg")
    data = FMOW.read(root).cropped_to_boxes()
    index = [number for number, picture in enumerate(data.paths) if picture.parent == folder]
    assert len(index) == 2, "a box 2 px wide is too small"
    # 20 of 200 px: once its width, 10 on each side; 90 of 150 px: 0.15 of its height, 6 on each side.
    assert tuple(data[index[0]].image.shape[1:]) == (90 + 12, 20 + 20)
    # 3 of 150 px: twice, 3 below (none above); 50 of 200 px: 0.5, 12 to the right (none to the left).
    assert tuple(data[index[1]].image.shape[1:]) == (3 + 3, 50 + 12)
    assert path.exists() and data.targets[index].tolist() == [61, 61]


def test_metadata_is_read_only_for_boxes(root: Path) -> None:
    data = FMOW.read(root, augment=Augment(AugmentConfig(horizontal_flip=True)))
    data.paths[3].with_suffix(".json").unlink()
    assert isinstance(FMOW.read(root), AnnotatedImages) and data[3].image.shape[0] == 3
    with pytest.raises(DataError, match=r"airport_1_1_rgb\.json is missing"):
        data.cropped_to_boxes()
    data.cover_boxes()
    with pytest.raises(DataError, match="is missing"):
        data[3]


# --- what is wrong


def test_folders_that_are_wrong(root: Path, tmp_path: Path) -> None:
    (root / "val" / "moon_base").mkdir()
    with pytest.raises(DataError, match="'moon_base'"):
        FMOW.read(root, "val")
    shutil.rmtree(root / "val")
    with pytest.raises(DataError, match="val split"):
        FMOW.read(root, "val")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty/train .*_rgb\.jpg"):
        FMOW.read(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a list"),
        ("[", "not JSON"),
        ("[3]", "entry 3 "),
        ('[{"input": "test_gt/zoo/zoo_0"}]', "without input and output"),
        ('[{"input": "zoo_0", "output": "test/1"}]', "without input and output"),
        (
            '[{"input": "test_gt/zoo/zoo_0", "output": "../test/1"}]',
            r"'\.\./test/1'",
        ),
        ('[{"input": "/etc/zoo/zoo_0", "output": "test/1"}]', "'/etc/zoo/zoo_0'"),
        ('[{"input": "test_gt/moon/moon_0", "output": "test/1"}]', "'moon'"),
        ('[{"input": "test_gt/zoo/zoo_0", "output": "test/none"}]', "none of the 1 folders"),
        ("[]", "none of the 0 folders"),
    ],
)
def test_mappings_that_are_wrong(root: Path, content: str, message: str) -> None:
    (root / "test_gt_mapping.json").write_text(content)
    with pytest.raises(DataError, match=message):
        FMOW.read(root, "test")


def test_a_part_of_the_test_split(root: Path) -> None:
    shutil.rmtree(FMOW.read(root, "test").paths[0].parent)
    assert len(FMOW.read(root, "test")) == 5
    (root / "test_gt_mapping.json").unlink()
    with pytest.raises(DataError, match=r"test_gt_mapping\.json is missing"):
        FMOW.read(root, "test")


def test_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FMOW, "images", {"train": 12, "val": 6, "test": 6})
    findings = FMOW.check(root).findings
    assert findings == tuple(f"{name}: 3 classes found, 62 published" for name in ("train", "val", "test"))
    FMOW.read(root, "val").paths[0].unlink()
    FMOW.read(root).paths[2].with_suffix(".json").unlink()
    findings = FMOW.check(root).findings
    assert "val: 5 images found, 6 published" in findings
    assert "train: 1 metadata files are missing or empty: 'train/airport/airport_1/airport_1_0_rgb.json'" in findings
    assert len(findings) == 5
    FMOW.read(root, "val").paths[0].with_suffix(".json").write_text("")
    gone = FMOW.read(root, "test").paths[0].parent
    shutil.rmtree(gone)
    findings = FMOW.check(root).findings
    assert any(finding.startswith("val: 1 metadata files are missing or empty") for finding in findings)
    assert f"test: 1 folders of test images are missing or empty: 'test/{gone.name}'" in findings


def test_counts_are_the_official_ones(made: Path) -> None:
    findings = FMOW.check(made).findings
    for split, count in (("train", "363,572"), ("val", "53,041"), ("test", "53,473")):
        assert any(finding.startswith(f"{split}: ") and count in finding for finding in findings)
