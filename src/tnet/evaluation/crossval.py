"""Cross-validation: a training per fold, and predictions for every image by a model that has not seen its group."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tnet.data.folder import LabelledImages
from tnet.data.folds import write_folds
from tnet.data.loading import LabelledData, open_data, open_labelled
from tnet.errors import ConfigError, OutputError
from tnet.evaluation.probabilities import calibration_error, collect_logits, fit_calibration
from tnet.evaluation.report import markdown_table
from tnet.files import write_text
from tnet.models.io import save_temperature
from tnet.text import csv_row, unmarked
from tnet.training.recipe import Recipe
from tnet.training.run import train

OUT_OF_FOLD = "out_of_fold.csv"
_RESAMPLES = 1000


@dataclass(frozen=True)
class Pooled:
    """Out-of-fold probabilities of images.

    Attributes:
        targets: class indices.
        probs: probabilities at the temperature fitted to validation images of the same training.
        raw: probabilities without a temperature.
        groups: group of each image; its path if it has none.
    """

    targets: Int[np.ndarray, " images"]
    probs: Float[np.ndarray, "images classes"]
    raw: Float[np.ndarray, "images classes"]
    groups: list[str]

    def of(self, rows: np.ndarray) -> Pooled:
        """Return the images of some rows."""
        return Pooled(self.targets[rows], self.probs[rows], self.raw[rows], [self.groups[row] for row in rows])


def accuracy(pooled: Pooled) -> float:
    """Return the share of images whose most probable class is right."""
    return float((pooled.probs.argmax(1) == pooled.targets).mean())


def auc(pooled: Pooled) -> float:
    """Return the area under the ROC curve, averaged over classes against the rest; nan if a class is missing."""
    from sklearn.metrics import roc_auc_score

    classes = pooled.probs.shape[1]
    if len(np.unique(pooled.targets)) < classes:
        return float("nan")
    if classes == 2:
        return float(roc_auc_score(pooled.targets, pooled.probs[:, 1]))
    return float(roc_auc_score(pooled.targets, pooled.probs, multi_class="ovr"))


def ece(pooled: Pooled) -> float:
    """Return the expected calibration error."""
    return _ece(pooled.probs, pooled.targets)


def ece_before(pooled: Pooled) -> float:
    """Return the expected calibration error without temperatures."""
    return _ece(pooled.raw, pooled.targets)


def _ece(probs: np.ndarray, targets: np.ndarray) -> float:
    best = torch.from_numpy(probs).max(dim=1)
    return calibration_error(best.values, best.indices == torch.from_numpy(targets))


MEASURES: dict[str, Callable[[Pooled], float]] = {
    "accuracy %": accuracy, "AUC %": auc, "ECE %": ece, "ECE % before temperature": ece_before,
}  # fmt: skip


def cross_validate(
    recipe: Recipe, out: Path, folds: int, *, progress: bool = True, say: Callable[[str], object] = lambda _: None
) -> str:
    """Train by a recipe once per fold, predict the images outside of each training, and return a table of the results.

    The training images of the recipe are divided into folds of whole groups (``data.group_column`` or
    ``data.group_pattern``). Each training splits ``data.val_fraction`` of its images off, also by groups, which choose
    the epoch and a temperature. Finished folds are not repeated, and one that was stopped is resumed.

    Writes ``OUT/folds/`` (tables), ``OUT/fold-N/`` (runs), ``OUT/out_of_fold.csv`` and ``OUT/crossval.md``.

    Args:
        recipe: the recipe; ``data.val`` is not used.
        out: folder of the results.
        folds: number of folds.
        progress: show progress bars.
        say: prints a line.

    Raises:
        ConfigError: the images are synthetic, annotated or have several labels.
        DataError: the images cannot be divided.
        TnetError: as in :func:`tnet.training.run.train`.
    """
    images = open_labelled(recipe.data)
    if images.multilabel:
        problem = "the images have several labels each, but cross-validation needs one class per image"
        raise ConfigError(f"{problem}; divide them with tnet split")
    _check_same_folds(out, folds, recipe.seed)
    numbers = write_folds(images, out / "folds", folds, recipe.seed)
    write_text(out / "folds" / "seed.txt", f"{folds} {recipe.seed}\n")
    data = replace(
        recipe.data, kind="table", train="", val=None, path_column="path", label_column="label", group_pattern=None,
        group_column="group" if images.groups else None,
    )  # fmt: skip
    for fold in range(folds):
        place = out / f"fold-{fold}"
        if (place / OUT_OF_FOLD).is_file():
            continue
        say(f"fold {fold + 1} of {folds}")
        tables = (out / "folds" / f"fold-{fold}").resolve()
        own = replace(recipe, data=replace(data, train=str(tables / "train.csv")))
        result = train(own, place, resume=(place / "recipe.yaml").is_file(), progress=progress)
        _, val = open_data(own.data, recipe.model.in_channels, recipe.seed)
        _, test = open_data(replace(own.data, val=str(tables / "test.csv")), recipe.model.in_channels, recipe.seed)
        temperature = fit_calibration(*collect_logits(result.model, val, progress=progress)).temperature
        save_temperature(place, temperature)
        answers = _rows(test, *collect_logits(result.model, test, progress=progress), temperature)
        write_text(place / OUT_OF_FOLD, "".join(map(csv_row, answers)))
    (header, *_), *_ = rows = [_read(out / f"fold-{fold}" / OUT_OF_FOLD) for fold in range(folds)]
    bodies = [part[1:] for part in rows]
    everything = [row for body in bodies for row in body]
    write_text(out / OUT_OF_FOLD, "".join(map(csv_row, [header, *everything])))
    pooled, *parts = (_pooled(body, len(images.classes)) for body in (everything, *bodies))
    table = summary(pooled, parts, seed=recipe.seed)
    sizes = f"{len(numbers)} images" + (f" of {len(set(images.groups))} groups" if images.groups else "")
    write_text(out / "crossval.md", f"# Cross-validation: {recipe.title}\n\n{sizes}, {folds} folds.\n\n{table}")
    return table


def _check_same_folds(out: Path, folds: int, seed: int) -> None:
    path = out / "folds" / "seed.txt"
    if path.is_file() and path.read_text(encoding="utf-8").split() != [str(folds), str(seed)]:
        found = " folds of seed ".join(path.read_text(encoding="utf-8").split()[:2])
        raise OutputError(f"{out} holds {found}, not {folds} folds of seed {seed}; give another --out")


def _rows(data: LabelledData, logits: Tensor, targets: Tensor, temperature: float) -> list[list[object]]:
    """Return a header, and a row per image: path, label, group, prediction, and probabilities of each class."""
    assert isinstance(data, LabelledImages)
    probs, raw = (logits / temperature).softmax(1), logits.softmax(1)
    columns = [f"{kind}_{index}" for kind in ("p", "raw") for index in range(len(data.classes))]
    rows: list[list[object]] = [["path", "label", "group", "predicted", "target", *columns]]
    for index, (path, target) in enumerate(zip(data.paths, targets.tolist(), strict=True)):
        values = [f"{value:.6g}" for value in (*probs[index].tolist(), *raw[index].tolist())]
        names = data.classes[target], data.groups[index] if data.groups else path
        rows.append([path, *names, data.classes[int(logits[index].argmax())], target, *values])
    return rows


def _read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [[unmarked(cell) for cell in row] for row in csv.reader(file)]


def _pooled(rows: list[list[str]], classes: int) -> Pooled:
    """Parse rows of :func:`_rows`, without the header."""
    values = np.array([row[5:] for row in rows], dtype=float)
    targets = np.array([int(row[4]) for row in rows])
    return Pooled(targets, values[:, :classes], values[:, classes:], [row[2] for row in rows])


def summary(pooled: Pooled, parts: list[Pooled], seed: int = 0) -> str:
    """Return a table: each measure by fold, its mean and standard deviation, and pooled with a 95 % interval.

    The interval is a bootstrap over groups.
    """
    draw = np.random.default_rng(seed)
    names = sorted(set(pooled.groups))
    members: dict[str, list[int]] = {name: [] for name in names}
    for index, group in enumerate(pooled.groups):
        members[group].append(index)
    rows_of = [np.array(members[name]) for name in names]
    samples = [
        pooled.of(np.concatenate([rows_of[i] for i in draw.integers(len(names), size=len(names))]))
        for _ in range(_RESAMPLES)
    ]
    lines = []
    for name, measure in MEASURES.items():
        values = [100 * measure(part) for part in parts]
        low, high = np.nanpercentile([100 * measure(sample) for sample in samples], [2.5, 97.5])
        spread = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
        by_fold = ", ".join(f"{value:.1f}" for value in values)
        lines.append([name, by_fold, spread, f"{100 * measure(pooled):.1f} ({low:.1f} to {high:.1f})"])
    return markdown_table(["measure", "by fold", "mean ± sd", "pooled (95 % interval)"], lines)
