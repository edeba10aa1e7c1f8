"""Sections about a model: each from what was measured, headed by what it means in one or two sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tnet.cost import full_image_multiply_adds
from tnet.errors import ConfigError
from tnet.evaluation.attention import AttentionRow, Estimate
from tnet.evaluation.comparison.report import bootstrap_interval
from tnet.evaluation.evaluator import LooksRow, wilson_interval
from tnet.evaluation.plots import looks_figure
from tnet.evaluation.probabilities import BINS
from tnet.evaluation.report import looks_label, macs_unit, short_number
from tnet.models.base import Model
from tnet.models.tnet import TNet
from tnet.report.answers import MAPPED, Answers
from tnet.report.figures import MOST_CONFUSED, calibration_figure, confusion_figure, roc_figure
from tnet.report.page import Gallery, Plot, Section, Shot, Table, heat, percent, plot
from tnet.training.curves import Row, curves_figure

_MOST_CLASSES = 100  # of a table
_MOST_MAPS = 24
_MOST_MISTAKES = 10
_MAP_PX = 120
_CURVES = {
    "train/accuracy": "training images", "train/region_accuracy": "training images, each look alone",
    "val/accuracy": "validation images", "val/accuracy_0_looks": "validation images, without looks",
    "val/accuracy_random": "validation images, random places",
    "val/balanced_accuracy": "validation images, mean over the classes",
}  # fmt: skip
_PLACES = {"random": "random places", "centre": "the places nearest to the middle"}


@dataclass(frozen=True)
class Measured:
    """A model, its accuracy and cost in several settings, and its answers in the one that the report is about."""

    model: Model
    rows: Sequence[LooksRow]
    chosen: LooksRow  # one of them
    answers: Answers  # in the chosen setting
    others: Sequence[tuple[str, LooksRow]] = ()  # other models on the same images, by name

    @property
    def none(self) -> LooksRow | None:
        """The row without looks, if the chosen one has some."""
        return next((row for row in self.rows if not row.looks and self.chosen.looks), None)

    @property
    def controls(self) -> list[LooksRow]:
        """The rows of other policies at the chosen number of looks."""
        same = [row for row in self.rows if row.looks == self.chosen.looks and row is not self.chosen]
        return same if self.chosen.looks else []


def accuracy(measured: Measured) -> Section:
    """Accuracy against looks and cost."""
    chosen, none = measured.chosen, measured.none
    lead = f"With {looks_text(chosen)} {percent(chosen.accuracy)} of the images are right"
    if none is not None:
        gap, low, high = difference(chosen, none)
        lead += (
            f"; without looks, from the whole image at low resolution alone, {percent(none.accuracy)}. The looks bring "
            f"{gap:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}), and raise the cost from "
            f"{macs_text(none.macs)} to {macs_text(chosen.macs)} multiply-adds per image"
        )
    lead += f".{_full_resolution(measured)}"
    for name, row in measured.others:
        lead += f" For comparison, {name} is right for {percent(row.accuracy)} at {macs_text(row.macs)} multiply-adds."
    alt = "Accuracy against the number of looks and against multiply-adds"
    caption = "Shaded: 95 % intervals. Each line is the same trained network with other looks."
    figure = plot(looks_figure(measured.rows, measured.others), alt, caption)
    own = [row for row in measured.rows if not row.looks or row.policy == chosen.policy]
    table = systems_table([("", row) for row in own], measured.others, chosen)
    exact = "An image is right if all its labels are (exact match at 0.5). " if chosen.jaccard is not None else ""
    note = (
        f"{exact}Intervals: Wilson. Multiply-adds count the arithmetic for one image, on any machine (1 is 2 FLOPs). "
        f"Parameters: trainable. Time: on {chosen.device} in batches of {chosen.batch_size}, without reading and "
        "decoding; median, fastest and slowest batch."
    )
    return Section("Accuracy, looks and cost", lead, [figure, table], note)


def systems_table(
    rows: Sequence[tuple[str, LooksRow]], others: Sequence[tuple[str, LooksRow]], strong: LooksRow | None
) -> Table:
    """Return accuracy and cost of every setting (by its looks unless it is named) and of other models."""
    first = "network" if others else "looks"
    header = [first, "accuracy", "95 % interval", "multiply-adds", "parameters", "ms per image (min to max)"]
    with_auc = any(row.auc is not None for _, row in [*rows, *others])
    body = []
    for name, row in [*rows, *others]:
        cells = [name or (looks_text(row) if others else looks_label(row.looks)), percent(row.accuracy)]
        cells.append(f"{100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f} %")
        cells += [macs_text(row.macs), f"{short_number(row.parameters / 1e6)} M"]
        cells.append(f"{row.time_ms:.2f} ({row.time_ms_min:.2f} to {row.time_ms_max:.2f})")
        body.append(cells[:3] + ([f"{row.auc:.3f}" if row.auc is not None else "-"] if with_auc else []) + cells[3:])
    shown = [row for _, row in [*rows, *others]]
    return Table(
        header[:3] + ["AUC"] * with_auc + header[3:], body,
        strong=frozenset(index for index, row in enumerate(shown) if row is strong),
    )  # fmt: skip


def places(measured: Measured) -> Section | None:
    """The learned looks beside the controls, and the looks without the whole image."""
    chosen, rows = measured.chosen, measured.controls
    if (not rows and chosen.right_without_context is None) or chosen.policy in _PLACES:
        return None
    shown = [("places that it chooses", chosen), *((_PLACES.get(row.policy, row.policy), row) for row in rows)]
    sentences = [f"With {looks_text(chosen)} at places that it chooses, {percent(chosen.accuracy)} are right."]
    for name, row in shown[1:]:
        gap, low, high = difference(chosen, row)
        clear = "" if low > 0 else "; since that includes 0, it is not clear that it knows better where to look"
        clear = "; it looks at the wrong places" if high < 0 else clear
        sentences.append(
            f"At {name} it would be {percent(row.accuracy)}: choosing brings {gap:+.1f} points (95 % interval "
            f"{low:+.1f} to {high:+.1f}{clear})."
        )
    body = [[name, percent(row.accuracy), _alone(row)] for name, row in shown]
    if chosen.right_without_context is not None:
        sentences.append(f"From the looks alone, without the whole image, {_alone(chosen)} would be right.")
    header = ["looks at", "accuracy", "from the looks alone"]
    title = "Does it know where to look?"
    return Section(title, " ".join(sentences), [Table(header, body, strong=frozenset([0]))] if rows else [])


def _alone(row: LooksRow) -> str:
    """Return the accuracy from the looks alone."""
    bits = row.right_without_context
    return "-" if bits is None else percent(bits.count("1") / len(bits))


def marked(rows: Sequence[AttentionRow]) -> Section:
    """Whether looks fall on places that people marked; the learned ones come first."""
    learned, *controls = rows
    what = "the middle of a marked place"
    lead = f"{learned.images:,} of the images have places marked that decide. "
    lead += f"The first look shows {what} in {_estimate(learned.hit)} of them (95 % interval)"
    lead += "".join(f", at {_PLACES.get(row.policy, row.policy)} in {_estimate(row.hit)}" for row in controls)
    lead += (
        f". With all {learned.total_looks} looks it is {_estimate(learned.hit_any)}."
        if learned.total_looks > 1
        else "."
    )
    header = [
        "looks at",
        "first look shows it",
        "any look",
        "first look is centred in it",
        "marked area seen",
        "image seen",
    ]
    body = []
    for row in rows:
        shares = row.hit, row.hit_any, row.pointing, row.box_share, row.image_share
        name = _PLACES.get(row.policy, "places that it chooses" if row is learned else row.policy)
        body.append([name, *("-" if share is None else percent(share.mean) for share in shares)])
    note = f"A place is shown if {what} is inside a look. Random looks see about as much of a place as of the image."
    return Section("Does it look at marked places?", f"{lead}.", [Table(header, body, strong=frozenset([0]))], note)


def _estimate(share: Estimate | None) -> str:
    return "-" if share is None else f"{percent(share.mean)} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def where(measured: Measured) -> Section | None:
    """Where looks fall on average, over all images and by class."""
    answers = measured.answers
    if not float(answers.looked[0].max()):
        return None
    counts = answers.counts[0]
    frequent = counts[:MAPPED].argsort(descending=True, stable=True)[:_MOST_MAPS]
    labels = sorted(label for label in frequent.tolist() if counts[label])
    shown = [("all images", answers.looked[0] / len(answers), len(answers))]
    shown += [(answers.classes[n], answers.looked[1 + n] / counts[n], int(counts[n])) for n in labels]
    most = max(float(average.max()) for _, average, _ in shown)
    shots = [
        Shot(heat(average.numpy(), most), _MAP_PX, _MAP_PX, _images(count), name) for name, average, count in shown
    ]
    lead = (
        "Each square stands for the whole image, however wide or tall; the brighter a place, the more often the "
        f"network looked there (white: {most:.2g} looks per image). If all squares look the same, it looks at fixed "
        "places rather than at what is in the image."
    )
    present = int((counts > 0).sum())
    note = f"The {_MOST_MAPS} most frequent of {present} classes." if present > _MOST_MAPS else ""
    return Section("Where it looks", lead, [Gallery(shots, small=True)], note)


def classes(measured: Measured) -> Section:
    """Accuracy by class, the confusion matrix, and the most frequent mistakes."""
    answers = measured.answers
    counts = answers.by_class()
    present = [count for count in counts if count.images]
    ranked = sorted(present, key=lambda count: (count.right / count.images, count.name))
    worst, best = ranked[0], ranked[-1]
    lead = (
        f"The network does best on {best.name} ({best.right} of {best.images} images are right) and worst on "
        f"{worst.name} ({worst.right} of {worst.images})."
    )
    if worst.right / worst.images == best.right / best.images:
        lead = f"For every class {percent(best.right / best.images)} of the images are right."
    body = []
    for count in [*ranked, *(count for count in counts if not count.images)][:_MOST_CLASSES]:
        low, high = wilson_interval(count.right, count.images) if count.images else (0.0, 1.0)
        found = percent(count.right / count.images) if count.images else "-"
        given = percent(count.right / count.answered) if count.answered else "-"
        body.append([count.name, f"{count.images:,}", found, f"{100 * low:.0f} to {100 * high:.0f} %", given])
    header = ["class", "images", "found", "95 % interval", "right when it says so"]
    table = Table(
        header, body, note=f"The hardest {_MOST_CLASSES} of {len(counts)} classes." * (len(counts) > len(body))
    )
    if measured.model.config.multilabel:
        return Section("By class", lead, [table])
    blocks: list[Table | Plot] = [table]
    if mistakes := answers.mistakes()[:_MOST_MISTAKES]:
        (true, said), number = mistakes[0]
        names = answers.classes
        lead += f" The most frequent mistake is to take {names[true]} for {names[said]} ({_images(number)})."
        rows = [[names[true], names[said], f"{count:,}"] for (true, said), count in mistakes]
        if len(names) > 2:
            blocks.append(
                Table(["true class", "answer", "images"], rows, texts=2, heading="The most frequent mistakes")
            )
    if len(answers.classes) <= MOST_CONFUSED:
        caption = (
            "Rows: the true class. Columns: the answer. The stronger the colour, the larger the share of the true "
            "class. Everything off the diagonal is a mistake."
        )
        blocks.append(plot(confusion_figure(answers.confusion(), answers.classes), "Confusion matrix", caption))
    return Section("By class", lead, blocks)


def roc(measured: Measured) -> Section | None:
    """The ROC curve of two classes."""
    auc, answers = measured.chosen.auc, measured.answers
    if auc is None:
        return None
    negative, positive = answers.classes
    lead = (
        f"The threshold between the two classes is yours to choose. A random image of {positive} gets a higher "
        f"probability of {positive} than a random image of {negative} in {percent(auc)} of all pairs (AUC {auc:.3f}; "
        "0.5 is chance)."
    )
    alt = "Share of one class that is found against false alarms of the other"
    return Section("Found and false alarms", lead, [plot(roc_figure(*answers.roc(), positive), alt)])


def calibration(measured: Measured) -> Section | None:
    """Confidence against accuracy."""
    answers = measured.answers
    if measured.model.config.multilabel:
        return None
    error, gap = answers.calibration_error(), float(answers.confidence.mean() - answers.right.mean())
    verdict = "about as sure as it should be"
    if abs(gap) > 0.02:
        verdict = "surer than it should be" if gap > 0 else "less sure than it could be"
    lead = (
        f"The network is {verdict}: its mean confidence is {percent(float(answers.confidence.mean()))}, and "
        f"{percent(float(answers.right.mean()))} of its answers are right. Confidence and accuracy are apart by "
        f"{100 * error:.1f} points on average (expected calibration error, {BINS} bins)."
    )
    alt = "Share of right answers against confidence"
    return Section("Can its confidence be trusted?", lead, [plot(calibration_figure(answers.bins()), alt)])


def training(metrics: Sequence[Row], kept: str) -> Section | None:
    """Curves of the training; ``kept`` is the epoch that was kept."""
    shown = [{name: row[name] for name in row if name == "epoch" or "accuracy" in name} for row in metrics]
    if not any(len(row) > 1 for row in shown):
        return None
    lead = (
        f"Over {len(metrics)} epoch{'s' * (len(metrics) > 1)} (passes over the training images) the accuracy should "
        "rise and level off. If it ends far higher on training images than on validation images, which are not "
        "trained on, images were memorized; if looks at random places do as well, the network did not learn where to "
        f"look. The {kept} epoch was kept."
    )
    return Section("Training", lead, [plot(curves_figure(shown, _CURVES), "Accuracy over the epochs of the training")])


def looks_text(row: LooksRow) -> str:
    """Return the number of looks of a row in words."""
    return "no looks" if not row.total_looks else f"{row.total_looks} look{'s' * (row.total_looks > 1)}"


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def macs_text(macs: int) -> str:
    """Return multiply-adds with their unit."""
    unit, letter = macs_unit(macs)
    return f"{short_number(macs / unit)} {letter}"


def difference(row: LooksRow, other: LooksRow) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same images and its 95 % bootstrap interval, in points."""
    first, second = (np.array([bit == "1" for bit in bits.right], dtype=float) for bits in (row, other))
    low, high = bootstrap_interval(first - second)
    return 100 * (row.accuracy - other.accuracy), 100 * low, 100 * high


def _full_resolution(measured: Measured) -> str:
    """Say what the same backbone would cost on a whole image, if that is known."""
    model, sizes = measured.model, measured.answers.sizes_hw
    if not isinstance(model, TNet) or not measured.chosen.looks:
        return ""
    height, width = sizes.most_common(1)[0][0]
    try:
        macs = full_image_multiply_adds(model, (height, width))
    except ConfigError:  # as for many transformers
        return ""
    return f" The same backbone on a whole image of {width} x {height} px would need {macs_text(macs)}."
