"""Stopping rules: which images of a traversal need no further look.

A rule reads the trail: the class logits so far (``trail.logits``), the number of looks, the time.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from tnet.errors import ConfigError
from tnet.registry import Registry
from tnet.traversal.trail import Trail


class StoppingRule(ABC):
    """Decision that an image is done.

    Example:
        >>> class Enough(StoppingRule):
        ...     "Stop after three looks."
        ...
        ...     def __call__(self, trail):
        ...         return trail.looks >= 3
    """

    @abstractmethod
    def __call__(self, trail: Trail) -> Bool[Tensor, " images"]:
        """Return which images are done, on the CPU."""


def confidence(logits: Float[Tensor, "*rows classes"], multilabel: bool = False) -> Float[Tensor, "*rows"]:
    """Return the largest probability; with several labels per image, that of the least certain label's verdict."""
    logits = logits.detach().float()
    if multilabel:
        return logits.abs().sigmoid().min(dim=-1).values
    return logits.softmax(dim=-1).max(dim=-1).values


def margin(logits: Float[Tensor, "*rows classes"], multilabel: bool = False) -> Float[Tensor, "*rows"]:
    """Return the largest probability minus the second; with several labels per image, of each label's two verdicts."""
    logits = logits.detach().float()
    if multilabel or logits.shape[-1] < 2:
        return 2 * confidence(logits, multilabel) - 1
    top = logits.softmax(dim=-1).topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


Certainty = Callable[[Tensor, bool], Tensor]

CERTAINTIES: Registry[Certainty] = Registry("measure of certainty")
"""Measures of how certain an answer is, 0 to 1, by name."""
CERTAINTIES.register("confidence")(confidence)
CERTAINTIES.register("margin")(margin)


@dataclass(frozen=True)
class LookGain:
    """Expected gain of further looks by the certainty of the answer so far, a line through points.

    Attributes:
        certainty: ascending.
        gain: expected gain per look in the probability of a right answer; descending.
    """

    certainty: tuple[float, ...]
    gain: tuple[float, ...]

    def __post_init__(self) -> None:
        pairs = zip(self.certainty, self.certainty[1:], strict=False)
        if not 0 < len(self.certainty) == len(self.gain) or any(low >= high for low, high in pairs):
            raise ConfigError("the certainties of a gain do not ascend, or lack values; calibrate again")

    def of(self, certainty: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
        """Return the expected gain at these certainties, on the CPU."""
        return torch.from_numpy(np.interp(certainty.double().cpu().numpy(), self.certainty, self.gain))


@dataclass(frozen=True)
class Calibrated(StoppingRule):
    """Stop as soon as further looks have gained less than their price in calibration.

    Gains after different numbers of looks are on one scale, as certainties are not: an answer from the whole image
    alone may be certain and wrong.

    Attributes:
        price: gain in the probability of a right answer that a look must be expected to bring.
        gains: expected gains after 0, 1, ... looks; those after more looks are those after the last number.
        measure: name in :data:`CERTAINTIES`.
        multilabel: whether labels are independent.
    """

    price: float
    gains: tuple[LookGain, ...]
    measure: str = "confidence"
    multilabel: bool = False

    def __post_init__(self) -> None:
        CERTAINTIES[self.measure]  # raises if unknown

    @override
    def __call__(self, trail: Trail) -> Bool[Tensor, " images"]:
        certainty = CERTAINTIES[self.measure](trail.logits, self.multilabel)
        at = trail.looks.clamp_max(len(self.gains) - 1)
        by_looks = torch.stack([gain.of(certainty) for gain in self.gains])
        return by_looks.gather(0, at[None])[0] < self.price


@dataclass(frozen=True)
class ExpectedGain(StoppingRule):
    """Stop when no unseen cell has a predicted gain above the price of a look (``model.locator.value``).

    ``price`` is in nats of log-likelihood of the right answer.
    """

    price: float

    @override
    def __call__(self, trail: Trail) -> Bool[Tensor, " images"]:
        done = torch.ones(trail.images, dtype=torch.bool)
        if len(trail.scored_rows):
            worth = (trail.unseen(trail.gains) > self.price).any(dim=1)
            done[trail.regions.image[trail.scored_rows[worth]]] = False
        return done


@dataclass(frozen=True)
class TimeLimit(StoppingRule):
    """Stop when another step, as slow as the slowest so far, would end after ``max_ms`` milliseconds.

    The whole image is always seen, however long that takes.
    """

    max_ms: float

    def __post_init__(self) -> None:
        if not self.max_ms > 0:
            raise ConfigError(f"the time limit is {self.max_ms} ms; give more than 0")

    @override
    def __call__(self, trail: Trail) -> Bool[Tensor, " images"]:
        spent_ms = 1000 * (time.monotonic() - trail.started_s)
        done = spent_ms + trail.slowest_step_ms > self.max_ms
        return torch.full((trail.images,), done)
