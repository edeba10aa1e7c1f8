"""A figure of where a model looked.

From the top: the prediction; the image with a box for each region, the probability of each location, the glimpse of the
whole image, and the most probable classes; then, level by level, every region as the network saw it, with its location
probability, weight and own prediction. Regions are numbered by location probability among those of one parent (2.1: the
most probable one inside region 2), or in raster order without the locator.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from tnet.errors import OutputError
from tnet.explain import layout, panels
from tnet.explain.explanation import Explanation, look, shares
from tnet.explain.layout import Row, Sheet, Top, level_rows, top_sizes
from tnet.explain.panels import BAD, FAINT, GOOD, INK, Frame, clip, shorten
from tnet.explain.scale import draw_scale_bar, length_text
from tnet.files import atomic_path, check_outputs
from tnet.inference.records import LABEL_THRESHOLD, RegionRecord
from tnet.models.base import Model, ModelConfig
from tnet.scenes.base import Scene
from tnet.traversal import Policy

_LEGEND = (
    "location: probability among the cells of the same region     weight: share in the decision     "
    "alone: prediction for this region by itself"
)
_LEGEND_SO_FAR = "numbers: order of looking     so far: prediction after this region and those before"


def explain_image(
    model: Model,
    image: UInt8[Tensor, "channels height width"] | Scene,
    *,
    looks: int | Sequence[int] | None = None,
    policy: Policy | str | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    truth: str | None = None,
) -> Figure:
    """Classify one image and draw where the model looked.

    Args:
        model: in evaluation mode.
        image: ``uint8`` pixels, or a scene.
        looks: number of looks, as in ``model(images, looks)``.
        policy: how locations are chosen; the model's default for evaluation if ``None``.
        names: class names; the model's own if ``None``.
        title: a line below the prediction, such as the image's name.
        truth: true label, if known; several are joined by ``|``.

    Returns:
        A Matplotlib figure without a window; ``figure.savefig(path)`` writes it.

    Raises:
        GeometryError: the model or the image do not allow this number of looks.
        ConfigError: the number of names or channels is not the model's.
    """
    return draw(look(model, image, looks=looks, policy=policy, names=names, title=title, truth=truth))


def save_explanation(explanation: Explanation, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the figure of an explanation as a PNG file, which must not exist unless ``overwrite``."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path} has suffix {path.suffix!r}; use .png")
    source = explanation.prediction.path
    check_outputs([path], inputs=[source] if source else [], overwrite=overwrite)
    write_figure(explanation, path)


def write_figure(explanation: Explanation, path: Path) -> None:
    """Write the figure of an explanation, replacing the file."""
    figure = draw(explanation)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # The font may lack characters of class names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, dpi=layout.DPI)


def draw(explanation: Explanation) -> Figure:
    """Draw the figure of an explanation."""
    height, width = explanation.prediction.size_hw
    regions = explanation.prediction.regions
    top = top_sizes(width / height, len(explanation.bars()))
    rows = level_rows(regions, divided=explanation.has_maps)
    y = layout.HEAD_IN + top.total + 0.3
    sheet = Sheet(y + sum(row.total_height for row in rows) + (0.3 if rows else 0))
    _draw_head(sheet, explanation)
    _draw_top(sheet, explanation, top, {record.number for row in rows for record in row.records})
    for row in rows:
        _draw_row(sheet, explanation, row, y)
        y += row.total_height
    if rows:
        legend, place = _LEGEND if explanation.output.verdict == "alone" else _LEGEND_SO_FAR, explanation.place
        if any(place):
            legend += f"     x, y: centre {'on the map' if place.georeference else 'from the top left corner'}"
        sheet.text(layout.MARGIN_IN, y, legend, 9, FAINT)
    return sheet.figure


def _draw_head(sheet: Sheet, explanation: Explanation) -> None:
    prediction, config = explanation.prediction, explanation.model.config
    room = 68
    if explanation.truth is not None:
        mark, color = ("✓", GOOD) if explanation.is_right else ("✗", BAD)
        label = explanation.truth.replace("|", ", ") if config.multilabel else explanation.truth
        truth = clip(f"{mark}  true: {label}", 36)
        sheet.text(layout.WIDTH_IN - layout.MARGIN_IN, 0.25, truth, 15, color, ha="right", weight="bold")
        room -= len(truth)
    verdict = f"{clip(prediction.label, room - 18)} ({prediction.probability:.0%})"
    verdict = (", ".join(prediction.labels) or "no label above 50%") if config.multilabel else verdict
    sheet.text(layout.MARGIN_IN, 0.22, clip(f"Predicted: {verdict}", room), 18, weight="bold")
    height, width = prediction.size_hw
    looks = len(prediction.regions)
    seen = (config.whole_px**2 + looks * config.region_px**2) / (height * width)
    facts = [shorten(explanation.title, 70)] if explanation.title else []
    facts.append(f"{width} × {height} px")
    facts.append({0: "0 looks: only the whole, resized", 1: "1 look"}.get(looks, f"{looks} looks"))
    if looks and not explanation.located:
        facts.append("locations chosen without the locator")
    share = f"{seen:.0%}" if seen >= 0.1 else f"{seen:.1%}"
    facts.append(f"saw {_seen(config, looks)}, {share} of the image's pixel count")
    sheet.text(layout.MARGIN_IN, 0.62, "   ·   ".join(facts), 10, FAINT)


def _seen(config: ModelConfig, looks: int) -> str:
    """Return the number of pixels that the network saw, in words."""
    if config.whole_px == config.region_px:
        return f"{1 + looks} × {config.region_px} × {config.region_px} px"
    views = ([(1, config.whole_px)] if config.whole_px else []) + ([(looks, config.region_px)] if looks else [])
    return " and ".join(f"{count} × {side} × {side} px" for count, side in views)


def _draw_top(sheet: Sheet, explanation: Explanation, top: Top, numbered: set[str]) -> None:
    prediction = explanation.prediction
    whole_px = explanation.model.config.whole_px
    base = f"{whole_px} × {whole_px} px"
    shown = explanation.whole()
    whole = explanation.glimpses([-1])[0] if whole_px else None
    x1, y1 = layout.MARGIN_IN, layout.HEAD_IN
    main = _panel(sheet, x1, y1, top.width, top.height, "Where it looked" if prediction.regions else "The image")
    panels.show_image(main, shown, smooth=True)
    boxes = [Frame(shares(r.box_l0_yxyx, prediction.size_hw), r.number, r.level) for r in prediction.regions]
    panels.draw_frames(main, boxes, numbered)
    spacing = explanation.place.spacing_m_yx
    if spacing is not None:
        draw_scale_bar(main, prediction.size_hw[1] * spacing[1])
    x2 = x1 if top.stacked else x1 + top.slot + layout.GAP_IN
    y2 = y1 + layout.TITLE_IN + top.height + layout.GAP_IN if top.stacked else y1
    x3, y3 = (x1 if top.stacked else x2) + top.slot + layout.GAP_IN, y1
    if prediction.regions and explanation.has_maps and whole is not None:
        title = "Where to look next: probability of each location, %" if top.width > 3.6 else "Where to look next, %"
        second = _panel(sheet, x2, y2, top.width, top.height, title)
        panels.show_image(second, shown, dim=True, smooth=True)
        if (cells := explanation.cell_map(-1)) is not None:
            panels.draw_cell_map(second, cells, (top.width, top.height))
        panels.show_image(_panel(sheet, x3, y3, *top.seen, f"What it saw first: {base}"), whole)
        y3 += layout.TITLE_IN + top.seen[1]
        weights = explanation.output.whole_weights
        facts = [] if weights is None else [f"weight {float(weights[0]):.0%}"]
        alone = explanation.whole_alone()
        facts += [] if alone is None else [f"alone: {clip(alone[0], 20)} ({alone[1]:.0%})"]
        sheet.text(x3, y3 + 0.07, "   ·   ".join(facts), 9.5)
        y3 += layout.ALONE_IN
    elif whole is not None:
        title = f"{'What it saw first' if prediction.regions else 'All it saw'}: {base}"
        panels.show_image(_panel(sheet, x2, y2, top.width, top.height, title), whole)
    threshold = LABEL_THRESHOLD if explanation.model.config.multilabel else None
    axes = _panel(sheet, x3, y3, layout.COLUMN_IN, top.bars, "Most probable classes")
    panels.draw_bars(axes, explanation.bars(), threshold)


def _panel(sheet: Sheet, x: float, y: float, width: float, height: float, title: str) -> Axes:
    sheet.text(x, y, title, 10.5, weight="bold")
    return sheet.axes(x, y + layout.TITLE_IN, width, height)


def _draw_row(sheet: Sheet, explanation: Explanation, row: Row, y: float) -> None:
    records, base_px = explanation.prediction.regions, explanation.model.config.region_px
    y0, x0, y1, x1 = row.records[0].box_l0_yxyx
    count = f"{row.total} regions" if row.total != 1 else "1 region"
    size, spacing = f"{x1 - x0} × {y1 - y0} px", explanation.place.spacing_m_yx
    if spacing is not None:
        down, across = spacing
        size += f" ({length_text((x1 - x0) * across, 3)} × {length_text((y1 - y0) * down, 3)})"
    text = f"Level {row.level}: {count} of {size}, each seen at {base_px} × {base_px} px"
    if len(row.records) < row.total:
        text += f"; {len(row.records)} are shown, {row.total - len(row.records)} more are not"
    marker = sheet.axes(layout.MARGIN_IN, y - 0.01, 0.16, 0.16)
    marker.set_axis_off()
    marker.add_patch(Rectangle((0, 0), 1, 1, facecolor=panels.level_color(row.level), edgecolor="none"))
    sheet.text(layout.MARGIN_IN + 0.26, y, text, 10.5, weight="bold")
    places = [records.index(record) for record in row.records]
    step_x, step_y = row.step_xy
    for i, (place, pixels) in enumerate(zip(places, explanation.glimpses(places), strict=True)):
        line, column = divmod(i, row.columns)
        x, at_y = layout.MARGIN_IN + column * step_x, y + 0.36 + line * step_y
        record = row.records[i]
        axes = sheet.axes(x, at_y, row.width, row.height)
        panels.show_image(axes, pixels, frame=panels.level_color(row.level))
        panels.badge(axes, (0, 0, 1, 1), record.number, row.level, 11, nested=False)
        if spacing is not None:
            draw_scale_bar(axes, (x1 - x0) * spacing[1], 8)
        _caption(sheet, explanation, record, x, at_y + row.height + 0.09, row.slot)
        if row.divided and (cells := explanation.cell_map(place)) is not None:
            next_x = x + step_x / 2 if row.beside else x
            next_y = at_y if row.beside else at_y + row.height + layout.CAPTION_IN + 0.18
            below = sheet.axes(next_x, next_y, row.width, row.height)
            text_y = at_y + row.height + 0.09 if row.beside else next_y - 0.18
            sheet.text(next_x, text_y, f"where to look inside {record.number}, %", 9, FAINT)
            panels.show_image(below, pixels, dim=True)
            panels.draw_cell_map(below, cells, (row.width, row.height))


def _caption(sheet: Sheet, explanation: Explanation, record: RegionRecord, x: float, y: float, width: float) -> None:
    """Draw the facts about a region below it, in ``width`` inches."""
    shares_of = (("location", record.location_probability), ("weight", record.weight))
    facts = [f"{name} {value:.0%}" for name, value in shares_of if value is not None]
    sheet.text(x, y, "   ·   ".join(facts), 9, FAINT)
    sheet.text(
        x, y + (0.19 if record.label is None else 0.38), explanation.place.centre_text(record.box_l0_yxyx), 8.5, FAINT
    )
    if record.label is None or record.probability is None:
        return
    verdict = explanation.output.verdict
    color = INK
    if explanation.truth is not None:
        color = GOOD if record.label in explanation.true_labels else BAD
    size, letter_in = (9.5, 0.08) if width > 2.2 else (8.5, 0.0715)
    label = clip(record.label, max(4, int((width + 0.25) / letter_in) - len(f"{verdict}:  (100%)")))
    sheet.text(x, y + 0.19, f"{verdict}: {label} ({record.probability:.0%})", size, color, weight="bold")
