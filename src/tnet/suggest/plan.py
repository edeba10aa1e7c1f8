"""How to look at pictures of given sizes: base resolution, levels, grid and looks, within a number of multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import timm

from tnet.backbones import BackboneConfig
from tnet.errors import ConfigError
from tnet.evaluation.cost import build_outline, full_image_multiply_adds, multiply_adds
from tnet.evaluation.report import macs_unit
from tnet.geometry import Suggestion, suggest, total_looks
from tnet.models.config import LocatorConfig, TNetConfig
from tnet.models.tnet import TNet
from tnet.suggest.survey import Survey
from tnet.traversal import PolicyConfig

# Base resolutions that are considered, pixels. More than 224 costs more without being what most weights were made at.
BASES_PX = tuple(range(224, 63, -16))
# A look shows this many times as fine as the whole does, or there is little to look closer for.
GAIN, LEAST_GAIN = 2.0, 1.5
# Cells smaller than this share of their region are too faint in it to be chosen well.
_LEAST_EXTENT = 0.3
_MAX_OVERLAP = 0.5  # of looks in the same region
_LOOKS = 3  # with one level of regions; with two, 2 and 2 inside each, with more 2 and one inside each


def amount(macs: int) -> str:
    """A number of multiply-adds, short: ``1.20 G``, ``55.4 M``."""
    unit, letter = macs_unit(macs)
    number = macs / unit
    return f"{number:,.0f} {letter}" if number >= 99.95 else f"{number:#.3g} {letter}"


@dataclass(frozen=True)
class Weights:
    """A backbone, and what it was trained with.

    Attributes:
        name: of the backbone.
        hub_id: where timm's weights come from; empty if it has none.
        side_px: that they were made at.
        mean: of pixels in [0, 1].
        std: of pixels in [0, 1].
    """

    name: str
    hub_id: str = ""
    side_px: int = 224
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @classmethod
    def of(cls, name: str) -> Weights:
        """What timm knows of the backbone of that name; nothing if it is none of timm's."""
        known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if known is None or not known.has_weights:
            return cls(name)
        return cls(
            name, str(known.hf_hub_id or known.url), int(known.input_size[-1]), tuple(known.mean), tuple(known.std)
        )

    @property
    def config(self) -> BackboneConfig:
        """The backbone, with these weights."""
        return BackboneConfig(self.name, pretrained=bool(self.hub_id))

    @property
    def is_cached(self) -> bool:
        """Whether the weights are on this machine; nothing is fetched to find out."""
        from huggingface_hub import try_to_load_from_cache

        if not self.hub_id or "://" in self.hub_id:
            return False
        names = ("model.safetensors", "pytorch_model.bin")
        return any(isinstance(try_to_load_from_cache(self.hub_id, name), str) for name in names)


@dataclass(frozen=True)
class LookPlan:
    """One way to look at the pictures.

    Attributes:
        config: the network.
        step: grid and finest scale; ``None`` for the plain network on the whole picture.
        wanted_steps: levels of regions that full resolution would take; 0 if there is nothing to look closer at.
        median_hw: height and width of the median picture.
    """

    config: TNetConfig
    step: Suggestion | None
    wanted_steps: int
    median_hw: tuple[int, int]

    @cached_property
    def outline(self) -> TNet:
        """The network, of shapes without numbers."""
        model = build_outline(self.config)
        assert isinstance(model, TNet)
        return model

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one picture."""
        return multiply_adds(self.outline)

    @cached_property
    def macs_whole(self) -> int:
        """Multiply-adds of the plain backbone on the whole picture at the base resolution."""
        return multiply_adds(self.outline, 0)

    @cached_property
    def macs_full(self) -> int | None:
        """Multiply-adds of the plain backbone on the median picture at full resolution; ``None`` if it takes none."""
        try:
            return full_image_multiply_adds(self.outline, self.median_hw)
        except ConfigError:
            return None


def choose_plan(survey: Survey, weights: Weights, budget_macs: int | None) -> LookPlan:
    """The first plan, in order of preference, that the budget allows.

    Args:
        survey: of the pictures.
        weights: of the backbone.
        budget_macs: most multiply-adds of one picture; ``None`` for half of what the plain backbone takes at full
            resolution, if that can be had.

    Raises:
        ConfigError: no such backbone, or a budget that does not suffice for the whole picture alone.
    """
    whole_macs: dict[int, int | None] = {}
    first_error: ConfigError | None = None
    cheapest: tuple[int, LookPlan] | None = None  # where there is no budget
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
        # Counting is slow; glimpses alone say of most plans that they are too much.
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
        raise first_error or ConfigError(
            f"backbone {weights.name} takes no glimpses of {', '.join(map(str, whole_macs))} px; choose another"
        )
    raise ConfigError(
        f"the budget of {amount(budget_macs or 0)} multiply-adds does not suffice for one look at the whole picture "
        f"with {weights.name} ({amount(min(needed)[0])} at {min(needed)[1]} px); raise it, or choose a smaller backbone"
    )


def _whole_macs(plan: LookPlan) -> int | None:
    """Multiply-adds of the whole picture alone; ``None`` where a transformer would cut off the last pixels."""
    patch = getattr(getattr(plan.outline.backbone, "model", None), "patch_embed", None)
    sides = getattr(patch, "patch_size", None)
    if isinstance(sides, tuple) and plan.config.base_px % int(sides[0]):
        return None
    return plan.macs_whole


def _plans(survey: Survey, weights: Weights) -> Iterator[LookPlan]:
    """What could be done, best first: large glimpses and all looks, then fewer looks, then fewer levels, then none."""
    longer = max(survey.median_hw)
    # Training refuses pictures that are smaller than the base.
    largest = min(weights.side_px, min(survey.smallest.size_hw))
    bases = [base for base in BASES_PX if base <= min(largest, longer / GAIN)]
    bases = bases or [base for base in BASES_PX if base <= min(largest, longer / LEAST_GAIN)][-1:]
    for least in (2, 1):
        for base in bases:
            full = suggest(survey.median_hw, base, min_cell_extent=_LEAST_EXTENT)
            for looks in _looks(full.levels - 1):
                if looks[0] >= least:
                    yield _plan(survey, weights, base, full, looks)
    for base in bases:
        steps = suggest(survey.median_hw, base, min_cell_extent=_LEAST_EXTENT).levels - 1
        for fewer in range(steps - 1, 0, -1):
            side = round(base / _LEAST_EXTENT**fewer)
            short = replace(suggest((side, side), base, min_cell_extent=_LEAST_EXTENT), finest_scale=longer / side)
            for looks in _looks(fewer):
                yield _plan(survey, weights, base, short, looks, wanted_steps=steps)
    small = [base for base in BASES_PX if base <= min(longer, weights.side_px)]
    for base in bases or small or [BASES_PX[-1]]:
        yield _plan(survey, weights, base, None, (), wanted_steps=1 if bases else 0)


def _looks(steps: int) -> list[tuple[int, ...]]:
    """Numbers of looks that are worth having, most first; deep trees grow at the top only."""
    # Two in the same region can be compared, which is what the locator learns from; more levels would cost too much.
    compared = [(2, 2)] if steps == 2 else []
    return compared + [(first, *(1,) * (steps - 1)) for first in range(_LOOKS if steps == 1 else 2, 0, -1)]


def _plan(
    survey: Survey,
    weights: Weights,
    base_px: int,
    step: Suggestion | None,
    looks: tuple[int, ...],
    wanted_steps: int | None = None,
) -> LookPlan:
    config = TNetConfig(
        backbone=weights.config,
        num_classes=len(survey.classes),
        multilabel=survey.multilabel,
        base_px=base_px,
        levels=1 + len(looks),
        looks=looks,
        locator=LocatorConfig(logits="l2_scaled"),
        policy=PolicyConfig(train="sample", max_overlap=_MAX_OVERLAP),
        dropout=0.2,
        mean=weights.mean,
        std=weights.std,
        batch_norm="per_level",
    )
    if step is not None:
        config = replace(config, grid=step.grid)
    return LookPlan(config, step, len(looks) if wanted_steps is None else wanted_steps, survey.median_hw)
