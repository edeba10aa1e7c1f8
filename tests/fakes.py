"""Miniatures of the published data sets: their layout on disk to the file, with made pictures.

Tests use them, and recipes are tried on them. Each picture shows one or more boxes of stripes on a dim, blotched
ground; the stripes' colour, direction and width tell the class, so that a network can learn it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tnet.data.fmow import CATEGORIES, NO_CLASS
from tnet.data.published import PUBLISHED
from tnet.errors import ConfigError, OutputError
from tnet.files import atomic_folder

Box = tuple[int, int, int, int]  # y0, x0, y1, x1

_NODES = 1011  # of NABirds' tree
_INNER = 1860  # synsets of ImageNet's devkit: 1000 classes, and those above them


def make_fake(
    name: str,
    root: str | Path,
    *,
    seed: int = 0,
    images_per_class: int = 2,
    classes: int | None = None,
    side_px: int = 240,
    validation: Literal["flat", "folders", "kaggle"] = "flat",
) -> Path:
    """Write a miniature of a published data set.

    Args:
        name: ``imagenet``, ``fmow``, ``cub`` or ``nabirds``.
        root: folder to make.
        seed: another one gives other pictures.
        images_per_class: in the training split; half as many, at least one, in each other split.
        classes: how many there are pictures of, at least 2; the official number if None.
        side_px: shorter side of the pictures; the longer has up to a quarter more.
        validation: of ImageNet: in one folder with the devkit; in folders by synset; or all as Kaggle hands it out.

    Returns:
        ``root``.

    Raises:
        ConfigError: no such data set, or a number out of range.
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    dataset = PUBLISHED[name]
    count = dataset.num_classes if classes is None else classes
    limits = {"classes": (count, 2, dataset.num_classes), "images_per_class": (images_per_class, 1, 10_000)}
    for key, (value, low, high) in (limits | {"side_px": (side_px, 16, 4096)}).items():
        if not low <= value <= high:
            raise ConfigError(f"A fake data set was asked for with {key} {value}; give {low} to {high}.")
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise OutputError(f"{root} is there already, and is not replaced by a fake data set; choose another folder")
    writers: dict[str, Callable[[_Maker], None]] = {
        "imagenet": {"flat": _imagenet, "folders": _imagenet_folders, "kaggle": _imagenet_kaggle}[validation],
        "fmow": _fmow,
        "cub": _cub,
        "nabirds": _nabirds,
    }
    with atomic_folder(root) as folder:
        writers[name](_Maker(folder, np.random.default_rng(seed), count, images_per_class, side_px))
    return root


@dataclass(frozen=True)
class _Maker:
    """Where, from what, and how many."""

    root: Path
    random: np.random.Generator
    classes: int
    per_class: int
    side_px: int

    @property
    def per_class_held_out(self) -> int:
        return max(1, self.per_class // 2)

    def picture(self, path: Path, label: int, boxes: int = 1) -> tuple[tuple[int, int], list[Box]]:
        """Write a picture; its height and width, and where its boxes are."""
        longer = self.side_px + int(self.random.integers(self.side_px // 4 + 1))
        height, width = (self.side_px, longer) if self.random.random() < 0.7 else (longer, self.side_px)
        blotches = Image.fromarray(self.random.integers(90, 150, (5, 5, 3), dtype=np.uint8))
        levels = np.array(blotches.resize((width, height), Image.Resampling.BILINEAR))
        found: list[Box] = []
        for _ in range(boxes):
            box_height, box_width = (int(side * self.random.uniform(0.3, 0.6)) for side in (height, width))
            top, left = (
                int(self.random.integers(side - box + 1)) for side, box in ((height, box_height), (width, box_width))
            )
            found.append((top, left, top + box_height, left + box_width))
            levels[top : top + box_height, left : left + box_width] = _stripes(label, (box_height, box_width))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path, format="JPEG", quality=85)
        return (height, width), found

    def text(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _stripes(label: int, size_hw: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pattern of a class: neighbours in number are far apart in colour and direction."""
    phase = 2 * math.pi * np.array([0.0, 1 / 3, 2 / 3]) + 2 * math.pi * (label * 0.618034)
    colour = 128 + 120 * np.cos(phase)
    angle, width_px = math.pi * (label * 0.381966), 6.0 + 3 * (label % 4)
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    wave = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * math.pi / width_px) > 0
    return np.where(wave[..., None], colour, colour * 0.35).astype(np.uint8)


# --- ImageNet


def _wnids(count: int) -> list[str]:
    return [f"n{1_440_764 + 1_000 * index:08}" for index in range(count)]


def _imagenet(make: _Maker) -> None:
    """One folder of validation pictures, and the devkit, whose numbers are in another order than the synsets."""
    from scipy.io import savemat  # type: ignore[import-untyped]

    truth = _imagenet_pictures(make, make.root, make.root / "Annotation", by_synset=False)
    wnids = _wnids(make.classes)
    numbers = make.random.permutation(make.classes) + 1
    inner = min(_INNER - 1000, make.classes)
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height",
              "num_train_images"]  # fmt: skip
    synsets = np.zeros((make.classes + inner, 1), dtype=[(name, object) for name in fields])
    for index, wnid in enumerate(wnids):
        synsets[numbers[index] - 1, 0] = (
            float(numbers[index]), wnid, f"made thing {index}, thing", "made", 0.0, np.zeros((1, 0)), 0.0,
            float(make.per_class),
        )  # fmt: skip
    for index in range(inner):
        number = make.classes + index + 1
        children = np.array([[float(numbers[index]), float(numbers[-1 - index])]])
        synsets[number - 1, 0] = (
            float(number), f"n{9_000_000 + index:08}", f"made kind {index}", "made", 2.0, children, 1.0, 0.0
        )  # fmt: skip
    devkit = make.root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    savemat(devkit / "meta.mat", {"synsets": synsets}, do_compression=True)
    lines = [f"{numbers[label]}\n" for label in truth]
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines), encoding="ascii")


def _imagenet_folders(make: _Maker) -> None:
    _imagenet_pictures(make, make.root, make.root / "Annotation", by_synset=True)


def _imagenet_kaggle(make: _Maker) -> None:
    inside = make.root / "ILSVRC"
    annotations = inside / "Annotations" / "CLS-LOC"
    truth = _imagenet_pictures(make, inside / "Data" / "CLS-LOC", annotations, by_synset=False, train="train")
    wnids = _wnids(make.classes)
    lines = [f"ILSVRC2012_val_{number:08},{wnids[label]} 1 2 30 40 \n" for number, label in enumerate(truth, start=1)]
    make.random.shuffle(lines)
    make.text("LOC_val_solution.csv", "ImageId,PredictionString\n" + "".join(lines))
    make.text("LOC_synset_mapping.txt", "".join(f"{w} made thing {i}, thing\n" for i, w in enumerate(wnids)))


def _imagenet_pictures(make: _Maker, images: Path, annotations: Path, *, by_synset: bool, train: str = "") -> list[int]:
    """Write pictures, and boxes of every other one; the labels of the validation pictures."""
    for label, wnid in enumerate(_wnids(make.classes)):
        for index in range(make.per_class):
            name = f"{wnid}_{10 * index + 7}"
            size_hw, boxes = make.picture(images / "train" / wnid / f"{name}.JPEG", label)
            if index % 2 == 0:
                _write_xml(annotations / train / wnid / f"{name}.xml", wnid, size_hw, boxes)
    truth = [label for label in range(make.classes) for _ in range(make.per_class_held_out)]
    make.random.shuffle(truth)
    for number, label in enumerate(truth, start=1):
        wnid, name = _wnids(make.classes)[label], f"ILSVRC2012_val_{number:08}"
        folder = images / "val" / wnid if by_synset else images / "val"
        size_hw, boxes = make.picture(folder / f"{name}.JPEG", label)
        _write_xml(annotations / "val" / f"{name}.xml", wnid, size_hw, boxes)
    return truth


def _write_xml(path: Path, wnid: str, size_hw: tuple[int, int], boxes: list[Box]) -> None:
    height, width = size_hw
    objects = "".join(
        f"\t<object>\n\t\t<name>{wnid}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<bndbox>\n\t\t\t<xmin>{x0}</xmin>\n"
        f"\t\t\t<ymin>{y0}</ymin>\n\t\t\t<xmax>{x1}</xmax>\n\t\t\t<ymax>{y1}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        for y0, x0, y1, x1 in boxes
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation>\n\t<folder>{wnid}</folder>\n\t<filename>{path.stem}</filename>\n\t<size>\n"
        f"\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>\n{objects}"
        "</annotation>\n",
        encoding="utf-8",
    )


# --- fMoW


def _fmow(make: _Maker) -> None:
    """Places of two times each, as far as pictures last; test folders are numbered in any order."""
    mapping: list[dict[str, str]] = []
    hidden = make.random.permutation(make.classes * make.per_class_held_out + 1)
    for label, category in enumerate(CATEGORIES[: make.classes]):
        for split, count in (("train", make.per_class), ("val", make.per_class_held_out)):
            for index in range(count):
                place = f"{category}_{index // 2}"
                folder = make.root / split / category / place
                _fmow_time(make, folder, folder, place, place, index % 2, label, category)
        for index in range(make.per_class_held_out):
            mapping.append(_fmow_test(make, f"{category}_{index}", int(hidden[len(mapping)]), label, category))
    mapping.append(_fmow_test(make, f"{NO_CLASS}_0", int(hidden[-1]), 0, NO_CLASS))
    make.text("test_gt_mapping.json", json.dumps(mapping))


def _fmow_test(make: _Maker, place: str, number: int, label: int, category: str) -> dict[str, str]:
    metadata, pictures = f"test_gt/{category}/{place}", f"test/{number:07}"
    _fmow_time(make, make.root / pictures, make.root / metadata, f"{number:07}", place, 0, label, category)
    return {"input": metadata, "output": pictures}


def _fmow_time(
    make: _Maker, pictures: Path, metadata: Path, stem: str, true_stem: str, time: int, label: int, category: str
) -> None:
    """Both kinds of picture of a place at one time, and their metadata."""
    for kind in ("rgb", "msrgb"):
        size_hw, boxes = make.picture(pictures / f"{stem}_{time}_{kind}.jpg", label, int(make.random.integers(1, 4)))
        height, width = size_hw
        whole = {"ID": -1, "box": [0, 0, width, height], "category": category}
        listed = [
            {"ID": index, "box": [x0, y0, x1 - x0, y1 - y0], "category": category}
            for index, (y0, x0, y1, x1) in enumerate(boxes)
        ]
        about = {"gsd": 0.5, "cloud_cover": 0, "timestamp": "2016-01-01T00:00:00Z", "img_width": width,
                 "img_height": height, "img_filename": f"{true_stem}_{time}_{kind}.jpg"}  # fmt: skip
        metadata.mkdir(parents=True, exist_ok=True)
        path = metadata / f"{true_stem}_{time}_{kind}.json"
        path.write_text(json.dumps({**about, "bounding_boxes": [whole, *listed]}), encoding="utf-8")
        if pictures != metadata:  # what was handed out before the truth was
            unknown = [{"ID": box["ID"], "box": box["box"]} for box in listed]
            path = pictures / f"{stem}_{time}_{kind}.json"
            path.write_text(json.dumps({**about, "bounding_boxes": unknown}), encoding="utf-8")


# --- birds


def _cub(make: _Maker) -> None:
    names = [f"{index + 1:03}.Made_bird_{index + 1}" for index in range(make.classes)]
    rows: list[tuple[str, str, int, int, int]] = []
    for label, name in enumerate(names):
        for index in range(make.per_class + make.per_class_held_out):
            file = f"{name}/{name[4:]}_{index + 1:04}_{1000 * label + index}.jpg"
            rows.append((str(len(rows) + 1), file, label + 1, int(index < make.per_class), label))
    _write_lists(make, rows, {index + 1: name for index, name in enumerate(names)}, "{:.1f}")


def _nabirds(make: _Maker) -> None:
    """Classes are the last nodes of the tree; node 0 is its root, and each inner node has some of them."""
    inner = _NODES - 555 if make.classes == 555 else 1 + math.ceil(make.classes / 4)
    names = {index: f"Made family {index}" for index in range(inner)} | {0: "Birds"}
    parents = dict.fromkeys(range(1, inner), 0)
    rows: list[tuple[str, str, int, int, int]] = []
    for label in range(make.classes):
        node = inner + label
        names[node], parents[node] = f"Made bird {label} (Adult)", 1 + label % (inner - 1)
        for index in range(make.per_class + make.per_class_held_out):
            key = make.random.bytes(16).hex()
            dashed = "-".join((key[:8], key[8:12], key[12:16], key[16:20], key[20:]))
            rows.append((dashed, f"{node:04}/{key}.jpg", node, int(index < make.per_class), label))
    rows.sort()
    sizes = _write_lists(make, rows, names, "{:.0f}")
    make.text("hierarchy.txt", "".join(f"{child} {parent}\n" for child, parent in parents.items()))
    make.text(
        "sizes.txt", "".join(f"{row[0]} {width} {height}\n" for row, (height, width) in zip(rows, sizes, strict=True))
    )


def _write_lists(
    make: _Maker, rows: list[tuple[str, str, int, int, int]], names: dict[int, str], number: str
) -> list[tuple[int, int]]:
    """Write pictures and the lists of them: key, file, class, whether for training, label; the pictures' sizes."""
    lines, sizes = [], []
    for key, file, _, _, label in rows:
        size_hw, ((y0, x0, y1, x1),) = make.picture(make.root / "images" / file, label)
        sizes.append(size_hw)
        lines.append(" ".join([key, *(number.format(value) for value in (x0, y0, x1 - x0, y1 - y0))]))
    make.text("images.txt", "".join(f"{key} {file}\n" for key, file, *_ in rows))
    make.text("image_class_labels.txt", "".join(f"{row[0]} {row[2]}\n" for row in rows))
    make.text("train_test_split.txt", "".join(f"{row[0]} {row[3]}\n" for row in rows))
    make.text("bounding_boxes.txt", "".join(f"{line}\n" for line in lines))
    make.text("classes.txt", "".join(f"{class_id} {name}\n" for class_id, name in sorted(names.items())))
    return sizes
