"""Best-first search and stopping rules, against a search written with plain loops."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.helpers import (
    dividing_threshold,
    looks_until,
    make_unsure,
    regions,
    three_levels,
    tiny_config,
    until_certain,
)

from tnet.errors import ConfigError, GeometryError, LooksWarning
from tnet.geometry import Regions, box_overlap, cell_spans, whole_images
from tnet.models import LocatorConfig, TNet
from tnet.models.engine import traverse_all
from tnet.models.parts import pool_cells
from tnet.models.tnet import TNetOutput
from tnet.traversal import BestFirst, Calibrated, ExpectedGain, LookGain, StoppingRule, TimeLimit, Trail
from tnet.traversal.stopping import confidence, margin


@pytest.fixture(scope="module")
def model() -> TNet:
    torch.manual_seed(1)
    return make_unsure(TNet(three_levels()).eval(), torch.rand(1, 1, 96, 96))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.rand(3, 1, 120, 96) * torch.tensor([0.2, 0.6, 1.0]).reshape(3, 1, 1, 1)


def paths(output: TNetOutput, image: int) -> list[tuple[int, ...]]:
    """Cells from the whole image to each region of an image, in the order seen."""
    regions = output.regions
    found: dict[int, tuple[int, ...]] = {}
    for row in (regions.image == image).nonzero().flatten().tolist():
        parent = int(regions.parent[row])
        found[row] = (*found[parent], int(regions.cell[row])) if parent >= 0 else ()
    return list(found.values())


def by_loops(output: TNetOutput, image: int, looks: int, levels: int, density: bool) -> list[tuple[int, ...]]:
    """Order of best-first search given the scores of every region it divides, with plain dictionaries."""
    regions, probs = output.regions, output.location_probs
    scores = {}
    for path, row in zip(paths(output, image), (regions.image == image).nonzero().flatten().tolist(), strict=True):
        if row in output.divided.tolist():
            scores[path] = probs[output.divided.tolist().index(row)].tolist()
    frontier: dict[tuple[int, ...], float] = {}
    order: list[tuple[int, ...]] = [()]
    value: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(looks + 1):
        last = order[-1]
        if len(last) < levels - 1:
            for cell, prob in enumerate(scores[last]):
                chance = math.log(len(scores[last])) if density else 0.0
                frontier[(*last, cell)] = value[last] + math.log(prob) + chance
        if len(order) == looks + 1:
            return order
        best = max(frontier, key=lambda path: frontier[path])
        value[best] = frontier.pop(best)
        order.append(best)
    return order


@pytest.mark.parametrize("density", [False, True])
@pytest.mark.parametrize("levels", [2, 3, 4])  # more levels than in training, too
def test_order_is_that_of_plain_loops(model: TNet, images: torch.Tensor, density: bool, levels: int) -> None:
    search = BestFirst(looks=7, levels=levels, score="density" if density else "path")
    output = model(images, search=search)
    for image in range(3):
        assert paths(output, image) == by_loops(output, image, 7, levels, density)
    assert int(output.regions.level.max()) <= levels - 1


def test_two_levels_and_one_step_are_the_published_traversal(images: torch.Tensor) -> None:
    torch.manual_seed(1)
    model = TNet(tiny_config()).eval()
    expected = model(images, looks=4)
    for at_once in (1, 4):
        actual = model(images, search=BestFirst(looks=4, levels=2, at_once=at_once))
        torch.testing.assert_close(actual.logits, expected.logits)


def test_every_cell_of_every_level_is_seen_once_at_most(model: TNet, images: torch.Tensor) -> None:
    with pytest.warns(
        LooksWarning, match=r"search.looks is 1,000, but 3 levels of 3 x 3 cells have 90 places; all are"
    ):
        output = model(images[:1], search=BestFirst(looks=1000, levels=3, at_once=50))
    assert len(output.regions) == 1 + 9 + 81
    assert len(set(paths(output, 0))) == 91


@pytest.mark.parametrize("at_once", [1, 4])
def test_covered_cells_are_left_out_while_others_are_open(model: TNet, images: torch.Tensor, at_once: int) -> None:
    output = model(images, search=BestFirst(looks=4, levels=2, at_once=at_once, max_overlap=0.1))
    for image in range(3):
        boxes = output.regions.take((output.regions.image == image) & (output.regions.level == 1)).box_l0_yxyx
        covered = [float(box_overlap(boxes[i], boxes[j])) for i in range(4) for j in range(i)]
        assert max(covered) <= 0.1
    everything = model(images[:1], search=BestFirst(looks=9, levels=2, max_overlap=0.1))
    assert len(everything.regions) == 10


def test_overlap_counts_only_at_the_same_level(model: TNet, images: torch.Tensor) -> None:
    output = model(images, search=BestFirst(looks=30, levels=3, max_overlap=0.1, score="density"))
    assert output.regions.depth == 2


def test_exploration_follows_its_generator(model: TNet, images: torch.Tensor) -> None:
    def run(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        search = BestFirst(looks=6, levels=2, explore=1.0, generator=generator)
        return list(model(images[:1], search=search).regions.cell.tolist())

    assert run(0) == run(0)
    assert len({tuple(run(seed)) for seed in range(4)}) > 1
    assert len(set(run(0)[1:])) == 6


def test_no_looks(model: TNet, images: torch.Tensor) -> None:
    output = model(images, search=BestFirst(looks=0, levels=3))
    torch.testing.assert_close(output.logits, model(images, looks=0).logits)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"looks": -1}, "search.looks is -1"),
        ({"levels": 0}, "search.levels is 0"),
        ({"at_once": 0}, "search.at_once is 0"),
        ({"max_overlap": 1.5}, "search.max_overlap is 1.5"),
        ({"explore": -0.1}, "search.explore is -0.1"),
    ],
)
def test_impossible_settings(changes: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        BestFirst(**({"looks": 3, "levels": 2} | changes))  # type: ignore[arg-type]
    assert key in str(error.value)


@pytest.mark.parametrize(("name", "known"), [("score", "path, density, gain"), ("aspect", "squeeze, keep")])
def test_unknown_names(name: str, known: str) -> None:
    search = BestFirst(3, 2)
    object.__setattr__(search, name, "best")  # types are checked in tests, before the search sees a wrong one
    with pytest.raises(ConfigError, match=f"search.{name} is 'best'; give one of {known}"):
        search.__post_init__()


# --- long images


def test_a_strip_is_seen_as_squares(model: TNet) -> None:
    """Each square is divided into square cells as a whole image is, and all are answered together."""
    torch.manual_seed(3)
    strip, square = torch.rand(1, 1, 64, 256), torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        output = model([strip[0], square[0]], search=BestFirst(looks=6, levels=3, aspect="keep"))
        regions = output.regions.take(output.regions.image == 0)
        assert regions.level.tolist()[:4] == [0] * 4 and int((regions.level > 0).sum()) == 6
        assert regions.box_l0_yxyx[:4].tolist() == [[0, x, 64, x + 64] for x in range(0, 256, 64)]
        sizes = regions.size_hw
        assert torch.equal(sizes[:, 0], sizes[:, 1])
        # The second image is no longer than wide: as before, and beside a strip.
        plain = model(square, search=BestFirst(looks=6, levels=3))
        torch.testing.assert_close(output.logits[1], plain.logits[0])
        torch.testing.assert_close(output.whole_logits[1], plain.whole_logits[0])
        # The wholes of the strip are those of its squares as images.
        pieces = model(torch.stack(strip[0].split(64, dim=2)), looks=0)
        torch.testing.assert_close(output.whole_logits[0], pieces.logits.mean(0))
        torch.testing.assert_close(output.whole_weights[0], output.weights[0, :4].sum())


def test_a_tall_strip_alone_and_in_a_stream(model: TNet) -> None:
    torch.manual_seed(3)
    images, search = [torch.rand(1, 1, 256, 64), torch.rand(1, 1, 64, 96)], BestFirst(looks=3, levels=2, aspect="keep")
    with torch.no_grad():
        for output, image, wholes in zip(traverse_all(model, images, search), images, (4, 2), strict=True):
            assert isinstance(output, TNetOutput) and output.regions.level.tolist() == [0] * wholes + [1] * 3
            torch.testing.assert_close(output.logits, model(image, search=search).logits, atol=1e-5, rtol=0)


def test_a_place_in_a_strip_belongs_to_its_square(model: TNet) -> None:
    traversal = model.search(torch.rand(1, 1, 64, 256), BestFirst(looks=2, levels=2, aspect="keep"))
    next(traversal)
    traversal.look_at((10, 140, 42, 172))
    look = next(traversal)
    assert look.regions.parent.tolist() == [2] and look.regions.level.tolist() == [1]
    assert look.regions.position_yx.tolist() == [[1, 1]]
    with pytest.raises(GeometryError, match="nothing of image 0, 64 x 256 px"):
        traversal.look_at((0, 256, 9, 300))


def test_every_place_of_a_strip(model: TNet) -> None:
    search = BestFirst(looks=100, levels=2, at_once=50, aspect="keep")
    with pytest.warns(LooksWarning, match="have 36 places"):
        output = model(torch.rand(1, 1, 64, 256), search=search)
    assert len(output.regions) == 4 + 36


# --- stopping


def test_certainty() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    p = [math.exp(2) / (math.exp(2) + math.e + 1), math.e / (math.exp(2) + math.e + 1)]
    torch.testing.assert_close(confidence(logits), torch.tensor([p[0], 1 / 3]))
    torch.testing.assert_close(margin(logits), torch.tensor([p[0] - p[1], 0.0]))
    labels = torch.tensor([[3.0, -1.0]])
    sure = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(confidence(labels, True), torch.tensor([sure]))
    torch.testing.assert_close(margin(labels, True), torch.tensor([2 * sure - 1]))


@pytest.mark.parametrize("measure", ["confidence", "margin"])
def test_images_stop_when_they_are_certain(model: TNet, images: torch.Tensor, measure: str) -> None:
    """Each image stops at the first of its answers that is certain enough, as without the rule."""
    certainty = {"confidence": confidence, "margin": margin}[measure]
    answers = [model(images, search=BestFirst(looks=n, levels=3)).logits for n in range(7)]
    sure = torch.stack([certainty(logits) for logits in answers], dim=1)
    threshold = dividing_threshold(sure)
    expected = looks_until(sure, threshold)
    assert len(set(expected)) > 1
    stopped = model(images, search=BestFirst(looks=6, levels=3, stop=(until_certain(threshold, measure),)))
    looks = torch.bincount(stopped.regions.image[stopped.regions.level > 0], minlength=3)
    assert looks.tolist() == expected
    for i, n in enumerate(expected):
        torch.testing.assert_close(stopped.logits[i], answers[n][i])


def test_a_rule_from_outside(model: TNet, images: torch.Tensor) -> None:
    class Odd(StoppingRule):
        def __call__(self, trail: Trail) -> torch.Tensor:
            return torch.arange(trail.images) % 2 == 1

    output = model(images, search=BestFirst(looks=3, levels=3, stop=(Odd(),)))
    assert torch.bincount(output.regions.image).tolist() == [4, 1, 4]


def test_time_limit() -> None:
    trail = Trail([(10, 10)], tiny_config().grid)
    trail.slowest_step_ms = 50.0
    assert TimeLimit(20.0)(trail).tolist() == [True]
    assert TimeLimit(10_000.0)(trail).tolist() == [False]
    with pytest.raises(ConfigError, match="0 ms"):
        TimeLimit(0)


def test_gains_are_those_after_as_many_looks(model: TNet, images: torch.Tensor) -> None:
    """After the last number of looks that was measured, those of that number."""
    gains = (LookGain((0.5,), (0.3,)), LookGain((0.2, 0.6), (0.3, 0.1)))
    trail = model.search(images, BestFirst(looks=6, levels=3, stop=(Calibrated(0.15, gains),))).trail
    trail.regions = Regions.concat([whole_images([(9, 9)] * 5), regions([(0, 0, 3, 3)] * 8, [1, 2, 2, 3, 4, 4, 4, 4])])
    trail.sizes_hw = [(9, 9)] * 5
    certainty = torch.tensor([0.99, 0.6, 0.5, 0.3, 0.55])
    trail.logits = torch.stack([certainty, 1 - certainty], 1).log()
    # confidence is that of the larger class: 0.99, 0.6, 0.5, 0.7 and 0.55; the last three gain 0.15, 0.1 and 0.125
    assert Calibrated(0.2, gains)(trail).tolist() == [False, True, True, True, True]
    assert Calibrated(0.14, gains)(trail).tolist() == [False, True, False, True, True]
    assert Calibrated(0.301, gains)(trail).tolist() == [True] * 5


@pytest.mark.parametrize(("certainty", "gain"), [((), ()), ((0.5, 0.5), (0.1, 0.0)), ((0.1, 0.5), (0.1,))])
def test_impossible_gains(certainty: tuple[float, ...], gain: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="calibrate again"):
        LookGain(certainty, gain)


def test_unknown_measure() -> None:
    with pytest.raises(ConfigError, match="confidence"):
        Calibrated(0.5, (), "confidense")


# --- by predicted gain


@pytest.fixture(scope="module")
def valued() -> TNet:
    torch.manual_seed(4)
    return TNet(three_levels(locator=LocatorConfig(value=True))).eval()


def predicted(model: TNet, images: torch.Tensor, output: TNetOutput) -> dict[int, list[float]]:
    """Gains of the cells of every row above the last level, by the second locator alone."""
    found = {}
    for row in (output.regions.level < 2).nonzero().flatten().tolist():
        region = output.regions.take(torch.tensor([row]))
        seen = model.see(model.scene(images), region)
        spans = cell_spans(region, model.config.grid)
        assert model.locator is not None and model.locator.value is not None
        found[row] = model.locator.value(pool_cells(seen.cell_map, *spans), seen.pooled)[0].tolist()
    return found


def test_search_by_gain(valued: TNet, images: torch.Tensor) -> None:
    """Every look is the unseen cell of the largest predicted gain, on any level."""
    output = valued(images, search=BestFirst(looks=7, levels=3, score="gain"))
    gains, regions = predicted(valued, images, output), output.regions
    for image in range(3):
        rows = (regions.image == image).nonzero().flatten().tolist()
        frontier: dict[tuple[int, int], float] = {}
        for before, row in pairwise(rows):
            frontier |= {(before, cell): gain for cell, gain in enumerate(gains.get(before, []))}
            place = (int(regions.parent[row]), int(regions.cell[row]))
            assert frontier.pop(place) == pytest.approx(max([*frontier.values(), -99.0, gains[place[0]][place[1]]]))


def test_stopping_by_gain(valued: TNet, images: torch.Tensor) -> None:
    """An image is done at the first look after which no unseen cell is worth the price."""
    everything = valued(images, search=BestFirst(looks=7, levels=3, score="gain"))
    gains = predicted(valued, images, everything)
    price = sorted(gain for row in gains.values() for gain in row)[-12]
    output = valued(images, search=BestFirst(looks=7, levels=3, score="gain", stop=(ExpectedGain(price),)))
    for image in range(3):
        rows = (everything.regions.image == image).nonzero().flatten().tolist()
        taken = [gains[int(everything.regions.parent[row])][int(everything.regions.cell[row])] for row in rows[1:]]
        expected = next((n for n, gain in enumerate(taken) if gain <= price + 1e-6), 7)
        assert int((output.regions.image == image).sum()) == 1 + expected
    none = valued(images, search=BestFirst(looks=7, levels=3, stop=(ExpectedGain(1e9),)))
    assert len(none.regions) == 3
    assert len(valued(images, search=BestFirst(looks=0, levels=3, stop=(ExpectedGain(0.0),))).regions) == 3


@pytest.mark.parametrize("options", [{"score": "gain"}, {"stop": (ExpectedGain(0.1),)}])
def test_a_model_without_gains(model: TNet, images: torch.Tensor, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.locator\.value"):
        model(images, search=BestFirst(looks=3, levels=3, **options))


def test_box_overlap() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30]])
    assert box_overlap(boxes, torch.tensor([0, 0, 10, 20])).tolist() == [1.0, 0.5, 0.0]
