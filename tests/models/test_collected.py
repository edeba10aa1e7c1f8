"""Locators that see what was collected: no effect before training, then looks depend on the looks before them."""

from __future__ import annotations

import pytest
import torch
from tests.helpers import awaken, three_levels, tiny_config
from torch import Tensor

from tnet.errors import LooksWarning
from tnet.models import LocatorConfig, PolicyConfig, TNet
from tnet.models.engine import traverse_all
from tnet.models.tnet import TNetOutput
from tnet.traversal import BestFirst, Choice, LevelByLevel, Search, Step, TopK, Trail

KINDS = [("mean", "squeeze"), ("canvas", "context")]
kinds = pytest.mark.parametrize(("aggregation", "kind"), KINDS)


def build(aggregation: str, kind: str = "squeeze", context: str = "collected", **changes: object) -> TNet:
    torch.manual_seed(1)
    locator = LocatorConfig(kind, hidden=8, context=context)  # type: ignore[arg-type]
    return TNet(three_levels(aggregation=aggregation, locator=locator, **changes)).eval()


def after(model: TNet, image: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Scores of the whole image's cells after one look at this box."""
    traversal = model.search(image, BestFirst(looks=3, levels=3))
    next(traversal)
    traversal.look_at(box)
    next(traversal)
    return traversal.trail.scores(torch.tensor([0]))[0]


# --- effect


@pytest.mark.parametrize(
    ("aggregation", "kind", "max_overlap"),
    [("mean", "squeeze", 0.4), ("canvas", "context", 1.0)],
)
def test_no_effect_before_training(aggregation: str, kind: str, max_overlap: float) -> None:
    images, policy = torch.rand(2, 1, 96, 128), PolicyConfig(max_overlap=max_overlap)
    plain, model = (build(aggregation, kind, context, policy=policy) for context in ("none", "collected"))
    assert not model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    for looks in (4, 0), (2, 2):
        expected, actual = plain(images, looks=looks), model(images, looks=looks)
        torch.testing.assert_close(actual.logits, expected.logits)
        boxes = [output.regions.box_l0_yxyx.tolist() for output in (expected, actual)]
        assert sorted(boxes[0]) == sorted(boxes[1])  # one by one the order is that of the scores
    search = BestFirst(5, 3)
    assert torch.equal(
        plain(images, search=search).regions.box_l0_yxyx, model(images, search=search).regions.box_l0_yxyx
    )


@kinds
def test_where_to_look_depends_on_what_was_seen(aggregation: str, kind: str) -> None:
    torch.manual_seed(3)
    image, boxes = torch.rand(1, 1, 96, 96), ((0, 0, 48, 48), (48, 48, 96, 96))
    without, model = build(aggregation, kind, "none"), awaken(build(aggregation, kind))
    assert torch.equal(*(after(without, image, box) for box in boxes))
    first, second = (after(model, image, box) for box in boxes)
    assert not torch.allclose(first, second, atol=1e-4)


def test_another_first_look_leads_elsewhere() -> None:
    """A locator that sees nothing but what was written on the canvas."""
    model, image = awaken(build("canvas")), torch.rand(1, 1, 96, 96)
    assert model.locator is not None
    with torch.no_grad():
        for unseen in (model.locator.hidden.weight, *model.aggregation.start.parameters()):
            unseen.zero_()
    cells = {int(after(model, image, (y, x, y + 30, x + 30)).argmax()) for y in (0, 66) for x in (0, 66)}
    assert len(cells) > 1


def test_the_output_has_the_scores_from_when_a_region_was_seen() -> None:
    model, image = awaken(build("canvas")), torch.rand(2, 1, 96, 96)
    before = model(image, search=BestFirst(1, 2)).location_logits
    traversal = model.search(image, BestFirst(3, 2))
    list(traversal)
    assert torch.equal(traversal.output().location_logits, before)  # type: ignore[attr-defined]
    assert not torch.allclose(traversal.trail.scores(torch.tensor([0, 1])), before)


def test_a_search_that_asks_for_nothing_gets_each_score_once() -> None:
    class Twice(Search):
        def __call__(self, trail: Trail) -> Step | None:
            counts.append(len(trail.scored_rows))
            return (
                trail.step(torch.tensor([0]), Choice.of_cells(torch.tensor([[len(trail)]]))) if len(trail) < 3 else None
            )

    counts: list[int] = []
    output = awaken(build("mean"))(torch.rand(1, 1, 96, 96), search=Twice())
    assert counts == [1, 2, 3] and output.location_logits.shape == (3, 9)


# --- training


@kinds
def test_the_locator_alone_learns_from_it(aggregation: str, kind: str) -> None:
    model = build(aggregation, kind).train()
    output = model(torch.rand(3, 1, 96, 96), policy="sample")
    output.joint_log_prob.sum().backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    touched = {name for name, grad in named.items() if grad is not None and bool(grad.abs().max() > 0)}
    assert "locator.collected.weight" in touched and all(name.startswith("locator.") for name in touched)


@pytest.mark.parametrize("policy", ["topk", "sample", "random"])
def test_one_by_one_sees_as_much_as_all_at_once(policy: str) -> None:
    model = awaken(build("canvas", policy=PolicyConfig(max_overlap=0.5)))
    output = model(torch.rand(2, 1, 96, 96), looks=(4, 2), policy=policy)
    regions = output.regions
    assert torch.bincount(regions.level).tolist() == [2, 8, 16]
    places = torch.stack([regions.parent, regions.cell], dim=1)
    assert len(places.unique(dim=0)) == len(places) - 1  # the whole images are alike
    assert output.joint_log_prob.shape == (2,) and bool(torch.isfinite(output.log_prob).all())
    assert output.features.shape[1] == 1 + 4 + 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    model = awaken(build("canvas")).train()
    with torch.autocast("cpu", dtype=dtype):
        output = model(torch.rand(2, 1, 96, 96), policy="sample")
    assert bool(torch.isfinite(output.logits).all()) and bool(torch.isfinite(output.joint_log_prob).all())


# --- one image or many


@kinds
def test_a_stream_gives_what_single_images_do(aggregation: str, kind: str) -> None:
    model = awaken(build(aggregation, kind))
    images = [torch.rand(1, 1, 96 + 8 * i, 128 - 4 * i) for i in range(3)]
    for search in (BestFirst(3, 3), LevelByLevel((2, 1), TopK(), one_by_one=True)):
        with torch.inference_mode():
            expected = [model(image, search=search) for image in images]
            actual = list(traverse_all(model, images, search, glimpses=3))
        for one, alone in zip(actual, expected, strict=True):
            assert isinstance(one, TNetOutput)
            torch.testing.assert_close(one.logits, alone.logits, atol=1e-5, rtol=0)
            assert torch.equal(one.regions.box_l0_yxyx, alone.regions.box_l0_yxyx)


def test_images_that_end_early_harm_no_other() -> None:
    """All 9 cells of the second level are seen; the batch goes on where cells are left."""
    torch.manual_seed(1)
    locator = LocatorConfig("squeeze", context="collected")
    model = awaken(TNet(tiny_config(aggregation="canvas", locator=locator)).eval())
    images = torch.rand(2, 1, 96, 96)
    with pytest.warns(LooksWarning):
        output = model(images, search=BestFirst(12, 2))
    assert torch.bincount(output.regions.image).tolist() == [10, 10]
