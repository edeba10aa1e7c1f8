"""Images with boxes: what becomes of boxes in subsets, splits, crops, shrinking, lazy reading and augmentation."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tnet.data.annotated import AnnotatedImages, BoxFiles, with_context
from tnet.data.augment import Augment, AugmentConfig
from tnet.data.transforms import ReferenceEval
from tnet.errors import DataError, ImageError
from tnet.scenes.reading import ReadOptions
from tnet.scenes.transform import ImageChange

HEIGHT, WIDTH = 60, 100
BOX = (10.0, 20.0, 30.0, 60.0)


class Noting(Augment):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__(AugmentConfig())
        self.told: list[tuple[tuple[int, int], list[list[float]] | None]] = []

    def draw(self, size_hw, generator, boxes=None) -> ImageChange:  # type: ignore[no-untyped-def]
        self.told.append((size_hw, None if boxes is None else boxes.tolist()))
        return super().draw(size_hw, generator, boxes)


def beside(picture: Path) -> Path:
    return picture.with_suffix(".txt")


def read_numbers(path: Path, picture: Path) -> np.ndarray:
    return np.array(path.read_text().split(), dtype=np.float64).reshape(-1, 4)


def pictures(
    folder: Path, boxes: list[list[tuple[float, ...]]], *, in_files: bool = False, **options
) -> AnnotatedImages:
    """Black images, white where the first box is."""
    paths = []
    for index, of_picture in enumerate(boxes):
        levels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        if of_picture:
            y0, x0, y1, x1 = (int(value) for value in of_picture[0])
            levels[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = 255
        paths.append(folder / f"{index}.png")
        Image.fromarray(levels).save(paths[-1])
        (folder / f"{index}.txt").write_text(" ".join(str(value) for box in of_picture for value in box))
    listed = [np.array(of_picture, dtype=np.float64).reshape(-1, 4) for of_picture in boxes]
    files = BoxFiles(paths, beside, read_numbers)
    targets = torch.arange(len(boxes)) % 2
    return AnnotatedImages(paths, targets, ["a", "b"], boxes=files if in_files else listed, **options)


def test_whole_images_unless_asked_otherwise(tmp_path: Path) -> None:
    noting = Noting()
    data = pictures(tmp_path, [[BOX]], augment=noting)
    assert data[0].image.shape == (3, HEIGHT, WIDTH) and data[-1].target == 0
    assert noting.told == [((HEIGHT, WIDTH), None)] * 2
    assert data.class_names == data.classes == ["a", "b"]
    with pytest.raises(IndexError):
        data[1]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("in_files", [False, True])
def test_the_augmentation_gets_the_boxes(tmp_path: Path, lazy: bool, in_files: bool) -> None:
    noting = Noting()
    boxes = [[BOX, (-5.0, 90.0, 20.0, 130.0), (70.0, 0.0, 80.0, 9.0)], []]
    data = pictures(tmp_path, boxes, in_files=in_files, augment=noting)
    data.reading = ReadOptions("lazy" if lazy else "memory")
    data.cover_boxes()
    assert data[0].target == 0 and data[1].target == 1
    # Cut off at the edges; one that is wholly outside is none.
    assert noting.told == [((HEIGHT, WIDTH), [list(BOX), [0, 90, 20, 100]]), ((HEIGHT, WIDTH), [])]
    with pytest.raises(IndexError):
        data[2]


def test_boxes_are_scaled_with_the_image(tmp_path: Path) -> None:
    noting = Noting()
    data = pictures(tmp_path, [[BOX]], augment=noting, reading=ReadOptions(max_side_px=50))
    data.cover_boxes()
    assert data[0].image.shape == (3, 30, 50)
    data.reading = replace(data.reading, prepare=ReferenceEval(120))
    assert data[0].image.shape == (3, 120, 120)
    assert noting.told == [((30, 50), [[5, 10, 15, 30]]), ((120, 120), [[20, 24, 60, 72]])]


def test_boxes_follow_a_downscaled_shorter_side(tmp_path: Path) -> None:
    noting = Noting()
    data = pictures(tmp_path, [[BOX]], augment=noting, reading=ReadOptions(max_short_side_px=30))
    data.cover_boxes()
    assert data[0].image.shape == (3, 30, 50)
    assert noting.told == [((30, 50), [[5, 10, 15, 30]])]
    part = data.subset([0], augment=None)
    for longer, shape in ((40, (3, 24, 40)), (60, (3, 30, 50)), (None, (3, 30, 50))):
        part.reading = ReadOptions(max_side_px=longer, max_short_side_px=30)  # the tighter of both
        assert part[0].image.shape == shape
    crops = data.cropped_to_boxes(0.0)  # 20 x 40
    assert crops[0].image.shape == (3, 20, 40)
    crops.reading = ReadOptions(max_short_side_px=7)
    assert crops[0].image.shape == (3, 7, 14)


def test_crops_cover_boxes(tmp_path: Path) -> None:
    config = AugmentConfig(crop_area=(0.2, 0.3), crop_box_share=0.2)
    data = pictures(tmp_path, [[(0.0, 0.0, 10.0, 10.0)]], augment=Augment(config))
    shares = {}
    for cover in (False, True):
        if cover:
            data.cover_boxes()
        seen = []
        for epoch in range(20):
            data.set_epoch(epoch)
            image = data[0].image
            seen.append(int((image > 0).sum()) >= 0.2 * 3 * 100)
        shares[cover] = np.mean(seen)
    assert shares[True] == 1 and shares[False] < 0.6


@pytest.mark.parametrize("lazy", [False, True])
def test_every_box_is_a_sample(tmp_path: Path, lazy: bool) -> None:
    small = (50.0, 90.0, 52.0, 99.0)
    data = pictures(tmp_path, [[BOX, small, (0.0, 0.0, 60.0, 100.0)], [], [(5.0, 6.0, 8.0, 9.0)]], in_files=True)
    data.reading = ReadOptions("lazy" if lazy else "memory")
    crops = data.cropped_to_boxes(0.0)
    assert [Path(path).name for path in crops.paths] == ["0.png", "0.png", "2.png"]
    assert crops.targets.tolist() == [0, 0, 0] and len(crops.boxes) == 3
    sizes = [sample.image.size_hw if lazy else tuple(sample.image.shape[1:]) for sample in crops]
    assert sizes == [(20, 40), (60, 100), (3, 3)]
    if lazy:
        look = crops[0].image.glimpse((0, 0, 20, 20), 20, channels=3, resize="bilinear", fill=(0.0,))
        assert (look == 1).all()
    else:
        assert (crops[0].image == 255).all()
        wider = data.cropped_to_boxes(1.0)[0].image
        assert wider.shape == (3, 40, 80) and (wider[:, 10:30, 20:60] == 255).all() and wider.sum() == 255 * 3 * 800
    assert not data.crop, "the whole images stay as they are"


def test_crops_are_downscaled_prepared_and_augmented(tmp_path: Path) -> None:
    noting = Noting()
    crops = pictures(tmp_path, [[BOX]], augment=noting, reading=ReadOptions(max_side_px=20)).cropped_to_boxes(0.0)
    assert crops[0].image.shape == (3, 10, 20) and (crops[0].image == 255).all()
    crops.reading = replace(crops.reading, prepare=ReferenceEval(12))
    assert crops[0].image.shape == (3, 12, 12)
    assert noting.told == [((10, 20), None)] * 2 + [((12, 12), None)]


def test_some_images_are_probed_for_boxes(tmp_path: Path) -> None:
    read: list[Path] = []

    def note(path: Path, picture: Path) -> np.ndarray:
        read.append(path)
        return np.zeros((0, 4))

    paths = [tmp_path / f"{index}.png" for index in range(399)]
    data = AnnotatedImages(paths, torch.zeros(399, dtype=torch.int64), ["a"], boxes=BoxFiles(paths, beside, note))
    with pytest.raises(DataError, match="399 "):
        data.cover_boxes()
    assert len(read) == len(set(read)) == 200


def test_nothing_to_crop_or_cover(tmp_path: Path) -> None:
    data = pictures(tmp_path, [[], []])
    with pytest.raises(DataError, match="2 .*no boxes"):
        data.cover_boxes()
    with pytest.raises(DataError, match=r"2 .*no boxes .*data\.boxes"):
        data.cropped_to_boxes()
    data.boxes = None
    for call in (data.cropped_to_boxes, data.cover_boxes):
        with pytest.raises(DataError, match="2 .*no boxes"):
            call()
    outside = pictures(tmp_path, [[(70.0, 0.0, 80.0, 9.0)]]).cropped_to_boxes(0.0)
    with pytest.raises(ImageError, match=r"\[70\.0, 0\.0, 80\.0, 9\.0\] .*0\.png.* 100 x 60"):
        outside[0]


@pytest.mark.parametrize("in_files", [False, True])
def test_subsets_and_splits_keep_boxes(tmp_path: Path, in_files: bool) -> None:
    boxes = [[(index, index, index + 9.0, index + 9.0)] for index in range(8)]
    data = pictures(tmp_path, boxes, in_files=in_files, augment=Noting())
    data.cover_boxes()
    part = data.subset([5, 2], augment=None)
    assert [box.tolist() for box in part.boxes] == [[[5, 5, 14, 14]], [[2, 2, 11, 11]]]
    assert part.targets.tolist() == [1, 0] and part.augment is None and part.cover and len(data) == 8
    sides = data.split_off(0.5)
    assert sum(map(len, sides)) == 8 and min(map(len, sides)) > 0
    for side in sides:
        assert isinstance(side, AnnotatedImages)
        for path, box in zip(side.paths, side.boxes, strict=True):
            assert box[0, 0] == int(path.stem)
    again = pickle.loads(pickle.dumps(data))
    assert again[3].target == 1 and again.boxes[3].tolist() == [[3, 3, 12, 12]]


def test_files_of_boxes_are_read_when_asked_for(tmp_path: Path) -> None:
    files = pictures(tmp_path, [[BOX], [], [BOX, BOX]], in_files=True).boxes
    assert isinstance(files, BoxFiles)
    assert len(files) == 3 and [len(boxes) for boxes in files] == [1, 0, 2] and len(files[-1]) == 2
    assert [len(boxes) for boxes in files.take([2, 0])] == [2, 1]
    assert [len(boxes) for boxes in files.read_all()] == [1, 0, 2]
    (tmp_path / "1.txt").unlink()
    with pytest.raises(FileNotFoundError):
        files.read_all()


# --- context


@pytest.mark.parametrize(
    ("side", "buffer"),
    [(600, 45), (500, 37), (499, 49), (400, 40), (399, 59), (300, 45), (299, 74), (200, 50), (199, 99), (100, 50),
     (99, 99)],
)  # fmt: skip
def test_small_boxes_get_more_context(side: int, buffer: int) -> None:
    """The published rule; the buffer on each side is half the share, rounded down."""
    box = np.array([200.0, 100.0, 200.0 + side, 100.0 + side])
    y0, x0, y1, x1 = with_context(box, (1000, 2000), None)
    assert (y0, y1) == (200 - buffer, 200 + side + buffer)
    wide = {600: 90, 500: 125, 499: 124, 400: 100, 399: 199, 300: 150, 299: 149, 200: 100, 199: 199, 100: 100, 99: 99}
    assert (x0, x1) == (max(0, 100 - wide[side]), 100 + side + wide[side])


@given(
    st.tuples(st.floats(-50, 150), st.floats(-50, 150), st.floats(0, 100), st.floats(0, 100)),
    st.none() | st.floats(0, 10),
)
def test_context_stays_in_the_image_and_covers_the_box(values: tuple[float, ...], context: float | None) -> None:
    y, x, height, width = values
    box = np.array([y, x, y + height, x + width])
    y0, x0, y1, x1 = with_context(box, (80, 120), context)
    assert y0 >= 0 and y1 <= 80 and x0 >= 0 and x1 <= 120
    assert y0 <= max(0, y) and x0 <= max(0, x) and y1 >= min(80, y + height) and x1 >= min(120, x + width)
