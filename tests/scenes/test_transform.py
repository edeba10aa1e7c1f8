"""Changed scenes: what is looked at of them is what is looked at of the picture with all its pixels changed."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import pictures
from tests.scenes.fakes import Shelf, noise
from torch import Tensor

from tnet.errors import ConfigError, GeometryError
from tnet.scenes import FileScene, Resize, Scene
from tnet.scenes.memory import MemoryScene
from tnet.scenes.transform import ImageChange, TransformedScene, change_image

FILL = (51 / 255, 128 / 255, 230 / 255)  # 8 bits, to which a tensor's padding is rounded
CROP = (31, 53, 231, 203)
# Inside the crop of 200 x 150 and of its turned self, past each edge, around it, beside it, and one that is enlarged.
BOXES = [(0, 0, 150, 150), (10, 20, 80, 140), (-7, -3, 90, 60), (90, 70, 230, 210), (-50, -60, 270, 240),
         (300, 0, 310, 10), (30, 30, 46, 46)]  # fmt: skip


def look(scene: Scene, box: tuple[int, int, int, int], size_px: int = 24, resize: Resize = "antialias") -> Tensor:
    return scene.glimpse(box, size_px, channels=3, resize=resize, fill=FILL)


def smooth(amplitude: float = 80) -> Tensor:
    y, x = torch.meshgrid(torch.arange(301.0), torch.arange(307.0), indexing="ij")
    planes = [torch.sin(x / 17 + y / 29), torch.cos(x / 23), torch.sin(y / 13 - x / 41)]
    return (127 + amplitude * torch.stack(planes)).round().to(torch.uint8)


def differences(image: Tensor, change: ImageChange, box: tuple[int, int, int, int], **how: Any) -> Tensor:
    """Of a look at the changed scene and one at the changed picture, in levels of 255."""
    scene = TransformedScene(MemoryScene(image, "made"), change)
    changed = MemoryScene(change_image(image, change))
    assert isinstance(scene, Scene) and scene.name == "made" and scene.size_hw == changed.size_hw
    return (look(scene, box, **how) - look(changed, box, **how)).abs() * 255


# --- crop, flips, quarter turns


@pytest.mark.parametrize("resize", ["antialias", "bilinear"])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize(("horizontal", "vertical"), [*itertools.product((False, True), repeat=2)])
def test_crop_flips_and_half_turns_are_exact(horizontal: bool, vertical: bool, turns: int, resize: Resize) -> None:
    (image,) = pictures((301, 307), channels=3)
    change = ImageChange(CROP, horizontal, vertical, turns)
    for box in BOXES:
        worst = float(differences(image, change, box, resize=resize).max())
        assert worst == 0 or (turns % 2 and worst <= 1.001)  # rows are reduced after columns, and each is rounded


@pytest.mark.parametrize("turns", range(4))
def test_a_look_inside_is_the_same_look_at_the_source_mirrored_and_turned(shelf: Shelf, turns: int) -> None:
    """Of any source, to the last bit: here one with a pyramid and 16 bits."""
    levels = [noise(side, side, dtype="uint16") for side in (240, 120, 60)]
    source = FileScene(shelf.add("deep", *levels))
    scene = TransformedScene(source, ImageChange((20, 40, 220, 190), True, False, turns))
    turned = torch.rot90(look(source, (30, 60, 130, 160)).flip(-1), turns, (1, 2))
    box = [(10, 30, 110, 130), (20, 10, 120, 110), (90, 20, 190, 120), (30, 90, 130, 190)][turns]
    assert torch.equal(look(scene, box), turned)


@settings(max_examples=15)
@given(
    crop=st.tuples(st.integers(0, 20), st.integers(0, 30), st.integers(21, 40), st.integers(31, 60)),
    box=st.tuples(st.integers(-20, 50), st.integers(-20, 50), st.integers(1, 60), st.integers(1, 60)),
    flips=st.tuples(st.booleans(), st.booleans()),
    turns=st.sampled_from([0, 2]),
    size_px=st.integers(1, 20),
)
def test_any_box_of_any_crop(crop: Any, box: Any, flips: tuple[bool, bool], turns: int, size_px: int) -> None:
    (image,) = pictures((40, 60), channels=3, seed=5)
    box = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    assert not differences(image, ImageChange(crop, *flips, turns), box, size_px=size_px).any()


def test_a_large_box_past_the_crop_is_exact_but_for_its_edge() -> None:
    """Not read as it is stored, but twice as fine as asked for: what is inside and outside is not mixed up."""
    (image,) = pictures((1200, 1500), channels=3)
    found = differences(image, ImageChange((50, 60, 1150, 1460)), (-100, -100, 1300, 1600), size_px=50)
    assert float(found[:, :3, :].max()) == 0  # fill
    assert float(found[:, 6:-6, 6:-6].mean()) < 2 and float(found.max()) < 40  # an average of averages of noise


def test_only_what_is_looked_at_is_read(shelf: Shelf) -> None:
    source = FileScene(shelf.add("a", noise(200, 300)))
    scene = TransformedScene(source, ImageChange((100, 200, 160, 280), horizontal_flip=True, quarter_turns=1))
    assert scene.size_hw == (80, 60) and scene.levels == ((80, 60),)
    look(scene, (0, 0, 16, 16), 16)
    look(scene, (-10, -10, 6, 6), 16)
    look(scene, (-10, -10, -1, -1), 16)
    asked = shelf.asked
    assert [box for _, box in asked] == [(100, 200, 116, 216), (100, 200, 106, 206)]


def test_levels_are_those_of_the_source_as_far_as_the_crop_goes(shelf: Shelf) -> None:
    source = FileScene(shelf.add("a", noise(400, 200), noise(100, 50)))
    change = ImageChange((0, 0, 200, 200), quarter_turns=3)
    assert TransformedScene(source, change).levels == ((200, 200), (50, 50))
    assert TransformedScene(source, ImageChange(quarter_turns=1)).levels == ((200, 400), (50, 100))


# --- angles


@pytest.mark.parametrize("angle", [3.0, -17.0, 90.0, 200.0])
def test_an_angle_is_what_turning_all_pixels_is(angle: float) -> None:
    change = ImageChange(CROP, True, False, 1, angle)
    for box in [*BOXES[:2], BOXES[6], (0, 0, 150, 200)]:
        found = differences(smooth(), change, box)
        # Tensors of 8 bits are rounded three times: when they are turned, and after columns and rows are reduced; the
        # scene's look is an average of averages, which flattens these waves of ten pixels and more by about 1 level.
        assert float(found.mean()) < 0.8 and float(found.max()) < 3
    for box in BOXES[2:5]:  # at the crop's edge, where nothing is smooth, more
        found = differences(smooth(), change, box)
        assert float(found.mean()) < 0.8 and float(found.max()) < 20
    assert not differences(smooth(), change, BOXES[5]).any()


def test_ninety_degrees_are_a_quarter_turn() -> None:
    (image,) = pictures((40, 40), channels=1)
    for turns in range(4):
        turned = change_image(image, ImageChange(angle_deg=90.0 * turns))
        assert torch.equal(turned, torch.rot90(image, turns, (1, 2)))


def test_turned_in_are_the_pixels_around_the_crop_and_past_the_picture_those_at_its_edge() -> None:
    image = torch.zeros(1, 60, 60, dtype=torch.uint8)
    image[:, :, 40:] = 200
    turned = change_image(image, ImageChange((20, 20, 40, 40), angle_deg=180))
    assert not turned.any()
    turned = change_image(image, ImageChange((20, 30, 40, 50), angle_deg=180))
    assert torch.equal(turned[0, :, :10], torch.full((20, 10), 200)) and not turned[0, :, 10:].any()
    assert int(change_image(torch.full((1, 9, 9), 77, dtype=torch.uint8), ImageChange(angle_deg=45)).min()) == 77


def test_an_angle_reads_the_hull_of_what_is_looked_at(shelf: Shelf) -> None:
    source = FileScene(shelf.add("a", noise(400, 400), noise(100, 100)))
    scene = TransformedScene(source, ImageChange(angle_deg=10.0))
    look(scene, (180, 180, 220, 220), 40)
    ((level, (y0, x0, y1, x1)),) = shelf.asked
    assert level == 0 and y0 >= 170 and x0 >= 170 and y1 <= 230 and x1 <= 230
    look(scene, (0, 0, 400, 400), 40)  # twice as fine as asked for is 80: the second level will do
    assert [level for level, _ in shelf.asked] == [1]


# --- colours


COLOURS: list[Any] = [
    (("brightness", 1.3),), (("contrast", 0.6),), (("contrast", 1.4),), (("saturation", 1.3),), (("hue", 0.2),),
    (("brightness", 0.8), ("hue", -0.1), ("contrast", 1.2), ("saturation", 0.7)),
]  # fmt: skip


@pytest.mark.parametrize("colours", COLOURS)
def test_colours_are_those_of_the_changed_picture(colours: Any) -> None:
    """Up to a level a change: torchvision cuts 8 bits down to whole levels at each, and here nothing is rounded."""
    change = ImageChange(CROP, True, False, 1, 0.0, colours)
    limit = 1.2 * len(colours)
    assert float(differences(smooth(40), change, (10, 20, 50, 60), size_px=40).max()) < limit
    linear = not dict(colours).keys() & {"hue"}
    for box in BOXES[:2] if linear else []:  # reduced before, or after
        assert float(differences(smooth(40), change, box).max()) < limit + 1
    outside = differences(smooth(), change, (-50, -50, -10, -10))
    assert not outside.any(), "what lies outside keeps its colour"


def test_all_looks_change_contrast_about_one_grey_level() -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, :, 32:] = 200
    scene = TransformedScene(MemoryScene(image), ImageChange(colours=(("contrast", 0.5),)))
    dark, bright = look(scene, (0, 0, 20, 20)), look(scene, (0, 40, 20, 60))
    near = {"rtol": 0, "atol": 1e-4}  # torchvision's weights of red, green and blue add up to 0.9999
    torch.testing.assert_close(dark, torch.full_like(dark, 50 / 255), **near)
    torch.testing.assert_close(bright, torch.full_like(bright, 150 / 255), **near)
    grey = MemoryScene(image[:1])
    (level,) = (
        TransformedScene(grey, scene.change)
        .glimpse((0, 0, 8, 8), 8, channels=1, resize="antialias", fill=(0,))
        .unique()
    )
    assert float(level) == pytest.approx(50 / 255)


# --- plain data, and what cannot be


def test_it_pickles_as_source_and_change(shelf: Shelf) -> None:
    scene = TransformedScene(FileScene(shelf.add("a", noise(100, 120))), ImageChange((5, 5, 90, 90), angle_deg=4.0))
    found = look(scene, (0, 0, 50, 50))
    again = pickle.loads(pickle.dumps(scene))
    assert len(pickle.dumps(scene)) < 1000 and again.change == scene.change
    assert torch.equal(look(again, (0, 0, 50, 50)), found)


def test_invalid_changes() -> None:
    for wrong, message in (
        ({"quarter_turns": 4}, "quarter_turns is 4"),
        ({"angle_deg": float("nan")}, "angle_deg is nan"),
        ({"colours": (("hue", 0.7),)}, "hue is changed by 0.7; give -0.5 to 0.5"),
        ({"colours": (("contrast", -1.0),)}, "contrast is changed by -1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            ImageChange(**wrong)  # type: ignore[arg-type]
    (image,) = pictures((20, 20), channels=3)
    for crop in ((0, 0, 21, 5), (5, 5, 5, 9), (-1, 0, 5, 5)):
        with pytest.raises(GeometryError, match="empty or not inside"):
            change_image(image, ImageChange(crop))
        with pytest.raises(GeometryError, match="empty or not inside"):
            look(TransformedScene(MemoryScene(image), ImageChange(crop)), (0, 0, 4, 4))
    scene = TransformedScene(MemoryScene(image), ImageChange())
    with pytest.raises(GeometryError, match="is empty"):
        look(scene, (4, 4, 4, 9))
    two = TransformedScene(MemoryScene(image[:2]), ImageChange(colours=(("hue", 0.1),)))
    with pytest.raises(ConfigError, match="not 2"):
        two.glimpse((0, 0, 4, 4), 4, channels=2, resize="antialias", fill=(0.0,))


def test_an_image_in_memory_is_a_scene() -> None:
    (image,) = pictures((20, 30), channels=3)
    scene = MemoryScene(image, "name")
    assert isinstance(scene, Scene) and scene.levels == ((20, 30),)
    assert torch.equal(look(scene, (2, 3, 12, 13), 10), image[:, 2:12, 3:13] / 255)
    with pytest.raises(GeometryError, match="has 3 channels, not 1"):
        scene.glimpse((0, 0, 4, 4), 4, channels=1, resize="antialias", fill=(0.0,))
    with pytest.raises(GeometryError, match="no pixels"):
        MemoryScene(image[:, :0])
