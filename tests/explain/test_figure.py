from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from tests.helpers import pictures, three_levels, tiny_config
from torch import Tensor

from tnet.errors import ConfigError, GeometryError, OutputError
from tnet.explain.explanation import look
from tnet.explain.figure import explain_image, save_explanation
from tnet.explain.layout import MAX_TILES
from tnet.geometry import Grid
from tnet.models.config import LocatorConfig
from tnet.models.tnet import TNet
from tnet.scenes import MemoryScene

NAMES = ("ant", "bee", "cat", "dog", "elk")


def a_model(**changes: Any) -> TNet:
    torch.manual_seed(0)
    return TNet(
        tiny_config(**({"class_names": NAMES, "locator": LocatorConfig("squeeze", logits="none")} | changes))
    ).eval()


@pytest.fixture(scope="module")
def model() -> TNet:
    return a_model()


@pytest.fixture
def image() -> Tensor:
    return pictures((64, 96))[0]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts] + [text.get_text() for axes in figure.axes for text in axes.texts]


def text_of(figure: Figure) -> str:
    return "\n".join(words(figure))


def tiles(figure: Figure) -> int:
    return len(re.findall(r"^location \d+%", text_of(figure), re.MULTILINE))


def test_the_figure_says_what_was_predicted_and_where_it_looked(model: TNet, image: Tensor) -> None:
    figure = explain_image(model, image, title="scene.png", truth="bee")
    told = look(model, image).prediction
    text = text_of(figure)
    assert f"Predicted: {told.label} ({told.probability:.0%})" in text
    assert ("✓  true: bee" if told.label == "bee" else "✗  true: bee") in text
    assert "scene.png   ·   96 × 64 px   ·   2 looks   ·   saw 3 × 32 × 32 px, 50% of" in text
    assert "Level 1: 2 regions of 48 × 32 px, each seen at 32 × 32 px" in text
    for region in told.regions:
        assert f"location {region.location_probability:.0%}   ·   weight {region.weight:.0%}" in text
        assert f"alone: {region.label} ({region.probability:.0%})" in text
    for label, prob in told.top5:
        assert label in words(figure) and f"{prob:.1%}" in words(figure)


def test_boxes_over_the_picture_are_those_of_the_prediction(model: TNet, image: Tensor) -> None:
    figure = explain_image(model, image)
    drawn = [
        (
            box.get_y() * 64,
            box.get_x() * 96,
            (box.get_y() + box.get_height()) * 64,
            (box.get_x() + box.get_width()) * 96,
        )
        for box in figure.axes[0].patches
        if isinstance(box, Rectangle)
    ]
    boxes = [region.box_l0_yxyx for region in look(model, image).prediction.regions]
    assert drawn == [pytest.approx(np.clip(box, 0, [64, 96, 64, 96]).tolist()) for box in boxes]


def test_probabilities_of_all_cells_are_shown(model: TNet, image: Tensor) -> None:
    figure = explain_image(model, image)
    probs = look(model, image).output.location_probs[0].tolist()
    shown = [text.get_text() for text in figure.axes[1].texts]
    assert shown == [f"{100 * p:.0f}" if p >= 0.0995 or p < 0.0005 else f"{100 * p:.1f}" for p in probs]


def test_regions_are_shown_as_the_network_got_them(model: TNet, image: Tensor) -> None:
    seen: list[Tensor] = []
    handle = model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        found = look(model, image)
    finally:
        handle.remove()
    for level, pixels in enumerate(seen):
        levels = (pixels * 0.5 + 0.5) * 255  # the model's mean and standard deviation
        shown = torch.from_numpy(np.stack(found.glimpses(range(-1, 0) if level == 0 else range(len(pixels)))))
        assert (shown - levels[:, 0]).abs().max() <= 0.51


def test_without_looks_there_are_no_regions(model: TNet, image: Tensor) -> None:
    text = text_of(explain_image(model, image, looks=0))
    assert "0 looks: only the whole, resized" in text and "All it saw: 32 × 32 px" in text
    assert "Level 1" not in text and "probability of each location" not in text
    plain = a_model(levels=1, looks=())
    assert "All it saw" in text_of(explain_image(plain, image))


def test_deeper_levels_have_rows_of_their_own_and_show_where_to_look_inside(image: Tensor) -> None:
    torch.manual_seed(0)
    model = TNet(three_levels(class_names=NAMES, looks=(3, 2))).eval()
    figure = explain_image(model, image)
    text = text_of(figure)
    assert "Level 1: 3 regions" in text and "Level 2: 6 regions of 24 × 16 px" in text
    assert all(f"where to look inside {number}, %" in text for number in (1, 2, 3)) and "inside 1.1" not in text
    assert tiles(figure) == 9
    assert {"1.1", "1.2", "2.1", "2.2", "3.1", "3.2"} <= set(words(figure))


def test_many_regions_are_capped_and_counted(image: Tensor) -> None:
    model = a_model(grid=Grid(5, 5, 0.34375))
    figure = explain_image(model, image, looks=25)
    assert tiles(figure) == MAX_TILES
    assert f"25 regions of 33 × 22 px, each seen at 32 × 32 px; {MAX_TILES} are shown, 13 more are not" in text_of(
        figure
    )
    assert "12" in words(figure) and len(figure.axes[0].patches) == 25
    assert "13" not in [text.get_text() for text in figure.axes[0].texts]


def test_a_policy_that_does_not_ask_the_locator_shows_no_probabilities(model: TNet, image: Tensor) -> None:
    figure = explain_image(model, image, policy="random")
    text = text_of(figure)
    assert "locations chosen without the locator" in text and "probability of each location" not in text
    assert tiles(figure) == 0 and "Level 1: 2 regions" in text


def test_several_labels_are_compared_as_sets(image: Tensor) -> None:
    model = a_model(multilabel=True)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([-1.0, 2.0, 1.0, -3.0, -1.0]))
    assert "✓  true: cat, bee" in text_of(explain_image(model, image, truth="cat|bee"))
    text = text_of(explain_image(model, image, truth=""))
    assert "✗  true:" in text and "Predicted: bee, cat" in text


def test_a_true_class_that_is_not_among_the_first_five_has_a_bar(image: Tensor) -> None:
    names = [f"class {i}" for i in range(9)]
    model = a_model(num_classes=9, class_names=())
    told = look(model, image, names=names).prediction
    last = next(name for name in names if name not in dict(told.top5))
    assert last not in words(explain_image(model, image, names=names))
    assert last in words(explain_image(model, image, names=names, truth=last))


@pytest.mark.parametrize(
    ("size", "channels"), [((40, 640), 1), ((700, 40), 3), ((33, 2000), 3), ((64, 64), 2), ((64, 64), 5)]
)
def test_any_shape_and_number_of_channels_fits_on_the_sheet(
    tmp_path: Path, size: tuple[int, int], channels: int
) -> None:
    model = a_model(in_channels=channels)
    (image,) = pictures(size, channels=channels)
    figure = explain_image(model, image, truth="bee", title="a/long/path/" * 20)
    for axes in figure.axes:
        box = axes.get_position()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1
        assert box.width > 0.004 and box.height > 0.004
    places = [axes.get_position() for axes in figure.axes]
    overlapping = [(a, b) for i, a in enumerate(places) for b in places[:i] if a.overlaps(b)]
    assert not overlapping


def test_lengths_and_places_are_shown_where_they_are_known(model: TNet, image: Tensor) -> None:
    slide = MemoryScene(image)
    slide.spacing_m_yx = (2e-6, 1e-6)  # type: ignore[attr-defined]  # 96 x 64 px: 96 x 128 um
    text = text_of(explain_image(model, slide, looks=1))
    assert "20 µm" in text  # below 30 % of 96
    assert "1 region of 48 × 32 px (48 µm × 64 µm), each seen at" in text
    (found,) = look(model, slide, looks=1).prediction.regions
    y0, x0, y1, x1 = found.box_l0_yxyx
    assert f"x {(x0 + x1) / 2:g} µm   y {y0 + y1:g} µm" in text
    assert "x, y: centre from the top left corner" in text
    assert not re.search("µm|x, y", text_of(explain_image(model, image, looks=1)))


@pytest.mark.figures
def test_saving_writes_a_png_and_returns_the_prediction(model: TNet, image: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "figure.png"
    explanation = look(model, image, source="folder/x.png", stored_size_hw=(640, 960))
    save_explanation(explanation, path)
    told = explanation.prediction
    with Image.open(path) as saved:
        assert saved.format == "PNG" and saved.width == 1560
        assert np.asarray(saved.convert("L")).std() > 20
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]
    assert (told.path, told.size_hw) == ("folder/x.png", (640, 960))
    ours = look(model, image).prediction
    assert [r.box_l0_yxyx for r in told.regions] == [tuple(10 * v for v in r.box_l0_yxyx) for r in ours.regions]


def test_names_are_taken_literally(image: Tensor, tmp_path: Path) -> None:
    names = ("$x_", "$\\frac{", "猫", "a\nb", "&" * 80)
    model = a_model(class_names=names)
    save_explanation(look(model, image, title="cost $1_{ & $2 猫.png", truth="猫"), tmp_path / "f.png")


def test_the_model_is_not_changed_and_no_window_is_opened(model: TNet, image: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    figure = explain_image(model, image)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    from matplotlib import _pylab_helpers

    assert figure not in [manager.canvas.figure for manager in _pylab_helpers.Gcf.get_all_fig_managers()]


def test_what_cannot_be_drawn_is_refused_and_leaves_nothing(model: TNet, image: Tensor, tmp_path: Path) -> None:
    with pytest.raises(GeometryError, match="10"):
        look(model, image, looks=10)
    with pytest.raises(ConfigError, match="4 class names"):
        look(model, image, names=NAMES[:4])
    with pytest.raises(ConfigError, match="3 channels"):
        look(model, image.expand(3, -1, -1))
    with pytest.raises(OutputError, match=r"\.png"):
        save_explanation(look(model, image), tmp_path / "f.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_explanation(look(model, image), tmp_path / "file" / "f.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_three_channels_keep_their_color() -> None:
    model = a_model(in_channels=3)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[0] = 200
    found = look(model, image)
    assert found.whole()[0, 0].tolist() == [200, 0, 0]
    assert found.glimpses([0])[0][5, 5].tolist() == [200, 0, 0]
    assert replace(found, truth=None).is_right is None
