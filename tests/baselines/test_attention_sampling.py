"""Attention sampling: unbiased estimates and gradients, positions and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import TINY_RESNET, pictures
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tnet.baselines.attention_sampling import (
    AttentionSampling,
    AttentionSamplingConfig,
    AttentionSamplingObjective,
    AttentionSamplingObjectiveConfig,
    draw_positions,
    expect_with_replacement,
    expect_without_replacement,
)
from tnet.baselines.patches import PatchModelConfig
from tnet.config import parse_dataclass, to_plain
from tnet.errors import ConfigError, GeometryError
from tnet.traversal import SampleWithoutReplacement, TopK

POSITIONS = 5
TINY = AttentionSamplingConfig(
    num_classes=3, patch_px=16, looks=4, scale=0.125, attention_channels=(4,), feature_channels=(8, 8)
)


def tiny(**changes: Any) -> AttentionSampling:
    torch.manual_seed(0)
    return AttentionSampling(replace(TINY, **changes)).eval()


def batch(size_px: int = 64, images: int = 2) -> Tensor:
    return torch.stack(pictures(*[(size_px, size_px)] * images))


def outcomes(probs: list[float], draws: int, replacement: bool) -> Iterator[tuple[list[int], float]]:
    """Everything that can be drawn, in order, with its probability."""
    positions = range(len(probs))
    for drawn in product(positions, repeat=draws) if replacement else permutations(positions, draws):
        left, prob = 1.0, 1.0
        for position in drawn:
            prob *= probs[position] / left
            left -= 0.0 if replacement else probs[position]
        yield list(drawn), prob


@pytest.mark.parametrize(("draws", "replacement"), [(1, True), (3, True), (1, False), (3, False), (5, False)])
def test_the_estimate_and_its_gradient_are_unbiased(draws: int, replacement: bool) -> None:
    estimate = expect_with_replacement if replacement else expect_without_replacement
    logits = torch.randn(POSITIONS, dtype=torch.float64, requires_grad=True)
    features = torch.randn(POSITIONS, 3, dtype=torch.float64, requires_grad=True)
    onto = torch.randn(3, dtype=torch.float64)

    exact = (logits.softmax(0)[:, None] * features).sum(0)
    exact_gradients = torch.autograd.grad(exact @ onto, (logits, features))

    expected = torch.zeros(3, dtype=torch.float64)
    gradients = [torch.zeros_like(logits), torch.zeros_like(features)]
    total = 0.0
    for drawn, prob in outcomes(logits.softmax(0).tolist(), draws, replacement):
        value = estimate(logits.log_softmax(0)[drawn][None], features[drawn][None])[0]
        expected += prob * value.detach()
        for gradient, part in zip(gradients, torch.autograd.grad(value @ onto, (logits, features)), strict=True):
            gradient += prob * part
        total += prob
    assert total == pytest.approx(1)
    torch.testing.assert_close(expected, exact.detach())
    torch.testing.assert_close(gradients[0], exact_gradients[0])
    torch.testing.assert_close(gradients[1], exact_gradients[1])


def test_estimates_match_the_paper() -> None:
    logits, features = torch.randn(2, POSITIONS), torch.randn(2, POSITIONS, 3)
    drawn = torch.tensor([[3, 0, 4], [1, 2, 0]])
    rows = torch.arange(2)[:, None]
    log_attention = logits.log_softmax(1)[rows, drawn]
    with_replacement = expect_with_replacement(log_attention, features[rows, drawn])
    torch.testing.assert_close(with_replacement, features[rows, drawn].mean(1))
    without = expect_without_replacement(log_attention, features[rows, drawn])
    for image in range(2):
        attention, estimates = logits[image].softmax(0), []
        for i in range(3):
            before = drawn[image, :i]
            known = (attention[before][:, None] * features[image, before]).sum(0)
            estimates.append(known + (1 - attention[before].sum()) * features[image, drawn[image, i]])
        torch.testing.assert_close(without[image], torch.stack(estimates).mean(0))


def test_drawing_all_positions_without_replacement_has_less_error() -> None:
    logits, features = torch.zeros(1, POSITIONS), torch.randn(1, POSITIONS, 3)
    log_attention = logits.log_softmax(1)
    exact, errors = features.mean(1), {True: [], False: []}  # type: ignore[var-annotated]
    for _ in range(200):
        for replacement, estimate in ((True, expect_with_replacement), (False, expect_without_replacement)):
            drawn = draw_positions(log_attention, POSITIONS, replacement)
            value = estimate(log_attention.gather(1, drawn), features[:, drawn[0]])
            errors[replacement].append(float((value - exact).square().sum()))
    assert sum(errors[False]) < sum(errors[True])


@pytest.mark.parametrize("replacement", [True, False])
def test_positions_are_drawn_by_their_attention(replacement: bool) -> None:
    probs, rows = [0.5, 0.3, 0.2], 40_000
    drawn = draw_positions(torch.tensor(probs).log().expand(rows, 3), 2, replacement)
    for outcome, prob in outcomes(probs, 2, replacement):
        share = (drawn == torch.tensor(outcome)).all(dim=1).float().mean()
        assert abs(float(share) - prob) < 5 * math.sqrt(prob * (1 - prob) / rows)


def test_positions_without_attention_are_drawn_last() -> None:
    log_attention = torch.tensor([[0.0, -1000.0, -1000.0, -1000.0]])
    drawn = draw_positions(log_attention, 3, replacement=False)
    assert drawn[0, 0] == 0 and len(set(drawn[0].tolist())) == 3
    features = torch.randn(1, 3, 2, requires_grad=True)
    taken = log_attention.gather(1, drawn).requires_grad_()
    value = expect_without_replacement(taken, features)
    torch.testing.assert_close(value, features[:, 0] * (1 + 2 * 1) / 3)  # the first, then known with attention 1
    value.sum().backward()
    assert taken.grad is not None and taken.grad.isfinite().all()


@pytest.mark.parametrize("replacement", [True, False])
def test_the_model_classifies_the_estimate(replacement: bool) -> None:
    model, images = tiny(replacement=replacement), batch()
    output = model(images)
    assert [tuple(attention.shape) for attention in output.attention] == [(8, 8)] * 2
    cells = output.regions.at_level(1).cell.reshape(2, 4)
    attention = torch.stack(output.attention).flatten(1)
    torch.testing.assert_close(attention.sum(1), torch.ones(2))
    torch.testing.assert_close(output.log_prob, attention.log().gather(1, cells))
    torch.testing.assert_close(output.entropy, -(attention * attention.log()).sum(1))
    torch.testing.assert_close(output.features.norm(dim=2), torch.ones(2, 4))
    estimate = expect_with_replacement if replacement else expect_without_replacement
    torch.testing.assert_close(output.aggregate, estimate(output.log_prob, output.features))
    torch.testing.assert_close(output.logits, model.classifier(output.aggregate))
    # Position (i, j) of 8 x 8 stands for 8 px of the 64, and its patch of 16 px is centred there.
    y0 = output.regions.at_level(1).position_yx * 8 + 4 - 8
    assert torch.equal(output.regions.at_level(1).box_l0_yxyx, torch.cat([y0, y0 + 16], dim=1))
    pixels = model.pixels(model.scene(images), output.regions.at_level(1), 16)
    described = F.normalize(model.backbone(pixels).amax(dim=(2, 3)), dim=1).unflatten(0, (2, 4))
    torch.testing.assert_close(output.features, described)


def test_policies_in_training_and_evaluation() -> None:
    images = batch(images=1)

    def seen(model: AttentionSampling, policy: Any = None) -> int:
        return len({tuple(model(images, policy=policy).regions.at_level(1).cell.tolist()) for _ in range(5)})

    assert seen(tiny().train()) == seen(tiny()) == seen(tiny(eval="topk").train()) == 5
    assert seen(tiny(eval="topk")) == seen(tiny(), "topk") == seen(tiny(), TopK()) == seen(tiny(), "centre") == 1
    assert seen(tiny(eval="topk"), "sample") == seen(tiny(eval="topk"), "random") == 5


def test_topk_weights_by_attention_and_controls_equally() -> None:
    model, images = tiny(), batch()
    output = model(images, policy="topk")
    attention = torch.stack(output.attention).flatten(1)
    best = attention.topk(4, dim=1)
    assert torch.equal(output.regions.at_level(1).cell.reshape(2, 4), best.indices)
    shares = best.values / best.values.sum(1, keepdim=True)
    torch.testing.assert_close(output.aggregate, (shares[:, :, None] * output.features).sum(1))
    control = model(images, looks=4, policy="centre")
    assert control.regions.at_level(1).cell.tolist() == [27, 28, 35, 36] * 2
    torch.testing.assert_close(control.aggregate, control.features.mean(1))
    assert control.log_prob.abs().sum() == 0


def test_a_batch_of_different_sizes_equals_single_images() -> None:
    model = tiny(eval="topk")
    images = pictures((64, 64), (33, 90), (24, 24), (64, 64))
    together = model(images)
    assert [len(attention) for attention in together.attention] == [8, 11, 3, 8]
    for index, image in enumerate(images):
        alone = model([image])
        torch.testing.assert_close(together.logits[index], alone.logits[0])
        torch.testing.assert_close(together.entropy[index], alone.entropy[0])
        four = slice(4 * index, 4 * index + 4)
        assert torch.equal(together.regions.at_level(1).box_l0_yxyx[four], alone.regions.at_level(1).box_l0_yxyx)
    fixed = tiny(low_px=6)(images)
    assert [tuple(attention.shape) for attention in fixed.attention] == [(6, 6)] * 4


@pytest.mark.parametrize("changes", [{}, {"features": "backbone", "backbone": TINY_RESNET}])
def test_gradients_reach_features_and_attention(changes: dict[str, Any]) -> None:
    model = tiny(**changes).train()
    model(batch()).logits.square().sum().backward()
    for part in (model.attention, model.backbone, model.classifier):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_objective_terms() -> None:
    model = tiny().train()
    output, target = model(batch()), torch.tensor([0, 2])
    config = AttentionSamplingObjectiveConfig(entropy_weight=0.1, l2_weight=0.01)
    loss = AttentionSamplingObjective(config)(output, target, model)
    assert set(loss.terms) == {"cross_entropy", "entropy", "l2"}
    torch.testing.assert_close(loss.terms["cross_entropy"], F.cross_entropy(output.logits, target))
    torch.testing.assert_close(loss.terms["entropy"], -0.1 * output.entropy.mean())
    torch.testing.assert_close(loss.total, torch.stack(list(loss.terms.values())).sum())
    plain = AttentionSamplingObjective(AttentionSamplingObjectiveConfig(entropy_weight=0.0))(output, target)
    assert set(plain.terms) == {"cross_entropy"}
    assert AttentionSamplingObjectiveConfig().entropy_weight == 1e-4


def test_the_entropy_term_alone_makes_attention_uniform() -> None:
    model, images = tiny().train(), batch()
    optimizer = torch.optim.Adam(model.attention.parameters(), 2e-2)
    before = float(model(images).entropy.mean().detach())
    for _ in range(30):
        optimizer.zero_grad()
        (-model(images).entropy.mean()).backward()
        optimizer.step()
    after = float(model(images).entropy.mean().detach())
    assert before < after <= math.log(64) + 1e-5
    assert after > math.log(64) - 0.01


@pytest.mark.parametrize(
    ("size_hw", "changes", "looks"),
    [
        ((64, 64), {}, 1),
        ((33, 90), {}, 3),
        ((33, 90), {"low_px": 6}, 3),
        ((64, 64), {"features": "backbone", "backbone": TINY_RESNET}, 3),
        ((64, 64), {"replacement": True}, 3),
    ],
)
def test_counted_multiply_adds_equal_a_run(size_hw: tuple[int, int], changes: dict[str, Any], looks: int) -> None:
    model = tiny(**changes)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(pictures(size_hw), looks=looks)
    assert sum(model.multiply_adds(size_hw, looks).values()) == counter.get_total_flops() // 2


def test_published_sizes_are_the_defaults() -> None:
    model = AttentionSampling(AttentionSamplingConfig())
    assert model.config.attention_px((1500, 1500)) == 180
    assert isinstance(model.config, PatchModelConfig) and model.config.looks == 10
    macs = model.multiply_adds((1500, 1500))
    assert macs["attention"] == 180 * 180 * 9 * (1 * 8 + 8 * 8 + 8 * 1)
    sides = (44, 42, 40, 38)
    assert macs["backbone"] == 10 * (sides[0] ** 2 * 49 * 32 + sum(side**2 for side in sides[1:]) * 9 * 32 * 32)
    assert macs["classifier"] == 320


def marked(images: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A patch of stripes, across or down, somewhere on a dark image; which, and the patch's first row and column."""
    pixels = torch.full((images, 1, 64, 64), 20, dtype=torch.uint8)
    target = torch.randint(0, 2, (images,), generator=generator)
    corner = torch.randint(0, 49, (images, 2), generator=generator)
    stripes = torch.zeros(16, 16, dtype=torch.uint8)
    stripes[::4] = stripes[1::4] = 255
    for index, (y, x) in enumerate(corner.tolist()):
        pixels[index, 0, y : y + 16, x : x + 16] = stripes if target[index] == 0 else stripes.T
    return pixels, target, corner


@pytest.mark.slow
@pytest.mark.parametrize("replacement", [True, False])
def test_a_small_model_learns_where_to_look(replacement: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    model = tiny(num_classes=2, replacement=replacement).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    objective = AttentionSamplingObjective(AttentionSamplingObjectiveConfig())
    for _ in range(60):
        images, target, _ = marked(16, generator)
        optimizer.zero_grad()
        objective(model(images), target).total.backward()
        optimizer.step()
    images, target, corner = marked(128, generator)
    with torch.no_grad():
        output = model.eval()(images)
    assert (output.logits.argmax(1) == target).float().mean() > 0.9
    # Patches overlap the stripes far more often than the 1 in 4 or so of patches anywhere.
    offset = (output.regions.at_level(1).box_l0_yxyx[:, :2] - corner[output.regions.at_level(1).image]).abs()
    assert ((offset < 16).all(dim=1)).float().mean() > 0.8


def test_config_round_trips_through_plain_data() -> None:
    assert parse_dataclass(AttentionSamplingConfig, to_plain(TINY), "test") == TINY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"looks": 0}, "model.looks is 0"),
        ({"scale": 0.0}, "model.scale is 0.0"),
        ({"scale": 1.5}, "model.scale is 1.5"),
        ({"low_px": -1}, "model.low_px is -1"),
        ({"attention_channels": (0,)}, "model.attention_channels"),
        ({"feature_channels": ()}, "feature_channels"),
        ({"patch_px": 8}, "9 px"),
        ({"num_classes": 0}, "model.num_classes is 0"),
    ],
)
def test_invalid_configs_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AttentionSampling(replace(TINY, **changes))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda model: model(batch(), looks=0), GeometryError, "looks is 0"),
        (
            lambda model: model(batch(), looks=65),
            GeometryError,
            "looks is 65",
        ),
        (lambda model: model(batch(), looks=65, policy="topk"), GeometryError, "looks is 65"),
        (lambda model: model(batch(), policy=SampleWithoutReplacement()), ConfigError, "cannot choose"),
        (lambda model: model(pictures((64, 64), channels=3)), ConfigError, "3 channels"),
        (lambda model: AttentionSamplingObjectiveConfig(entropy_weight=-1.0), ConfigError, "entropy_weight is -1.0"),
    ],
)
def test_invalid_calls_raise(call: Callable[[Any], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(tiny())
    assert len(tiny(replacement=True)(batch(), looks=65).regions.at_level(1)) == 2 * 65
