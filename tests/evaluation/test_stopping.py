"""Fit of stopping: pooling by hand, gains by an explicit loop, and budgets kept on images that were not fitted on."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import make_unsure, three_levels

from tnet.data.digits import DigitsConfig, MegapixelDigits
from tnet.errors import DataError
from tnet.evaluation.frontier import Curves, measure_curves
from tnet.evaluation.stopping import Fit, equal_looks, falling, fit_calibration, fit_gains, gains_by_look, looks_at
from tnet.models import TNet
from tnet.traversal import BestFirst

SEARCH = BestFirst(6, 2)


def draw(images: int, seed: int) -> Curves:
    """Images of which 15 % are answered from the whole, and 10 % more by each look; the first answer is always sure.

    Later answers are surer if they are right.
    """
    generator = torch.Generator().manual_seed(seed)
    needed = torch.bucketize(torch.rand(images, generator=generator), torch.arange(0.15, 0.9, 0.1))
    looks = torch.arange(7).expand(images, -1)
    right = looks >= needed[:, None]
    noise = torch.rand(images, 7, generator=generator)
    certainty = torch.where(right, 0.4 + 0.6 * noise, 0.8 * noise)
    certainty[:, 0] = 0.9 + 0.1 * noise[:, 0]
    return Curves(right, {"confidence": certainty}, looks, 10 * looks + 10)


def fit(curves: Curves) -> Fit:
    return fit_calibration(curves, TNet(three_levels()), SEARCH, "confidence")


@pytest.mark.parametrize(
    ("values", "pooled"),
    [
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0]),
        ([1.0, 2.0], [1.5, 1.5]),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        ([4.0, 1.0, 3.0, 0.0], [4.0, 2.0, 2.0, 0.0]),
        ([2.0, 1.0, 4.0, 1.0], [7 / 3, 7 / 3, 7 / 3, 1.0]),  # the first pool of two rises above the 2 before it
        ([5.0], [5.0]),
    ],
)
def test_falling(values: list[float], pooled: list[float]) -> None:
    assert falling(torch.tensor(values, dtype=torch.float64)).tolist() == pytest.approx(pooled)


def test_gains_by_hand() -> None:
    """32 images in two bins; the surer half gains nothing, the other is right after two more looks."""
    certainty = torch.linspace(0.1, 0.72, 32)[:, None].repeat(1, 3)
    right = torch.zeros(32, 3, dtype=torch.bool)
    right[16:] = True
    right[:16, 2] = True
    first, second = fit_gains(right, certainty)
    # Half of the images gain 1 within two looks: 0.5 per look, drawn to the mean of 0.25 by as many images.
    low, high = float(certainty[8, 0]), float(certainty[24, 0])
    gain = first.of(torch.tensor([low, high, (low + high) / 2])).tolist()
    assert gain == pytest.approx([0.375, 0.125, 0.25], abs=2e-3)
    assert second.of(torch.tensor([low, high])).tolist() == pytest.approx([0.75, 0.25], abs=2e-3)
    assert list(first.gain) == sorted(first.gain, reverse=True) and len(set(first.gain)) == len(first.gain)


def test_a_least_number_of_looks() -> None:
    curves = draw(100, 0)
    gains = fit_gains(curves.right, curves.certainty["confidence"], least=2)
    by_look = gains_by_look(gains, curves.certainty["confidence"])
    assert int(looks_at(by_look, 1.1).min()) == 2
    calibration = fit_calibration(curves, TNet(three_levels()), SEARCH, "confidence", least=2).calibration
    assert (calibration.mean_looks[0], calibration.mean_looks[-1]) == (2.0, 6.0)


def test_looks_at() -> None:
    by_look = torch.tensor([[0.9, 0.1, 0.8], [0.9, 0.8, 0.7], [0.2, 0.9, 0.9]])
    assert looks_at(by_look, 0.5).tolist() == [1, 3, 0]


def test_equal_looks() -> None:
    by_look = gains_by_look(equal_looks(4), torch.rand(20, 4))
    for looks in range(4):
        price = 1 - looks / 4 + 0.1
        assert looks_at(by_look, price).tolist() == [looks] * 20


@pytest.mark.parametrize("seed", [0, 1])
def test_budgets_hold_and_stopping_pays_on_unseen_images(seed: int) -> None:
    """Though the answers of the whole image alone are the surest, and mostly wrong."""
    calibration, rows, advantage = fit(draw(1000, seed))
    assert advantage > 0.01 and [row.kind for row in rows] == ["best-first"] * 7 + ["stopping"] * 11
    unseen = draw(2000, seed + 10)
    by_look = gains_by_look(calibration.gains, unseen.certainty["confidence"])
    for budget in (1.0, 1.5, 2.0, 2.5, 3.0, 4.5):
        at = looks_at(by_look, calibration.for_looks(budget))
        assert float(at.double().mean()) == pytest.approx(budget, rel=0.1)
        low = unseen.right[:, int(budget)].double().mean()
        high = unseen.right[:, min(6, int(budget) + 1)].double().mean()
        equal = low + (high - low) * (budget - int(budget))
        assert float(unseen.right.gather(1, at[:, None]).double().mean()) > float(equal) - 0.02


def test_accuracy_is_that_of_images_left_out() -> None:
    """Certainties that say nothing, so that what was fitted to them is luck."""
    torch.manual_seed(0)
    right, certainty = torch.rand(60, 7) < 0.5, torch.rand(60, 7)
    looks = torch.arange(7).expand(60, -1)
    found = fit(Curves(right, {"confidence": certainty}, looks, looks + 1))
    assert max(found.calibration.accuracy) < 0.75
    for row in found.rows[7:]:
        place = found.calibration.for_looks(row.setting)
        assert found.calibration.prices[-1] <= place <= found.calibration.prices[0]


def test_where_stopping_does_not_pay_all_images_get_equal_looks() -> None:
    """Every second image becomes wrong where it is unsure, every other one where it is sure."""
    certainty = torch.rand(64, 7, generator=torch.Generator().manual_seed(3))
    unsure = certainty < 0.5
    right = torch.where((torch.arange(64) % 2 == 0)[:, None], unsure, ~unsure)
    looks = torch.arange(7).expand(64, -1)
    found = fit(Curves(right, {"confidence": certainty}, looks, looks + 1))
    assert found.advantage < 0 and "does not pay" in found.note
    by_look = gains_by_look(found.calibration.gains, certainty)
    for budget in (1, 2.5, 5):
        at = looks_at(by_look, found.calibration.for_looks(budget))
        assert set(at.tolist()) <= {int(budget), int(budget) + 1}
        assert float(at.double().mean()) == pytest.approx(budget, abs=0.1)


def test_many_answers_of_the_same_certainty() -> None:
    curves = draw(100, 4)
    curves.certainty["confidence"].fill_(1.0)
    calibration = fit(curves).calibration
    assert calibration.mean_looks[0] == 0 and calibration.mean_looks[-1] == 6


def test_one_image_is_too_few() -> None:
    with pytest.raises(DataError, match="2 or more"):
        fit(draw(1, 0))


def test_stopping_does_what_was_measured() -> None:
    digits = MegapixelDigits(
        DigitsConfig(task="max", canvas_px=96, target_copies=1, other_digits=0, noise_patterns=2, images_val=12), "val"
    )
    torch.manual_seed(1)
    model = make_unsure(TNet(three_levels(num_classes=10)).eval(), torch.rand(1, 1, 96, 96))
    search = BestFirst(5, 3)
    calibration = fit_calibration(
        measure_curves(model, digits, search, batch_size=5, progress=False), model, search, "confidence"
    ).calibration
    images = torch.stack([digits[i].image for i in range(12)])
    for budget in (1.5, 3.0):
        regions = model(images, search=calibration.search(budget)).regions
        assert (len(regions) - 12) / 12 == pytest.approx(budget, abs=0.35)
