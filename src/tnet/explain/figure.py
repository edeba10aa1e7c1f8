"""The picture of where a network looked, and what it made of it.

From the top: the verdict; the picture with a box for each region, the probability of each place to look, what the
network saw of the whole, and the most probable classes; then, level by level, every region as the network saw it, with
its location probability, its weight in the decision and what the classifier makes of it alone. Regions are numbered by
falling location probability among those of one parent (2.1: the most probable one inside region 2); where the locator
was not asked, in raster order.
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
from tnet.explain import panels
from tnet.explain.explanation import Explanation, look, shares
from tnet.explain.layout import (
    ALONE_IN,
    CAPTION_IN,
    COLUMN_IN,
    DPI,
    GAP_IN,
    HEAD_IN,
    MARGIN_IN,
    TITLE_IN,
    WIDTH_IN,
    Row,
    Sheet,
    Top,
    level_rows,
    top_sizes,
)
from tnet.explain.panels import BAD, FAINT, GOOD, INK, Frame, clip, shorten
from tnet.files import atomic_path
from tnet.inference.records import LABEL_THRESHOLD, Prediction, RegionRecord
from tnet.models.base import Model, ModelConfig
from tnet.scenes.base import Scene
from tnet.traversal import Policy

_LEGEND = (
    "location: probability of the place among those inside the same region     weight: share in the decision     "
    "alone: what the classifier makes of this view by itself"
)
_LEGEND_SO_FAR = "numbers: the order of looking     so far: what the model makes of this view and those before"


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
    """Look at one image and draw what happened.

    Args:
        model: in evaluation mode.
        image: levels 0 to 255, or a scene.
        looks: locations, as for :meth:`tnet.models.TNet.forward`.
        policy: how locations are chosen; the model's own for evaluation if ``None``.
        names: of the classes; the model's own if ``None``.
        title: a line below the verdict, such as the picture's name.
        truth: the right label, if known; several are joined by ``|``.

    Returns:
        A figure of Matplotlib that belongs to no window; ``figure.savefig(path)`` writes it.

    Raises:
        GeometryError: looks that the model or the image do not allow.
        ConfigError: another number of names than classes, or of channels than the model takes.
    """
    return draw(look(model, image, looks=looks, policy=policy, names=names, title=title, truth=truth))


def save_explanation(
    model: Model,
    image: UInt8[Tensor, "channels height width"] | Scene,
    path: str | Path,
    *,
    looks: int | Sequence[int] | None = None,
    policy: Policy | str | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    truth: str | None = None,
    source: str | None = None,
    stored_size_hw: tuple[int, int] | None = None,
) -> Prediction:
    """Look at one image, draw what happened into a PNG file, and say it as plain data.

    Args:
        model: in evaluation mode.
        image: levels 0 to 255, or a scene.
        path: of the PNG file; there whole or not at all.
        looks: as for :func:`explain_image`.
        policy: as for :func:`explain_image`.
        names: as for :func:`explain_image`.
        title: as for :func:`explain_image`.
        truth: as for :func:`explain_image`.
        source: where the picture came from, for the returned prediction; ``title`` if ``None``.
        stored_size_hw: height and width of the picture before downscaling, to which boxes are scaled back.

    Raises:
        OutputError: the file cannot be written, or does not end with ``.png``.
        GeometryError: looks that the model or the image do not allow.
        ConfigError: another number of names than classes, or of channels than the model takes.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path} ends with {path.suffix!r}, but explanations are written as .png; use that")
    found = look(
        model, image, looks=looks, policy=policy, names=names, title=title, truth=truth, source=source,
        stored_size_hw=stored_size_hw,
    )  # fmt: skip
    figure = draw(found)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Class names may be in a script that the figure's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, dpi=DPI)
    return found.prediction


def draw(found: Explanation) -> Figure:
    """Draw what a model saw of an image and made of it."""
    height, width = found.prediction.size_hw
    regions = found.prediction.regions
    top = top_sizes(width / height, len(found.bars()))
    rows = level_rows(regions, divided=found.has_maps)
    y = HEAD_IN + top.total + 0.3
    sheet = Sheet(y + sum(row.total_height for row in rows) + (0.3 if rows else 0))
    _draw_head(sheet, found)
    _draw_top(sheet, found, top, {record.number for row in rows for record in row.records})
    for row in rows:
        _draw_row(sheet, found, row, y)
        y += row.total_height
    if rows:
        sheet.text(MARGIN_IN, y, _LEGEND if found.output.verdict == "alone" else _LEGEND_SO_FAR, 9, FAINT)
    return sheet.figure


def _draw_head(sheet: Sheet, found: Explanation) -> None:
    """Verdict, truth, and what was looked at, in words."""
    told, config = found.prediction, found.model.config
    room = 68
    if found.truth is not None:
        mark, colour = ("✓", GOOD) if found.is_right else ("✗", BAD)
        truth = clip(f"{mark}  true: {found.truth.replace('|', ', ') if config.multilabel else found.truth}", 36)
        sheet.text(WIDTH_IN - MARGIN_IN, 0.25, truth, 15, colour, ha="right", weight="bold")
        room -= len(truth)
    if config.multilabel:
        verdict = f"Predicted: {', '.join(told.labels) or 'no label above 50%'}"
    else:
        verdict = f"Predicted: {clip(told.label, room - 18)} ({told.probability:.0%})"
    sheet.text(MARGIN_IN, 0.22, clip(verdict, room), 18, weight="bold")
    height, width = told.size_hw
    looks = len(told.regions)
    seen = (config.whole_px**2 + looks * config.look_px**2) / (height * width)
    facts = [shorten(found.title, 70)] if found.title else []
    facts.append(f"{width} × {height} px")
    facts.append({0: "0 looks: only the whole, resized", 1: "1 look"}.get(looks, f"{looks} looks"))
    if looks and not found.located:
        facts.append("places chosen without the locator")
    share = f"{seen:.0%}" if seen >= 0.1 else f"{seen:.1%}"
    facts.append(f"saw {_seen(config, looks)}, {share} of the picture's pixel count")
    sheet.text(MARGIN_IN, 0.62, "   ·   ".join(facts), 10, FAINT)


def _seen(config: ModelConfig, looks: int) -> str:
    """What the network saw, in numbers of pixels."""
    if config.whole_px == config.look_px:
        return f"{1 + looks} × {config.look_px} × {config.look_px} px"
    views = ([(1, config.whole_px)] if config.whole_px else []) + ([(looks, config.look_px)] if looks else [])
    return " and ".join(f"{count} × {side} × {side} px" for count, side in views)


def _draw_top(sheet: Sheet, found: Explanation, top: Top, numbered: set[str]) -> None:
    """The picture, where to look, what was seen of the whole, and the classes."""
    told = found.prediction
    whole_px = found.model.config.whole_px
    base = f"{whole_px} × {whole_px} px"
    shown = found.whole()
    whole = found.glimpses([-1])[0] if whole_px else None
    x1, y1 = MARGIN_IN, HEAD_IN
    main = _panel(sheet, x1, y1, top.width, top.height, "Where it looked" if told.regions else "The picture")
    panels.picture(main, shown, smooth=True)
    boxes = [Frame(shares(r.box_l0_yxyx, told.size_hw), r.number, r.level) for r in told.regions]
    panels.frames(main, boxes, numbered)
    x2 = x1 if top.stacked else x1 + top.slot + GAP_IN
    y2 = y1 + TITLE_IN + top.height + GAP_IN if top.stacked else y1
    x3, y3 = (x1 if top.stacked else x2) + top.slot + GAP_IN, y1
    if told.regions and found.has_maps and whole is not None:
        title = "Where to look next: probability of each place, %" if top.width > 3.6 else "Where to look next, %"
        second = _panel(sheet, x2, y2, top.width, top.height, title)
        panels.picture(second, shown, dim=True, smooth=True)
        panels.cell_map(second, found.cell_map(), (top.width, top.height))
        panels.picture(_panel(sheet, x3, y3, *top.seen, f"What it saw first: {base}"), whole)
        y3 += TITLE_IN + top.seen[1]
        said = [] if found.whole_weight is None else [f"weight {found.whole_weight:.0%}"]
        alone = found.whole_alone()
        said += [] if alone is None else [f"alone: {clip(alone[0], 20)} ({alone[1]:.0%})"]
        sheet.text(x3, y3 + 0.07, "   ·   ".join(said), 9.5)
        y3 += ALONE_IN
    elif whole is not None:
        title = f"{'What it saw first' if told.regions else 'All it saw'}: {base}"
        panels.picture(_panel(sheet, x2, y2, top.width, top.height, title), whole)
    threshold = LABEL_THRESHOLD if found.model.config.multilabel else None
    panels.bars(_panel(sheet, x3, y3, COLUMN_IN, top.bars, "Most probable classes"), found.bars(), threshold)


def _panel(sheet: Sheet, x: float, y: float, width: float, height: float, title: str) -> Axes:
    """An axes below its title."""
    sheet.text(x, y, title, 10.5, weight="bold")
    return sheet.axes(x, y + TITLE_IN, width, height)


def _draw_row(sheet: Sheet, found: Explanation, row: Row, y: float) -> None:
    """The regions of one level, as the network saw them."""
    records, base_px = found.prediction.regions, found.model.config.look_px
    y0, x0, y1, x1 = row.records[0].box_l0_yxyx
    count = f"{row.total} regions" if row.total != 1 else "1 region"
    text = f"Level {row.level}: {count} of {x1 - x0} × {y1 - y0} px, each seen at {base_px} × {base_px} px"
    if len(row.records) < row.total:
        text += f"; {len(row.records)} are shown, {row.total - len(row.records)} more are not"
    marker = sheet.axes(MARGIN_IN, y - 0.01, 0.16, 0.16)
    marker.set_axis_off()
    marker.add_patch(Rectangle((0, 0), 1, 1, facecolor=panels.level_colour(row.level), edgecolor="none"))
    sheet.text(MARGIN_IN + 0.26, y, text, 10.5, weight="bold")
    places = [records.index(record) for record in row.records]
    step_x, step_y = row.step_xy
    for i, (place, pixels) in enumerate(zip(places, found.glimpses(places), strict=True)):
        line, column = divmod(i, row.columns)
        x, at_y = MARGIN_IN + column * step_x, y + 0.36 + line * step_y
        record = row.records[i]
        axes = sheet.axes(x, at_y, row.width, row.height)
        panels.picture(axes, pixels)
        panels.outline(axes, panels.level_colour(row.level))
        panels.badge(axes, (0, 0, 1, 1), record.number, row.level, 11, nested=False)
        _caption(sheet, found, record, x, at_y + row.height + 0.09, row.slot)
        if row.divided and found.is_divided(place):
            next_x = x + step_x / 2 if row.beside else x
            next_y = at_y if row.beside else at_y + row.height + CAPTION_IN + 0.18
            below = sheet.axes(next_x, next_y, row.width, row.height)
            text_y = at_y + row.height + 0.09 if row.beside else next_y - 0.18
            sheet.text(next_x, text_y, f"where to look inside {record.number}, %", 9, FAINT)
            panels.picture(below, pixels, dim=True)
            panels.cell_map(below, found.cell_map(place), (row.width, row.height))


def _caption(sheet: Sheet, found: Explanation, record: RegionRecord, x: float, y: float, width: float) -> None:
    """What is known of a region, below it, in ``width`` inches."""
    shares_of = (("location", record.location_probability), ("weight", record.weight))
    said = [f"{name} {value:.0%}" for name, value in shares_of if value is not None]
    sheet.text(x, y, "   ·   ".join(said), 9, FAINT)
    if record.label is None or record.probability is None:
        return
    verdict = found.output.verdict
    colour = INK
    if found.truth is not None:
        colour = GOOD if record.label in found.true_labels else BAD
    size, letter_in = (9.5, 0.08) if width > 2.2 else (8.5, 0.0715)
    label = clip(record.label, max(4, int((width + 0.25) / letter_in) - len(f"{verdict}:  (100%)")))
    sheet.text(x, y + 0.19, f"{verdict}: {label} ({record.probability:.0%})", size, colour, weight="bold")
