"""Single answers of an evaluation, compared with counting by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tests.helpers import tiny_config
from torch import Tensor

from tnet.data.sample import Batch
from tnet.evaluation.evaluator import Setting
from tnet.evaluation.probabilities import BINS
from tnet.geometry import Regions
from tnet.models.base import ModelOutput
from tnet.report.answers import SIDE, Answers, cover

CHOSEN, OTHER = Setting((2,), "topk", "topk"), Setting((2,), "random", "random")


@dataclass(frozen=True)
class Output(ModelOutput):
    logits: Tensor
    regions: Regions


def output(logits: Tensor, looks: list[list[tuple[int, int, int, int]]] | None = None) -> Output:
    """Images of 48 x 96 px with these boxes looked at."""
    n = len(logits)
    rows = [(0, image, (0, 0, 48, 96)) for image in range(n)]
    rows += [(1, image, box) for image, boxes in enumerate(looks or []) for box in boxes]
    level, image, boxes = zip(*rows, strict=True)
    nowhere = torch.zeros(len(rows), dtype=torch.long)
    return Output(
        logits,
        Regions(
            level=torch.tensor(level), image=torch.tensor(image), box_l0_yxyx=torch.tensor(boxes), cell=nowhere,
            parent=nowhere, position_yx=torch.zeros(len(rows), 2, dtype=torch.long),
        ),
    )  # fmt: skip


def batch(targets: list[int] | list[list[float]]) -> Batch:
    return Batch(torch.zeros(len(targets), 1, 4, 4, dtype=torch.uint8), torch.tensor(targets), ["x"] * len(targets))


def answers_of(probs: np.ndarray, truth: list[int], names: str) -> Answers:
    """The answers of a model with these probabilities, seen in batches of three."""
    answers = Answers(CHOSEN, tiny_config(num_classes=len(names)), list(names))
    logits = torch.from_numpy(np.log(probs)).float()
    for start in range(0, len(truth), 3):
        part = slice(start, start + 3)
        answers(CHOSEN, batch(truth[part]), output(logits[part]))
        answers(OTHER, batch(truth[part]), output(-logits[part]))  # is not kept
    return answers


@pytest.fixture
def random() -> tuple[np.ndarray, list[int], Answers]:
    generator = np.random.default_rng(3)
    probs = generator.dirichlet([0.6] * 4, size=100)
    truth = [int(generator.choice(4, p=0.5 * row + 0.125)) for row in probs]
    return probs, truth, answers_of(probs, truth, "abcd")


def test_answers_are_those_of_the_chosen_setting_in_order(random: tuple[np.ndarray, list[int], Answers]) -> None:
    probs, truth, answers = random
    assert len(answers) == 100 and answers.truth.tolist() == truth
    assert answers.answer.tolist() == probs.argmax(axis=1).tolist()
    assert answers.right.tolist() == [int(row.argmax()) == label for row, label in zip(probs, truth, strict=True)]
    np.testing.assert_allclose(answers.confidence, probs.max(axis=1), atol=1e-5)


def test_confusion_counts_every_image_once(random: tuple[np.ndarray, list[int], Answers]) -> None:
    probs, truth, answers = random
    wanted = [[0] * 4 for _ in range(4)]
    for row, label in zip(probs, truth, strict=True):
        wanted[label][int(row.argmax())] += 1
    assert answers.confusion().tolist() == wanted
    for index, count in enumerate(answers.by_class()):
        answered = sum(row[index] for row in wanted)
        assert count == ("abcd"[index], sum(wanted[index]), answered, wanted[index][index])
    mistakes = {(i, j): wanted[i][j] for i in range(4) for j in range(4) if i != j and wanted[i][j]}
    assert dict(answers.mistakes()) == mistakes
    assert [count for _, count in answers.mistakes()] == sorted(mistakes.values(), reverse=True)


def test_calibration_error_is_the_mean_gap_of_the_bins(random: tuple[np.ndarray, list[int], Answers]) -> None:
    probs, truth, answers = random
    error, images = 0.0, []
    for index in range(BINS):
        low, high = index / BINS, (index + 1) / BINS
        inside = [(row, label) for row, label in zip(probs, truth, strict=True) if low <= row.max() < high]
        if inside:
            sure = sum(row.max() for row, _ in inside) / len(inside)
            right = sum(int(row.argmax()) == label for row, label in inside) / len(inside)
            error += len(inside) / len(truth) * abs(sure - right)
            images.append(len(inside))
    assert answers.calibration_error() == pytest.approx(error, abs=1e-5)
    assert [part.images for part in answers.bins()] == images


def test_certain_answers_are_in_the_last_bin() -> None:
    answers = answers_of(np.array([[1.0, 1e-30], [1.0, 1e-30]]), [0, 1], "ab")
    assert answers.bins() == [(2, 1.0, 0.5)] and answers.calibration_error() == 0.5


def test_the_area_below_the_roc_curve_is_the_share_of_ordered_pairs() -> None:
    generator = np.random.default_rng(5)
    truth = [int(label) for label in generator.integers(2, size=60)]
    scores = np.clip(generator.normal(0.4, 0.2, size=60) + 0.2 * np.array(truth), 0.01, 0.99)
    false, true = answers_of(np.stack([1 - scores, scores], axis=1), truth, "ab").roc()
    pairs = [(p > n) + 0.5 * (p == n) for p, t in zip(scores, truth, strict=True) if t
             for n, u in zip(scores, truth, strict=True) if not u]  # fmt: skip
    assert np.trapezoid(true, false) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


def test_a_roc_curve_of_many_images_has_few_points() -> None:
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.01, 0.99, size=2000)
    answers = Answers(CHOSEN, tiny_config(num_classes=2), ["a", "b"])
    logits = torch.from_numpy(np.log(np.stack([1 - scores, scores], axis=1))).float()
    answers(CHOSEN, batch(generator.integers(2, size=2000).tolist()), output(logits))
    assert len(answers.roc()[0]) <= 300


def test_looks_are_mapped_as_shares_of_the_image_by_class() -> None:
    answers = Answers(CHOSEN, tiny_config(num_classes=3), ["a", "b", "c"])
    top_left, right = (0, 0, 24, 48), (0, 48, 48, 96)
    answers(CHOSEN, batch([0, 2]), output(torch.zeros(2, 3), [[top_left], [right, right]]))
    half = SIDE // 2
    everything = np.zeros((SIDE, SIDE))
    everything[:half, :half] += 1
    everything[:, half:] += 2
    np.testing.assert_allclose(answers.looked[0], everything, rtol=1e-5)
    sums = [float(part.sum()) for part in answers.looked[1:]]
    assert sums == pytest.approx([half * half, 0, 2 * SIDE * half], rel=1e-5)
    assert answers.sizes_hw == {(48, 96): 2}


def test_boxes_cover_parts_of_cells_and_nothing_outside() -> None:
    covered = cover(torch.tensor([[0.0, 0.0, 0.5, 0.75], [-1.0, 0.5, 2.0, 3.0]]), 2)
    assert covered.tolist() == [[[1.0, 0.5], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]


def test_several_labels_per_image() -> None:
    answers = Answers(CHOSEN, tiny_config(num_classes=3, multilabel=True), ["a", "b", "c"])
    logits = torch.tensor([[2.0, -1.0, 3.0], [-2.0, -3.0, -0.5]])
    answers(CHOSEN, batch([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), output(logits, [[(0, 0, 48, 96)], []]))
    assert answers.right.tolist() == [True, False]
    assert answers.by_class() == [("a", 2, 1, 1), ("c", 1, 1, 1)]
    assert answers.confidence.tolist() == pytest.approx([1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-0.5))])
    assert [float(part.max()) for part in answers.looked] == pytest.approx([1, 1, 0, 1])
