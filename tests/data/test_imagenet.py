"""ImageNet in its own layouts: classes, labels of validation images, boxes, and hostile annotations."""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from tests.fakes import make_fake

from tnet.data.annotated import AnnotatedImages
from tnet.data.imagenet import IMAGENET, read_boxes_xml
from tnet.data.imagenet_devkit import read_synsets
from tnet.errors import DataError

WNIDS = ["n01440764", "n01441764", "n01442764"]
LAYOUTS = ("flat", "folders", "kaggle")
DEVKIT = "ILSVRC2012_devkit_t12/data"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for layout in LAYOUTS:
        make_fake("imagenet", folder / layout, classes=3, images_per_class=4, side_px=48, validation=layout)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """The layout with a devkit."""
    return Path(shutil.copytree(made / "flat", tmp_path / "imagenet"))


def colour_in_box(data: AnnotatedImages, index: int) -> np.ndarray:
    """Mean colour of the pattern, by which the class of a synthetic image is given."""
    image = data[index].image.float()
    y0, x0, y1, x1 = (0, 0, *image.shape[1:]) if data.crop else data.boxes[index][0].astype(int)
    return image[:, y0:y1, x0:x1].mean((1, 2)).numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(made: Path, layout: str) -> None:
    train, val = (IMAGENET.read(made / layout, split) for split in ("train", "val"))
    assert train.classes == val.classes == WNIDS
    assert train.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and sorted(val.targets.tolist()) == [0, 0, 1, 1, 2, 2]
    assert all(
        path.parent.name == WNIDS[label] for path, label in zip(train.paths, train.targets.tolist(), strict=True)
    )
    names = WNIDS if layout == "folders" else [f"made thing {index}, thing" for index in range(3)]
    assert train.class_names == val.class_names == names
    assert [len(boxes) for boxes in train.boxes] == [0, 1, 0, 1] * 3 and all(len(boxes) == 1 for boxes in val.boxes)
    # That labels and boxes are right is seen in the images: one class, one colour.
    colours = {}
    for data in (train.cropped_to_boxes(0.0), val):
        for index, label in enumerate(data.targets.tolist()):
            colours.setdefault(label, []).append(colour_in_box(data, index))
    means = {label: np.mean(of_class, axis=0) for label, of_class in colours.items()}
    for label, of_class in colours.items():
        for colour in of_class:
            assert min(means, key=lambda other: np.abs(means[other] - colour).sum()) == label


@pytest.mark.parametrize("inside", ["ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_folder_may_be_named_at_every_level(made: Path, inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        whole, found = (IMAGENET.read(root, split) for root in (made / "kaggle", made / "kaggle" / inside))
        assert found.paths == whole.paths and found.targets.tolist() == whole.targets.tolist()
        assert found.class_names == whole.class_names
        assert [boxes.tolist() for boxes in found.boxes] == [boxes.tolist() for boxes in whole.boxes]
    monkeypatch.chdir(made / "kaggle" / inside)
    assert len(IMAGENET.read(".", "val")) == 6


def test_a_part_of_imagenet(root: Path) -> None:
    shutil.rmtree(root / "train" / WNIDS[1])
    assert IMAGENET.read(root).classes == [WNIDS[0], WNIDS[2]]
    val = IMAGENET.read(root, "val")
    assert val.classes == [WNIDS[0], WNIDS[2]] and sorted(val.targets.tolist()) == [0, 0, 1, 1]
    shutil.rmtree(root / "train")
    assert IMAGENET.read(root, "val").classes == WNIDS, "of the devkit, where there are no training images"
    with pytest.raises(DataError, match="train of ImageNet"):
        IMAGENET.read(root)


def test_names_in_other_letters(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (root / "val").iterdir():
        path.rename(path.with_name(path.name.lower().replace("jpeg", "jpg")))
    assert sorted(IMAGENET.read(root, "val").targets.tolist()) == [0, 0, 1, 1, 2, 2]
    monkeypatch.setattr(IMAGENET, "images", {"train": 12, "val": 6})
    assert not any("numbered" in finding for finding in IMAGENET.check(root).findings)


def test_what_is_not_a_image_is_left_out(root: Path) -> None:
    (root / "train" / WNIDS[0] / "notes.txt").touch()
    (root / "train" / WNIDS[0] / "._n01440764_7.JPEG").touch()
    (root / "train" / "other").mkdir()
    (root / "val" / "thumbs.JPEG").touch()
    assert len(IMAGENET.read(root)) == 12 and len(IMAGENET.read(root, "val")) == 6
    assert IMAGENET.read(root).classes == WNIDS


def test_validation_images_without_labels(root: Path) -> None:
    truth = root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000006\.JPEG"):
        IMAGENET.read(root, "val")
    truth.write_text("\n".join([*lines[:2], "4000", *lines[3:]]))
    with pytest.raises(DataError, match=r"ground_truth\.txt .*class 4000 in line 3.*meta\.mat"):
        IMAGENET.read(root, "val")
    truth.write_text("1\nn01440764\n")
    with pytest.raises(DataError, match="'n01440764' in line 2"):
        IMAGENET.read(root, "val")
    truth.unlink()
    with pytest.raises(DataError, match="unpack the devkit"):
        IMAGENET.read(root, "val")


def test_kaggle_solution_that_is_damaged(made: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made / "kaggle", tmp_path / "kaggle"))
    with (root / "LOC_val_solution.csv").open("a") as stream:
        stream.write("../../etc,n01440764 1 2 3 4\n")
    with pytest.raises(DataError, match=r"LOC_val_solution\.csv has '\.\./\.\./etc.* in line 8"):
        IMAGENET.read(root, "val")


@pytest.mark.parametrize("place", ["bounding_boxes", "Annotations", "Annotation/train", "Annotations/CLS-LOC/train"])
def test_where_boxes_may_lie(root: Path, place: str) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    for wnid in WNIDS:
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / "Annotation" / wnid).rename(root / place / wnid)
    if not place.startswith("Annotation/"):
        shutil.rmtree(root / "Annotation")
    assert [len(boxes) for boxes in IMAGENET.read(root).boxes] == [0, 1, 0, 1] * 3
    shutil.rmtree(root / place)
    (root / place).mkdir()
    with pytest.raises(DataError, match="12 .* no boxes"):
        IMAGENET.read(root).cover_boxes()


# --- boxes

XML = "<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 50)).save(tmp_path / "n01440764_1.JPEG")
    return tmp_path / "n01440764_1.xml"


def boxes_of(annotation: Path, *objects: str, width: object = 100, height: object = 50) -> list[list[float]]:
    annotation.write_text(XML.format(width=width, height=height, objects="".join(objects)))
    return read_boxes_xml(annotation, annotation.with_suffix(".JPEG")).tolist()


def test_boxes_are_scaled_to_the_image(annotation: Path) -> None:
    box = OBJECT.format("n01440764", 20, 10, 60, 30)
    assert boxes_of(annotation, box) == [[10, 20, 30, 60]]
    assert boxes_of(annotation, box, width=200, height=100) == [[5, 10, 15, 30]]
    assert boxes_of(annotation, box, width=40) == [[10, 50, 30, 100]], "cut off at the edge"
    assert boxes_of(annotation, OBJECT.format("n01440764", 60, 30, 20, 10)) == [[10, 20, 30, 60]], "ends exchanged"
    assert boxes_of(annotation, box, width=0) == boxes_of(annotation) == []
    assert read_boxes_xml(annotation.with_name("none.xml"), annotation.with_suffix(".JPEG")).shape == (0, 4)


def test_objects_of_other_synsets_are_left_out(annotation: Path) -> None:
    other, dog = OBJECT.format("n02092002", 1, 2, 3, 4), OBJECT.format("Scottish_deerhound", 5, 6, 7, 8)
    assert boxes_of(annotation, other, dog) == [[6, 5, 8, 7]]


@pytest.mark.parametrize("value", ["nan", "1e9", "", "--1", "99999999"])
def test_invalid_numbers(annotation: Path, value: str) -> None:
    with pytest.raises(DataError, match=r"n01440764_1\.xml .*bndbox/xmin is '"):
        boxes_of(annotation, OBJECT.format("n01440764", value, 1, 2, 3))


def test_hostile_annotations(annotation: Path) -> None:
    picture = annotation.with_suffix(".JPEG")
    bomb = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    for text in (bomb, f'<?xml version="1.0"?>\n{bomb}'):
        annotation.write_text(text)
        with pytest.raises(DataError, match="DOCTYPE"):
            read_boxes_xml(annotation, picture)
    annotation.write_bytes(bomb.encode("utf-16"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_boxes_xml(annotation, picture)
    annotation.write_text(" " * (2**20 + 1))
    with pytest.raises(DataError, match="1,048,576 bytes"):
        read_boxes_xml(annotation, picture)
    for text in ("<annotation>", "", "<annotation>&c;</annotation>"):
        annotation.write_text(text)
        with pytest.raises(DataError, match="cannot be read"):
            read_boxes_xml(annotation, picture)


# --- the devkit's list


def test_synsets(root: Path) -> None:
    synsets = read_synsets(root / DEVKIT / "meta.mat")
    assert sorted(synsets) == [1, 2, 3] and sorted(wnid for wnid, _ in synsets.values()) == WNIDS
    assert dict(synsets.values())[WNIDS[2]] == "made thing 2, thing"


def compressed(body: bytes) -> bytes:
    packed = zlib.compress(body, 9)
    return struct.pack("<II", 15, len(packed)) + packed


def matrix(dims: tuple[int, int], *parts: bytes, kind: int = 1, says_bytes: int | None = None) -> bytes:
    """An array of cells, or of another kind, that may lie about its length."""
    flags = struct.pack("<IIII", 6, 8, kind, 0)
    content = flags + struct.pack("<IIII", 5, 8, *dims) + struct.pack("<HHI", 1, 0, 0) + b"".join(parts)
    return struct.pack("<II", 14, len(content) if says_bytes is None else says_bytes) + content


def field_names(count: int) -> bytes:
    """Of a structure, 8 bytes each."""
    return (
        struct.pack("<HHI", 5, 4, 8) + struct.pack("<II", 1, 8 * count) + b"".join(b"f%07d" % n for n in range(count))
    )


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        HEADER[:-2] + b"XX",
        HEADER,
        HEADER + compressed(b""),
        HEADER + compressed(bytes(2**24 + 9)),
        HEADER + matrix((50_000, 50_000)),
        HEADER + matrix((1, 1), matrix((2**31, 2))),
        HEADER + compressed(matrix((2, 1), *[matrix((1000, 999), bytes(8), kind=4)] * 2)),
        HEADER + matrix((10_000, 1), field_names(1000), kind=2),
        HEADER + matrix((1, 1), matrix((1, 10**9), kind=4, says_bytes=16)),
        HEADER + matrix((1, 1), matrix((1, 1), says_bytes=40), matrix((1, 10**9), kind=4)),
        HEADER + matrix((1, 1), field_names(1), kind=2),
        HEADER + matrix((1, 1), field_names(1), matrix((1, 1)), kind=2),
        HEADER + matrix((1, 1), struct.pack("<HHI", 5, 4, 0) + struct.pack("<II", 1, 8) + bytes(8), kind=2),
        HEADER + matrix((1, 1), compressed(bytes(8))),
        HEADER + matrix((1, 1), kind=3),
        HEADER + matrix((1, 1), kind=6 + 0x800),
        HEADER + struct.pack("<IIHHI", 14, 8, 6, 8, 1),
        HEADER + matrix((1, 1), struct.pack("<II", 14, 1000)),
        HEADER + b"\x0e",
    ],
)
def test_hostile_devkit_lists(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "meta.mat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"meta\.mat is not the devkit's"):
        read_synsets(path)


def test_arrays_in_arrays(tmp_path: Path) -> None:
    nested = matrix((1, 1))
    for _ in range(20):
        nested = matrix((1, 1), nested)
    (tmp_path / "meta.mat").write_bytes(HEADER + nested)
    with pytest.raises(DataError, match="is not the devkit's"):
        read_synsets(tmp_path / "meta.mat")
    savemat(tmp_path / "meta.mat", {"synsets": np.arange(3)})
    with pytest.raises(DataError, match="is not the devkit's"):
        read_synsets(tmp_path / "meta.mat")
    with pytest.raises(DataError, match=r"none\.mat cannot be read"):
        read_synsets(tmp_path / "none.mat")


def test_damaged_lists_raise_nothing_else(root: Path) -> None:
    path = root / DEVKIT / "meta.mat"
    content, dice = path.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(dice.randrange(1, 4)):
            damaged[dice.randrange(120, len(damaged))] = dice.randrange(256)
        path.write_bytes(bytes(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])]))
        with contextlib.suppress(DataError):
            read_synsets(path)


# --- checking


def test_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IMAGENET, "images", {"train": 12, "val": 6})
    monkeypatch.setattr(IMAGENET, "num_classes", 3)
    assert IMAGENET.check(root).ok
    (root / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    IMAGENET.read(root).paths[0].write_bytes(b"")
    findings = IMAGENET.check(root).findings
    assert findings == (
        "train: 1 images are missing or empty: 'train/n01440764/n01440764_17.JPEG'",
        "val: 5 images found, 6 published",
        "val: 1 numbered images are missing or empty: 'ILSVRC2012_val_00000002.JPEG'",
    )
    shutil.rmtree(root / "train" / WNIDS[0])
    numbered = [finding for finding in IMAGENET.check(root).findings if "numbered" in finding]
    assert len(numbered) == 1 and "1 numbered images" in numbered[0], "images of other classes are not missing"
    (root / "Annotation").rename(root / "elsewhere")
    assert any(
        finding.startswith("train: boxes are missing") and f"bbox_train_v2.tar.gz into {root / 'Annotation'}" in finding
        for finding in IMAGENET.check(root).findings
    )
    shutil.rmtree(root / "val")
    assert any(finding.startswith("val: the folder") for finding in IMAGENET.check(root).findings)
    shutil.rmtree(root / "train")
    assert f"train: the folder {root / 'train'}" in IMAGENET.check(root).findings[0]


def test_counts_are_the_official_ones(made: Path) -> None:
    findings = IMAGENET.check(made / "flat").findings
    assert "train: 12 images found, 1,281,167 published" in findings
    assert "val: 6 images found, 50,000 published" in findings
    assert "train: 3 classes found, 1,000 published" in findings
    assert any("49,994 numbered images" in finding and "and 49989 more" in finding for finding in findings)
