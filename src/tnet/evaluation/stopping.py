"""Fit of a calibration: what further looks gained, by the certainty of the answer so far, and what stopping gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnet.errors import DataError
from tnet.evaluation.evaluator import LooksRow
from tnet.evaluation.frontier import Curves, FrontierRow, best_first_rows, frontier_row
from tnet.models.calibration import Calibration
from tnet.models.tnet import TNet
from tnet.traversal import BestFirst, LookGain

_MOST_PRICES = 200
_MOST_BINS = 16
_BIN = 16  # images at least
_PRIOR = 16  # a bin's mean counts as many images more, which gained what all did
_TIE = 1e-3  # the least certain of equal gains is above the most certain by it, so that every budget can be met
_ALWAYS = 2.0  # a gain above every price


def falling(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the nearest sequence, in squares, that does not rise (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return torch.tensor([mean for mean, count in pools for _ in range(count)], dtype=values.dtype)


def fit_gains(
    right: Bool[Tensor, "images n"], certainty: Float[Tensor, "images n"], least: int = 0
) -> tuple[LookGain, ...]:
    """Fit the gain per look that the best later number of looks had, by the certainty of the answer before.

    It is the mean over bins of images of like certainty, drawn to that of all images, and made not to rise with
    certainty. Before ``least`` looks it is above every price.
    """
    last, bins = right.shape[1] - 1, max(1, min(_MOST_BINS, len(right) // _BIN))
    gains = list(equal_looks(last, least)[:least])
    for j in range(len(gains), last):
        gained = (right[:, j + 1 :].double() - right[:, j : j + 1].double()) / torch.arange(1, last - j + 1)
        binned = certainty[:, j].argsort(stable=True).tensor_split(bins)
        means = [(gained[rows].sum(0) + _PRIOR * gained.mean(0)) / (len(rows) + _PRIOR) for rows in binned]
        best = torch.stack([falling(column) for column in torch.stack(means).T]).amax(0)
        gains.append(_line([float(certainty[rows[len(rows) // 2], j]) for rows in binned], best.tolist()))
    return tuple(gains)


def equal_looks(last: int, least: int = 0) -> tuple[LookGain, ...]:
    """Return gains at which all images take the same number of looks, give or take one."""
    return tuple(_line([0.5], [_ALWAYS if j < least else 1 - j / last]) for j in range(last))


def _line(certainty: Sequence[float], gain: Sequence[float]) -> LookGain:
    """Gains at ascending certainties, continued to 0 and 1, with ties broken by rank."""
    values = [gain[0] + _TIE, *(one + _TIE * (1 - (i + 0.5) / len(gain)) for i, one in enumerate(gain)), gain[-1]]
    points = dict(zip([0.0, *certainty, 1.0], values, strict=True))
    return LookGain(tuple(points), tuple(points.values()))


def gains_by_look(
    gains: Sequence[LookGain], certainty: Float[Tensor, "images looks"]
) -> Float[Tensor, "images {len(gains)}"]:
    """Return the expected gain of each image after each number of looks but the last."""
    return torch.stack([gain.of(certainty[:, j]) for j, gain in enumerate(gains)], dim=1)


def looks_at(by_look: Float[Tensor, "images n"], price: float) -> Int[Tensor, " images"]:
    """Return the number of looks after which the expected gain of each image is below a price, or the last."""
    done = torch.cat([by_look < price, torch.ones(len(by_look), 1, dtype=torch.bool)], dim=1)
    return done.int().argmax(dim=1)


def _prices(by_look: Float[Tensor, "images n"]) -> tuple[list[float], list[float]]:
    """Prices, descending, spread over the gains that occur, and the mean looks at each."""
    values = by_look[by_look < _ALWAYS].unique()
    picked = values[torch.linspace(0, len(values) - 1, min(_MOST_PRICES, len(values))).round().long()]
    prices = sorted({1 + 2 * _TIE, *picked.tolist(), float(values[0]) - _TIE}, reverse=True)
    return prices, [float(looks_at(by_look, price).double().mean()) for price in prices]


class Fit(NamedTuple):
    """A calibration, and what it is worth on images left out of the fit.

    Attributes:
        calibration: fitted to all images; for equal looks if stopping does not pay.
        rows: equal looks, then stopping as fitted to one half of the images and measured on the other, both ways.
        advantage: accuracy of stopping above that of equal looks (a mixture between two numbers of looks), mean over
            the budgets.
    """

    calibration: Calibration
    rows: list[FrontierRow]
    advantage: float

    @property
    def note(self) -> str:
        """Sentences on whether stopping pays."""
        gap = f"{100 * self.advantage:+.1f} points of accuracy on average over the budgets"
        text = f"Stopping, fitted to one half of the images and measured on the other, brings {gap}"
        remedy = ": it does not pay, so that every image will get the same number of looks within a budget, or one more"
        return f"{text}{'' if self.advantage >= 0 else remedy}.\n"


def fit_calibration(curves: Curves, model: TNet, search: BestFirst, measure: str, least: int = 0) -> Fit:
    """Fit when to stop after ``least`` looks, from curves of a model and a search; raise DataError for one image."""
    right, certainty, last = curves.right, curves.certainty[measure], curves.right.shape[1] - 1
    if len(right) < 2:
        raise DataError("stopping is fitted to one half of the images, but there is 1; give 2 or more, better hundreds")
    halves = [torch.arange(start, len(right), 2) for start in (0, 1)]

    def left_out(gains: Sequence[Sequence[LookGain]], budgets: Sequence[float]) -> Int[Tensor, "budgets images"]:
        at = torch.zeros(len(budgets), len(right), dtype=torch.long)
        for fitted, own, other in zip(gains, halves, halves[::-1], strict=True):
            prices, mean_looks = _prices(gains_by_look(fitted, certainty[own]))
            others = gains_by_look(fitted, certainty[other])
            for row, budget in zip(at, budgets, strict=True):
                row[other] = looks_at(others, float(np.interp(budget, mean_looks, prices)))
        return at

    rows, budgets = best_first_rows(curves), _budgets(least, last)
    fitted = [fit_gains(right[half], certainty[half], least) for half in halves]
    taken = left_out(fitted, budgets)
    stopping = _rows(curves, budgets, taken)
    equal = np.interp([row.mean_looks for row in stopping], range(last + 1), [row.accuracy for row in rows])
    gaps = [row.accuracy - same for row, same in zip(stopping, equal.tolist(), strict=True)]
    advantage = sum(gaps) / max(1, len(gaps))
    gains = fit_gains(right, certainty, least)
    if advantage < 0:
        gains = equal_looks(last, least)
        fitted = [gains, gains]
    prices, mean_looks = _prices(gains_by_look(gains, certainty))
    accuracy = right.gather(1, left_out(fitted, mean_looks).T).double().mean(0).tolist()
    calibration = Calibration(
        measure, last, search.levels, search.score, gains, tuple(prices), tuple(mean_looks), tuple(accuracy),
        len(right), model.config.class_names,
    )  # fmt: skip
    return Fit(calibration, rows + stopping, advantage)


def frontier(model: TNet, curves: Curves, measured: Sequence[LooksRow]) -> list[FrontierRow]:
    """Return what was measured level by level, then best-first search, then stopping if the model is calibrated."""
    rows = best_first_rows(curves)
    for row in reversed(measured):
        interval = row.accuracy, row.accuracy_low, row.accuracy_high
        rows.insert(0, FrontierRow("level by level", row.total_looks, row.total_looks, row.macs, *interval, row.images))
    calibration = model.calibration
    if calibration is not None:
        by_look = gains_by_look(calibration.gains, curves.certainty[calibration.measure])
        budgets = _budgets(round(calibration.mean_looks[0]), calibration.looks)
        rows += _rows(curves, budgets, [looks_at(by_look, calibration.for_looks(budget)) for budget in budgets])
    return rows


def _budgets(least: int, last: int) -> list[float]:
    """Return budgets of mean looks in steps of a half, above 0 and below the last."""
    return [halves / 2 for halves in range(max(1, 2 * least), 2 * last)]


def _rows(curves: Curves, budgets: Sequence[float], taken: Iterable[Int[Tensor, " images"]]) -> list[FrontierRow]:
    return [frontier_row("stopping", budget, curves, at) for budget, at in zip(budgets, taken, strict=True)]
