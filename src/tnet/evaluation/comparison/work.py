"""The cached work behind the rows of a comparison: training, accuracy, cost.

Each trained or loaded model has a folder ``cache/<key>``. The key is a hash of everything the model depends on: for a
run the whole recipe with its data section and seed, the weights it starts from, and tnet's version; for a saved model
its files. Measurements are stored in the same folder under a hash of their own settings. Names of rows and titles are
not part of any key, and neither are the images themselves, only where they are read from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tnet
from tnet.config import parse_dataclass, to_plain
from tnet.data.loading import LabelledData, number_classes_as, open_data, open_split
from tnet.errors import ConfigError, DataError, TnetError
from tnet.evaluation.comparison.suite import RowConfig, Suite
from tnet.evaluation.evaluator import LooksRow, evaluate
from tnet.evaluation.plots import RunCurve, run_curve
from tnet.evaluation.resources import Cost, devices_here, machine, measure_costs
from tnet.files import file_digest, make_folder, write_text
from tnet.models.base import Model
from tnet.models.io import RECIPE_NAME, load_model, model_digest, recipe_path
from tnet.models.kind import kind_of
from tnet.models.registry import create_model
from tnet.training.curves import read_metrics
from tnet.training.guide import SELF
from tnet.training.recipe import Recipe, load_recipe
from tnet.training.run import LAST_CHECKPOINT, train

_MAX_IMAGES = 10_000_000
T = TypeVar("T")

_FORMAT = 3  # version of the cache; a new number measures everything again


@dataclass(frozen=True)
class Effort:
    """Training effort, including earlier stages."""

    steps: int
    images: int  # seen in training, with repetition
    minutes: float  # wall time with validation, without work that was lost when a run was killed

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.steps + other.steps, self.images + other.images, self.minutes + other.minutes)


@dataclass(frozen=True)
class Entry:
    """A trained, saved or registered model, and the cache folder of its results."""

    folder: Path
    seed: int  # the suite's first if the model was not trained here
    model: Path | None  # folder of the model; None for a registered model
    effort: Effort | None  # None if the model was not trained here


@dataclass(frozen=True)
class _Effort:
    """Effort of a run without its earlier stages; only the time so far while it is unfinished."""

    effort: Effort
    finished: bool


class NotCachedError(Exception):
    """A result is not in the cache and must not be computed now."""


def content_key(*content: Any) -> str:
    """Return a hash of plain data and dataclasses: 16 hexadecimal digits."""
    text = json.dumps([to_plain(item) for item in content], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe_key(recipe: Recipe) -> str:
    """Return a hash of everything the outcome of a run depends on, including the weights that it starts from."""
    # Settings without influence on the outcome are left out, and paths whose content is hashed instead.
    train_config = replace(recipe.train, workers=0, overlays=0, start_from=None, teacher=None)
    guide = recipe.train.guide
    taught_by = None if guide.teacher == SELF else guide.teacher
    guide = replace(guide, teacher="" if taught_by else guide.teacher, maps=guide.maps and "")
    train_config = replace(train_config, guide=guide)
    weights = getattr(getattr(recipe.model, "backbone", None), "weights", None)
    sources = recipe.train.start_from, recipe.train.teacher, taught_by
    digests = [None if folder is None else model_digest(Path(folder)) for folder in sources]
    digests.append(file_digest(Path(weights)) if weights and Path(weights).is_file() else None)
    plain = replace(recipe, title="", train=train_config)
    return content_key(_FORMAT, tnet.__version__, kind_of(recipe.model), plain, *digests)


class Work:
    """Computes the results of rows, or reads them from the cache folder; arguments: see ``compare``."""

    def __init__(self, suite: Suite, folder: Path, device: str, progress: bool, say: Callable[[str], object]) -> None:
        self.suite, self.folder, self.device, self.progress, self.say = suite, folder, device, progress, say
        self._rows = {row.name: row for row in suite.rows}
        self._renewed: set[str] = set()
        self._recipes: dict[tuple[str, int], Recipe] = {}

    def entries(self, row: RowConfig, *, make: bool = True, renew: bool = False) -> list[Entry]:
        """Return the models of a row: one per seed for a recipe, otherwise one; ``renew`` deletes cached results first.

        Raises:
            NotCachedError: a model is not trained and ``make`` is false.
            TnetError: training failed.
        """
        if row.recipe is not None:
            return [self._trained(row, seed, make, renew) for seed in self.suite.seeds]
        model = None if row.model is None else Path(row.model)
        content = {"registered": row.registered} if model is None else model_digest(model)
        folder = self._cache_folder(content_key(_FORMAT, tnet.__version__, content), renew)
        return [Entry(folder, self.suite.seeds[0], model, None)]

    def _cache_folder(self, key: str, renew: bool) -> Path:
        """Return the cache folder of a key; if it is to be renewed, delete it on first use."""
        if renew and key not in self._renewed:
            shutil.rmtree(self.folder / key, ignore_errors=True)
        self._renewed.add(key)
        return self.folder / key

    def recipe(self, row: RowConfig, seed: int) -> Recipe:
        """Return the recipe of a row with all overrides."""
        assert row.recipe is not None
        if (row.name, seed) not in self._recipes:  # parsing takes longer than finding results in the cache
            recipe = load_recipe(row.recipe, [*self.suite.overrides, *row.overrides, f"seed={seed}"])
            self._recipes[row.name, seed] = recipe if self.suite.data is None else replace(recipe, data=self.suite.data)
        return self._recipes[row.name, seed]

    def _trained(self, row: RowConfig, seed: int, make: bool, renew: bool) -> Entry:
        recipe = self.recipe(row, seed)
        before = None if row.after is None else self._trained(self._rows[row.after], seed, make, renew=False)
        if before is not None:
            recipe = replace(recipe, train=replace(recipe.train, start_from=str(before.model)))
        folder = self._cache_folder(recipe_key(recipe), renew)
        kept = _read_cached(folder / "effort.json", lambda data: parse_dataclass(_Effort, data, "effort"))
        if kept is None or not kept.finished:
            if not make:
                raise NotCachedError
            kept = self._train(row, recipe, folder, kept)
        effort = kept.effort if before is None or before.effort is None else kept.effort + before.effort
        return Entry(folder, seed, folder / "run" / "model", effort)

    def _train(self, row: RowConfig, recipe: Recipe, folder: Path, kept: _Effort | None) -> _Effort:
        run, note = folder / "run", make_folder(folder) / "effort.json"
        minutes = (kept.effort.minutes if kept else 0.0) + _minutes_kept(run)
        # The run writes it again when it starts; until then its age must not be counted a second time.
        (run / RECIPE_NAME).unlink(missing_ok=True)
        write_text(note, json.dumps(to_plain(_Effort(Effort(0, 0, minutes), False))))
        self.say(f"{row.name}, seed {recipe.seed}: {'resuming' if minutes else 'training'} in {run}")
        # Lightning's bars go to standard output, which is for the tables.
        with contextlib.redirect_stdout(sys.stderr):
            seconds = train(recipe, run, resume=True, progress=self.progress).train_seconds
        steps = int(read_metrics(run / "logs" / "csv")[-1]["step"]) + 1
        per_epoch = recipe.train.images_per_epoch
        if per_epoch is None:
            per_epoch = len(open_data(recipe.data, recipe.model.in_channels, recipe.seed)[0])
        images = steps * min(recipe.train.batch_size, per_epoch) * recipe.train.devices
        done = _Effort(Effort(steps, images, minutes + seconds / 60), True)
        write_text(folder / "spec.json", json.dumps({"row": row.name, **to_plain(recipe)}, indent=1))
        write_text(note, json.dumps(to_plain(done)))
        return done

    def model(self, row: RowConfig, entry: Entry) -> Model:
        """Load the model of an entry."""
        if entry.model is not None:
            return load_model(entry.model)
        assert row.registered is not None
        return create_model(row.registered).eval()

    def curves(self, row: RowConfig) -> list[RunCurve]:
        """Return the learning curves of a row; empty for a row without a recipe."""
        curves = []
        for entry in self.entries(row, make=False) if row.recipe is not None else []:
            metrics = read_metrics(entry.folder / "run" / "logs" / "csv")
            curves.append(run_curve(row.name, metrics, self.recipe(row, entry.seed).train.batch_size))
        return curves

    def data(self, row: RowConfig, seed: int) -> LabelledData | None:
        """Open the images to evaluate a row on; ``None`` for a registered, untrained model.

        Raises:
            DataError: a saved model has no recipe, and the suite has no data section.
        """
        if row.registered is not None:
            return None
        recipe = self._recipe_of(row, seed)
        config = self.suite.data or (recipe.data if recipe else None)
        if config is None:
            problem = f"{row.model} has no {RECIPE_NAME}, so its images are unknown"
            raise DataError(f"{problem}; give the suite a data section")
        channels = recipe.model.in_channels if recipe else load_model(row.model or "").config.in_channels
        return open_split(config, channels, recipe.seed if recipe else seed, self.suite.split)

    def _recipe_of(self, row: RowConfig, seed: int) -> Recipe | None:
        """Return the recipe of a row, or the one beside its saved model, if there is one."""
        if row.recipe is not None:
            return self.recipe(row, seed)
        path = recipe_path(Path(row.model or ""))
        return None if path is None else load_recipe(path)

    def accuracies(self, row: RowConfig, entry: Entry, *, make: bool = True) -> list[LooksRow]:
        """Evaluate a model, or read cached results; empty for a registered model.

        Raises:
            NotCachedError: not measured, and ``make`` is false.
        """
        if row.registered is not None:
            return []
        suite = self.suite
        policies = suite.policies_of(row)
        recipe = None if suite.data else self._recipe_of(row, entry.seed)
        data = recipe.data if recipe else suite.data
        key = content_key(data, suite.split, row.looks, policies, suite.batch_size, entry.seed)

        def measure() -> list[LooksRow]:
            images = self.data(row, entry.seed)
            assert images is not None
            model = self.model(row, entry)
            number_classes_as(model.config.class_names, images)
            self.say(f"{row.name}, seed {entry.seed}: evaluating on {len(images)} images")
            return evaluate(
                model, images, looks=row.looks, policies=policies, batch_size=suite.batch_size,
                workers=suite.workers, device=self.device, seed=entry.seed, progress=self.progress,
            )  # fmt: skip

        return _cached(entry.folder / f"accuracy-{key}.json", LooksRow, measure, make)

    def costs(self, row: RowConfig, entry: Entry, *, make: bool = True) -> list[Cost]:
        """Measure the cost of a model, or read it from the cache; see :meth:`accuracies`."""
        suite = self.suite
        policies, here = suite.policies_of(row), devices_here(suite.costs.devices)
        config = replace(suite.costs, devices=here)
        sizes_from = None if suite.costs.image_size_hw else [suite.data, suite.split]
        key = content_key(config, row.looks, policies, machine(), sizes_from)

        def measure() -> list[Cost]:
            model = self.model(row, entry)
            size_hw = suite.costs.image_size_hw or self._image_size(row, entry, model)
            self.say(f"{row.name}: measuring costs on {', '.join(here)} at {size_hw[0]} x {size_hw[1]} px")
            source, progress = entry.model or row.registered or "", self.progress
            return measure_costs(
                model, source, size_hw, looks=row.looks, policies=policies, config=config, progress=progress
            )

        return _cached(entry.folder / f"costs-{key}.json", Cost, measure, make)

    def _image_size(self, row: RowConfig, entry: Entry, model: Model) -> tuple[int, int]:
        images = self.data(row, entry.seed)
        if images is None and self.suite.data is not None:
            seed, channels = self.suite.seeds[0], model.config.in_channels
            images = open_split(self.suite.data, channels, seed, self.suite.split)
        if images is None:
            problem = f"row {row.name!r} has no images to take the size for cost measurements from"
            raise ConfigError(f"{problem}; set costs.image_size_hw")
        return images[0].size_hw


def _minutes_kept(run: Path) -> float:
    """Return the minutes of training that a resumed run keeps: from its start to its last checkpoint."""
    start, end = run / RECIPE_NAME, run / LAST_CHECKPOINT
    if not start.is_file() or not end.is_file():
        return 0.0
    return max(0.0, end.stat().st_mtime - start.stat().st_mtime) / 60


def _cached(path: Path, type_: type[T], compute: Callable[[], list[T]], make: bool) -> list[T]:
    """Return the rows cached at ``path``; compute and store them if they are missing and ``make`` is true."""

    def parse(data: Any) -> list[T]:  # a row has a character per image
        return [parse_dataclass(type_, row, str(path), max_characters=_MAX_IMAGES) for row in data["rows"]]

    rows = _read_cached(path, parse)
    if rows is None:
        if not make:
            raise NotCachedError
        rows = compute()
        write_text(path, json.dumps({"rows": to_plain(rows)}))
    return rows


def _read_cached(path: Path, parse: Callable[[Any], T]) -> T | None:
    """Return a cached result; ``None`` if the file is missing or damaged."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, TnetError):
        return None
