"""Measured curves against single calls, their costs, and rows of the frontier."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import make_unsure, three_levels, until_certain
from torch.utils.flop_counter import FlopCounterMode

from tnet.cost import multiply_adds
from tnet.data.digits import DigitsConfig, MegapixelDigits
from tnet.errors import ConfigError, LooksWarning
from tnet.evaluation.frontier import Curves, best_first_rows, frontier_row, measure_curves, step_costs
from tnet.models import LocatorConfig, TNet
from tnet.traversal import BestFirst

DIGITS = DigitsConfig(
    task="max", canvas_px=96, target_copies=1, other_digits=0, noise_patterns=2, images_train=4, images_val=12
)


@pytest.fixture(scope="module")
def model() -> TNet:
    torch.manual_seed(1)
    return make_unsure(TNet(three_levels(num_classes=10)).eval(), torch.rand(1, 1, 96, 96))


@pytest.fixture(scope="module")
def digits() -> MegapixelDigits:
    return MegapixelDigits(DIGITS, "val")


@pytest.fixture(scope="module")
def curves(model: TNet, digits: MegapixelDigits) -> Curves:
    return measure_curves(model, digits, BestFirst(5, 3), batch_size=5, progress=False)


def test_curves_are_those_of_single_calls(model: TNet, digits: MegapixelDigits, curves: Curves) -> None:
    for n in (0, 2, 5):
        for i in range(0, 12, 3):
            sample = digits[i]
            logits = model(sample.image[None], search=BestFirst(n, 3)).logits[0].detach().softmax(0)
            assert bool(curves.right[i, n]) == (int(logits.argmax()) == sample.target)
            assert float(curves.certainty["confidence"][i, n]) == pytest.approx(float(logits.max()), abs=1e-4)
            assert int(curves.looks[i, n]) == n


def test_an_image_without_more_cells_keeps_its_answer(model: TNet, digits: MegapixelDigits) -> None:
    with pytest.warns(LooksWarning, match="9 places"):
        curves = measure_curves(model, digits, BestFirst(12, 2), batch_size=5, progress=False)
    assert curves.looks[:, 9:].unique().tolist() == [9]
    assert torch.equal(curves.certainty["margin"][:, 9], curves.certainty["margin"][:, 12])
    assert torch.equal(curves.macs[:, 9], curves.macs[:, 12])


def test_costs_are_those_of_the_published_traversal(model: TNet) -> None:
    """Whose looks are scored at all levels but the last, too."""
    costs = step_costs(model)
    for looks, scored in (((2,), 1), ((2, 1), 3), ((2, 2), 3)):
        seen = 1 + looks[0] + (looks[0] * looks[1] if len(looks) > 1 else 0)
        total = costs.image + seen * costs.region + scored * costs.scored
        # Not to the last one: the coordinates of cells are encoded once per step, whatever its number of regions.
        assert total == pytest.approx(multiply_adds(model, looks), rel=1e-4)


def test_costs_of_a_canvas_add_up() -> None:
    torch.manual_seed(1)
    costs = step_costs(model := TNet(three_levels(aggregation="canvas")).eval())
    for looks, scored in (((2,), 1), ((2, 2), 3)):
        seen = 1 + looks[0] + (looks[0] * looks[1] if len(looks) > 1 else 0)
        total = costs.image + seen * costs.region + scored * costs.scored
        assert total == pytest.approx(multiply_adds(model, looks), rel=1e-4)
    head = 2 * 16 * 16 * 9 * 32 * 32  # once per answer
    assert costs.image > head and costs.region < 2 * step_costs(TNet(three_levels()).eval()).region


def test_costs_of_a_locator_that_sees_what_was_collected() -> None:
    torch.manual_seed(1)
    locator = LocatorConfig(context="collected")
    model = TNet(three_levels(aggregation="canvas", locator=locator)).eval()
    costs, search = step_costs(model), BestFirst(4, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        regions = model(torch.rand(1, 1, 96, 96), search=search).regions
    scored = int(search.wants_scores(regions).sum())
    total = costs.image + len(regions) * costs.region + scored * costs.scored
    assert total == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def test_rows(curves: Curves) -> None:
    rows = best_first_rows(curves)
    assert [(row.kind, row.setting, row.mean_looks) for row in rows] == [("best-first", n, n) for n in range(6)]
    assert [row.accuracy for row in rows] == pytest.approx(curves.right.float().mean(0).tolist())
    at = torch.tensor([0, 5] * 6)
    mixed = frontier_row("stopping", 2.5, curves, at)
    assert mixed.mean_looks == 2.5 and mixed.mean_macs == pytest.approx((rows[0].mean_macs + rows[5].mean_macs) / 2)
    assert mixed.accuracy == (int(curves.right[::2, 0].sum()) + int(curves.right[1::2, 5].sum())) / 12


def test_a_search_that_stops_cannot_be_measured(model: TNet, digits: MegapixelDigits) -> None:
    with pytest.raises(ConfigError, match="stops"):
        measure_curves(model, digits, BestFirst(5, 3, stop=(until_certain(0.5),)), progress=False)
