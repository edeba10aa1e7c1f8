"""Policies: stated probabilities are those of the actual draws."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tnet.errors import GeometryError
from tnet.traversal import FixedCells, Policy, RandomCells, SampleWithoutReplacement, TopK
from tnet.traversal.policies import MAX_SET_SIZE, Choice, most_wanted, raster_order, sequence_log_prob, set_log_prob

LOGITS = [0.3, -1.2, 2.0, 0.3, -0.4]


def sequence_probability(weights: list[float], order: tuple[int, ...]) -> float:
    """Product over draws, each from the remaining cells, in plain floats."""
    probability, left = 1.0, sum(weights)
    for cell in order:
        probability *= weights[cell] / left
        left -= weights[cell]
    return probability


def set_probability(weights: list[float], cells: tuple[int, ...]) -> float:
    """Sum over all orders of drawing the cells."""
    return sum(sequence_probability(weights, order) for order in permutations(cells))


def repeated(logits: list[float], times: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(logits, dtype=dtype).expand(times, -1)


logit_lists = st.lists(st.floats(-4, 4), min_size=2, max_size=6)


# --- exact probabilities


@given(logit_lists, st.data())
def test_sequence_log_prob_is_exact(logits: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(logits)))
    orders = list(permutations(range(len(logits)), k))[:60]
    weights = [math.exp(logit) for logit in logits]
    actual = sequence_log_prob(repeated(logits, len(orders)), torch.tensor(orders))
    assert actual.shape == (len(orders), k)
    expected = [sequence_probability(weights, order) for order in orders]
    assert actual.sum(dim=1).exp().tolist() == pytest.approx(expected, rel=1e-9)
    # Each draw on its own, not only their product.
    first = [weights[order[0]] / sum(weights) for order in orders]
    assert actual[:, 0].exp().tolist() == pytest.approx(first, rel=1e-9)


@given(logit_lists, st.data())
def test_set_log_prob_is_exact(logits: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(logits)))
    sets = list(combinations(range(len(logits)), k))
    actual = set_log_prob(repeated(logits, len(sets)), torch.tensor(sets)).exp()
    weights = [math.exp(logit) for logit in logits]
    assert actual.tolist() == pytest.approx([set_probability(weights, cells) for cells in sets], rel=1e-9)
    assert float(actual.sum()) == pytest.approx(1, abs=1e-9)


def test_set_log_prob_ignores_order() -> None:
    orders = torch.tensor(list(permutations((1, 2, 4))))
    actual = set_log_prob(repeated(LOGITS, len(orders)), orders)
    assert torch.allclose(actual, actual[0].expand_as(actual), atol=1e-12)


def test_set_log_prob_is_exact_for_a_dominant_cell() -> None:
    """1 minus a sum of probabilities would be rounded to 0 here."""
    logits = repeated([40.0, 0.0, 0.0, 0.0], 1, torch.float32)
    assert float(set_log_prob(logits, torch.tensor([[0, 1]])).exp()) == pytest.approx(1 / 3, rel=1e-4)
    assert float(set_log_prob(logits, torch.tensor([[1, 2]]))) == pytest.approx(math.log(2) - 80, rel=1e-4)


def test_set_log_prob_rejects_large_sets() -> None:
    cells = torch.arange(MAX_SET_SIZE + 1)[None]
    with pytest.raises(GeometryError, match=r"set of 11 .* at most 10"):
        set_log_prob(torch.zeros(1, 12), cells)


# --- drawing


def test_draws_follow_the_exact_distribution() -> None:
    """Gumbel top-k against the probability of every sequence of 2 of 5 cells: chi-squared."""
    draws = 20_000
    policy = SampleWithoutReplacement("sequence", generator=torch.Generator().manual_seed(3))
    logits = repeated(LOGITS, draws, torch.float32)
    choice = policy(logits, 2)
    weights = [math.exp(logit) for logit in LOGITS]
    by_set: Counter[tuple[int, ...]] = Counter(map(tuple, choice.cells.tolist()))
    sets = list(combinations(range(5), 2))
    expected = {cells: draws * set_probability(weights, cells) for cells in sets}
    assert min(expected.values()) > 20
    statistic = sum((by_set[cells] - count) ** 2 / count for cells, count in expected.items())
    # 9 degrees of freedom: 27.9 is exceeded once in a thousand seeds; this seed is fixed. Drawing with replacement,
    # or from a softmax of doubled logits, gives thousands.
    assert statistic < 27.9
    # The order within a set shows in the stated probabilities: their mean over the draws of a set is that of its two
    # orders, each as often as it is drawn.
    joint = choice.joint_log_prob.exp()
    for cells in sets:
        of_set = torch.tensor([drawn == list(cells) for drawn in choice.cells.tolist()])
        orders = [sequence_probability(weights, order) for order in permutations(cells)]
        stated = joint[of_set].double().numpy()
        first = np.isclose(stated, orders[0], rtol=1e-4)
        assert (first | np.isclose(stated, orders[1], rtol=1e-4)).all()
        if not math.isclose(*orders, rel_tol=1e-3):
            share, spread = orders[0] / sum(orders), math.sqrt(len(stated))
            assert abs(first.mean() - share) < 4 * 0.5 / spread


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("joint", ["sequence", "set"])
def test_draw_states_its_probability(k: int, joint: str) -> None:
    weights = [math.exp(logit / 0.5) for logit in LOGITS]
    policy = SampleWithoutReplacement(joint, temperature=0.5, generator=torch.Generator().manual_seed(0))
    choice = policy(repeated(LOGITS, 40), k)
    assert choice.cells.shape == choice.log_prob.shape == (40, k) and choice.joint_log_prob.shape == (40,)
    for cells, log_prob, stated in zip(
        choice.cells.tolist(), choice.log_prob.tolist(), choice.joint_log_prob.tolist(), strict=True
    ):
        assert cells == sorted(set(cells))
        if joint == "set":
            assert math.exp(stated) == pytest.approx(set_probability(weights, tuple(cells)), rel=1e-6)
            continue
        assert stated == pytest.approx(sum(log_prob))
        # The draws' probabilities are those of one of the orders, each beside its own cell.
        by_order = [
            {cell: math.log(sequence_probability(weights, order[: i + 1]) / sequence_probability(weights, order[:i]))
             for i, cell in enumerate(order)}
            for order in permutations(cells)
        ]  # fmt: skip
        stated_by_cell = dict(zip(cells, log_prob, strict=True))
        assert any(stated_by_cell == pytest.approx(order, rel=1e-6) for order in by_order)


def test_generator_makes_draws_repeatable() -> None:
    def draw(seed: int) -> list[list[int]]:
        policy = SampleWithoutReplacement(generator=torch.Generator().manual_seed(seed))
        return policy(repeated([0.0] * 9, 20), 3).cells.tolist()

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("joint", ["sequence", "set"])
def test_16_bit_logits_are_widened(joint: str, dtype: torch.dtype) -> None:
    """Mixed precision gives 16-bit logits unless a norm widened them."""
    logits = torch.randn(2, 9).to(dtype).requires_grad_()
    choice = SampleWithoutReplacement(joint)(logits, 3)
    assert choice.log_prob.dtype == choice.joint_log_prob.dtype == torch.float32
    choice.joint_log_prob.sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("joint", "temperature"), [("both", 1.0), ("set", 0.0), ("set", -1.0), ("set", math.nan)])
def test_invalid_sampler(joint: str, temperature: float) -> None:
    with pytest.raises(GeometryError, match="joint|temperature"):
        SampleWithoutReplacement(joint, temperature)


# --- gradients


@pytest.mark.parametrize("joint", ["sequence", "set"])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_gradients_match_finite_differences(joint: str, k: int) -> None:
    logits = repeated(LOGITS, 1).clone().requires_grad_()
    drawn = torch.tensor([[3, 0, 4, 2, 1][:k]])
    function = set_log_prob if joint == "set" else sequence_log_prob
    assert torch.autograd.gradcheck(lambda given: function(given, drawn).sum(), (logits,))
    gradient = torch.autograd.grad(function(logits, drawn).sum(), logits)[0]
    assert torch.isfinite(gradient).all()
    # Adding a constant to all logits changes no probability; the set of all cells is certain.
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)
    assert joint == "sequence" or k < 5 or float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("policy", [TopK(), SampleWithoutReplacement("sequence"), SampleWithoutReplacement("set")])
@pytest.mark.parametrize("k", [1, 9])
def test_gradients_are_finite_for_extreme_logits(policy: Policy, k: int) -> None:
    logits = torch.tensor([[60.0, -60.0, 0, 0, 0, 0, 0, 0, 30.0]], requires_grad=True)
    choice = policy(logits, k)
    (choice.joint_log_prob.sum() + choice.log_prob.sum()).backward()
    assert torch.isfinite(choice.log_prob).all() and torch.isfinite(choice.joint_log_prob).all()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


# --- top-k


def test_topk_takes_the_most_probable_in_raster_order() -> None:
    logits = torch.tensor([[0.1, 3.0, -1.0, 2.0, 0.0], [5.0, 1.0, 2.0, 3.0, 4.0]])
    choice = TopK()(logits, 3)
    assert choice.cells.tolist() == [[0, 1, 3], [0, 3, 4]]
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    expected = np.log(np.take_along_axis(probabilities, choice.cells.numpy(), 1) + 1e-10)
    np.testing.assert_allclose(choice.log_prob.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(choice.joint_log_prob.numpy(), expected.sum(1), rtol=1e-5)


def test_topk_gives_ties_to_the_lower_index() -> None:
    logits = torch.zeros(1, 49)
    logits[0, [5, 20, 40]] = 1.0
    assert TopK()(logits, 2).cells.tolist() == [[5, 20]]
    assert TopK()(logits, 5).cells.tolist() == [[0, 1, 5, 20, 40]]
    assert TopK()(torch.zeros(3, 49), 4).cells.tolist() == [[0, 1, 2, 3]] * 3


def test_topk_log_prob_of_zero_is_finite() -> None:
    choice = TopK()(torch.tensor([[0.0, -200.0]]), 2)
    assert choice.log_prob[0, 1].item() == pytest.approx(math.log(1e-10), rel=1e-5)


@given(data=st.data(), cells=st.integers(2, 9))
def test_overlapping_cells_are_skipped_while_others_are_left(data: st.DataObject, cells: int) -> None:
    k = data.draw(st.integers(1, cells))
    logits = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=cells, max_size=cells))
    near = data.draw(st.sets(st.tuples(st.integers(0, cells - 1), st.integers(0, cells - 1)), max_size=12))
    apart = torch.zeros(cells, cells, dtype=torch.bool)
    for first, second in near:
        apart[first, second] = True
    expected: list[int] = []
    for _ in range(k):
        left = [i for i in range(cells) if i not in expected]
        free = [i for i in left if not any((other, i) in near for other in expected)]
        expected.append(max(free or left, key=lambda i: (logits[i], -i)))
    rows = torch.tensor([logits, logits[::-1]])
    assert most_wanted(rows, k, apart)[0].tolist() == expected
    assert TopK(apart)(rows, k).cells[0].tolist() == sorted(expected)
    assert most_wanted(rows, k, torch.zeros_like(apart)).equal(most_wanted(rows, k))


# --- controls


def test_random_cells_are_distinct_uniform_and_without_gradient() -> None:
    policy = RandomCells(torch.Generator().manual_seed(0))
    logits = repeated([9.0, 0, 0, 0, 0, 0], 3000, torch.float32).clone().requires_grad_()
    choice = policy(logits, 2)
    assert all(first < second for first, second in choice.cells.tolist())
    counts = Counter(map(tuple, choice.cells.tolist()))
    statistic = sum((counts[pair] - 200) ** 2 / 200 for pair in combinations(range(6), 2))
    assert statistic < 36.1  # 14 degrees of freedom, once in a thousand
    assert not choice.log_prob.any() and not choice.joint_log_prob.any() and not choice.log_prob.requires_grad


def test_fixed_cells_are_in_raster_order() -> None:
    choice = FixedCells([7, 2, 5])(torch.zeros(2, 9), 2)
    assert choice.cells.tolist() == [[2, 7], [2, 7]] and not choice.joint_log_prob.any()
    with pytest.raises(GeometryError, match="4 looks exceed the 3 cells"):
        FixedCells([7, 2, 5])(torch.zeros(2, 9), 4)


@pytest.mark.parametrize(("rows", "cols", "first"), [(3, 3, {4}), (5, 5, {12}), (1, 5, {2}), (3, 5, {7})])
def test_centre_comes_first(rows: int, cols: int, first: set[int]) -> None:
    policy = FixedCells.centre_out(rows, cols)
    assert set(policy.order[: len(first)]) == first
    assert policy(torch.zeros(1, rows * cols), rows * cols).cells.tolist() == [list(range(rows * cols))]
    away = [abs(i // cols - (rows - 1) / 2) ** 2 + abs(i % cols - (cols - 1) / 2) ** 2 for i in policy.order]
    assert away == sorted(away)


def test_centre_skips_overlapping_cells() -> None:
    near = (torch.arange(25) % 5)[:, None] == (torch.arange(25) % 5)  # a column each
    assert FixedCells.centre_out(5, 5).order[:3] == (12, 7, 11)
    assert FixedCells.centre_out(5, 5, near).order[:5] == (12, 11, 13, 10, 14)
    assert sorted(FixedCells.centre_out(5, 5, near).order) == list(range(25))


@pytest.mark.parametrize(
    ("policy", "asks"),
    [(TopK(), True), (SampleWithoutReplacement(), True), (RandomCells(), False), (FixedCells([0]), False)],
)
def test_needs_logits(policy: Policy, asks: bool) -> None:
    assert isinstance(policy, Policy) and policy.needs_logits is asks
    assert isinstance(policy(torch.zeros(2, 4), 1), Choice)


def test_raster_order_sorts_log_probs_too() -> None:
    cells, log_prob = raster_order(torch.tensor([[4, 0, 2]]), torch.tensor([[-4.0, 0.0, -2.0]]))
    assert cells.tolist() == [[0, 2, 4]] and log_prob.tolist() == [[0.0, -2.0, -4.0]]
