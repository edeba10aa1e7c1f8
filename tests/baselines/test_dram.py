"""DRAM: size and cost, glimpses, policies, and what learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import pictures
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tnet.baselines.dram import (
    DRAM,
    DRAMConfig,
    DRAMObjective,
    DRAMObjectiveConfig,
    DRAMOutput,
)
from tnet.baselines.geometry import crop_boxes
from tnet.config import parse_dataclass, to_plain
from tnet.cost import count_parameters
from tnet.errors import ConfigError, GeometryError, RecipeError
from tnet.geometry import whole_images
from tnet.scenes import TensorBatch

PASS_MACS = 565_831_616


def narrow(**changes: Any) -> DRAMConfig:
    """32 px images, crops of 11, 21 and 32 px, some ten thousand parameters."""
    values: dict[str, Any] = {
        "num_classes": 4,
        "in_channels": 1,
        "input_px": 32,
        "glimpse_px": 11,
        "looks": 3,
        "stem_dim": 8,
        "planes": (4, 8),
        "blocks": (1, 2),
        "norm_momentum": 0.1,
        "classifier_dim": 16,
        "location_dim": 12,
    }
    return DRAMConfig(**(values | changes))


def noise(batch: int = 3, channels: int = 1, side: int = 32) -> Tensor:
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


def published() -> DRAM:
    with torch.device("meta"):
        return DRAM(DRAMConfig()).eval()


def macs(model: DRAM, looks: int) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.zeros(1, 3, 224, 224, device="meta"), looks=looks)
    return counter.get_total_flops() // 2


def encoder_inputs(model: DRAM, images: Tensor, **kwargs: Any) -> tuple[list[Tensor], DRAMOutput]:
    seen: list[Tensor] = []
    handle = model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    output = model(images, **kwargs)
    handle.remove()
    return seen, output


# --- sizes and cost


def test_published_size_has_the_published_number_of_parameters() -> None:
    count = count_parameters(published())
    assert count.total == 45_610_219
    statistics = 2 * sum(norm.num_features for norm in published().modules() if isinstance(norm, nn.BatchNorm2d))
    assert count.trainable == count.total - statistics


def test_a_glimpse_costs_a_pass_and_the_first_pass_ends_after_the_first_lstm() -> None:
    model = published()
    counted = {looks: macs(model, looks) for looks in (1, 2)}
    assert counted[2] - counted[1] == PASS_MACS
    not_run = 4 * 2048 * 1024 + 1024 * 2 + 1024 * 1001  # LSTM that moves, locator, classifier
    assert counted[1] == 2 * PASS_MACS - not_run


# --- glimpses


def brute_force(images: Tensor, location: tuple[float, float], crop: int, glimpse_px: int) -> Tensor:
    """The original's way: position channels over the image, edges repeated, crop, resize."""
    batch, _, height, width = images.shape
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None, :].expand(height, width)
    images = torch.cat([images, torch.stack([y, x]).expand(batch, -1, -1, -1)], dim=1)
    pad = max(height, width)
    padded = F.pad(images, (pad, pad, pad, pad), mode="replicate")
    top = math.floor((height * (1 + location[0]) - crop) / 2) + pad
    left = math.floor((width * (1 + location[1]) - crop) / 2) + pad
    cut = padded[:, :, top : top + crop, left : left + crop]
    return F.interpolate(cut, (glimpse_px, glimpse_px), mode="bilinear", align_corners=False)


def look(model: DRAM, images: Tensor, location: tuple[float, float]) -> list[Tensor]:
    """The crops around a location, finest first, each with its position channels."""
    scene = model.scene(images)
    glimpse, _ = model._look(scene, torch.tensor([location] * len(images)))
    return list(glimpse.chunk(model.config.scales, dim=1))


BORDER = 1 - 11 / 32  # the finest crop touches the edge


@pytest.mark.parametrize(
    "location", [(0.0, 0.0), (BORDER, BORDER), (-BORDER, BORDER), (BORDER, -BORDER), (0.13, -0.4), (-BORDER, 0.0)]
)
def test_finest_crop_and_all_positions_equal_a_crop_of_the_padded_image(location: tuple[float, float]) -> None:
    model, images = DRAM(narrow()), noise()
    crops = look(model, images, location)
    assert [crop.shape for crop in crops] == [(3, 3, 11, 11)] * 3
    torch.testing.assert_close(crops[0], brute_force(images, location, 11, 11))
    for crop, side in zip(crops, (11, 21, 32), strict=True):
        torch.testing.assert_close(crop[:, 1:], brute_force(images, location, side, 11)[:, 1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("location", "scales"), [((0.0, 0.0), (1, 2)), ((0.3, -0.3), (1,))])
def test_wider_crops_inside_the_image_are_resized(location: tuple[float, float], scales: tuple[int, ...]) -> None:
    images = noise()
    crops = look(DRAM(narrow()), images, location)
    for scale in scales:
        torch.testing.assert_close(crops[scale], brute_force(images, location, (11, 21, 32)[scale], 11))


@pytest.mark.parametrize("location", [(BORDER, BORDER), (-BORDER, BORDER), (-BORDER, -0.2), (0.1, BORDER)])
def test_wider_crops_past_the_edge_repeat_it(location: tuple[float, float]) -> None:
    # On a ramp both resamplings are exact, except that ours repeats the glimpse's outermost pixel centre, which lies
    # (scale - 1) / 2 pixels inside the image's; the reach of a whole image over 11 pixels is the largest scale.
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = torch.stack([y, x])[None]
    crops = look(DRAM(narrow(in_channels=2)), ramp, location)
    for crop, side in zip(crops[1:], (21, 32), strict=True):
        expected = brute_force(ramp, location, side, 11)
        bound = (side / 11 - 1) / 2 + 1e-4
        assert float((crop - expected).abs().max()) <= bound
    # And it is not the same as what lies inside, or as an empty outside.
    inside = look(DRAM(narrow(in_channels=2)), ramp, (0.0, 0.0))
    assert float((crops[2] - inside[2]).abs().max()) > 5


def test_images_of_a_few_pixels() -> None:
    model = DRAM(narrow()).eval()
    assert model(pictures((1, 1), (2, 3)), policy="random").logits.isfinite().all()


def test_a_glimpse_at_the_border_of_an_image_of_odd_size_is_kept_inside() -> None:
    model = DRAM(narrow()).eval()
    nn.init.constant_(model.locator.bias, -30.0)
    # 11/32 of 34 px are 12 px, which at the border would stick out by half a pixel.
    output = model(pictures((34, 34)), looks=1)
    assert output.regions.at_level(1).box_l0_yxyx.tolist() == [[0, 0, 12, 12]]


def test_first_pass_sees_all_crops_and_later_ones_the_averages_of_the_wider() -> None:
    model, images = DRAM(narrow()).eval(), noise()
    seen, output = encoder_inputs(model, images)
    assert len(seen) == 1 + 3
    torch.testing.assert_close(seen[0], torch.cat(look(model, images, (0.0, 0.0)), dim=1))
    assert float(seen[0][:, 3:].std(dim=(2, 3)).min()) > 0.1
    for glimpse, location in zip(seen[1:], output.location_yx.unbind(1), strict=True):
        crops, _ = model._look(model.scene(images), location)
        torch.testing.assert_close(glimpse[:, :3], crops[:, :3])
        averages = crops[:, 3:].mean(dim=(2, 3), keepdim=True)
        torch.testing.assert_close(glimpse[:, 3:], averages.expand(-1, -1, 11, 11))


def test_uint8_images_are_normalised_as_configured() -> None:
    model = DRAM(narrow(mean=(0.4,), std=(0.2,))).eval()
    images = torch.stack(pictures((32, 32), (32, 32)))
    seen, _ = encoder_inputs(model, images)
    # The finest crop of an image of the model's own size is not resized.
    torch.testing.assert_close(seen[0][:, 0], (images[:, 0, 10:21, 10:21] / 255 - 0.4) / 0.2)


def test_only_the_glimpses_are_read_from_a_scene() -> None:
    class Recording(TensorBatch):
        asked: list[list[list[int]]]

        def glimpse(self, regions, size_px):
            self.asked.append(regions.box_l0_yxyx.tolist())
            return super().glimpse(regions, size_px)

    scene = Recording(pictures((40, 64), (32, 32)), "bilinear")
    scene.asked = []
    output = DRAM(narrow()).eval()(scene, looks=1)
    assert scene.asked[0] == [[13, 21, 27, 43], [10, 10, 21, 21]]  # 14 x 22 px is 11/32 of 40 x 64 px
    assert scene.asked[2] == [[0, 0, 40, 64], [0, 0, 32, 32]]
    assert scene.asked[3] == output.regions.at_level(1).box_l0_yxyx.tolist()
    for boxes in scene.asked:
        for (y0, x0, y1, x1), (height, width) in zip(boxes, scene.sizes_hw, strict=True):
            assert 0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width


# --- looking around


def test_regions_are_the_glimpses_in_order() -> None:
    output = DRAM(narrow()).eval()(pictures((32, 32), (64, 48)), looks=4)
    whole, glimpses = output.regions.at_level(0), output.regions.at_level(1)
    assert whole.box_l0_yxyx.tolist() == [[0, 0, 32, 32], [0, 0, 64, 48]]
    assert glimpses.image.tolist() == [0] * 4 + [1] * 4
    assert glimpses.parent.tolist() == glimpses.image.tolist()
    for image, sizes in enumerate([(32, 32), (64, 48)]):
        expected = crop_boxes(output.location_yx[image], [sizes] * 4, 11, 32, keep_inside=True)
        assert torch.equal(glimpses.box_l0_yxyx[image * 4 : image * 4 + 4], expected)


def test_evaluation_is_deterministic_and_a_longer_run_starts_with_the_shorter() -> None:
    model, images = DRAM(narrow()).eval(), noise()
    long, again, short = model(images, looks=5), model(images, looks=5), model(images, looks=2)
    assert torch.equal(long.logits, again.logits) and torch.equal(long.location_yx, again.location_yx)
    assert torch.equal(long.location_yx, long.location_mean_yx)
    assert torch.equal(long.step_logits[:, -1], long.logits)
    torch.testing.assert_close(long.step_logits[:, :2], short.step_logits)
    torch.testing.assert_close(long.step_logits[:, 1], short.logits)
    assert model(images).step_logits.shape == (3, 3, 4)
    assert not torch.equal(long.location_yx[:, 0], long.location_yx[:, 1])


def test_the_configured_policy_is_used_unless_another_is_asked_for() -> None:
    model = DRAM(narrow(policy="centre")).train()
    assert not model(noise()).location_yx.any()
    assert model(noise(), policy="learned").location_yx.any()


def test_training_samples_by_seed() -> None:
    model, images = DRAM(narrow()).train(), noise()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(images))
    assert torch.equal(outputs[0].location_yx, outputs[1].location_yx)
    assert not torch.equal(outputs[0].location_yx, outputs[2].location_yx)
    assert not torch.equal(outputs[0].location_yx, outputs[0].location_mean_yx)


def test_sampled_locations_follow_the_normal_distribution_and_stay_in_range() -> None:
    model = DRAM(narrow(location_std=0.1))
    proposal = torch.zeros(4000, 2)
    place, _ = model._choose(proposal, "sample")
    assert float(place.std()) == pytest.approx(0.1, rel=0.05)
    assert float(place.mean()) == pytest.approx(0, abs=0.01)
    at_edge, _ = model._choose(torch.full((100, 2), BORDER), "sample")
    assert float(at_edge.max()) == pytest.approx(BORDER)
    assert float(at_edge.min()) < BORDER


def test_log_prob_is_the_normal_density_of_the_clipped_place() -> None:
    # Wide enough that some places are clipped.
    model = DRAM(narrow(location_std=0.4)).train()
    output = model(noise(8))
    assert bool((output.location_yx.abs() == torch.tensor(BORDER)).any())
    normal = torch.distributions.Normal(output.location_mean_yx, 0.4)
    torch.testing.assert_close(output.log_prob, normal.log_prob(output.location_yx).sum(dim=2))


@pytest.mark.parametrize("policy", ["centre", "random", "topk"])
def test_controls_have_no_log_prob(policy: Any) -> None:
    output = DRAM(narrow()).train()(noise(), policy=policy)
    assert torch.equal(output.log_prob, torch.zeros(3, 3)) and not output.log_prob.requires_grad
    if policy == "centre":
        assert torch.equal(output.location_yx, torch.zeros(3, 3, 2))
        assert output.regions.at_level(1).box_l0_yxyx.unique(dim=0).tolist() == [[10, 10, 21, 21]]
    if policy == "random":
        assert 0.1 < float(output.location_yx.abs().max()) <= BORDER


def test_the_first_pass_sets_the_first_location_but_not_the_class() -> None:
    model, images = DRAM(narrow()).eval(), noise(2)
    other = images.clone()
    other[:, :, :, :4] += 3.0  # the widest crop of the first pass sees this, the finest does not
    seen, output = encoder_inputs(model, images, policy="centre", looks=1)
    _, output_other = encoder_inputs(model, other, policy="centre", looks=1)
    assert not torch.equal(output.location_mean_yx, output_other.location_mean_yx)
    alone, _ = model.classifier_cell(model.encoder(seen[1]), None)
    torch.testing.assert_close(output.logits, model.classifier(alone))


# --- training


def test_statistics_of_the_first_pass_can_be_kept_apart() -> None:
    model, images = DRAM(narrow(batch_norm="per_level", looks=2, norm_momentum=1.0)).train(), noise(8)
    seen, _ = encoder_inputs(model, images)
    stem = [model.encoder.pool(model.encoder.stem(glimpse)).mean(dim=(0, 2, 3)) for glimpse in seen]
    first = model.encoder.units[0].norm_in
    torch.testing.assert_close(first.running_mean, stem[0].detach())
    torch.testing.assert_close(first.region_mean, stem[2].detach())  # with momentum 1, the last of the later passes
    shared = DRAM(narrow())
    assert count_parameters(model).total == count_parameters(shared).total
    shared.load_state_dict({name: value for name, value in model.state_dict().items() if "region_" not in name})
    assert not torch.equal(model.eval()(images).logits, shared.eval()(images).logits)


def gradients(model: DRAM, loss: Tensor) -> set[str]:
    """Names of the parts that a loss reaches."""
    model.zero_grad()
    loss.backward()
    reached = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and bool(parameter.grad.abs().max() > 0):
            reached.add(name.split(".")[0])
    return reached


def test_cross_entropy_does_not_reach_the_network_that_moves() -> None:
    model = DRAM(narrow()).train()
    output = model(noise())
    assert not output.location_yx.requires_grad and output.location_mean_yx.requires_grad
    objective = DRAMObjective(DRAMObjectiveConfig(reinforce_weight=0, l2_weight=0.0, supervise="all"))
    loss = objective(output, torch.tensor([0, 1, 2]))
    assert gradients(model, loss.terms["cross_entropy"]) == {"encoder", "classifier_cell", "classifier"}


def test_reinforce_reaches_the_network_that_moves_and_what_feeds_it() -> None:
    model = DRAM(narrow()).train()
    output = model(noise())
    right = output.logits.argmax(dim=1)
    target = torch.cat([right[:1], (right[1:] + 1) % 4])  # one right, two wrong
    loss = DRAMObjective(DRAMObjectiveConfig(l2_weight=0.0))(output, target)
    reached = gradients(model, loss.terms["reinforce"])
    assert reached == {"encoder", "classifier_cell", "location_cell", "locator"}


def test_a_location_learns_through_every_earlier_glimpse() -> None:
    model = DRAM(narrow()).train()
    features: list[Tensor] = []
    model.encoder.register_forward_hook(lambda _, __, output: features.append(output))
    output = model(noise())
    for look in range(3):
        slopes = torch.autograd.grad(
            output.log_prob[:, look].sum(), features, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert [bool(slope.any()) for slope in slopes] == [seen <= look for seen in range(4)]


def test_reinforce_moves_proposals_towards_rewarded_places() -> None:
    model = DRAM(narrow()).train()
    proposed: list[Tensor] = []  # before tanh, which keeps the direction
    model.locator.register_forward_hook(lambda _, __, output: proposed.append(output))
    output = model(noise(2), looks=1)
    right = output.logits.argmax(dim=1)
    loss = DRAMObjective(DRAMObjectiveConfig(l2_weight=0.0))(output, torch.stack([right[0], (right[1] + 1) % 4]))
    (slope,) = torch.autograd.grad(loss.terms["reinforce"], proposed[0])
    towards = (output.location_yx - output.location_mean_yx)[:, 0].detach()
    assert bool((-slope[0] * towards[0] > 0).all())
    assert bool((-slope[1] * towards[1] < 0).all())


def fake_output(step_logits: Tensor, log_prob: Tensor) -> DRAMOutput:
    batch, looks, _ = step_logits.shape
    nowhere = torch.zeros(batch, looks, 2)
    return DRAMOutput(step_logits[:, -1], step_logits, whole_images([(1, 1)] * batch), nowhere, nowhere, log_prob)


def test_the_terms_by_hand() -> None:
    # Image 0 is right after both glimpses, image 1 only after the first.
    step_logits = torch.tensor([[[2.0, 0.0], [3.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
    log_prob = torch.tensor([[-1.0, -2.0], [-3.0, -5.0]])
    target = torch.tensor([0, 1])
    output = fake_output(step_logits, log_prob)

    def cross_entropy(margin: float) -> float:
        return math.log1p(math.exp(-margin))

    last = DRAMObjective(DRAMObjectiveConfig(ce_weight=2.0, l2_weight=0.0))(output, target)
    assert float(last.terms["cross_entropy"]) == pytest.approx(cross_entropy(3) + cross_entropy(-2))
    # Rewards 1 and 0 around 0.5: (0.5 * (1 + 2) - 0.5 * (3 + 5)) / 4 places.
    assert float(last.terms["reinforce"]) == pytest.approx(0.1 * (0.5 * 3 - 0.5 * 8) / 4)
    assert float(last.reward) == 0.5 and float(last.reward_per_feature) == 0.5

    every = DRAMObjective(DRAMObjectiveConfig(supervise="all", l2_weight=0.0))(output, target)
    margins = (2, 3, 1, -2)
    assert float(every.terms["cross_entropy"]) == pytest.approx(sum(map(cross_entropy, margins)) / 4)
    # Rewards 1 1 / 1 0 around 0.75.
    assert float(every.terms["reinforce"]) == pytest.approx(0.1 * (0.25 * (1 + 2 + 3) - 0.75 * 5) / 4)
    assert float(every.reward) == 0.5 and float(every.reward_per_feature) == 0.75
    assert float(every.total) == pytest.approx(sum(float(term) for term in every.terms.values()))


def test_l2_penalises_weights_of_what_classifies() -> None:
    model = DRAM(narrow()).train()
    output = model(noise())
    target = torch.tensor([0, 1, 2])
    loss = DRAMObjective(DRAMObjectiveConfig(l2_weight=0.5))(output, target, model)
    layers = [layer for layer in model.encoder.modules() if isinstance(layer, nn.Conv2d)]
    weights = [layer.weight for layer in (*layers, model.classifier_cell.gates, model.classifier)]
    expected = 0.5 * sum(weight.detach().square().sum().item() for weight in weights)
    assert loss.terms["l2"].item() == pytest.approx(expected, rel=1e-5)
    assert loss.total.item() == pytest.approx(sum(term.item() for term in loss.terms.values()))
    assert "l2" not in DRAMObjective(DRAMObjectiveConfig(l2_weight=0))(output, target, model).terms


def test_several_labels() -> None:
    model = DRAM(narrow(multilabel=True)).train()
    target = torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    for supervise in ("last", "all"):
        loss = DRAMObjective(DRAMObjectiveConfig(supervise=supervise))(model(noise()), target, model)
        assert loss.total.isfinite() and 0 <= float(loss.reward) <= 1
        gradients(model, loss.total)


def stripes(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Stripes across, stripes down, a checkerboard or plain grey, in noise: any glimpse tells, none is needed twice."""
    target = torch.randint(0, 4, (batch,), generator=generator)
    images = 0.3 * torch.randn(batch, 1, 32, 32, generator=generator)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    patterns = torch.stack([y % 4 < 2, x % 4 < 2, (y % 4 < 2) ^ (x % 4 < 2), torch.zeros(32, 32, dtype=torch.bool)])
    return images + 2.0 * patterns[target][:, None], target


@pytest.mark.slow
def test_a_small_model_learns() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = DRAM(narrow(looks=2)).train()
    objective = DRAMObjective(DRAMObjectiveConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    before = [parameter.detach().clone() for parameter in model.locator.parameters()]
    losses = []
    for _ in range(40):
        images, target = stripes(16, generator)
        loss = objective(model(images), target, model)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.terms["cross_entropy"].item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert not any(torch.equal(*pair) for pair in zip(before, model.locator.parameters(), strict=True))
    images, target = stripes(64, generator)
    assert (model.eval()(images).logits.argmax(dim=1) == target).float().mean() > 0.5


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"scales": 0}, "scales is 0"),
        ({"looks": 0}, "looks is 0"),
        ({"planes": ()}, "planes is \\[\\]"),
        ({"blocks": (1, 0)}, "blocks"),
        ({"planes": (8,)}, "model.planes"),
        ({"glimpse_px": 33}, "glimpse_px is 33"),
        ({"location_std": 0.0}, "location_std is 0.0"),
        ({"location_std": math.nan}, "location_std is nan"),
        ({"norm_momentum": 0.0}, "norm_momentum is 0.0"),
        ({"mean": (0.5, 0.5)}, "model.mean"),
        ({"std": (0.0,)}, "std is \\[0.0\\]"),
        ({"class_names": ("a",)}, "model.class_names"),
    ],
)
def test_invalid_configs_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        narrow(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ce_weight": -1.0}, "ce_weight is -1.0"),
        ({"reinforce_weight": math.inf}, "reinforce_weight is inf"),
        ({"l2_weight": math.nan}, "l2_weight is nan"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
    ],
)
def test_invalid_objectives_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DRAMObjectiveConfig(**changes)


def test_invalid_looks_and_channels_raise() -> None:
    model = DRAM(narrow()).eval()
    with pytest.raises(GeometryError, match="looks is 0"):
        model(noise(), looks=0)
    with pytest.raises(ConfigError, match="3 channels"):
        model(noise(channels=3))


def test_an_unknown_policy_raises() -> None:
    with pytest.raises(ConfigError, match="policy 'left'"):
        DRAM(narrow())(noise(), policy="left")


def test_config_round_trips_through_plain_data() -> None:
    config = narrow()
    assert parse_dataclass(DRAMConfig, to_plain(config), "here") == config
    objective = DRAMObjectiveConfig(supervise="all")
    assert parse_dataclass(DRAMObjectiveConfig, to_plain(objective), "here") == objective
    with pytest.raises(RecipeError, match="supervise"):
        parse_dataclass(DRAMObjectiveConfig, {"supervise": "first"}, "here")
