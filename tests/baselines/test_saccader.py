"""Saccader: size and cost, the cell, policies, and what each stage trains."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import pictures
from torch import Tensor, nn

from tnet.baselines.geometry import window_regions
from tnet.baselines.saccader import (
    Saccader,
    SaccaderCell,
    SaccaderConfig,
    SaccaderObjective,
    SaccaderObjectiveConfig,
    SaccaderPolicy,
    Stage,
    edge_statistic,
    ordered_positions,
)
from tnet.config import parse_dataclass
from tnet.cost import count_parameters
from tnet.errors import ConfigError, GeometryError, RecipeError

LEARNED = ("learned", "topk", "sample")
STAGES: tuple[Stage, ...] = ("representation", "location", "joint")


def tiny_config(**changes: Any) -> SaccaderConfig:
    """9 px receptive fields, 2 px apart: 19 x 19 positions at 45 px, 5 x 5 at 17 px."""
    base = SaccaderConfig(
        num_classes=4,
        in_channels=1,
        input_px=17,
        looks=3,
        planes=(8, 8),
        blocks=(2, 1),
        strides=(2, 1),
        wide_blocks=(1, 1),
        expansion=2,
        feature_dim=6,
        attention_dims=(8, 6),
        mixed_dim=10,
    )
    return replace(base, **changes)


def build(seed: int = 0, **changes: Any) -> Saccader:
    torch.manual_seed(seed)
    return Saccader(tiny_config(**changes)).eval()


def sharpen(model: Saccader, factor: float = 30.0) -> Saccader:
    """Location logits that differ by more than a little, as after training."""
    model.mix.weight.data.mul_(factor)
    return model


def trained(model: Saccader, stage: Stage) -> dict[str, nn.Parameter]:
    return SaccaderObjective(SaccaderObjectiveConfig(stage=stage)).trained(model)


# --- size and cost


def outline(**changes: Any) -> Saccader:
    with torch.device("meta"):
        return Saccader(replace(SaccaderConfig(), **changes)).eval()


def macs(model: Saccader, looks: int, policy: str = "topk") -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224, device="meta"), looks=looks, policy=policy)
    return counter.get_total_flops() // 2


def test_parameters_of_the_published_model() -> None:
    """With all four vectors of each batch norm, and without its two running statistics."""
    assert count_parameters(outline()).total == 35_583_913
    assert count_parameters(outline()).trainable == 35_583_913 - 54_144 - 2 * 2 * (1024 + 512)
    assert count_parameters(outline(looks=0)).total == 20_628_393
    assert count_parameters(outline(looks=0)).trainable == 20_628_393 - 54_144
    assert sum(parameter.numel() for parameter in outline().cell.parameters()) == 512


def test_published_multiply_adds_hardly_depend_on_looks() -> None:
    model = outline()
    none, two, six = (macs(model, looks) for looks in (0, 2, 6))
    assert none == pytest.approx(14.109e9, rel=1e-3)
    assert six == pytest.approx(19.5035e9, rel=1e-3)
    # Three sums over 512 channels of 361 positions per glimpse; all else is done once.
    assert six - two == 4 * 3 * 512 * 361
    # Controls cost as much as the representation network alone.
    assert macs(model, 6, "random") == none


def test_the_map_of_the_published_model() -> None:
    model = outline()
    assert (model.side, model.backbone.grid.field_px) == (19, 77)
    assert [tuple(layer[0].weight.shape) for layer in model.attention] == [  # type: ignore[index]
        (1024, 2048, 1, 1),
        (1024, 1024, 3, 3),
        (512, 1024, 1, 1),
        (512, 512, 3, 3),
    ]


# --- the cell


def cell_by_loops(features: Tensor, visited: Tensor, weight: Tensor) -> list[float]:
    """The description read word by word, one number at a time; features [dim, positions] of one image."""
    dim, positions = features.shape

    def softmax(values: list[float]) -> list[float]:
        top = max(values)
        exponentials = [math.exp(value - top) for value in values]
        return [value / sum(exponentials) for value in exponentials]

    space = []
    for position in range(positions):
        dense = sum(float(features[channel, position]) * float(weight[channel]) for channel in range(dim))
        space.append(dense / math.sqrt(dim) - 1e5 * float(visited[position]))
    share = softmax(space)
    channels = [sum(float(features[c, p]) * share[p] for p in range(positions)) for c in range(dim)]
    chosen = softmax(channels)
    return [
        sum(float(features[c, p]) * chosen[c] for c in range(dim)) - 1e5 * float(visited[p]) for p in range(positions)
    ]


@pytest.mark.parametrize("visits", [(), (3,), (0, 5, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_the_cell_matches_the_description(visits: tuple[int, ...]) -> None:
    cell = SaccaderCell(5)
    features, visited = torch.randn(2, 5, 8), torch.zeros(2, 8)
    visited[1, list(visits)] = 1
    logits = cell(features, visited)
    for image in range(2):
        expected = cell_by_loops(features[image].double(), visited[image], cell.space.weight[0].detach().double())
        torch.testing.assert_close(logits[image], torch.tensor(expected), atol=1e-4, rtol=1e-6)


def test_a_traversal_applies_the_cell_repeatedly() -> None:
    """From the whole map to the prediction, by a loop over single images."""
    model = sharpen(build())
    images = torch.rand(3, 1, 17, 17)
    output = model(images, looks=4)
    for image in range(3):
        features, what = model.backbone.describe(images[image : image + 1])
        mixed = model.mix(torch.cat([model.attention(features), what], dim=1))[0].flatten(1)
        visited, logits = torch.zeros(25), []
        for look in range(4):
            rated = torch.tensor(
                cell_by_loops(mixed.detach().double(), visited, model.cell.space.weight[0].detach().double())
            )
            torch.testing.assert_close(output.location_logits[look][image], rated, atol=1e-2, rtol=1e-4)
            best = int(rated.argmax())
            assert int(output.cells[image, look]) == best
            probability = rated.double().softmax(0)[best].log()
            torch.testing.assert_close(output.log_prob[image, look].double(), probability, atol=1e-3, rtol=1e-3)
            visited[best] = 1
            logits.append(model.classifier(what[0, :, best // 5, best % 5]))
        torch.testing.assert_close(output.feature_logits[image], torch.stack(logits))
        torch.testing.assert_close(output.logits[image], torch.stack(logits).mean(dim=0))


@pytest.mark.parametrize("policy", [*LEARNED, "random", "centre", "ordered_logits", "sobel_mean", "sobel_var"])
def test_no_position_is_chosen_twice(policy: str) -> None:
    """All 121 of them, with logits so large that the penalty of 1e5 alone would not hold."""
    model = sharpen(build(input_px=29), 1e8)
    images = torch.rand(2, 1, 29, 29)
    model.train(policy == "learned")
    output = model(images, looks=121, policy=policy)
    assert torch.equal(output.cells.sort(dim=1).values, torch.arange(121).repeat(2, 1))
    if policy == "topk":
        assert float(output.location_logits[0].detach().abs().max()) > 1e6  # else this test would be idle
    # All positions seen: the same as the representation network.
    torch.testing.assert_close(output.logits, output.representation_logits, atol=1e-4, rtol=1e-3)


def test_visited_positions_have_no_probability() -> None:
    output = build()(torch.rand(2, 1, 17, 17), looks=4)
    for look, logits in enumerate(output.location_logits):
        probabilities = logits.softmax(dim=1)
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
        assert not probabilities.gather(1, output.cells[:, :look]).any()
        assert (probabilities > 0).sum() == 2 * (25 - look)


def test_the_cell_computes_in_float32() -> None:
    model = sharpen(build())
    images = torch.rand(2, 1, 17, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, looks=25)
    assert all(logits.dtype == torch.float32 and logits.isfinite().all() for logits in output.location_logits)
    assert all(len(set(cells)) == 25 for cells in output.cells.tolist())
    assert len(set(model.bfloat16()(images, looks=25).cells[0].tolist())) == 25


# --- policies


def test_learned_policy_samples_in_training_only() -> None:
    model, images = build(), torch.rand(1, 1, 17, 17).repeat(64, 1, 1, 1)
    best = model(images)
    assert torch.equal(best.cells, model(images, policy="topk").cells)
    assert len({tuple(cells) for cells in best.cells.tolist()}) == 1
    for look, logits in enumerate(best.location_logits):
        assert torch.equal(best.cells[:, look], logits.argmax(dim=1))
    drawn = model(images, policy="sample").cells
    assert len({tuple(cells) for cells in drawn.tolist()}) > 50
    torch.manual_seed(3)
    drawn = model.train()(images).cells
    assert len({tuple(cells) for cells in drawn.tolist()}) > 50
    torch.manual_seed(3)
    assert torch.equal(drawn, model(images, policy="sample").cells)
    assert torch.equal(model(images, policy="topk").cells.unique(dim=0), model(images, policy="topk").cells[:1])


def test_samples_follow_the_location_probabilities() -> None:
    """1000 draws of the first glimpse; an error of four standard deviations is allowed."""
    model = sharpen(build(), 20.0)
    image = 4 * torch.randn(1, 1, 17, 17)
    with torch.no_grad():
        output = model(image.repeat(1000, 1, 1, 1), looks=1, policy="sample")
    wanted = output.location_logits[0].softmax(dim=1)[0]
    assert float(wanted.max()) > 1.5 / 25  # not uniform
    share = torch.bincount(output.cells[:, 0], minlength=25) / 1000
    assert ((share - wanted).abs() < 4 * (wanted * (1 - wanted) / 1000).sqrt()).all()
    torch.testing.assert_close(output.log_prob[:, 0], wanted.log()[output.cells[:, 0]], atol=1e-5, rtol=1e-5)


def test_centre_goes_outwards_and_random_anywhere() -> None:
    model, images = build(), torch.rand(500, 1, 17, 17)
    centre = model(images[:2], looks=5, policy="centre")
    assert centre.cells[0].tolist()[0] == 12 and set(centre.cells[1].tolist()) == {12, 7, 11, 13, 17}
    everywhere = model(images, looks=1, policy="random").cells
    assert set(everywhere.flatten().tolist()) == set(range(25))
    assert not torch.equal(model(images, policy="random").cells, model(images, policy="random").cells)


def test_ordered_logits_follow_the_predicted_class() -> None:
    logits = torch.tensor([[[0.0, 1.0], [0.5, 3.0], [9.0, 2.0], [0.0, 8.0]], [[5.0, 1], [6, 0], [6, 0], [9, 9]]])
    # Image 0 predicts class 1 (mean 3.5 against 2.375), image 1 class 0; ties go to the earlier position.
    assert ordered_positions(logits, 4).tolist() == [[3, 1, 2, 0], [3, 1, 2, 0]]
    model, images = build(), torch.rand(4, 1, 17, 17)
    output = model(images, looks=25, policy="ordered_logits")
    predicted = output.representation_logits.argmax(dim=1)
    for image in range(4):
        followed = output.feature_logits[image, :, predicted[image]]
        assert (followed.diff() <= 0).all()
        assert torch.equal(output.cells[image, :7], model(images, looks=7, policy="ordered_logits").cells[image])


def sobel_by_loops(image: Tensor) -> Tensor:
    """Strength of the edges of a grey image, mirrored at its border without repeating the border."""
    size = image.shape[0]

    def at(row: int, col: int) -> float:
        mirrored = [abs(i) if i < size else 2 * (size - 1) - i for i in (row, col)]
        return float(image[mirrored[0], mirrored[1]])

    strength = torch.zeros(size, size)
    for y in range(size):
        for x in range(size):
            down = sum(w * (at(y + 1, x + d) - at(y - 1, x + d)) for d, w in ((-1, 1), (0, 2), (1, 1)))
            right = sum(w * (at(y + d, x + 1) - at(y + d, x - 1)) for d, w in ((-1, 1), (0, 2), (1, 1)))
            strength[y, x] = math.hypot(down, right)
    return strength


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sobel_statistics(channels: int) -> None:
    images = torch.rand(2, channels, 17, 17)
    shares = {1: [1.0], 3: [0.2989, 0.5870, 0.1140], 4: [0.25] * 4}[channels]
    mean, variance = (edge_statistic(images, 9, 5, variance=which) for which in (False, True))
    for number, image in enumerate(images):
        strength = sobel_by_loops(sum(share * plane for share, plane in zip(shares, image, strict=True)))
        windows = [strength[y : y + 9, x : x + 9] for y in range(0, 9, 2) for x in range(0, 9, 2)]
        torch.testing.assert_close(mean[number], torch.stack([w.mean() for w in windows]))
        torch.testing.assert_close(variance[number], torch.stack([w.var() for w in windows]), atol=1e-5, rtol=1e-4)
    # Every size has as many windows as positions.
    for input_px in range(9, 40):
        side = (input_px - 9) // 2 + 1
        assert edge_statistic(torch.rand(1, 1, input_px, input_px), 9, side, variance=True).shape == (1, side**2)


@pytest.mark.parametrize(("policy", "variance"), [("sobel_mean", False), ("sobel_var", True)])
def test_sobel_policies_go_where_the_edges_are(policy: SaccaderPolicy, variance: bool) -> None:
    model, images = build(), torch.rand(3, 1, 17, 17)
    rated = edge_statistic(images, 9, 5, variance=variance)
    output = model(images, looks=25, policy=policy)
    assert (rated.gather(1, output.cells).diff(dim=1) <= 0).all()
    # A speck in an empty image is looked for where it is.
    speck = torch.zeros(1, 1, 17, 17)
    speck[..., 15, 15] = 1
    assert build(policy=policy)(speck, looks=1).cells.tolist() == [[24]]


def test_controls_do_not_ask_the_location_network() -> None:
    model = build()
    model.attention = nn.Sequential()  # its output would not fit
    for policy in ("random", "centre", "ordered_logits", "sobel_mean", "sobel_var"):
        output = model(torch.rand(2, 1, 17, 17), policy=policy)
        assert output.location_logits == () and output.log_prob.tolist() == [[0.0] * 3] * 2
    with pytest.raises(RuntimeError):
        model(torch.rand(2, 1, 17, 17), policy="topk")


# --- looks and boxes


def test_without_looks_it_is_the_representation_network() -> None:
    model, images = build(), torch.rand(2, 1, 17, 17)
    output = model(images, looks=0)
    torch.testing.assert_close(output.logits, model.classifier(model.backbone(images).pooled))
    assert output.feature_logits.shape == (2, 0, 4) and output.cells.shape == output.log_prob.shape == (2, 0)
    assert output.regions.level.tolist() == [0, 0]
    alone = build(looks=0)
    alone.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in alone.state_dict()})
    assert torch.equal(alone(images).logits, output.logits)
    with pytest.raises(GeometryError, match="looks is 1"):
        alone(images, looks=1)


def test_more_looks_begin_as_fewer() -> None:
    model, images = build(), torch.rand(2, 1, 17, 17)
    long = model(images, looks=10)
    for looks in range(1, 10):
        assert torch.equal(model(images, looks=looks).cells, long.cells[:, :looks])
    assert model(images).cells.shape == (2, 3)


def test_regions_are_in_the_order_of_the_glimpses() -> None:
    model = sharpen(build())
    output = model(pictures((40, 60), (17, 17), (200, 31)), looks=5)
    whole, glimpses = output.regions.at_level(0), output.regions.at_level(1)
    assert len(whole) == 3 and torch.equal(glimpses.cell.reshape(3, 5), output.cells)
    assert glimpses.image.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    again = window_regions(whole, output.cells, 5, 9, 17)
    assert torch.equal(glimpses.box_l0_yxyx, again.box_l0_yxyx)


def test_pixels_are_normalised_and_resized_once() -> None:
    model = build(in_channels=3, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    images = torch.stack(pictures((17, 17), (17, 17), channels=3))
    normal = (images / 255 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[
        :, None, None
    ]
    torch.testing.assert_close(model(images).logits, model(normal).logits)
    assert torch.equal(model(images).logits, model(model.scene(images)).logits)
    seen: list[tuple[int, int]] = []

    class Scene:
        is_normalized = True
        sizes_hw = [(17, 17)] * 2
        device = torch.device("cpu")

        def glimpse(self, regions: Any, size_px: int) -> Tensor:
            seen.append((len(regions), size_px))
            return normal

    model(Scene(), looks=4)
    assert seen == [(2, 17)]


# --- stages


def run(model: Saccader, stage: Stage, images: Tensor, target: Tensor, **settings: Any) -> Any:
    """A stage's loss with its gradients."""
    objective = SaccaderObjective(SaccaderObjectiveConfig(stage=stage, **({"l2_weight": 0.0} | settings)))
    loss = objective(model.train()(images, **objective.forward_options), target, model)
    model.zero_grad()
    loss.total.backward()
    return loss


def batch(count: int = 12) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, 17, 17), torch.arange(count) % 4


def test_parameters_trained_by_each_stage() -> None:
    model = build()
    parts = {stage: {name.split(".")[0] for name in trained(model, stage)} for stage in STAGES}
    assert parts["representation"] == {"backbone", "classifier"}
    assert parts["location"] == {"attention", "mix", "cell"}
    representation, location, joint = (trained(model, stage) for stage in STAGES)
    assert joint == dict(model.named_parameters()) == representation | location
    assert not representation.keys() & location.keys()
    alone = build(looks=0)
    assert trained(alone, "joint").keys() == trained(alone, "representation").keys()
    with pytest.raises(ConfigError, match="objective.stage"):
        trained(alone, "location")


@pytest.mark.parametrize("path", ["targets", "sampled"])
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_reach_only_what_a_stage_trains(stage: Stage, path: str) -> None:
    model = sharpen(build(), 3.0)
    # The last scale of a block starts at 0 and would hold up the gradients before it.
    for name, parameter in model.named_parameters():
        if name.endswith("expand_norm.weight"):
            nn.init.ones_(parameter)
    run(model, stage, *batch(), pretraining_path=path)
    for name, parameter in model.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert moved == (name in trained(model, stage)), name


def test_locations_learn_from_rewards_only() -> None:
    model = sharpen(build(), 3.0)
    images, target = batch()
    run(model, "joint", images, target, reinforce_weight=0.0)
    assert all(not p.grad.any() for p in trained(model, "location").values() if p.grad is not None)
    assert model.classifier.weight.grad is not None and model.classifier.weight.grad.any()
    objective = SaccaderObjective(SaccaderObjectiveConfig(l2_weight=0.0))
    loss = objective(model(images), target, model)
    model.zero_grad()
    loss.terms["reinforce"].backward()
    # Through the location network to the representation network, but not to the classifier.
    assert model.cell.space.weight.grad is not None and model.cell.space.weight.grad.any()
    assert model.backbone.stem[0].weight.grad.any()  # type: ignore[union-attr, operator]
    assert model.classifier.weight.grad is None


def test_terms_of_the_joint_stage() -> None:
    model = sharpen(build(), 3.0)
    images, target = batch()
    objective = SaccaderObjective(SaccaderObjectiveConfig(reinforce_weight=0.5, l2_weight=0.01))
    output = model.train()(images, **objective.forward_options)
    loss = objective(output, target, model)
    right = (output.logits.argmax(1) == target).float()
    assert 0 < float(right.mean()) < 1  # else there is nothing to compare
    surprise = [(right[i] - right.mean()) * -output.log_prob[i, t] for i in range(12) for t in range(3)]
    torch.testing.assert_close(loss.terms["reinforce"], 0.5 * torch.stack(surprise).mean())
    torch.testing.assert_close(loss.terms["cross_entropy"], F.cross_entropy(output.logits, target))
    weights = [p for p in model.parameters() if p.ndim >= 2]
    torch.testing.assert_close(loss.terms["l2"], 0.01 * sum((p**2).sum() for p in weights))
    torch.testing.assert_close(loss.total, sum(loss.terms.values()))
    assert float(loss.reward) == float(right.mean())
    alone = (output.feature_logits.argmax(2) == target[:, None]).float().mean()
    torch.testing.assert_close(loss.reward_per_feature, alone)


@pytest.mark.parametrize("stage", STAGES)
def test_the_penalty_is_on_the_weights_that_a_stage_trains(stage: Stage) -> None:
    model = build()
    images, target = batch()
    loss = run(model, stage, images, target, l2_weight=2.0)
    names = [name for name, p in trained(model, stage).items() if p.ndim >= 2]
    assert all("norm" not in name and not name.endswith("bias") for name in names)
    expected = 2.0 * torch.stack([model.get_parameter(name).square().sum() for name in names]).sum()
    torch.testing.assert_close(loss.terms["l2"], expected)
    assert "cell.space.weight" in names or stage == "representation"


def test_terms_of_location_pretraining() -> None:
    """The target of a step is the next best position of the predicted class; labels do not matter."""
    model = sharpen(build(), 3.0)
    images, target = batch()
    objective = SaccaderObjective(SaccaderObjectiveConfig(stage="location", l2_weight=0.0))
    assert objective.forward_options["looks"] == 12
    output = model.train()(images, **objective.forward_options)
    assert torch.equal(output.cells, ordered_positions(output.position_logits, 12))
    loss = objective(output, target, model)
    expected = torch.zeros(())
    for t, logits in enumerate(output.location_logits):
        expected = expected + F.cross_entropy(logits, output.cells[:, t]) / 12
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.total, -output.log_prob.mean())
    assert torch.equal(objective(output, (target + 1) % 4, model).total, loss.total)
    assert not output.position_logits.requires_grad


def test_sampled_pretraining_penalises_visited_targets() -> None:
    """As the original's code does."""
    model = sharpen(build(), 3.0)
    images, target = batch()
    settings = SaccaderObjectiveConfig(stage="location", l2_weight=0.0, pretraining_path="sampled")
    objective = SaccaderObjective(settings)
    output = model.train()(images, **objective.forward_options)
    wanted = ordered_positions(output.position_logits, 12)
    assert not torch.equal(output.cells, wanted)
    collisions = sum(
        int(wanted[image, t]) in output.cells[image, :t].tolist() for image in range(12) for t in range(12)
    )
    assert collisions > 0
    assert float(objective(output, target).total.detach()) == pytest.approx(collisions * 1e5 / 144, rel=0.01)


def test_the_representation_stage_leaves_the_location_network_alone() -> None:
    model = build()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images, target = batch()
    loss = run(model, "representation", images, target)
    assert set(loss.terms) == {"cross_entropy"}
    changed = {name.split(".")[0] for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == {"backbone"}
    output = model(images, looks=0)
    expected = F.cross_entropy(output.position_logits.mean(dim=1), target)
    torch.testing.assert_close(loss.total, expected)


def test_several_labels() -> None:
    model = build(multilabel=True)
    images, _ = batch()
    target = (torch.rand(12, 4) > 0.5).float()
    for stage in STAGES:
        loss = run(model, stage, images, target)
        assert loss.total.isfinite() and 0 <= float(loss.reward) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("shortcut_norm", ["branch", "shortcut"])
def test_a_small_model_learns_through_its_stages(shortcut_norm: str) -> None:
    """Stripes of four phases in the middle; each stage goes on from the one before and brings its loss down."""
    model = build(shortcut_norm=shortcut_norm)
    generator = torch.Generator().manual_seed(0)
    images, target = 0.1 * torch.rand(32, 1, 17, 17, generator=generator), torch.arange(32) % 4
    for image, label in zip(images, target.tolist(), strict=True):
        image[0, 4:13, 4:13][label::4] += 1.0
    rewards = []
    for stage, steps in (("representation", 25), ("location", 40), ("joint", 10)):
        objective = SaccaderObjective(SaccaderObjectiveConfig(stage=stage))  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(objective.trained(model).values(), lr=1e-2)
        frozen = {name: p.clone() for name, p in model.named_parameters() if name not in objective.trained(model)}
        main = "location" if stage == "location" else "cross_entropy"
        losses = []
        for _ in range(steps):
            loss = objective(model.train()(images, **objective.forward_options), target, model)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            losses.append(float(loss.terms[main].detach()))
            rewards.append(float(loss.reward))
        # Joint training starts where little is left to learn, from samples; it must not lose it (chance is 1.39).
        assert max(losses[-3:]) < (0.75 * losses[0] if stage != "joint" else 0.7), (stage, losses)
        assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    assert min(rewards[-3:]) > 0.7  # chance is 0.25


@pytest.mark.parametrize("stage", STAGES)
def test_one_step_downhill_lowers_the_loss_by_what_its_slope_says(stage: Stage) -> None:
    """With the usual shortcuts: with the original's, the loss bends too sharply where scales of 0 are normalised."""
    model = sharpen(build(shortcut_norm="shortcut"), 3.0)
    images, target = batch(32)
    objective = SaccaderObjective(SaccaderObjectiveConfig(stage=stage))
    parameters = list(objective.trained(model).values())
    losses, slope, rate = [], torch.zeros(()), 1e-3
    for step in range(2):
        torch.manual_seed(5)  # the same samples
        loss = objective(model.train()(images, **objective.forward_options), target, model).total
        losses.append(float(loss.detach()))
        if step == 0:
            gradients = torch.autograd.grad(loss, parameters)
            slope = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.data -= rate * gradient
    assert (losses[0] - losses[1]) / rate == pytest.approx(float(slope), rel=0.1)


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_px": 8}, "model.input_px is 8"),
        ({"looks": 26}, "model.looks is 26; give 0 to 25"),
        ({"looks": -1}, "model.looks is -1"),
        ({"num_classes": 0}, "model.num_classes is 0"),
        ({"mixed_dim": 0}, "model.mixed_dim is 0"),
        ({"attention_dims": ()}, "model.attention_dims is \\[\\]"),
        ({"attention_dims": (4, 0)}, "model.attention_dims is"),
        ({"strides": (2,)}, r"strides \(2,\)"),
        ({"mean": (0.5, 0.5)}, "model.mean"),
        ({"std": (0.0,)}, "model.std is"),
        ({"class_names": ("a",)}, "model.class_names"),
    ],
)
def test_invalid_configs_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


def test_planes_that_do_not_fit_the_blocks() -> None:
    with pytest.raises(ConfigError, match="planes"):
        Saccader(tiny_config(planes=(8,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reinforce_weight": -1.0}, "objective.reinforce_weight is -1"),
        ({"l2_weight": float("nan")}, "objective.l2_weight is nan"),
        ({"pretraining_looks": 0}, "objective.pretraining_looks is 0"),
        ({"label_smoothing": 1.0}, "objective.label_smoothing is 1"),
    ],
)
def test_invalid_objectives_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SaccaderObjectiveConfig(**changes)


def test_configs_from_plain_data() -> None:
    data = {"planes": [4, 8], "blocks": [1, 1], "strides": [2, 1], "wide_blocks": [1, 1], "policy": "sobel_var"}
    config = parse_dataclass(SaccaderConfig, data, "recipe.yaml")
    assert config.planes == (4, 8) and config.policy == "sobel_var"
    assert parse_dataclass(SaccaderObjectiveConfig, {"stage": "location"}, "recipe.yaml").stage == "location"
    for cls, bad in ((SaccaderConfig, {"policy": "left"}), (SaccaderObjectiveConfig, {"stage": "fourth"})):
        with pytest.raises(RecipeError, match=next(iter(bad))):
            parse_dataclass(cls, bad, "recipe.yaml")


def test_invalid_calls_raise() -> None:
    model = build()
    images, target = batch()
    with pytest.raises(ConfigError, match="policy 'left'"):
        model(images, policy="left")
    for looks in (-1, 26):
        with pytest.raises(GeometryError, match=f"looks is {looks}; give 0 to 25"):
            model(images, looks=looks)
    with pytest.raises(ConfigError, match="3 channels"):
        model(torch.rand(1, 3, 17, 17))
    for stage, policy in (("joint", "random"), ("location", "ordered_logits")):
        objective = SaccaderObjective(SaccaderObjectiveConfig(stage=stage))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"objective.stage '{stage}'"):
            objective(model(images, policy=policy), target, model)
