"""From what a person asks for to the search that does it, one look at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from tnet.errors import ConfigError
from tnet.geometry import Regions, total_looks
from tnet.inference.records import class_labels
from tnet.models.base import Model
from tnet.models.engine import Traversable
from tnet.models.tnet import TNet
from tnet.traversal import BestFirst, Choice, LevelByLevel, Policy, Search, Step, TimeLimit, Trail
from tnet.traversal.best_first import Score

Mode = Literal["policy", "search"]

MAX_LOOKS = 64
MAX_ASKED = 32
SEED = 0  # of policies that draw


@dataclass(frozen=True)
class Stop:
    """When a search stops by itself; see :meth:`tnet.models.calibration.Calibration.search`."""

    mean_looks: float | None = None
    at_least: float | None = None
    max_ms: float | None = None


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides its image and number of looks.

    ``looks`` is set only if other numbers of looks see other regions, so that no run goes on from fewer.
    """

    mode: Mode = "policy"
    policy: str | None = None  # the model's for evaluation by default
    score: Score = "path"
    stop: Stop | None = None
    looks: int | None = None


class InOrder(Search):
    """Look at one cell at a time, best first: after each look at level 1, those inside it.

    The regions are those of :class:`tnet.traversal.LevelByLevel` with as many looks; only their order differs.

    Args:
        looks: cells of each region of levels 0, 1, ...
        policy: makes the policy; one that draws must draw the same each time, and one cell more for one look more.
    """

    def __init__(self, looks: Sequence[int], policy: Callable[[], Policy]) -> None:
        self.looks, self.policy = tuple(looks), policy
        self.needs_logits = policy().needs_logits

    @override
    def wants_scores(self, regions: Regions) -> Bool[Tensor, " regions"]:
        return (regions.level < len(self.looks)) & self.needs_logits

    @override
    def __call__(self, trail: Trail) -> Step | None:
        regions = trail.regions
        is_asked = (regions.level > 0) & (regions.cell < 0)
        rows = ((regions.level < len(self.looks)) & ~is_asked).nonzero().flatten().tolist()
        for row in reversed(rows):  # what was seen last is divided first
            seen = regions.cell[(regions.parent == row) & (regions.cell >= 0)].tolist()
            if len(seen) < self.looks[int(regions.level[row])]:
                parent = torch.tensor([row])
                chosen = self.policy()(trail.scores(parent), len(seen) + 1).cells[0].tolist()
                new = next(cell for cell in chosen if cell not in seen)
                return trail.step(parent, Choice.of_cells(torch.tensor([[new]])))
        return None


def searchable(model: Model) -> TNet | None:
    """Return the model if it can be led through an image."""
    return model if isinstance(model, TNet) and model.locator is not None else None


def abilities(model: Model) -> dict[str, Any]:
    """Return what may be asked of a model."""
    config, tnet = model.config, searchable(model)
    looks = config.default_looks[0] if config.default_looks else 0
    return {
        "classes": class_labels(config),
        "multilabel": config.multilabel,
        "base_px": config.region_px,
        "levels": getattr(config, "levels", 2 if looks else 1),
        "default_looks": looks,
        "max_looks": looks if tnet is None else min(tnet.grid.cells, MAX_LOOKS),
        "default_search_looks": 0 if tnet is None else min(total_looks(tnet.config.looks), MAX_LOOKS),
        "max_search_looks": 0 if tnet is None else min(places(tnet), MAX_LOOKS),
        "policies": list(config.policies) if looks else [],
        "policy": config.eval_policy,
        "scores": [] if tnet is None else ["path", "density", *["gain"] * tnet.config.locator.value],
        "can_search": tnet is not None,
        "calibrated": tnet is not None and tnet.calibration is not None,
    }


def plan(model: TNet, settings: Settings, looks: int) -> tuple[Settings, Search]:
    """Return the settings without what does not matter, and the search that they ask for.

    Raises:
        ConfigError: the model has no such policy or score, is not calibrated, or the settings contradict each other.
        GeometryError: the model does not allow so many looks.
    """
    config, stop, device = model.config, settings.stop, model.get_buffer("mean").device
    if settings.mode == "policy":
        if stop is not None:
            raise ConfigError("a policy takes as many looks as asked for; use mode search with a rule that stops")
        kind = settings.policy or config.eval_policy
        if kind not in config.policies:
            raise ConfigError(f"unknown policy {kind!r}; give one of {', '.join(config.policies)}")
        settings, policy = Settings(policy=kind), partial(model.seeded_policy, kind, SEED, device)
        each = config.resolve_looks(looks)
        if not (model.sees_collected and policy().needs_logits):
            return settings, InOrder((model.grid.cells, *config.looks[1:]), policy)
        if model.levels == 2:
            return settings, LevelByLevel((model.grid.cells,), policy(), one_by_one=True)
        return replace(settings, looks=looks), LevelByLevel(each, policy(), one_by_one=True)
    if stop is None or (stop.mean_looks is None and stop.at_least is None):
        rules = () if stop is None or stop.max_ms is None else (TimeLimit(stop.max_ms),)
        most = min(places(model), MAX_LOOKS + MAX_ASKED)
        settings = Settings("search", score=settings.score, stop=stop)
        return settings, BestFirst(most, model.levels, score=settings.score, stop=rules)
    if model.calibration is None:
        raise ConfigError("the model is not calibrated, so that it cannot stop by itself; run tnet calibrate")
    search = model.calibration.search(stop.mean_looks, stop.at_least, stop.max_ms, config.multilabel)
    return Settings("search", stop=stop), search


def places(model: Traversable) -> int:
    """Return the number of cells of an image at all levels."""
    return sum(model.grid.cells**level for level in range(1, model.levels))
