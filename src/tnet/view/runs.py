"""Runs of the model on images, kept so that more looks go on from fewer."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tnet.errors import CheckpointError, ConfigError
from tnet.explain.explanation import Explanation
from tnet.geometry import Regions, cell_boxes, scaled_box, total_looks
from tnet.inference.predictor import LoadedImage, check_image_size, load_input, size_of
from tnet.inference.records import class_labels, class_probs, prediction_of
from tnet.models.base import Model, ModelConfig, ModelOutput
from tnet.models.engine import Traversal, advance
from tnet.models.tnet import TNet
from tnet.scenes import Scene, TensorBatch
from tnet.scenes.reading import ReadOptions
from tnet.traversal import BestFirst, LevelByLevel, Search, TimeLimit
from tnet.traversal.best_first import Score
from tnet.view.safety import BusyError, NotFoundError
from tnet.view.search import InOrder
from tnet.view.tiles import Stamp, stamp_of

Mode = Literal["policy", "search"]
Box = tuple[int, int, int, int]

MAX_LOOKS = 64
MAX_ASKED = 32
_MAX_RUNS = 32
_MAX_WAITING = 16  # requests for the model, which answers one at a time
_MAX_LOADED = 3  # images, which may be decoded as a whole
_SEED = 0  # of policies that draw
_DIGITS = 6
_NO_SCENE = TensorBatch(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))

T = TypeVar("T")


@dataclass(frozen=True)
class Stop:
    """When a search stops by itself; see :meth:`tnet.models.calibration.Calibration.search`."""

    mean_looks: float | None = None
    at_least: float | None = None
    max_ms: float | None = None


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides its image and number of looks."""

    mode: Mode = "policy"
    policy: str | None = None  # the model's for evaluation by default
    score: Score = "path"
    stop: Stop | None = None
    # Where going on from fewer looks would see other regions, or no model goes on.
    looks: int | None = None


@dataclass
class Run:
    """A traversal under way, or what a model without one answered."""

    id: str
    name: str  # path below the root
    file: Path
    stamp: Stamp
    settings: Settings
    size_hw: tuple[int, int]  # of the image as stored, the frame of all boxes
    scale_yx: tuple[float, float]  # stored pixels per pixel that the model sees
    traversal: Traversal | None = None
    output: ModelOutput | None = None
    asked: list[Box] = field(default_factory=list)
    steps: list[Taken] = field(default_factory=list)

    @property
    def regions(self) -> Regions:
        """All regions seen so far."""
        if self.traversal is not None:
            return self.traversal.trail.regions
        assert self.output is not None
        return self.output.regions


@dataclass(frozen=True)
class Taken:
    """State after a step."""

    rows: int
    chosen: int  # looks that were chosen: at level 1 by a policy, in total by a search
    probs: list[float]
    ms: float


class Runs:
    """Runs of one model, which answers one request at a time; the last runs are kept.

    Args:
        model: the model, in evaluation mode and on its device.
        read: how images are read for it.
    """

    def __init__(self, model: Model, read: ReadOptions) -> None:
        self.model, self.read = model, read
        self.searchable = model if isinstance(model, TNet) and model.locator is not None else None
        self.closing = False
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._loaded: OrderedDict[tuple[Path, Stamp], LoadedImage] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting = 0

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.get_buffer("mean").device

    def about(self) -> dict[str, Any]:
        """Return what may be asked of the model."""
        config, model = self.model.config, self.searchable
        scores = [] if model is None else ["path", "density", *(["gain"] if model.config.locator.value else [])]
        looks = config.default_looks[0] if config.default_looks else 0
        most = min(model.grid.cells, MAX_LOOKS) if model is not None else max(looks, 1) if looks else 0
        return {
            "classes": class_labels(config),
            "multilabel": config.multilabel,
            "base_px": config.look_px,
            "levels": getattr(config, "levels", 2 if config.default_looks else 1),
            "default_looks": looks,
            "max_looks": most,
            "default_search_looks": 0 if model is None else min(total_looks(model.config.looks), MAX_LOOKS),
            "max_search_looks": 0 if model is None else min(_places(model), MAX_LOOKS),
            "policies": list(config.policies) if config.default_looks else [],
            "policy": config.eval_policy,
            "scores": scores,
            "can_search": model is not None,
            "calibrated": model is not None and model.calibration is not None,
        }

    def answer(self, name: str, file: Path, settings: Settings, looks: int, asked: Sequence[Box]) -> dict[str, Any]:
        """Look at an image, going on from an earlier run with these settings if there is one.

        Raises:
            TnetError: the model, the image or the settings do not allow it.
            BusyError: too many requests wait for the model.
        """
        with self._turn(), torch.inference_mode():
            started = time.perf_counter()
            if self.searchable is None:
                run = self._without_search(name, file, settings, looks, asked)
            else:
                run = self._traversed(self.searchable, name, file, settings, looks, list(asked))
            shown = [step for step in run.steps if step.chosen <= looks]
            result = {"run": run.id, "path": name, **self._shown(run, shown)}
            done = run.traversal is None or run.traversal.pending is None
            stopped = done and settings.stop is not None and run.steps[-1].chosen < min(looks, MAX_LOOKS)
            return result | {"time_ms": 1000 * (time.perf_counter() - started), "stopped": stopped, "done": done}

    def look(self, run_id: str, row: int) -> UInt8[Tensor, "channels side side"]:
        """Return the pixels of one region of a run as the network saw them."""
        with self._turn():
            run = self.get(run_id)
            if not 0 <= row < len(run.regions):
                raise NotFoundError(f"the run has {len(run.regions)} regions, not row {row}")
            region = run.regions.take(torch.tensor([row]))
            scene = self.model.scene(_one(self._load(run.file, ()).image))
        config = self.model.config
        side = config.look_px if int(region.level) else config.whole_px or config.look_px
        return (scene.glimpse(region, side)[0] * 255).round().to(torch.uint8).cpu()

    def explained(self, run_id: str, rows: int | None, truth: str | None) -> Explanation:
        """Return what figures and files show of a run, up to a number of regions or all."""
        with self._turn(), torch.inference_mode():
            run = self.get(run_id)
            if rows is not None and not 1 <= rows <= len(run.regions):
                raise NotFoundError(f"the run has {len(run.regions)} regions, not {rows}")
            output, config = self._output(run, rows), self.model.config
            located = run.settings.mode == "search" or self.model.is_located(self.model.policy(run.settings.policy))
            prediction = prediction_of(output, 0, config, run.name, located=located, stored_size_hw=run.size_hw)
            image = self._load(run.file, ()).image
            return Explanation(self.model, image, output, prediction, class_labels(config), located, run.name, truth)

    def get(self, run_id: str) -> Run:
        """Return a run that is still kept."""
        if run_id not in self._runs:
            raise NotFoundError("this run is no longer kept; run the model on the image again")
        self._runs.move_to_end(run_id)
        return self._runs[run_id]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the model."""
        if self._waiting >= _MAX_WAITING:
            raise BusyError
        self._waiting += 1
        try:
            with self._lock:
                yield
        finally:
            self._waiting -= 1

    def _load(self, file: Path, looks: Sequence[int]) -> LoadedImage:
        key = (file, stamp_of(file))
        if key not in self._loaded:
            while len(self._loaded) >= _MAX_LOADED:
                self._loaded.popitem(last=False)
            self._loaded[key] = load_input(file, self.model.config, allow_small=True, looks=(), read=self.read)
        self._loaded.move_to_end(key)
        loaded = self._loaded[key]
        check_image_size(size_of(loaded.image), self.model.config, file.name, looks=looks, allow_small=True)
        return loaded

    def _begin(self, name: str, file: Path, settings: Settings, looks: Sequence[int]) -> tuple[Run, Any]:
        """Return a new run, not yet kept, and the image as the model takes it."""
        loaded = self._load(file, looks)
        stored_hw, size_hw = loaded.stored_size_hw, size_of(loaded.image)
        scale_yx = (stored_hw[0] / size_hw[0], stored_hw[1] / size_hw[1])
        run = Run(secrets.token_urlsafe(9), name, file, stamp_of(file), settings, stored_hw, scale_yx)
        return run, _one(loaded.image)

    def _keep(self, run: Run) -> None:
        self._runs[run.id] = run
        while len(self._runs) > _MAX_RUNS:
            self._runs.popitem(last=False)

    def _without_search(self, name: str, file: Path, settings: Settings, looks: int, asked: Sequence[Box]) -> Run:
        """Return the run of a model that looks in its own way, or at the whole image only."""
        model, title = self.model, self.model.config.title
        if settings.mode == "search" or asked or settings.stop is not None:
            raise ConfigError(f"the model is a {title} without a search, so that it cannot be led; use mode policy")
        settings = replace(settings, looks=looks)
        for run in self._runs.values():
            if (run.file, run.settings) == (file, settings) and run.stamp == stamp_of(file):
                return run
        chosen = model.config.resolve_looks(looks)
        run, image = self._begin(name, file, settings, chosen)
        policy = model.seeded_policy(settings.policy or model.config.eval_policy, _SEED, self.device)
        started = time.perf_counter()
        run.output = model(image, chosen, policy) if chosen else model(image, 0)
        run.steps.append(Taken(len(run.regions), looks, self._probs_of(run.output.logits), _ms_since(started)))
        self._keep(run)
        return run

    def _traversed(
        self, model: TNet, name: str, file: Path, settings: Settings, looks: int, asked: Sequence[Box]
    ) -> Run:
        """Return a run with this many looks at least, and these regions, going on from a kept one if possible."""
        settings, search = self._plan(model, settings, looks)
        needed = model.config.resolve_looks(looks) if settings.mode == "policy" else ()
        run = self._found(file, settings, looks, asked)
        if run is None:
            run, image = self._begin(name, file, settings, needed)
            run.traversal = traversal = model.search(image, search)
        else:
            assert run.traversal is not None
            traversal = run.traversal
            traversal.scene = model.scene(_one(self._load(file, needed).image))
            del self._runs[run.id]  # unless it goes well
        while not len(traversal.trail) or self._wants(run, traversal, looks):
            self._step(run, traversal)
        for box in asked[len(run.asked) :]:
            traversal.look_at(scaled_box(box, (1 / run.scale_yx[0], 1 / run.scale_yx[1])))
            self._step(run, traversal)
            run.asked.append(box)
        traversal.scene = _NO_SCENE  # it may hold a whole image
        self._keep(run)
        return run

    def _found(self, file: Path, settings: Settings, looks: int, asked: Sequence[Box]) -> Run | None:
        """Return the kept run to go on from: that with most of the regions asked for."""
        stamp, best = stamp_of(file), None
        for run in self._runs.values():
            known = len(run.asked)
            if (run.file, run.stamp, run.settings) != (file, stamp, settings) or run.asked != list(asked[:known]):
                continue
            # A region that is new comes after the looks that are shown now.
            is_ahead = known < len(asked) and run.steps[-1].chosen > looks
            if not is_ahead and (best is None or known >= len(best.asked)):
                best = run
        return best

    def _plan(self, model: TNet, settings: Settings, looks: int) -> tuple[Settings, Search]:
        """Return the settings without what does not matter, and the search that they ask for."""
        config, stop = model.config, settings.stop
        if settings.mode == "policy":
            if stop is not None:
                raise ConfigError("a policy looks as often as asked; use mode search for a rule that stops")
            kind = settings.policy or config.eval_policy
            if kind not in config.policies:
                raise ConfigError(f"unknown policy {kind!r}; give one of {', '.join(config.policies)}")
            settings, policy = Settings("policy", kind), partial(model.seeded_policy, kind, _SEED, self.device)
            if not (model.sees_collected and policy().needs_logits):
                return settings, InOrder((model.grid.cells, *config.looks[1:]), policy)
            if model.levels == 2:
                return settings, LevelByLevel((model.grid.cells,), policy(), one_by_one=True)
            search = LevelByLevel(config.resolve_looks(looks), policy(), one_by_one=True)
            return replace(settings, looks=looks), search
        if stop is not None and not (stop.mean_looks is None and stop.at_least is None):
            if model.calibration is None:
                raise ConfigError("the model is not calibrated, so that it cannot stop by itself; run tnet calibrate")
            settings = Settings("search", stop=stop)
            search_ = model.calibration.search(stop.mean_looks, stop.at_least, stop.max_ms, config.multilabel)
            return settings, search_
        rules = () if stop is None or stop.max_ms is None else (TimeLimit(stop.max_ms),)
        most = min(_places(model), MAX_LOOKS + MAX_ASKED)
        settings = Settings("search", score=settings.score, stop=stop)
        return settings, BestFirst(most, model.levels, score=settings.score, stop=rules)

    def _wants(self, run: Run, traversal: Traversal, looks: int) -> bool:
        """Return whether the next step belongs to this number of looks."""
        step = traversal.pending
        if step is None or run.settings.looks is not None:
            return step is not None
        is_inside = run.settings.mode == "policy" and int(step.regions.level[0]) > 1
        return is_inside or run.steps[-1].chosen < min(looks, MAX_LOOKS)

    def _step(self, run: Run, traversal: Traversal) -> None:
        if self.closing:
            raise BusyError
        started = time.perf_counter()
        advance([traversal])
        regions = traversal.trail.regions
        counted = (regions.level == 1) if run.settings.mode == "policy" else (regions.level > 0)
        chosen = int((counted & (regions.cell >= 0)).sum())
        probs = self._probs_of(traversal.logits)
        run.steps.append(Taken(len(regions), chosen, probs, _ms_since(started)))

    def _output(self, run: Run, rows: int | None = None) -> ModelOutput:
        """Return the output from the first regions of a run, or all."""
        if run.traversal is None:
            assert run.output is not None
            return run.output
        trail = run.traversal.trail
        return run.traversal.model.answer(trail if rows in (None, len(trail)) else trail.first(rows))

    def _probs_of(self, logits: Float[Tensor, "1 classes"]) -> list[float]:
        """Return class probabilities; raise CheckpointError if they are no numbers."""
        probs = class_probs(logits[0], self.model.config)
        if not bool(probs.isfinite().all()):
            raise CheckpointError("the model outputs infinite or NaN values for this image; load an earlier checkpoint")
        return [round(p, _DIGITS) for p in probs.tolist()]

    def _shown(self, run: Run, steps: Sequence[Taken]) -> dict[str, Any]:
        """Return the regions, answers and cells of the first steps of a run as plain data."""
        output = self._output(run, steps[-1].rows)
        regions, config = output.regions, self.model.config
        answers = [{"rows": step.rows, "looks": step.rows - 1, "probs": step.probs} for step in steps]
        count, whole, parts = len(regions), output.whole_weights, output.region_weights
        tops = _rows_of(output.whole_logits, output.region_logits, count, lambda logits: _top(logits, config))
        weights = _rows_of(whole, parts, count, lambda weight: round(float(weight), _DIGITS))
        boxes = [scaled_box(box, run.scale_yx) for box in regions.box_l0_yxyx.tolist()]
        asked = [
            run.traversal is not None and level > 0 and cell < 0
            for level, cell in zip(regions.level.tolist(), regions.cell.tolist(), strict=True)
        ]
        names = ("row", "level", "parent", "box", "asked", "weight", "top")
        columns = (range(count), regions.level.tolist(), regions.parent.tolist(), boxes, asked, weights, tops)
        table = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        return {"regions": table, "answers": answers, "cells": self._cells(run, len(regions))}

    def _cells(self, run: Run, rows: int) -> list[dict[str, Any]]:
        """Return the cells of the first regions that were scored, and their probabilities."""
        if run.traversal is None:
            return []
        trail, grid = run.traversal.trail, run.traversal.model.grid
        scored = trail.scored_rows
        probs = trail.all_scores.float().softmax(dim=1).cpu().tolist()
        boxes = cell_boxes(trail.regions.take(scored), grid).tolist()
        listed = zip(scored.tolist(), boxes, probs, strict=True)
        return [
            {
                "row": row,
                "boxes": [scaled_box(box, run.scale_yx) for box in row_boxes],
                "probs": [round(p, _DIGITS) for p in row_probs],
            }
            for row, row_boxes, row_probs in sorted(listed)
            if row < rows
        ]


def _places(model: TNet) -> int:
    """Return the number of cells of an image at all levels."""
    return sum(model.grid.cells**level for level in range(1, model.levels))


def _one(image: Tensor | Scene) -> Any:
    """Return one image as a model takes it."""
    return [image] if isinstance(image, Tensor) else image


def _ms_since(started: float) -> float:
    return 1000 * (time.perf_counter() - started)


def _rows_of(whole: Tensor | None, regions: Tensor | None, count: int, make: Callable[[Tensor], T]) -> list[T | None]:
    """Return something of each row of one image, the whole and the regions; ``None`` where a model has nothing."""
    made: list[T | None] = [None if whole is None else make(whole[0])]
    made += [None] * (count - 1) if regions is None else [make(value) for value in regions[0][: count - 1]]
    return made


def _top(logits: Float[Tensor, " classes"], config: ModelConfig) -> tuple[int, float]:
    """Return the most probable class and its probability."""
    prob, index = class_probs(logits, config).max(dim=0)
    return int(index), round(float(prob), _DIGITS)
