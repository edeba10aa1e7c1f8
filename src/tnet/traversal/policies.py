"""Policies: choice of cells from location logits, with its log-probability.

Chosen cells are always in raster order (as in the reference implementation), whatever the order of drawing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from tnet.config import check_most
from tnet.errors import ConfigError, GeometryError
from tnet.geometry import Grid, covered_shares
from tnet.registry import Registry

# Logit of a cell that is already drawn; finite, because the gradient of logsumexp over only -inf is NaN.
_DRAWN = -1e30

MAX_SET_SIZE = 10  # set_log_prob visits 2^k subsets


@dataclass(frozen=True)
class Choice:
    """Cells chosen in each region; log-probabilities are differentiable with respect to the logits."""

    cells: Int[Tensor, "regions k"]  # flat indices in raster order
    # That of its draw for a sampled choice, that under the softmax for top-k, 0 if the choice ignores the logits.
    log_prob: Float[Tensor, "regions k"]
    joint_log_prob: Float[Tensor, " regions"]  # of all cells chosen in a region

    @classmethod
    def of_cells(cls, cells: Int[Tensor, "regions k"], dtype: torch.dtype = torch.float32) -> Choice:
        """Return a choice with log-probabilities of 0."""
        zeros = torch.zeros(cells.shape, dtype=dtype, device=cells.device)
        return cls(cells, zeros, zeros.sum(dim=1))


@dataclass(frozen=True)
class PolicyConfig:
    """Options of policies.

    Attributes:
        train: policy in training: ``topk`` (published, deterministic) or ``sample`` (without replacement), or the
            controls ``random`` and ``centre``.
        eval: policy in evaluation.
        joint: log-probability of a sampled choice: of the ``sequence`` drawn or of the ``set``.
        temperature: temperature of sampling.
        max_overlap: share of a cell that another chosen cell of the region may cover, for ``topk`` and ``centre``,
            while any other cell is left; 1 as published. Two looks at nearly the same place show little more than one.
    """

    train: str = "sample"
    eval: str = "topk"
    joint: Literal["sequence", "set"] = "sequence"
    temperature: float = 1.0
    max_overlap: float = 0.5

    def __post_init__(self) -> None:
        for name in ("train", "eval"):
            if getattr(self, name) not in POLICIES:
                raise ConfigError(f"model.policy.{name} is {getattr(self, name)!r}; give one of {', '.join(POLICIES)}")
        if not 0 <= self.max_overlap <= 1:
            raise ConfigError(f"model.policy.max_overlap is {self.max_overlap}; give a share between 0 and 1")
        if not self.temperature > 0:
            raise ConfigError(f"model.policy.temperature is {self.temperature}; give a number above 0")
        check_most(self, "model.policy.", {"temperature": 1e6})


class Policy(ABC):
    """Choice of ``k`` cells of each region."""

    needs_logits: bool = True
    """Whether the choice depends on the logits; if not, the locator is not run."""

    @abstractmethod
    def __call__(self, logits: Float[Tensor, "regions cells"], k: int) -> Choice:
        """Choose ``k`` of the cells of each region."""

    @classmethod
    def create(cls, config: PolicyConfig, grid: Grid, generator: torch.Generator | None = None) -> Policy:
        """Build the policy from the options of all policies, the model's grid and a source of random numbers."""
        return cls()


POLICIES: Registry[type[Policy]] = Registry("policy")
"""Policies by name: values of ``model.policy.train`` and ``.eval`` in a recipe, ``--policy`` and ``policy=``."""


def _cells_apart(config: PolicyConfig, grid: Grid) -> Bool[Tensor, "cells cells"] | None:
    """Return a mask of the cell pairs that overlap by more than ``max_overlap``; ``None`` if any may."""
    return covered_shares(grid) > config.max_overlap if config.max_overlap < 1 else None


def raster_order(
    cells: Int[Tensor, "regions k"], log_prob: Float[Tensor, "regions k"]
) -> tuple[Int[Tensor, "regions k"], Float[Tensor, "regions k"]]:
    """Sort chosen cells by position, and their log-probabilities with them."""
    cells, order = cells.sort(dim=1)
    return cells, log_prob.gather(1, order)


def most_wanted(
    logits: Float[Tensor, "regions cells"], k: int, apart: Bool[Tensor, "cells cells"] | None = None
) -> Int[Tensor, "regions k"]:
    """Return the ``k`` cells with the largest logits, best first; ties go to the lower index.

    Once a cell is taken, those marked in its row of ``apart`` are skipped while any other is left.
    """
    # A stable descending sort settles ties; topk leaves them open.
    order = logits.detach().sort(dim=1, descending=True, stable=True).indices
    if apart is None:
        return order[:, :k]
    cells = order.shape[1]
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(cells, device=order.device).expand_as(order))
    apart = apart.to(order.device)
    skipped = torch.zeros_like(order, dtype=torch.bool)
    chosen = []
    for _ in range(k):
        cell = (rank + cells * skipped).argmin(dim=1, keepdim=True)
        chosen.append(cell)
        skipped |= apart[cell.squeeze(1)]
        rank = rank.scatter(1, cell, 2 * cells)
    return torch.cat(chosen, dim=1)


@POLICIES.register("topk")
@dataclass(eq=False)
class TopK(Policy):
    """The ``k`` most probable cells, also in training (published); ``apart``: see :func:`most_wanted`.

    The log-probability of a cell is ``log(softmax + 1e-10)`` and the joint one is their sum, as in the paper's
    objective, although a deterministic choice has no distribution.
    """

    apart: Bool[Tensor, "cells cells"] | None = None

    @classmethod
    @override
    def create(cls, config: PolicyConfig, grid: Grid, generator: torch.Generator | None = None) -> TopK:
        return cls(_cells_apart(config, grid))

    @override
    def __call__(self, logits: Float[Tensor, "regions cells"], k: int) -> Choice:
        cells = most_wanted(logits, k, self.apart)
        log_prob = torch.log(logits.softmax(dim=1) + 1e-10).gather(1, cells)
        cells, log_prob = raster_order(cells, log_prob)
        return Choice(cells, log_prob, log_prob.sum(dim=1))


@POLICIES.register("sample")
@dataclass(eq=False)
class SampleWithoutReplacement(Policy):
    """``k`` distinct cells drawn one by one, each from the softmax over the rest (Gumbel top-k).

    Adding independent Gumbel noise to the logits and taking the ``k`` largest draws exactly from that sequential
    distribution (Plackett-Luce; Kool et al. 2019, "Stochastic beams and where to find them"). ``joint`` is the
    log-probability of the ``sequence`` drawn, or of the ``set``, which has less variance as a REINFORCE estimator and
    costs ``2^k`` steps (``k`` at most 10). Log-probabilities are those of the tempered distribution.
    """

    joint: str = "sequence"
    temperature: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.joint not in ("sequence", "set"):
            raise GeometryError(f"unknown joint log-probability {self.joint!r}; give 'sequence' or 'set'")
        if not self.temperature > 0:
            raise GeometryError(f"temperature is {self.temperature}; give a number above 0")

    @classmethod
    @override
    def create(cls, config: PolicyConfig, grid: Grid, generator: torch.Generator | None = None) -> Policy:
        return cls(config.joint, config.temperature, generator)

    @override
    def __call__(self, logits: Float[Tensor, "regions cells"], k: int) -> Choice:
        if logits.dtype in (torch.float16, torch.bfloat16):  # too coarse for probabilities; 16 bits cannot hold _DRAWN
            logits = logits.float()
        logits = logits / self.temperature
        uniform = torch.rand(logits.shape, generator=self.generator, device=logits.device, dtype=torch.float32)
        gumbel = -torch.log((-torch.log(uniform.clamp_min(1e-20))).clamp_min(1e-20))
        drawn = (logits.detach().float() + gumbel).topk(k, dim=1).indices
        log_prob = sequence_log_prob(logits, drawn)
        joint = log_prob.sum(dim=1) if self.joint == "sequence" else set_log_prob(logits, drawn)
        cells, log_prob = raster_order(drawn, log_prob)
        return Choice(cells, log_prob, joint)


def sequence_log_prob(
    logits: Float[Tensor, "regions cells"], drawn: Int[Tensor, "regions k"]
) -> Float[Tensor, "regions k"]:
    """Return the log-probability of each draw given the ones before it; their sum is that of the sequence."""
    remaining = logits
    log_probs = []
    for step in range(drawn.shape[1]):
        cell = drawn[:, step : step + 1]
        log_probs.append(remaining.log_softmax(dim=1).gather(1, cell))
        remaining = remaining.scatter(1, cell, _DRAWN)
    return torch.cat(log_probs, dim=1)


def set_log_prob(logits: Float[Tensor, "regions cells"], drawn: Int[Tensor, "regions k"]) -> Float[Tensor, " regions"]:
    """Return the log-probability that sequential drawing gives these cells in any order.

    Exact, by recursion over subsets ``S`` and their last draw ``i``: ``P(S) = sum_i P(S without i) * p_i / (1 - sum of
    p over S without i)``. The cost doubles with each cell.
    """
    k = drawn.shape[1]
    if k > MAX_SET_SIZE:
        remedy = f"give at most {MAX_SET_SIZE}, or use joint 'sequence'"
        raise GeometryError(f"the probability of a set of {k} locations needs 2^{k} steps; {remedy}")
    log_p = logits.log_softmax(dim=1)
    chosen = log_p.gather(1, drawn)
    rest = log_p.scatter(1, drawn, _DRAWN).logsumexp(dim=1)
    log_prob: dict[frozenset[int], Tensor] = {frozenset(): torch.zeros_like(rest)}
    for size in range(1, k + 1):
        for subset in combinations(range(k), size):
            terms = []
            for last in subset:
                before = frozenset(subset) - {last}
                # Probability of the remaining cells, as a sum over them: 1 - sum would cancel.
                left = [chosen[:, i] for i in range(k) if i not in before]
                remaining = torch.logsumexp(torch.stack([rest, *left]), dim=0)
                terms.append(log_prob[before] + chosen[:, last] - remaining)
            log_prob[frozenset(subset)] = torch.logsumexp(torch.stack(terms), dim=0)
    return log_prob[frozenset(range(k))]


@POLICIES.register("random")
@dataclass(eq=False)
class RandomCells(Policy):
    """``k`` distinct cells, all equally likely: the control that a learned locator has to beat."""

    needs_logits = False

    generator: torch.Generator | None = None

    @classmethod
    @override
    def create(cls, config: PolicyConfig, grid: Grid, generator: torch.Generator | None = None) -> RandomCells:
        return cls(generator)

    @override
    def __call__(self, logits: Float[Tensor, "regions cells"], k: int) -> Choice:
        noise = torch.rand(logits.shape, generator=self.generator, device=logits.device)
        return Choice.of_cells(noise.topk(k, dim=1).indices.sort(dim=1).values, logits.dtype)


@POLICIES.register("centre")
class FixedCells(Policy):
    """The same cells in every region: the first ``k`` of ``order``, a sequence of flat cell indices."""

    needs_logits = False

    def __init__(self, order: Sequence[int]) -> None:
        self.order = tuple(order)

    @classmethod
    @override
    def create(cls, config: PolicyConfig, grid: Grid, generator: torch.Generator | None = None) -> FixedCells:
        return cls.centre_out(grid.rows, grid.cols, _cells_apart(config, grid))

    @classmethod
    def centre_out(cls, rows: int, cols: int, apart: Bool[Tensor, "cells cells"] | None = None) -> FixedCells:
        """Order the cells of a grid by their distance from the centre; ``apart``: see :func:`most_wanted`."""
        distance = [(i // cols - (rows - 1) / 2) ** 2 + (i % cols - (cols - 1) / 2) ** 2 for i in range(rows * cols)]
        return cls(most_wanted(-torch.tensor([distance]), rows * cols, apart)[0].tolist())

    @override
    def __call__(self, logits: Float[Tensor, "regions cells"], k: int) -> Choice:
        if k > len(self.order):
            most = len(self.order)
            raise GeometryError(f"{k} looks exceed the {most} cells of the fixed policy; ask for at most {most}")
        cells = torch.tensor(sorted(self.order[:k]), device=logits.device).expand(logits.shape[0], k)
        return Choice.of_cells(cells, logits.dtype)
