"""The choice of base resolution, levels, grid and looks for images of given sizes, within a budget of multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import timm

from tnet.backbones import BackboneConfig
from tnet.cost import build_outline, full_image_multiply_adds, multiply_adds
from tnet.errors import ConfigError
from tnet.evaluation.report import macs_unit
from tnet.geometry import Grid, GridFit, fit_grid, total_looks
from tnet.models.config import TNetConfig
from tnet.models.tnet import TNet
from tnet.suggest.survey import Survey

# Base resolutions to choose from, pixels. More than 224 costs more, and most weights were trained at no more.
BASES_PX = tuple(range(224, 63, -16))
# A look should be this many times finer than the whole image, and must be at least the second.
GAIN, LEAST_GAIN = 2.0, 1.5
_LEAST_EXTENT = 0.3  # smaller cells are too faint in their region to be chosen well
_LOOKS = 3  # with one level of regions; with two, 2 and 2 inside each; with more, 2 and one inside each


def format_macs(macs: int) -> str:
    """Return a number of multiply-adds with three digits: ``1.20 G``, ``55.4 M``."""
    unit, letter = macs_unit(macs)
    number = macs / unit
    return f"{number:,.0f} {letter}" if number >= 99.95 else f"{number:#.3g} {letter}"


@dataclass(frozen=True)
class Weights:
    """A backbone and its pretrained weights."""

    name: str
    hub_id: str = ""  # source of timm's weights; empty if it has none
    side_px: int = 224  # image side of the pretraining
    file: str | None = None  # given instead of timm's

    @classmethod
    def of(cls, name: str, file: Path | None = None) -> Weights:
        """Return a file, or timm's pretrained weights of a backbone, if it has any."""
        pretrained = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        side_px = cls.side_px if pretrained is None else int(pretrained.input_size[-1])
        if file is not None:
            return cls(name, side_px=side_px, file=str(file))
        if pretrained is None or not pretrained.has_weights:
            return cls(name)
        return cls(name, str(pretrained.hf_hub_id or pretrained.url), side_px)

    @property
    def is_pretrained(self) -> bool:
        """Whether there are any weights."""
        return bool(self.hub_id or self.file)

    @property
    def backbone(self) -> BackboneConfig:
        """The backbone with these weights."""
        return BackboneConfig(self.name, pretrained=bool(self.hub_id), weights=self.file)

    @property
    def is_cached(self) -> bool:
        """Whether the weights are in the local cache; nothing is downloaded to find out."""
        from huggingface_hub import try_to_load_from_cache

        if not self.hub_id or "://" in self.hub_id:
            return False
        names = ("model.safetensors", "pytorch_model.bin")
        return any(isinstance(try_to_load_from_cache(self.hub_id, name), str) for name in names)


@dataclass(frozen=True)
class LookPlan:
    """One way to look at the images."""

    config: TNetConfig
    fit: GridFit | None  # ``None`` for the plain network on the whole image
    wanted_steps: int  # levels of regions that full resolution takes; 0 if the images are too small to gain
    median_hw: tuple[int, int]

    @cached_property
    def outline(self) -> TNet:
        """The model without storage for its parameters."""
        model = build_outline(self.config)
        assert isinstance(model, TNet)
        return model

    @cached_property
    def macs(self) -> int:
        """Multiply-adds per image."""
        return multiply_adds(self.outline)

    @cached_property
    def macs_whole(self) -> int:
        """Multiply-adds of the plain backbone on the whole image at the base resolution."""
        return multiply_adds(self.outline, 0)

    @cached_property
    def macs_full(self) -> int | None:
        """Multiply-adds of the plain backbone on the median image at full size; ``None`` if it does not accept that."""
        try:
            return full_image_multiply_adds(self.outline, self.median_hw)
        except ConfigError:
            return None


def choose_plan(survey: Survey, weights: Weights, budget_macs: int | None) -> LookPlan:
    """Return the first plan within the budget, in order of preference; see :func:`tnet.suggest.recipe.propose`."""
    whole_macs: dict[int, int | None] = {}
    first_error: ConfigError | None = None
    cheapest: tuple[int, LookPlan] | None = None  # without a budget
    limit = budget_macs
    for plan in _plans(survey, weights):
        base_px = plan.config.base_px
        if base_px not in whole_macs:
            try:
                whole_macs[base_px] = _whole_macs(plan)
            except ConfigError as error:
                whole_macs[base_px], first_error = None, first_error or error
        whole = whole_macs[base_px]
        if whole is None:
            continue
        # Counting is slow, and most plans are over budget by their glimpses alone.
        glimpses_macs = (1 + total_looks(plan.config.looks)) * whole
        if budget_macs is None:
            if cheapest is None:
                limit = plan.macs_full and plan.macs_full // 2
            elif plan.config.levels - 1 < plan.wanted_steps:
                break  # full resolution comes before cost
            if cheapest is None or glimpses_macs < cheapest[0]:
                cheapest = glimpses_macs, plan
        if limit is None or (glimpses_macs <= limit and plan.macs <= limit):
            return plan
    if cheapest is not None:
        return cheapest[1]
    needed = [(macs, base_px) for base_px, macs in whole_macs.items() if macs is not None]
    if not needed:
        sides = ", ".join(map(str, whole_macs))
        raise first_error or ConfigError(f"{weights.name} does not support glimpses of {sides} px; choose another")
    macs, base_px = min(needed)
    problem = f"the budget of {format_macs(budget_macs or 0)} multiply-adds is too small"
    least = f"one glimpse of the whole image with {weights.name} ({format_macs(macs)} at {base_px} px)"
    raise ConfigError(f"{problem} for {least}; raise it, or choose a smaller backbone")


def _whole_macs(plan: LookPlan) -> int | None:
    """Return the multiply-adds of the whole image alone; ``None`` if a transformer would cut off its last pixels."""
    patch = getattr(getattr(plan.outline.backbone, "model", None), "patch_embed", None)
    sides = getattr(patch, "patch_size", None)
    return None if isinstance(sides, tuple) and plan.config.base_px % int(sides[0]) else plan.macs_whole


def _plans(survey: Survey, weights: Weights) -> Iterator[LookPlan]:
    """Yield plans, best first: large glimpses and all looks, then fewer looks, then fewer levels, then none."""

    def plan(base_px: int, fit: GridFit | None, looks: tuple[int, ...], wanted_steps: int) -> LookPlan:
        config = TNetConfig(
            backbone=weights.backbone, num_classes=len(survey.classes),
            multilabel=survey.multilabel, base_px=base_px, levels=1 + len(looks),
            grid=Grid() if fit is None else fit.grid, looks=looks,
        )  # fmt: skip
        return LookPlan(config, fit, wanted_steps, survey.median_hw)

    longer = max(survey.median_hw)
    # Training refuses images smaller than the base.
    largest = min(weights.side_px, min(survey.smallest.size_hw))
    bases = [base for base in BASES_PX if base <= min(largest, longer / GAIN)]
    bases = bases or [base for base in BASES_PX if base <= min(largest, longer / LEAST_GAIN)][-1:]
    full = {base: fit_grid(survey.median_hw, base, min_cell_extent=_LEAST_EXTENT) for base in bases}
    for least in (2, 1):
        for base, fit in full.items():
            for looks in _looks(fit.levels - 1):
                if looks[0] >= least:
                    yield plan(base, fit, looks, len(looks))
    for base, fit in full.items():
        for steps in range(fit.levels - 2, 0, -1):
            side = round(base / _LEAST_EXTENT**steps)
            short = replace(fit_grid((side, side), base, min_cell_extent=_LEAST_EXTENT), finest_scale=longer / side)
            for looks in _looks(steps):
                yield plan(base, short, looks, fit.levels - 1)
    small = [base for base in BASES_PX if base <= min(longer, weights.side_px)]
    for base in bases or small or [BASES_PX[-1]]:
        yield plan(base, None, (), 1 if bases else 0)


def _looks(steps: int) -> list[tuple[int, ...]]:
    """Return numbers of looks worth having, most first; deep trees branch at the top only."""
    # The locator learns by comparing regions with the same parent; more than two levels of them would cost too much.
    compared = [(2, 2)] if steps == 2 else []
    return compared + [(first, *(1,) * (steps - 1)) for first in range(_LOOKS if steps == 1 else 2, 0, -1)]
