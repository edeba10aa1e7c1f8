"""The report of a trained model, measured on labelled images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tnet.data.loading import LabelledData
from tnet.evaluation.attention import measure_attention
from tnet.evaluation.evaluator import Looks, LooksRow, evaluate, settings
from tnet.evaluation.resources import machine
from tnet.models.base import Model
from tnet.report import sections
from tnet.report.answers import Answers
from tnet.report.gallery import galleries
from tnet.report.page import Page, Section, Table, percent, write_page
from tnet.report.sections import Measured, macs_text
from tnet.training.curves import Row
from tnet.training.recipe import Recipe

_GALLERY = (
    "The boxes are where the network looked, and below each image are its looks as it saw them: besides the whole "
    "image at low resolution they are all that the answer was based on. The per cent is the probability that it gave."
)
_MOST_FACTS = 6
_GALLERY_WHOLE = "The per cent is the probability that the network gave its answer."


def write_report(
    model: Model,
    data: LabelledData,
    path: Path,
    *,
    name: str,
    source: str,
    recipe: Recipe | None = None,
    metrics: Sequence[Row] = (),
    looks: Sequence[Looks] = (),
    others: Sequence[tuple[str, Model]] = (),
    marked: tuple[LabelledData, Mapping[int, Float[Tensor, "_ 4"]]] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> LooksRow:
    """Measure a model and write a report of it, replacing the file; return its accuracy as the report states it.

    Args:
        model: the model.
        data: labelled images with its classes. All are evaluated, and at most 24 shown.
        path: HTML file.
        name: name of the model.
        source: description of the images.
        recipe: recipe that the model was trained by, if known.
        metrics: one row per epoch of its training (:func:`tnet.training.curves.read_run`), if known.
        looks: numbers of looks; empty for the model's own. The report is about the default one if it is among them,
            else about the last.
        others: other models to compare with, by name, at their own number of looks.
        marked: images with boxes of what decides in them, by index, as in
            :func:`tnet.evaluation.attention.measure_attention`.
        batch_size: images per batch.
        workers: processes that read images.
        device: device to run on.
        seed: seed of random places.
        progress: show progress on standard error.

    Raises:
        DataError: the images do not fit a model, or cannot be read.
        GeometryError: the model does not allow these looks.
        CheckpointError: the output of a model is not finite.
        OutputError: the file cannot be written.
    """
    config = model.config
    looks = list(looks) or config.listed_looks()
    own = config.eval_policy
    policies = list(dict.fromkeys([own, *(kind for kind in ("random", "centre") if kind in config.policies)]))
    asked = settings(model, looks, policies)
    learned = [setting for setting in asked if not setting.looks or setting.policy == own]
    chosen = next((setting for setting in learned if setting.looks == config.default_looks), learned[-1])
    answers = Answers(chosen, config, data.classes)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "device": device, "seed": seed}
    options["progress"] = progress
    rows = evaluate(model, data, looks=looks, policies=policies, observe=answers, **options)
    compared = [
        (other, evaluate(net, data, looks=(net.config.default_looks or 0,), **options)[0]) for other, net in others
    ]
    attention = None
    if marked is not None and chosen.looks:
        attention = measure_attention(
            model, *marked, looks=[chosen.looks], policies=policies, curve_images=0, **options
        )
    measured = Measured(model, rows, rows[asked.index(chosen)], answers, compared)
    shown = galleries(model, data, answers, progress)
    gallery = Section("Right, wrong and unsure", _GALLERY if chosen.looks else _GALLERY_WHOLE, shown)
    found = [
        sections.accuracy(measured),
        sections.places(measured),
        sections.marked(attention) if attention else None,
        sections.where(measured),
        gallery,
        sections.classes(measured),
        sections.roc(measured),
        sections.calibration(measured),
        _settings(model, name, source, recipe),
        sections.training(metrics, recipe.train.keep if recipe is not None else "best"),
    ]
    row = measured.chosen
    facts = [
        (percent(row.accuracy), f"right (95 % interval {100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f})")
    ]
    facts += [(f"{row.total_looks}", "looks at an image")] if row.looks else []
    facts += [(macs_text(row.macs), "multiply-adds per image"), (f"{row.images:,}", "images evaluated")]
    foot = f"Seed {seed}, {time.strftime('%Y-%m-%d')}, {machine_text()}. All was measured when this page was written."
    lead = [_what(model, row, _trained_on(recipe)), f"Measured on {row.images:,} labelled images: {source}."]
    write_page(Page(f"Report: {name}", lead, [section for section in found if section], facts, [foot]), path)
    return row


def _what(model: Model, row: LooksRow, trained_on: str) -> str:
    """Say in a few sentences what a model does."""
    config = model.config
    kind = "labels an image has" if config.multilabel else "classes an image shows"
    task = f"This network says which of {config.num_classes} {kind}"
    whole = f"the whole image at {config.whole_px} x {config.whole_px} px" if config.whole_px else ""
    if not row.looks:
        return f"{task}. It sees {whole}, and was trained on {trained_on}."
    places = f"looks at {row.total_looks} place{'s' * (row.total_looks > 1)} in it"
    sees = f"It first sees {whole}, and then {places}" if whole else f"It {places}"
    labels = "labels of whole images: where to look it learned by itself"
    seen = f"{sees}, each at {config.region_px} x {config.region_px} px"
    return f"{task}. {seen}. It was trained on {trained_on}, with {labels}."


def _trained_on(recipe: Recipe | None) -> str:
    if recipe is None:
        return "images that are not known, since there is no recipe beside it"
    data = recipe.data
    return f"synthetic digits ({data.digits.task})" if data.kind == "digits" else str(Path(data.root) / data.train)


def _settings(model: Model, name: str, source: str, recipe: Recipe | None) -> Section:
    """What was trained on what, and how."""
    facts = [("model", name), *model.config.facts()[:_MOST_FACTS], ("trained on", _trained_on(recipe))]
    if recipe is not None:
        train = recipe.train
        each = f"{train.images_per_epoch:,} images each" if train.images_per_epoch else "all images each"
        facts += [("recipe", recipe.title), ("length", f"up to {train.epochs} epochs, {each}")]
        facts += [("batch", f"{train.batch_size * train.devices} images"), ("seed", str(recipe.seed))]
        facts += [("optimizer", f"{recipe.optim.name}, learning rate {recipe.optim.lr:g}")]
    facts.append(("evaluated on", source))
    return Section("What was trained on what", "The settings that matter most.", [Table([], facts, texts=2)])


def machine_text() -> str:
    """Describe hardware and software in one line."""
    return ", ".join(f"{key} {value}" for key, value in machine().items())
