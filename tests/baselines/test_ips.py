"""IPS: which patches are kept, what selection costs, and what learns from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers import TINY_BAGNET, TINY_RESNET, pictures
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tnet.backbones.base import batch_norms
from tnet.baselines.geometry import chosen_patches, patch_boxes
from tnet.baselines.ips import IPS, CrossAttentionPool, IPSConfig, select_patches
from tnet.baselines.patches import PatchObjective, PatchObjectiveConfig
from tnet.config import parse_dataclass, to_plain
from tnet.errors import ConfigError, GeometryError, RecipeError
from tnet.losses import classification_loss
from tnet.traversal import FixedCells, RandomCells, SampleWithoutReplacement, TopK

TINY = IPSConfig(
    backbone=TINY_RESNET,
    backbone_stages=0,
    num_classes=3,
    patch_px=16,
    looks=3,
    step=4,
    heads=2,
    key_dim=4,
    value_dim=4,
    hidden=16,
    queries=2,
)


def tiny(**changes: Any) -> IPS:
    torch.manual_seed(0)
    return IPS(replace(TINY, **changes)).eval()


def batch(size_px: int = 64, images: int = 2) -> Tensor:
    return torch.stack(pictures(*[(size_px, size_px)] * images))


def table(images: int = 3, patches: int = 23, seed: int = 0) -> Tensor:
    """Ratings of patches in small whole numbers: many ties, and sums without rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (images, patches, 4), generator=generator).float()


def choose(ratings: Tensor, order: Tensor, keep: int, step: int, combine: Callable[[Tensor], Tensor]) -> Tensor:
    """Selection where a patch's features are its ratings."""
    patches, features = select_patches(
        lambda seen: ratings[:, seen], lambda features, seen: features, combine, order, keep, step
    )
    assert torch.equal(features, ratings.gather(1, patches[:, :, None].expand(-1, -1, ratings.shape[2])))
    return patches


def mean(ratings: Tensor) -> Tensor:
    return ratings.mean(dim=2)


@pytest.mark.parametrize(("keep", "step"), [(1, 1), (5, 3), (5, 7), (22, 22), (23, 7), (40, 100)])
def test_iterative_selection_keeps_the_best_of_all(keep: int, step: int) -> None:
    ratings = table()
    assert len(ratings[0].mean(dim=1).unique()) < 15  # there are ties to settle
    best = mean(ratings).sort(dim=1, descending=True, stable=True).indices[:, :keep]
    assert torch.equal(choose(ratings, torch.arange(23), keep, step, mean), best.sort(dim=1).values)


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_ties_go_to_the_patches_visited_first(step: int) -> None:
    order = torch.randperm(23)
    kept = choose(torch.ones(2, 23, 4), order, 5, step, mean)
    assert kept.tolist() == [sorted(order[:5].tolist())] * 2
    # And in another order the best are still the best.
    ratings = table()
    by_score = order[mean(ratings)[:, order].sort(dim=1, descending=True, stable=True).indices[:, :5]]
    assert torch.equal(choose(ratings, order, 5, step, mean), by_score.sort(dim=1).values)


@pytest.mark.parametrize("step", [1, 4, 7])
def test_attention_scores_compare_the_current_candidates(step: int) -> None:
    ratings = torch.randn(1, 23, 4, generator=torch.Generator().manual_seed(1)) * 3
    kept: list[int] = []
    for start in range(0, 23, step):
        candidates = kept + list(range(start, min(start + step, 23)))
        scores = torch.stack([ratings[0, candidates, head].softmax(0) for head in range(4)]).mean(0).tolist()
        best = sorted(zip(candidates, scores, strict=True), key=lambda pair: -pair[1])[:5]
        kept = [patch for patch, _ in best]
    found = choose(ratings, torch.arange(23), 5, step, lambda logits: logits.softmax(dim=1).mean(dim=2))
    assert found[0].tolist() == sorted(kept)


@pytest.mark.parametrize(("score", "heads", "queries", "step"), [("logit", 2, 2, 1), ("attention", 1, 1, 5)])
def test_a_model_keeps_the_best_of_all_its_patches(score: str, heads: int, queries: int, step: int) -> None:
    model, images = tiny(score=score, heads=heads, queries=queries, step=step), batch()
    boxes = patch_boxes((64, 64), 16, 16)
    every = chosen_patches([boxes] * 2, [torch.arange(16)] * 2)
    with torch.no_grad():
        features = model._encode(model.scene(images), every).unflatten(0, (2, 16))
        positions = model._positions(every).unflatten(0, (2, 16))
        logits = model.pool.logits(features + positions).flatten(1, 2).transpose(1, 2)
        scores = logits.softmax(dim=1).mean(dim=2) if score == "attention" else logits.mean(dim=2)
    # Far enough apart that rounding, which depends on how many patches are encoded at a time, cannot decide.
    ranked = scores.sort(dim=1, descending=True)
    assert float((ranked.values[:, 2] - ranked.values[:, 3]).min()) > 1e-6
    output = model(images)
    assert torch.equal(output.regions.at_level(1).cell.reshape(2, 3), ranked.indices[:, :3].sort(dim=1).values)
    assert torch.equal(output.regions.at_level(1).box_l0_yxyx, boxes.flatten(0, 1)[output.regions.at_level(1).cell])
    taken = ranked.indices[:, :3].sort(dim=1).values[:, :, None].expand(-1, -1, features.shape[2])
    torch.testing.assert_close(output.features, features.gather(1, taken))


def test_selection_encodes_step_patches_at_a_time_in_evaluation_mode() -> None:
    model = tiny().train()
    calls: list[tuple[int, bool, bool]] = []
    model.backbone.register_forward_hook(
        lambda module, inputs, output: calls.append((len(inputs[0]), torch.is_grad_enabled(), module.training))
    )
    norm = batch_norms(model.backbone)[0]
    for size_px in (64, 96):
        calls.clear()
        before = int(norm.get_buffer("num_batches_tracked"))
        model(batch(size_px))
        *selecting, last = calls
        patches = (-(-size_px // 16)) ** 2
        assert sum(count for count, _, _ in selecting) == 2 * patches
        assert all(count <= 2 * 4 and not gradient and not training for count, gradient, training in selecting)
        assert last == (2 * 3, True, True)
        assert int(norm.get_buffer("num_batches_tracked")) == before + 1
    assert all(module.training for module in model.modules())


def test_gradients_flow_through_kept_patches_only() -> None:
    model = tiny().train()
    images = torch.randn(2, 1, 64, 64, requires_grad=True)
    output = model(images)
    output.logits.square().sum().backward()
    assert images.grad is not None
    kept = torch.zeros_like(images, dtype=torch.bool)
    for image, (y0, x0, y1, x1) in zip(
        output.regions.at_level(1).image.tolist(), output.regions.at_level(1).box_l0_yxyx.tolist(), strict=True
    ):
        kept[image, :, y0:y1, x0:x1] = True
        assert images.grad[image, :, y0:y1, x0:x1].abs().sum() > 0
    assert images.grad[~kept].abs().max() == 0
    # The residual branches start at 0 (timm), so that only what is around them has a gradient yet.
    named = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert all(name.startswith("backbone.model.layer") for name in named)


def test_attention_pooling_is_attention() -> None:
    pool = CrossAttentionPool(8, replace(TINY, heads=2, key_dim=3, value_dim=5, queries=2)).eval()
    tokens = torch.randn(2, 4, 8)
    summary, weights = pool(tokens, torch.tensor([4, 3]))
    for image, count in enumerate((4, 3)):
        shares = torch.zeros(4)
        for query in range(2):
            gathered = []
            for head in range(2):
                keys = slice(3 * head, 3 * head + 3)
                asked = pool.to_query(pool.queries[query])[keys]
                products = [asked @ pool.to_key(tokens[image, n])[keys] / 3**0.5 for n in range(count)]
                share = torch.stack(products).softmax(0)
                values = [pool.to_value(tokens[image, n])[5 * head : 5 * head + 5] for n in range(count)]
                gathered.append(sum(a * v for a, v in zip(share, values, strict=True)))
                shares[:count] += share.detach() / 4
            x = pool.norm(pool.queries[query] + pool.project(torch.cat(gathered)))  # type: ignore[arg-type]
            x = pool.mlp_norm(x + pool.contract(F.relu(pool.expand(x))))
            torch.testing.assert_close(summary[image, query], x)
        torch.testing.assert_close(weights[image], shares)


def test_a_batch_of_different_sizes_equals_single_images() -> None:
    model = tiny(looks=5)
    images = pictures((64, 64), (20, 30), (33, 90), (64, 64))  # the second has fewer than five patches
    together = model(images)
    assert together.features.shape[1] == 5
    assert torch.bincount(together.regions.at_level(1).image).tolist() == [5, 4, 5, 5]
    start = 0
    for index, image in enumerate(images):
        alone = model([image])
        count = len(alone.regions.at_level(1))
        torch.testing.assert_close(together.logits[index], alone.logits[0])
        assert torch.equal(
            together.regions.at_level(1).box_l0_yxyx[start : start + count], alone.regions.at_level(1).box_l0_yxyx
        )
        assert together.weights[index, count:].abs().sum() == together.features[index, count:].abs().sum() == 0
        start += count
    torch.testing.assert_close(together.weights.sum(1), torch.ones(4))


def test_reused_features_equal_encoding_again() -> None:
    images = batch()
    reusing, again = tiny(), tiny(reuse_embeddings=False)
    torch.testing.assert_close(reusing(images).logits, again(images).logits)
    calls: list[int] = []
    for model in (reusing, again):
        model.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
        model(images)
    assert calls == [8] * 4 + [8] * 4 + [6]


def test_training_shuffles_the_order_of_patches() -> None:
    model, blank = tiny(position=False), torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    first = {tuple(model(blank).regions.at_level(1).cell.tolist()) for _ in range(2)}
    assert len(first) == 1
    model.train()
    assert len({tuple(model(blank).regions.at_level(1).cell.tolist()) for _ in range(4)}) > 2


def test_looks_and_control_policies() -> None:
    model, images = tiny(), batch()
    assert len(model(images, looks=1).regions.at_level(1)) == 2
    assert len(model(images, looks=99).regions.at_level(1)) == 2 * 16
    assert torch.equal(model(images, policy="topk").logits, model(images, policy=TopK()).logits)
    assert model(images, looks=4, policy="centre").regions.at_level(1).cell.tolist() == [5, 6, 9, 10] * 2
    assert model(images, looks=2, policy=FixedCells([3, 0])).regions.at_level(1).cell.tolist() == [0, 3] * 2
    drawn = {
        tuple(model(images, policy=policy).regions.at_level(1).cell.tolist()) for policy in ("random", RandomCells())
    }
    assert len(drawn) == 2


def test_published_cost_of_selection() -> None:
    model = IPS(IPSConfig())
    assert model.backbone.feature_dim == 128
    for size_px, giga in ((1500, 47), (10_000, 2103)):
        macs = model.multiply_adds((size_px, size_px))
        encoding = (size_px // 50) ** 2 * 52_570_176  # ResNet-18's stem and first two stages on one grey patch of 50 px
        assert 0 < macs["selection"] - encoding < 0.001 * encoding
        assert round(encoding / 1e9) == giga
    assert model.multiply_adds((3000, 3000), looks=7)["pool"] == model.multiply_adds((500, 900), looks=7)["pool"]


@pytest.mark.parametrize(
    ("size_hw", "policy", "reuse"),
    [((64, 64), "topk", True), ((40, 90), "topk", False), ((40, 90), "centre", True), ((16, 40), "topk", True)],
)
def test_counted_multiply_adds_equal_a_run(size_hw: tuple[int, int], policy: Any, reuse: bool) -> None:
    model = tiny(reuse_embeddings=reuse, step=5)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(pictures(size_hw), policy=policy)
    parts = model.multiply_adds(size_hw, policy=policy)
    # Every step asks for the queries again, which is counted too.
    assert sum(parts.values()) == counter.get_total_flops() // 2
    assert (parts["selection"] > 0) == (policy == "topk" and size_hw != (16, 40))


def test_objective_terms_sum_to_the_total() -> None:
    model = tiny().train()
    output, target = model(batch()), torch.tensor([0, 2])
    plain = PatchObjective(PatchObjectiveConfig())(output, target)
    torch.testing.assert_close(plain.total, F.cross_entropy(output.logits, target))
    full = PatchObjective(PatchObjectiveConfig(label_smoothing=0.1, l2_weight=0.01, l2_scope="new"))(
        output, target, model
    )
    assert set(full.terms) == {"cross_entropy", "l2"}
    torch.testing.assert_close(full.total, full.terms["cross_entropy"] + full.terms["l2"])
    several = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    loss = PatchObjective(PatchObjectiveConfig())(output, several)
    torch.testing.assert_close(loss.total, classification_loss(output.logits, several).mean())


def striped(images: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A patch of stripes, across or down, somewhere on a dark image; which, and where."""
    pixels = torch.full((images, 1, 64, 64), 20, dtype=torch.uint8)
    target = torch.randint(0, 2, (images,), generator=generator)
    stripes = torch.zeros(16, 16, dtype=torch.uint8)
    stripes[::4] = stripes[1::4] = 255
    cells = torch.randint(0, 16, (images,), generator=generator)
    for index, cell in enumerate(cells.tolist()):
        y, x = 16 * (cell // 4), 16 * (cell % 4)
        pixels[index, 0, y : y + 16, x : x + 16] = stripes if target[index] == 0 else stripes.T
    return pixels, target, cells


@pytest.mark.slow
def test_a_small_model_learns_to_find_and_classify() -> None:
    generator = torch.Generator().manual_seed(0)
    backbone = replace(TINY_RESNET, kwargs={"channels": [8, 16, 16, 16], "stem_width": 8})
    changes = {"num_classes": 2, "looks": 2, "step": 8, "queries": 1, "dropout": 0.0, "attention_dropout": 0.0}
    model = tiny(backbone=backbone, backbone_stages=2, **changes).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    objective = PatchObjective(PatchObjectiveConfig())
    for _ in range(80):
        images, target, _ = striped(16, generator)
        optimizer.zero_grad()
        objective(model(images), target).total.backward()
        optimizer.step()
    images, target, cells = striped(64, generator)
    with torch.no_grad():
        output = model.eval()(images)
    found = (output.regions.at_level(1).cell.reshape(64, 2) == cells[:, None]).any(dim=1)
    assert found.float().mean() > 0.95
    assert (output.logits.argmax(1) == target).float().mean() > 0.95


def test_config_round_trips_through_plain_data() -> None:
    assert parse_dataclass(IPSConfig, to_plain(TINY), "test") == TINY
    with pytest.raises(RecipeError, match="patchpx"):
        parse_dataclass(IPSConfig, {"patchpx": 3}, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_px": 0}, "model.patch_px is 0"),
        ({"looks": 0}, "model.looks is 0"),
        ({"step": 0}, "model.step is 0"),
        ({"heads": 0}, "model.heads is 0"),
        ({"stride_px": 17}, "model.stride_px"),
        ({"stride_px": -1}, "model.stride_px"),
        ({"backbone_stages": 5}, "model.backbone_stages is 5"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"mean": (0.1, 0.2)}, "model.mean"),
        ({"std": (0.0,)}, "model.std"),
        ({"class_names": ("a",)}, "model.class_names"),
        ({"backbone": TINY_BAGNET, "patch_px": 32, "backbone_stages": 2}, "model.backbone_stages"),
        ({"backbone": replace(TINY_RESNET, kwargs={"channels": [4, 4, 4, 4], "stem_width": 4})}, "model.position"),
    ],
)
def test_invalid_configs_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IPS(replace(TINY, **changes))


def test_invalid_calls_raise() -> None:
    model = tiny()
    with pytest.raises(GeometryError, match="looks is 0"):
        model(batch(), looks=0)
    for policy in ("sample", SampleWithoutReplacement()):
        with pytest.raises(ConfigError, match="cannot choose"):
            model(batch(), policy=policy)
    with pytest.raises(ConfigError, match="3 channels"):
        model(pictures((64, 64), channels=3))
    for changes in ({"label_smoothing": 1.0}, {"l2_weight": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            PatchObjectiveConfig(**changes)
