"""Runs of the model on images, kept so that more looks go on from fewer."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from tnet.errors import ConfigError
from tnet.explain.explanation import Explanation
from tnet.geometry import Regions, scaled_box
from tnet.inference.predictor import LoadedImage, check_image_size, load_input, size_of
from tnet.inference.records import class_labels, prediction_of
from tnet.models.base import Model, ModelOutput
from tnet.models.engine import Traversal, advance
from tnet.models.tnet import TNet
from tnet.scenes import SceneBatch, TensorBatch
from tnet.scenes.reading import ReadOptions
from tnet.traversal import BestFirst
from tnet.view.errors import BusyError, NotFoundError
from tnet.view.plain import cells_of, probabilities, regions_of
from tnet.view.plan import MAX_LOOKS, SEED, Settings, places, plan, searchable
from tnet.view.tiles import Stamp, stamp_of

Box = tuple[int, int, int, int]

_MAX_RUNS = 32
_MAX_WAITING = 16  # requests for the model, which answers one at a time
_MAX_LOADED = 3  # images, which may be decoded as a whole
_BUSY = "the model is busy with other requests; try again in a second"
_NO_SCENE = TensorBatch(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))


@dataclass(frozen=True)
class Taken:
    """State after a step."""

    rows: int
    chosen: int  # looks that were chosen: at level 1 by a policy, in total by a search
    probs: list[float]


@dataclass
class Run:
    """A traversal under way, or the output of a model that goes its own way."""

    id: str
    name: str  # path below the root
    file: Path
    stamp: Stamp
    settings: Settings
    size_hw: tuple[int, int]  # of the image as stored, the frame of all boxes
    scale_yx: tuple[float, float]  # stored pixels per pixel that the model sees
    traversal: Traversal | None = None
    given: ModelOutput | None = None
    asked: list[Box] = field(default_factory=list)
    steps: list[Taken] = field(default_factory=list)

    @property
    def regions(self) -> Regions:
        """All regions seen so far."""
        return self.output().regions if self.traversal is None else self.traversal.trail.regions

    def output(self, rows: int | None = None) -> ModelOutput:
        """Return the output from the first regions, or all."""
        if self.traversal is None:
            assert self.given is not None
            return self.given
        trail = self.traversal.trail
        return self.traversal.model.answer(trail if rows in (None, len(trail)) else trail.first(rows))


class Runs:
    """Runs of one model, which answers one request at a time; the last runs are kept.

    Args:
        model: the model, in evaluation mode and on its device.
        read: how images are read for it.
    """

    def __init__(self, model: Model, read: ReadOptions) -> None:
        self.model, self.read = model, read
        self.closing = False
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._loaded: OrderedDict[tuple[Path, Stamp], LoadedImage] = OrderedDict()
        self._model_lock, self._load_lock = threading.Lock(), threading.Lock()
        self._places = threading.BoundedSemaphore(_MAX_WAITING)

    def answer(self, name: str, file: Path, settings: Settings, looks: int, asked: Sequence[Box]) -> dict[str, Any]:
        """Look at an image, going on from an earlier run with these settings if there is one.

        Raises:
            TnetError: the model, the image or the settings do not allow it.
            BusyError: too many requests wait for the model.
        """
        model = searchable(self.model)
        with self._turn(), torch.inference_mode():
            started = time.perf_counter()
            if model is None:
                run = self._at_once(name, file, settings, looks, asked)
            else:
                run = self._step_by_step(model, name, file, settings, looks, asked)
            steps = [step for step in run.steps if step.chosen <= looks]
            rows, traversal = steps[-1].rows, run.traversal
            config = self.model.config
            return {
                "run": run.id,
                "path": name,
                "regions": regions_of(run.output(rows), config, run.scale_yx, is_led=traversal is not None),
                "answers": [{"rows": step.rows, "looks": step.rows - 1, "probs": step.probs} for step in steps],
                "cells": [] if traversal is None else cells_of(traversal, rows, run.scale_yx),
                "time_ms": round(1000 * (time.perf_counter() - started), 1),
                "stopped": _is_stopped(run, looks),
                "done": traversal is None or traversal.pending is None,
            }

    def look(self, run_id: str, row: int) -> UInt8[Tensor, "channels side side"]:
        """Return the pixels of one region of a run as the network saw them."""
        run, config = self.get(run_id), self.model.config
        regions = run.regions
        if row >= len(regions):
            raise NotFoundError(f"the run has {len(regions)} regions, not row {row}; ask for one of them")
        region = regions.take(torch.tensor([row]))
        side = config.region_px if int(region.level) else config.whole_px or config.region_px
        return (self._scene(self._again(run)).glimpse(region, side)[0] * 255).round().to(torch.uint8).cpu()

    def explained(self, run_id: str, rows: int | None, truth: str | None) -> Explanation:
        """Return what figures and files show of a run, up to a number of regions or all."""
        with self._turn(), torch.inference_mode():
            run, model = self.get(run_id), self.model
            if rows is not None and rows > len(run.regions):
                raise NotFoundError(f"the run has {len(run.regions)} regions, not {rows}; ask for as many at most")
            located = run.settings.mode == "search" or model.is_located(model.policy(run.settings.policy))
            output, image = run.output(rows), self._again(run).image
            shown = prediction_of(output, 0, model.config, run.name, located=located, stored_size_hw=run.size_hw)
            return Explanation(model, image, output, shown, class_labels(model.config), located, run.name, truth)

    def get(self, run_id: str) -> Run:
        """Return a run that is still kept."""
        if (run := self._runs.get(run_id)) is None:
            raise NotFoundError("this run is no longer kept; run the model on the image again")
        return run

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the model, unless too many do."""
        if not self._places.acquire(blocking=False):
            raise BusyError(_BUSY)
        try:
            with self._model_lock:
                yield
        finally:
            self._places.release()

    def _load(self, file: Path, looks: Sequence[int] = ()) -> LoadedImage:
        """Read an image, or return it again; raise ImageError if it is too small for looks at these levels."""
        with self._load_lock:
            key = (file, stamp_of(file))
            if key not in self._loaded:
                while len(self._loaded) >= _MAX_LOADED:
                    self._loaded.popitem(last=False)
                self._loaded[key] = load_input(file, self.model.config, looks=(), allow_small=True, read=self.read)
            self._loaded.move_to_end(key)
            loaded = self._loaded[key]
        check_image_size(size_of(loaded.image), self.model.config, loaded.path, looks=looks, allow_small=True)
        return loaded

    def _again(self, run: Run) -> LoadedImage:
        """Read the image of a run again."""
        if stamp_of(run.file) != run.stamp:
            raise NotFoundError(f"image {run.name} was replaced since this run; run the model on it again")
        return self._load(run.file)

    def _scene(self, loaded: LoadedImage) -> SceneBatch:
        return self.model.scene([loaded.image])

    def _begin(self, name: str, file: Path, settings: Settings, loaded: LoadedImage) -> Run:
        (high, wide), (height, width) = loaded.stored_size_hw, size_of(loaded.image)
        scale_yx = high / height, wide / width
        return Run(secrets.token_urlsafe(9), name, file, stamp_of(file), settings, (high, wide), scale_yx)

    def _keep(self, run: Run) -> Run:
        self._runs[run.id] = run
        self._runs.move_to_end(run.id)
        while len(self._runs) > _MAX_RUNS:
            self._runs.popitem(last=False)
        return run

    def _at_once(self, name: str, file: Path, settings: Settings, looks: int, asked: Sequence[Box]) -> Run:
        """Run a model that looks in its own way, or at the whole image only."""
        model, config = self.model, self.model.config
        if settings.mode == "search" or settings.stop is not None or asked:
            raise ConfigError(f"the model is a {config.title} without a search, so it cannot be led; use mode policy")
        chosen = config.resolve_looks(looks)
        loaded = self._load(file, chosen)
        run, device = self._begin(name, file, settings, loaded), model.get_buffer("mean").device
        policy = model.seeded_policy(settings.policy or config.eval_policy, SEED, device)
        run.given = model(self._scene(loaded), chosen, policy) if chosen else model(self._scene(loaded), 0)
        run.steps.append(Taken(len(run.regions), looks, probabilities(run.output().logits[0], config)))
        return self._keep(run)

    def _step_by_step(
        self, model: TNet, name: str, file: Path, settings: Settings, looks: int, asked: Sequence[Box]
    ) -> Run:
        """Return a run with this many looks at least and these regions, going on from a kept one if possible."""
        settings, search = plan(model, settings, looks)
        loaded = self._load(file, model.config.resolve_looks(looks) if settings.mode == "policy" else ())
        run = self._found(file, settings, looks, asked)
        if run is None:
            run = self._begin(name, file, settings, loaded)
            run.traversal = model.search(self._scene(loaded), search)
        traversal = run.traversal
        assert traversal is not None
        traversal.scene = self._scene(loaded)
        try:
            while not run.steps or _belongs(run, traversal, looks):
                self._step(run, traversal)
            for box in asked[len(run.asked) :]:
                traversal.look_at(scaled_box(box, (1 / run.scale_yx[0], 1 / run.scale_yx[1])))
                self._step(run, traversal)
                run.asked.append(box)
        except BaseException:
            self._runs.pop(run.id, None)
            raise
        finally:
            traversal.scene = _NO_SCENE  # it may hold a whole image
        return self._keep(run)

    def _found(self, file: Path, settings: Settings, looks: int, asked: Sequence[Box]) -> Run | None:
        """Return the kept run to go on from: the one with most of the regions asked for."""
        stamp, best = stamp_of(file), None
        for run in self._runs.values():
            known = len(run.asked)
            if (run.file, run.stamp, run.settings) != (file, stamp, settings) or run.asked != list(asked[:known]):
                continue
            # A region that is new comes after the looks that are shown now.
            is_ahead = known < len(asked) and run.steps[-1].chosen > looks
            if run.traversal is not None and not is_ahead and (best is None or known >= len(best.asked)):
                best = run
        return best

    def _step(self, run: Run, traversal: Traversal) -> None:
        if self.closing:
            raise BusyError(_BUSY)
        advance([traversal])
        regions = traversal.trail.regions
        counted = (regions.level == 1) if run.settings.mode == "policy" else (regions.level > 0)
        chosen = int((counted & (regions.cell >= 0)).sum())
        run.steps.append(Taken(len(regions), chosen, probabilities(traversal.logits[0], self.model.config)))


def _belongs(run: Run, traversal: Traversal, looks: int) -> bool:
    """Return whether the next step of a run belongs to this number of looks."""
    step = traversal.pending
    if step is None or run.settings.looks is not None:
        return step is not None
    is_inside = run.settings.mode == "policy" and int(step.regions.level[0]) > 1
    return is_inside or run.steps[-1].chosen < min(looks, MAX_LOOKS)


def _is_stopped(run: Run, looks: int) -> bool:
    """Return whether a rule ended a run before this number of looks, while there was more to see."""
    traversal = run.traversal
    if traversal is None or run.settings.stop is None or traversal.pending is not None:
        return False
    assert isinstance(traversal.search, BestFirst)
    return run.steps[-1].chosen < min(looks, MAX_LOOKS, traversal.search.looks, places(traversal.model))
