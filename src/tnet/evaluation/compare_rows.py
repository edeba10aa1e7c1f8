"""The work behind the rows of a comparison, kept by its content so that nothing is done twice.

Each trained or loaded model has a folder ``cache/<key>``, where the key is a hash of all that it follows from: for a
run the whole recipe with its data section and seed, the weights it starts from, and tnet's version; for a saved model
its files. What is measured of it lies there too, each under a hash of what it depends on beside the model. Names of
rows, and titles, are not part of any key. The images themselves are not either, only where they are read from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from tnet.config import parse_dataclass, to_plain
from tnet.data.config import DataConfig
from tnet.data.loading import LabelledData, number_classes_as, open_data, open_split
from tnet.errors import ConfigError, DataError, TnetError
from tnet.evaluation.compare_curves import RunCurve, run_curve
from tnet.evaluation.compare_measure import Accuracy, Cost, devices_here, machine, measure_accuracy, measure_costs
from tnet.evaluation.compare_suite import RowConfig, Suite
from tnet.files import make_folder, write_text
from tnet.models.base import Model
from tnet.models.io import CONFIG_NAME, WEIGHTS_NAME, load_model
from tnet.models.kind import kind_of
from tnet.models.registry import create_model
from tnet.training.curves import read_metrics
from tnet.training.recipe import Recipe, load_recipe
from tnet.training.run import LAST_CHECKPOINT, RECIPE_NAME, train

T = TypeVar("T")

_FORMAT = 1  # of what is kept; another number makes everything new


@dataclass(frozen=True)
class Effort:
    """What training took, that of the stages before it included.

    Attributes:
        steps: of the optimiser.
        images: shown in training, each time counted.
        minutes: of wall time, validation included; work lost to a kill left out.
    """

    steps: int
    images: int
    minutes: float

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.steps + other.steps, self.images + other.images, self.minutes + other.minutes)


@dataclass(frozen=True)
class Entry:
    """A trained, saved or registered model.

    Attributes:
        key: hash of what it follows from.
        folder: where what was found out about it is kept.
        seed: that it was trained with; the first of the suite where it was not trained here.
        model: its folder; ``None`` for a registered model.
        effort: of training; ``None`` where it was not trained here.
    """

    key: str
    folder: Path
    seed: int
    model: Path | None
    effort: Effort | None


@dataclass(frozen=True)
class _Accuracies:
    """As kept in a file."""

    found: tuple[Accuracy, ...]


@dataclass(frozen=True)
class _Costs:
    """As kept in a file."""

    found: tuple[Cost, ...]


@dataclass(frozen=True)
class _Effort:
    """As kept in a file: of the run alone; unfinished, only the time that counts so far."""

    effort: Effort
    finished: bool


class NotKeptError(Exception):
    """Something that is not in the cache, and is not to be made now."""


def content_key(*content: Any) -> str:
    """Hash of plain data, of dataclasses, or of lists and mappings of these: 16 hexadecimal digits."""
    text = json.dumps([to_plain(item) for item in content], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _version() -> str:
    try:
        return version("tnet")
    except PackageNotFoundError:  # run from its sources, uninstalled
        return "unknown"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(folder: Path) -> str:
    """Hash of a saved model's files.

    Args:
        folder: of the model, or of the run.

    Raises:
        ConfigError: it holds no model.
    """
    if not (folder / CONFIG_NAME).is_file() and (folder / "model" / CONFIG_NAME).is_file():
        folder = folder / "model"
    files = [folder / CONFIG_NAME, folder / WEIGHTS_NAME]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{folder} has no {missing[0]}; give a run folder or a saved model's folder")
    return content_key([_file_digest(file) for file in files])


def recipe_key(recipe: Recipe) -> str:
    """Hash of all that the outcome of a run follows from, with the content of the weights that it starts from."""
    # What changes nothing in the outcome, or is a place whose content counts, is left out.
    train_config = replace(recipe.train, workers=0, overlays=0, start_from=None, teacher=None)
    weights = getattr(getattr(recipe.model, "backbone", None), "weights", None)
    return content_key(
        _FORMAT, _version(), kind_of(recipe.model), replace(recipe, title="", train=train_config),
        *(
            model_digest(Path(folder)) if folder is not None else None
            for folder in (recipe.train.start_from, recipe.train.teacher)
        ),
        _file_digest(Path(weights)) if weights and Path(weights).is_file() else None,
    )  # fmt: skip


class Work:
    """Makes, or finds, what rows need.

    Args:
        suite: what is compared, and how.
        folder: of the cache.
        device: to evaluate on.
        progress: show progress bars on standard error.
        say: takes a line about what is being done.
    """

    def __init__(self, suite: Suite, folder: Path, device: str, progress: bool, say: Callable[[str], object]) -> None:
        self.suite, self.folder, self.device, self.progress, self.say = suite, folder, device, progress, say
        self._rows = {row.name: row for row in suite.rows}
        self._renewed: set[str] = set()

    def entries(self, row: RowConfig, *, make: bool = True, renew: bool = False) -> list[Entry]:
        """The models of a row: one for each seed, or one that is there already.

        Args:
            row: which.
            make: train what is not trained yet.
            renew: forget what is kept of them first.

        Raises:
            NotKeptError: not trained, and ``make`` is false.
            TnetError: training failed.
        """
        seeds = self.suite.seeds if row.recipe is not None else self.suite.seeds[:1]
        return [self._entry(row, seed, make, renew) for seed in seeds]

    def _entry(self, row: RowConfig, seed: int, make: bool, renew: bool) -> Entry:
        if row.recipe is not None:
            return self._trained(row, seed, make, renew)
        if row.model is not None:
            folder = Path(row.model)
            entry = Entry(content_key(_FORMAT, _version(), model_digest(folder)), Path(), seed, folder, None)
        else:
            entry = Entry(content_key(_FORMAT, _version(), {"registered": row.registered}), Path(), seed, None, None)
        entry = replace(entry, folder=self.folder / entry.key)
        self._prepare(entry.key, renew)
        return entry

    def _prepare(self, key: str, renew: bool) -> None:
        """Forget an entry if it is to be made anew, but only once."""
        if renew and key not in self._renewed:
            shutil.rmtree(self.folder / key, ignore_errors=True)
        self._renewed.add(key)

    def recipe(self, row: RowConfig, seed: int) -> Recipe:
        """The recipe of a row as it is run."""
        assert row.recipe is not None
        recipe = load_recipe(row.recipe, [*self.suite.overrides, *row.overrides, f"seed={seed}"])
        return recipe if self.suite.data is None else replace(recipe, data=self.suite.data)

    def _trained(self, row: RowConfig, seed: int, make: bool, renew: bool) -> Entry:
        """The model that a row's recipe makes with a seed."""
        recipe = self.recipe(row, seed)
        before = None if row.after is None else self._entry(self._rows[row.after], seed, make, renew=False)
        if before is not None:
            recipe = replace(recipe, train=replace(recipe.train, start_from=str(before.model)))
        key = recipe_key(recipe)
        self._prepare(key, renew)
        folder = self.folder / key
        kept = _read_kept(folder / "effort.json", _Effort)
        if kept is None or not kept.finished:
            if not make:
                raise NotKeptError
            kept = self._train(row, recipe, folder, kept)
        effort = kept.effort if before is None or before.effort is None else kept.effort + before.effort
        return Entry(key, folder, seed, folder / "run" / "model", effort)

    def _train(self, row: RowConfig, recipe: Recipe, folder: Path, kept: _Effort | None) -> _Effort:
        """Train, or go on with what was interrupted."""
        run, note = folder / "run", make_folder(folder) / "effort.json"
        minutes = (kept.effort.minutes if kept else 0.0) + _minutes_kept(run)
        # The run writes it anew when it starts; until then its age must not be counted a second time.
        (run / RECIPE_NAME).unlink(missing_ok=True)
        write_text(note, json.dumps(to_plain(_Effort(Effort(0, 0, minutes), False))))
        self.say(f"{row.name}, seed {recipe.seed}: {'training goes on' if minutes else 'training'} in {run}")
        # Lightning's bars go to standard output, which is for the tables.
        with contextlib.redirect_stdout(sys.stderr):
            seconds = train(recipe, run, resume=True, progress=self.progress).train_seconds
        steps = int(read_metrics(run / "logs" / "csv")[-1]["step"]) + 1
        images = steps * min(recipe.train.batch_size, self._images_per_epoch(recipe)) * recipe.train.devices
        done = _Effort(Effort(steps, images, minutes + seconds / 60), True)
        write_text(folder / "spec.json", json.dumps({"row": row.name, **to_plain(recipe)}, indent=1))
        write_text(note, json.dumps(to_plain(done)))
        return done

    def _images_per_epoch(self, recipe: Recipe) -> int:
        if recipe.train.images_per_epoch is not None:
            return recipe.train.images_per_epoch
        return len(open_data(recipe.data, recipe.model.in_channels, recipe.seed)[0])

    def model(self, row: RowConfig, entry: Entry) -> Model:
        """Load the model of an entry."""
        if entry.model is not None:
            return load_model(entry.model)
        assert row.registered is not None
        return create_model(row.registered).eval()

    def curves(self, row: RowConfig) -> list[RunCurve]:
        """How the runs of a row went; empty for a row without a recipe."""
        if row.recipe is None:
            return []
        return [
            run_curve(
                row.name,
                read_metrics(entry.folder / "run" / "logs" / "csv"),
                self.recipe(row, entry.seed).train.batch_size,
            )
            for entry in self.entries(row, make=False)
        ]

    def data(self, row: RowConfig, seed: int) -> tuple[DataConfig, LabelledData] | None:
        """The images to evaluate a row on; ``None`` for a registered model, which knows nothing.

        Raises:
            DataError: a saved model without a recipe, in a suite without data.
        """
        if row.registered is not None:
            return None
        if row.recipe is not None:
            recipe: Recipe | None = self.recipe(row, seed)
        else:
            recipe = _recipe_beside(Path(row.model or ""))
        config = self.suite.data or (recipe.data if recipe else None)
        if config is None:
            raise DataError(
                f"{row.model} has no {RECIPE_NAME} that says which images to evaluate on; give the suite a data section"
            )
        channels = recipe.model.in_channels if recipe else load_model(row.model or "").config.in_channels
        return config, open_split(config, channels, recipe.seed if recipe else seed, self.suite.split)

    def accuracies(self, row: RowConfig, entry: Entry, *, make: bool = True) -> list[Accuracy]:
        """Which images a model gets right; empty for a registered model.

        Raises:
            NotKeptError: not measured, and ``make`` is false.
        """
        if row.registered is not None:
            return []
        suite = self.suite
        policies = suite.policies_of(row)
        config = suite.data or (
            self.recipe(row, entry.seed).data if row.recipe else _data_beside(Path(row.model or ""))
        )
        key = content_key(config, suite.split, row.looks, policies, suite.batch_size, entry.seed)
        path = entry.folder / f"accuracy-{key}.json"

        def measure() -> _Accuracies:
            images = self.data(row, entry.seed)
            assert images is not None
            model = self.model(row, entry)
            number_classes_as(model.config.class_names, images[1])
            self.say(f"{row.name}, seed {entry.seed}: evaluating on {len(images[1])} images")
            return _Accuracies(tuple(measure_accuracy(
                model, images[1], looks=row.looks, policies=policies, batch_size=suite.batch_size,
                workers=suite.workers, device=self.device, seed=entry.seed, progress=self.progress,
            )))  # fmt: skip

        return list(_kept_or_made(path, _Accuracies, measure, make).found)

    def costs(self, row: RowConfig, entry: Entry, *, make: bool = True) -> list[Cost]:
        """What a model costs; arguments and errors as for :meth:`accuracies`."""
        suite = self.suite
        policies, here = suite.policies_of(row), devices_here(suite.costs.devices)
        config = replace(suite.costs, devices=here)
        sizes_from = None if suite.costs.image_size_hw else [suite.data, suite.split]
        key = content_key(config, row.looks, policies, machine(), sizes_from)
        path = entry.folder / f"costs-{key}.json"

        def measure() -> _Costs:
            model = self.model(row, entry)
            size_hw = suite.costs.image_size_hw or self._image_size(row, entry, model)
            self.say(f"{row.name}: measuring costs on {', '.join(here)} at {size_hw[0]} x {size_hw[1]} px")
            return _Costs(tuple(measure_costs(
                model, entry.model or row.registered or "", size_hw, looks=row.looks, policies=policies, config=config,
                progress=self.progress,
            )))  # fmt: skip

        return list(_kept_or_made(path, _Costs, measure, make).found)

    def _image_size(self, row: RowConfig, entry: Entry, model: Model) -> tuple[int, int]:
        """Height and width of the first image to evaluate on."""
        images = self.data(row, entry.seed)
        if images is None and self.suite.data is not None:
            seed, channels = self.suite.seeds[0], model.config.in_channels
            images = self.suite.data, open_split(self.suite.data, channels, seed, self.suite.split)
        if images is None:
            raise ConfigError(
                f"row {row.name!r} has no images whose size its costs could be measured at; set costs.image_size_hw"
            )
        image = images[1][0].image
        height, width = image.shape[-2:] if hasattr(image, "shape") else image.size_hw
        return int(height), int(width)


def _recipe_beside(folder: Path) -> Recipe | None:
    """The recipe by which a saved model was trained, if it lies beside it."""
    for place in (folder, folder.parent) if folder.name == "model" else (folder,):
        if (place / RECIPE_NAME).is_file():
            return load_recipe(place / RECIPE_NAME)
    return None


def _data_beside(folder: Path) -> DataConfig | None:
    recipe = _recipe_beside(folder)
    return recipe.data if recipe else None


def _minutes_kept(run: Path) -> float:
    """Minutes of training that an interrupted run can go on from: from its start to its last checkpoint."""
    start, end = run / RECIPE_NAME, run / LAST_CHECKPOINT
    if not start.is_file() or not end.is_file():
        return 0.0
    return max(0.0, end.stat().st_mtime - start.stat().st_mtime) / 60


def _kept_or_made(path: Path, kind: type[T], make_it: Callable[[], T], make: bool) -> T:
    """What is kept at ``path``, or else what is made, then kept there."""
    kept = _read_kept(path, kind)
    if kept is not None:
        return kept
    if not make:
        raise NotKeptError
    made = make_it()
    write_text(path, json.dumps(to_plain(made)))
    return made


def _read_kept(path: Path, kind: type[T]) -> T | None:
    """What is kept in a file; ``None`` if it is not there, or damaged, and so has to be made anew."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return parse_dataclass(kind, data, str(path)) if isinstance(data, dict) else None
    except (OSError, ValueError, RecursionError, TnetError):
        return None
