"""The report of a model: what it states is what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import tiny_config, tiny_recipe
from tests.report.reader import Reader, check_self_contained
from torch import Tensor

from tnet.data.digits import MegapixelDigits
from tnet.data.sample import Sample
from tnet.evaluation.evaluator import LooksRow, evaluate
from tnet.models.base import Model
from tnet.models.kind import build_model
from tnet.models.tnet import TNet
from tnet.report.answers import Answers
from tnet.report.gallery import MOST_SHOTS, choose
from tnet.report.run import write_report
from tnet.report.sections import difference, looks_text
from tnet.training.recipe import load_recipe, with_classes

EVIL = "<img src=x onerror=alert(1)>"


class Images:
    """Noise of two sizes, one class after the other."""

    def __init__(self, classes: list[str], count: int, multilabel: bool = False) -> None:
        self.classes, self.multilabel, self.count = classes, multilabel, count

    def __len__(self) -> int:
        return self.count

    def target(self, index: int) -> Tensor:
        n = len(self.classes)
        if self.multilabel:
            return torch.tensor([float(index >> label & 1) for label in range(n)])
        return torch.tensor(index * n // self.count)

    def __getitem__(self, index: int) -> Sample:
        size = (48, 64) if index % 3 else (64, 40)
        pixels = np.random.default_rng(index).integers(256, size=(1, *size), dtype=np.uint8)
        return Sample(torch.from_numpy(pixels), self.target(index), f"C:\\photos/{EVIL}{index}.png")


def model_of(names: list[str], **changes: Any) -> TNet:
    torch.manual_seed(1)
    model = TNet(tiny_config(num_classes=len(names), class_names=tuple(names), **changes))
    with torch.no_grad():
        model.classifier.weight.mul_(30)  # different answers for noise
    return model.eval()


def report(folder: Path, model: Model, data: Images, **options: Any) -> tuple[str, Reader, LooksRow]:
    path = folder / "report.html"
    row = write_report(model, data, path, name="mine", source="noise", progress=False, batch_size=8, **options)
    text = path.read_text(encoding="utf-8")
    check_self_contained(text)
    return text, Reader(text), row


NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[TNet, Images, Reader, LooksRow]:
    """A model, images, and the report of both."""
    model, data = model_of(NAMES), Images(NAMES, 15)
    metrics = [{"epoch": float(n), "train/accuracy": 0.1 * n, "val/accuracy": 0.1 * n} for n in range(3)]
    recipe = replace(tiny_recipe(), title=f"T {EVIL}")
    folder = tmp_path_factory.mktemp("report")
    _, page, row = report(folder, model, data, looks=[0, 2], recipe=recipe, metrics=metrics)
    return model, data, page, row


def test_a_report_states_what_an_evaluation_measures(shown: tuple[TNet, Images, Reader, LooksRow]) -> None:
    model, data, page, row = shown
    rows = evaluate(
        model, data, looks=[0, 2], policies=["topk", "random", "centre"], batch_size=8, progress=False
    )  # fmt: skip
    none, best, *controls = rows
    assert row.accuracy == best.accuracy and row.right == best.right
    assert f"With 2 looks {100 * best.accuracy:.1f} % of the images are right" in page.text
    assert f"from the whole image at low resolution alone, {100 * none.accuracy:.1f} %" in page.text
    for looks, item in (("0", none), ("2", best)):
        interval = f"{100 * item.accuracy_low:.1f} to {100 * item.accuracy_high:.1f} %"
        assert page.row(looks)[1:3] == [f"{100 * item.accuracy:.1f} %", interval]
    for item, place in zip(controls, ("random places", "the places nearest to the middle"), strict=True):
        assert item.right_without_context is not None
        alone = item.right_without_context.count("1") / 15
        assert page.row(place)[1:] == [f"{100 * item.accuracy:.1f} %", f"{100 * alone:.1f} %"]
        gap = 100 * (best.accuracy - item.accuracy)
        assert f"At {place} it would be {100 * item.accuracy:.1f} %: choosing brings {gap:+.1f} points" in page.text


def test_sections_come_in_order_and_leave_out_what_there_is_not(
    shown: tuple[TNet, Images, Reader, LooksRow],
) -> None:
    page = shown[2]
    headings = ["Accuracy, looks and cost", "Does it know where to look?", "Where it looks", "Right, wrong and unsure"]
    headings += ["By class", "Can its confidence be trusted?", "What was trained on what", "Training Over 3 epochs"]
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places) and "Found and false alarms" not in page.text
    assert f"T {EVIL}" in page.text and "trained on synthetic digits (max)" in page.text


def test_marked_places_are_looked_at_or_not(tmp_path: Path) -> None:
    model, data = model_of(NAMES), Images(NAMES, 6)
    # Cells of half an image at its middle show the middle of the first box, and nothing of the second.
    boxes = {0: torch.tensor([[28.0, 16.0, 36.0, 24.0]]), 1: torch.tensor([[0.0, 0.0, 4.0, 4.0]])}
    _, page, _ = report(tmp_path, model, data, looks=[2], marked=(data, boxes))
    title = "Does it look at marked places?"
    assert page.text.index("Does it know where to look?") < page.text.index(title) < page.text.index("Where it looks")
    assert "2 of the images have places marked" in page.text
    assert "at the places nearest to the middle in 50.0 % (0.0 to 100.0)" in page.text
    *_, centre = (row for row in page.rows if row[0] == "the places nearest to the middle")
    assert centre[1:4] == ["50.0 %", "50.0 %", "50.0 %"]
    _, page, _ = report(tmp_path, model, data, looks=[0], marked=(data, boxes))
    assert title not in page.text


def test_what_it_says_of_a_class_is_counted(shown: tuple[TNet, Images, Reader, LooksRow]) -> None:
    model, data, page, _ = shown
    with torch.no_grad():
        found = [int(model([data[n].image], looks=2, policy="topk").logits.argmax()) for n in range(15)]
    truth = [int(data.target(n)) for n in range(15)]
    for label, name in enumerate(NAMES):
        right = sum(a == t == label for a, t in zip(found, truth, strict=True))
        cells = page.row(name)
        assert cells[1:3] == ["5", f"{100 * right / 5:.1f} %"]
        assert cells[4] == (f"{100 * right / found.count(label):.1f} %" if label in found else "-")


def test_two_classes_have_a_roc_curve_and_names_are_escaped(tmp_path: Path) -> None:
    names = [f"a{EVIL}", "b & c"]
    model, data = model_of(names), Images(names, 12)
    text, page, row = report(tmp_path, model, data, looks=[1])
    with torch.no_grad():
        scores = [float(model([data[n].image], looks=1, policy="topk").logits.softmax(1)[0, 1]) for n in range(12)]
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[6:] for n in scores[:6]]
    assert row.auc == pytest.approx(sum(pairs) / 36)
    assert f"(AUC {row.auc:.3f}; 0.5 is chance)" in page.text and f"in {100 * row.auc:.1f} % of all pairs" in page.text
    assert EVIL not in text and f"a{EVIL}" in page.text
    assert f"photos/{EVIL}0.png" in page.text and "C:" not in page.text


def test_a_plain_network_has_no_looks(tmp_path: Path) -> None:
    model = model_of(NAMES, levels=1, looks=())
    _, page, row = report(tmp_path, model, Images(NAMES, 6))
    assert row.looks == () and "With no looks" in page.text
    for absent in ("Does it know where to look?", "Where it looks", "boxes are where"):
        assert absent not in page.text


@pytest.mark.slow
def test_several_labels_per_image(tmp_path: Path) -> None:
    _, page, _ = report(tmp_path, model_of(NAMES, multilabel=True), Images(NAMES, 8, multilabel=True))
    assert "exact match" in page.text and "Can its confidence" not in page.text
    assert page.row("ant")[1] == "4" and "which of 3 labels an image has" in page.text


@pytest.mark.slow
def test_other_models_are_measured_on_the_same_images(tmp_path: Path) -> None:
    other = model_of(NAMES, levels=1, looks=(), base_px=64)
    data = Images(NAMES, 9)
    _, page, _ = report(tmp_path, model_of(NAMES), data, looks=[2], others=[(f"plain {EVIL}", other)])
    (row,) = evaluate(other, data, looks=[0], progress=False)
    assert page.row(f"plain {EVIL}")[1] == f"{100 * row.accuracy:.1f} %"
    assert f"For comparison, plain {EVIL} is right for {100 * row.accuracy:.1f} %" in page.text


def answers_like(right: list[bool], confidence: list[float]) -> Answers:
    answers = Answers.__new__(Answers)
    answers.__dict__["_columns"] = [torch.zeros(len(right)), torch.zeros(len(right)), torch.tensor(confidence),
                                    torch.tensor(right), torch.zeros(len(right))]  # fmt: skip
    return answers


def test_the_images_shown_are_few_and_none_twice() -> None:
    generator = np.random.default_rng(0)
    right, confidence = generator.random(1000) < 0.7, generator.random(1000)
    wrong, unsure, spread = choose(answers_like(right.tolist(), confidence.tolist())).values()
    every = [*wrong, *unsure, *spread]
    assert len(every) == len(set(every)) == MOST_SHOTS
    assert not right[wrong].any() and min(confidence[wrong]) >= np.sort(confidence[~right])[-8]
    assert set(unsure) == set(np.argsort(confidence)[:8].tolist())
    assert right[spread].all() and spread == sorted(spread) and spread[-1] - spread[0] > 600


@pytest.mark.parametrize(("right", "groups"), [([True], (0, 0, 1)), ([False], (1, 0, 0)), ([True] * 3, (0, 1, 2))])
def test_few_images_are_shown_once(right: list[bool], groups: tuple[int, ...]) -> None:
    chosen = choose(answers_like(right, [0.5] * len(right)))
    assert tuple(len(group) for group in chosen.values()) == groups


def test_a_difference_is_in_points_and_paired(shown: tuple[TNet, Images, Reader, LooksRow]) -> None:
    first = replace(shown[3], right="111111000", accuracy=6 / 9)
    second = replace(shown[3], right="111000000", accuracy=3 / 9)
    gap, low, high = difference(first, second)
    assert gap == pytest.approx(100 / 3) and 0 <= low < gap < high <= 100
    assert difference(first, first) == (0, 0, 0)


def test_looks_in_words(shown: tuple[TNet, Images, Reader, LooksRow]) -> None:
    words = [looks_text(replace(shown[3], total_looks=count)) for count in (0, 1, 2)]
    assert words == ["no looks", "1 look", "2 looks"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bagnet77_lowd", "saccader_3", "dram", "ips", "attention_sampling"])
def test_every_kind_of_model_has_a_report(repository: Path, tmp_path: Path, kind: str) -> None:
    small = [] if kind != "ips" else ["model.patch_px=40"]
    changes = ["data.digits.canvas_px=128", "data.digits.digit_px=28", "data.digits.noise_px=28"]
    changes += ["data.digits.noise_patterns=2", "data.digits.images_val=4"]
    recipe = load_recipe(repository / "recipes" / "baselines" / f"{kind}_digits.yaml", [*changes, *small])
    data = MegapixelDigits(recipe.data.digits, "val")
    model = build_model(with_classes(recipe, data.classes, data.multilabel).model.without_weights())
    row = write_report(
        model, data, tmp_path / "report.html", name=kind, source="digits", recipe=recipe, progress=False,
        looks=[model.config.default_looks],
    )  # fmt: skip
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    has_looks = row.total_looks > 0
    assert row.images == 4 and page.tags.count("svg") == 4 * has_looks
    assert ("Where it looks" in page.text) == has_looks
