"""Tables of evaluations: Markdown that reads well as plain text, and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tnet.evaluation.attention import GRADCAM, AttentionRow, Estimate
from tnet.evaluation.evaluator import LooksRow
from tnet.evaluation.frontier import FrontierRow
from tnet.files import write_text
from tnet.text import csv_row

_ATTENTION = {
    "pointing": "pointing", "pointing_any": "pointing, any", "hit": "hit", "hit_any": "hit, any",
    "box_share": "box seen", "image_share": "image seen", "deletion": "deletion", "insertion": "insertion",
}  # fmt: skip
_EXTRA = {"top5": "top-5 %", "auc": "AUC", "jaccard": "Jaccard"}


def looks_label(looks: Sequence[int]) -> str:
    """Return looks as the command line writes them: ``0``, ``3``, ``2x1``."""
    return "x".join(map(str, looks)) or "0"


def looks_table(rows: Sequence[LooksRow]) -> str:
    """Return the rows (at least one) as an aligned Markdown table."""
    extra = [name for name in _EXTRA if any(getattr(row, name) is not None for row in rows)]
    unit, letter = macs_unit(max(row.macs for row in rows))
    header = ["looks", "policy", "accuracy % (95 % interval)", *(_EXTRA[name] for name in extra), "confidence"]
    header += [f"multiply-adds ({letter})", "parameters (M)", "ms/image (min to max)"]
    lines = []
    for row in rows:
        interval = f"{100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f}"
        cells = [looks_label(row.looks), row.policy, f"{100 * row.accuracy:.1f} ({interval})"]
        for name in extra:
            value = getattr(row, name)
            cells.append("-" if value is None else f"{100 * value:.1f}" if name == "top5" else f"{value:.3f}")
        cells += [f"{row.confidence:.3f}", short_number(row.macs / unit), short_number(row.parameters / 1e6)]
        cells.append(f"{row.time_ms:.2f} ({row.time_ms_min:.2f} to {row.time_ms_max:.2f})")
        lines.append(cells)
    return markdown_table(header, lines)


def frontier_table(rows: Sequence[FrontierRow]) -> str:
    """Return the points of a frontier (at least one) as an aligned Markdown table."""
    unit, letter = macs_unit(max(int(row.mean_macs) for row in rows))
    header = ["search", "setting", "mean looks", f"mean multiply-adds ({letter})", "accuracy % (95 % interval)"]
    lines = []
    for row in rows:
        number = f"{row.setting:g}"
        setting = f"budget of {number}" if row.kind == "stopping" else f"{number} look{'s' * (number != '1')}"
        interval = f"{100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f}"
        cost = [f"{row.mean_looks:.2f}", short_number(row.mean_macs / unit)]
        lines.append([row.kind, setting, *cost, f"{100 * row.accuracy:.1f} ({interval})"])
    return markdown_table(header, lines)


def attention_table(rows: Sequence[AttentionRow]) -> str:
    """Return the rows (at least one) as an aligned Markdown table."""
    shown = [name for name in _ATTENTION if any(getattr(row, name) is not None for row in rows)]
    lines = []
    for row in rows:
        cells = [looks_label(row.looks), row.policy]
        for name in shown:
            value: Estimate | None = getattr(row, name)
            text = "-" if value is None else f"{100 * value.mean:.1f}"
            has_interval = value is not None and name != "image_share"
            cells.append(
                f"{text} ({100 * value.low:.1f} to {100 * value.high:.1f})" if value and has_interval else text
            )
        extra = "" if row.extra_ms is None else f" + {row.extra_ms:.2f}"
        cells.append("-" if row.answer_ms is None else f"{row.answer_ms:.2f}{extra}")
        lines.append(cells)
    return markdown_table(
        ["looks", "policy", *(f"{_ATTENTION[name]} %" for name in shown), "ms/image + regions"], lines
    )


def attention_notes(rows: Sequence[AttentionRow]) -> str:
    """Return sentences that explain the columns of :func:`attention_table`."""
    row = rows[-1]
    text = (
        f"{row.images} images with boxes; intervals: 95 %, bootstrap over images. Pointing: the centre of the first "
        "look, the one taken when only one may be, is in a box; any: that of any look. Hit: the first (any) look shows "
        "the centre of a box. Seen: share of the area of boxes (of the image) that looks cover, with several levels "
        "those of the deepest. Time: of the answer, and what its regions cost on top: nothing if they are part of it.\n"
    )
    if row.deletion is not None:
        text += (
            f"Deletion ({row.curve_images} images): probability of the predicted class once what was looked at is "
            "covered with the image's mean colour; lower is better. Insertion: the same if all else is blurred; higher "
            "is better. The model looks again at the changed image.\n"
        )
    if any(row.policy == GRADCAM for row in rows):
        text += "gradcam: as many windows of the size of a look, the best of the map of the plain network.\n"
    return text


def attention_records(rows: Sequence[AttentionRow]) -> list[dict[str, object]]:
    """Return the rows as flat records for CSV and JSON; each measure has its interval in ``_low`` and ``_high``."""
    records = []
    for row in rows:
        record: dict[str, object] = {}
        for name, value in vars(row).items():
            record[name] = looks_label(row.looks) if name == "looks" else value
            if name in _ATTENTION:
                mean, low, high = value or (None, None, None)
                record |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        records.append(record)
    return records


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    shown = [header, ["-" * width for width in widths], *lines]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in shown]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in padded) + "\n"


def macs_unit(macs: int) -> tuple[float, str]:
    """Return size and letter (G or M) of the unit in which multiply-adds up to a number read best."""
    return (1e9, "G") if macs >= 1e9 else (1e6, "M")


def short_number(value: float) -> str:
    """Format four significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.4g}" if value >= 0.001 else f"{value:.6f}"


def looks_notes(rows: Sequence[LooksRow]) -> str:
    """Return sentences that explain the columns of :func:`looks_table`."""
    row = rows[0]
    accuracy = "share of images whose labels are all right (exact match at 0.5)" if row.jaccard is not None else "top-1"
    return (
        f"{row.images} images. Accuracy: {accuracy}, with its 95 % Wilson interval. Confidence: mean of the largest "
        "probability. Multiply-adds: per image; 1 multiply-add is 2 FLOPs. Parameters: trainable, of the whole model. "
        f"Time: on {row.device} in batches of {row.batch_size}, reading and decoding left out; median, fastest "
        "and slowest batch.\n"
    )


def write_rows_csv(rows: Sequence[LooksRow], path: str | Path) -> None:
    """Write the rows as CSV, atomically; shares are from 0 to 1, and missing values are empty fields."""
    shown = [{**asdict(row), "looks": looks_label(row.looks)} for row in rows]
    write_csv([{key: value for key, value in row.items() if not key.startswith("right")} for row in shown], path)


def write_csv(rows: Sequence[Mapping[str, object]], path: str | Path) -> None:
    """Write rows (at least one, all with the same keys) as CSV, atomically; floats have six digits."""
    shown = [[f"{value:.6g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    write_text(path, "".join(map(csv_row, [rows[0], *shown])))
