"""Calibration error and temperature, by independent computation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tnet.evaluation.probabilities import calibration_error, fit_calibration, fit_temperature


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: three in the first of 0.6 to 0.667, one at 1.
    confidence = torch.tensor([0.62, 0.64, 0.66, 1.0])
    right = torch.tensor([True, False, False, True])
    assert calibration_error(confidence, right) == pytest.approx(abs(0.62 + 0.64 + 0.66 - 1) / 4)
    assert calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0


def test_calibration_error_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence, right = torch.rand(500, generator=generator), torch.rand(500, generator=generator) > 0.4
    total = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            total += float(inside.sum()) * abs(float(confidence[inside].mean()) - float(right[inside].float().mean()))
    assert calibration_error(confidence, right) == pytest.approx(total / 500, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("several", [False, True])
def test_the_temperature_that_made_the_logits_is_found(temperature: float, several: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(20_000, 3, generator=generator)
    if several:
        targets = (torch.rand(20_000, 3, generator=generator) < logits.sigmoid()).float()
    else:
        targets = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits * temperature, targets) == pytest.approx(temperature, rel=0.05)
    found = fit_calibration(logits * temperature, targets)
    assert found.error_after < 0.012
    assert (found.error_before > 0.05) == (temperature != 1.0)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.helps or found.temperature == 1.0


def test_a_temperature_that_does_not_help_is_not_kept() -> None:
    # Fitted to few images that are all right, it makes the one that is wrong nearly certain.
    logits = torch.tensor([[2.0, 0.0]] * 8 + [[0.0, 2.0]])
    targets = torch.zeros(9, dtype=torch.long)
    assert fit_temperature(logits[:-1], targets[:-1]) < 0.1
    found = fit_calibration(logits, targets)
    assert found.error_after > found.error_before
    assert found.temperature == 1.0 and not found.helps


def test_a_single_image_is_too_few_to_fit_to() -> None:
    assert fit_calibration(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).temperature == 1.0


def test_no_other_temperature_is_better() -> None:
    logits, targets = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1, 1])
    best = fit_temperature(logits, targets)
    losses = [float(F.cross_entropy(logits / t, targets)) for t in torch.linspace(0.05, 20, 2000)]
    assert float(F.cross_entropy(logits / best, targets)) <= min(losses) + 1e-6


def test_answers_that_are_all_right_have_a_limit() -> None:
    assert fit_temperature(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == pytest.approx(math.exp(-4), rel=1e-3)
