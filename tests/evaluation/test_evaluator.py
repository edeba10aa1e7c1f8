from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import jaccard_score, roc_auc_score
from tests.helpers import three_levels
from torch import Tensor
from torch.utils.data import Dataset

from tnet.backbones import BackboneConfig
from tnet.data.sample import Sample
from tnet.errors import CheckpointError, ConfigError, DataError, GeometryError
from tnet.evaluation.evaluator import (
    LooksRow,
    Setting,
    check_data_fits,
    evaluate,
    is_right,
    settings,
    wilson_interval,
    without_context,
)
from tnet.geometry import Grid
from tnet.models.config import LocatorConfig, PolicyConfig, TNetConfig
from tnet.models.tnet import TNet

CONFIG = TNetConfig(
    backbone=BackboneConfig("bagnet77", kwargs={"planes": [8] * 4, "expansion": 1, "feature_dim": 24}),
    num_classes=7,
    in_channels=1,
    base_px=32,
    grid=Grid(3, 3, 0.5),
    looks=(2,),
    locator=LocatorConfig(hidden=4),
)

_SPREAD = 1.0


class Images(Dataset[Sample]):
    """Noise with random labels; keeps count of what was asked for."""

    def __init__(
        self, images: int, classes: int = 7, *, multilabel: bool = False, sizes: tuple[int, ...] = (64,)
    ) -> None:
        generator = torch.Generator().manual_seed(images)
        self.images = [
            torch.randint(256, (1, size, 64), generator=generator, dtype=torch.uint8)
            for _, size in zip(range(images), itertools.cycle(sizes))
        ]
        self.targets = torch.randint(classes, (images,), generator=generator)
        if multilabel:
            self.targets = torch.randint(2, (images, classes), generator=generator).float()
        self.classes = [f"class {index}" for index in range(classes)]
        self.multilabel = multilabel
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        return Sample(self.images[index], self.targets[index], f"made/{index}")


def a_model(**changes: object) -> TNet:
    torch.manual_seed(5)
    model = TNet(replace(CONFIG, **changes)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        # Untrained answers hardly depend on the image. Answers about their mean do.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (32, 1, 64, 64), generator=generator, dtype=torch.uint8)
        features = model(noise, looks=2).aggregate
        model.classifier.weight.mul_(_SPREAD / features.std(0).mean())
        model.classifier.bias.copy_(-model.classifier.weight @ features.mean(0))
    return model


def probs_by_hand(model: TNet, data: Images, looks: int) -> Tensor:
    """Probabilities, one image at a time."""
    with torch.no_grad():
        logits = torch.cat([model(image[None], looks=looks, policy="topk").logits for image in data.images])
    return logits.sigmoid() if data.multilabel else logits.softmax(dim=1)


def measure(model: TNet, data: Images, **options: object) -> list[LooksRow]:
    arguments = {"looks": [2], "batch_size": 4, "progress": False, **options}
    return evaluate(model, data, **arguments)  # type: ignore[arg-type]


def found(rows: list[LooksRow]) -> list[LooksRow]:
    """Rows without what a clock says."""
    return [replace(row, time_ms=0.0, time_ms_min=0.0, time_ms_max=0.0) for row in rows]


def test_measures_are_those_worked_out_by_hand() -> None:
    model, data = a_model(), Images(22)
    rows = measure(model, data, looks=[0, 1, 3])
    assert [(row.looks, row.total_looks, row.policy, row.images) for row in rows] == [
        ((), 0, "none", 22), ((1,), 1, "topk", 22), ((3,), 3, "topk", 22)
    ]  # fmt: skip
    for row in rows:
        probs = probs_by_hand(model, data, row.total_looks)
        right = probs.argmax(1) == data.targets
        in_top5 = (probs.topk(5, dim=1).indices == data.targets[:, None]).any(1)
        assert row.accuracy == pytest.approx(float(right.float().mean()))
        assert row.top5 == pytest.approx(float(in_top5.float().mean()))
        assert row.confidence == pytest.approx(float(probs.max(1).values.mean()), rel=1e-4)
        assert (row.accuracy_low, row.accuracy_high) == wilson_interval(int(right.sum()), 22)
        assert (row.auc, row.jaccard) == (None, None)
        assert row.parameters == sum(parameter.numel() for parameter in model.parameters())
    # Else the comparison above would show little.
    assert len({row.confidence for row in rows}) == 3
    assert len(set(probs_by_hand(model, data, 3).argmax(1).tolist())) > 2
    assert rows[0].macs < rows[1].macs < rows[2].macs


def test_images_are_read_once_whatever_is_measured() -> None:
    data = Images(10)
    measure(a_model(), data, looks=[0, 1, 2, 3], policies=("topk", "random", "centre", "sample"))
    assert data.asked == list(range(10))


def test_every_output_can_be_observed() -> None:
    model, data = a_model(), Images(6)
    seen: list[tuple[Setting, Tensor, Tensor]] = []
    rows = measure(
        model, data, looks=[0, 2], policies=["topk", "random"], batch_size=4,
        observe=lambda setting, batch, output: seen.append((setting, batch.targets, output.logits.clone())),
    )  # fmt: skip
    settings = list(dict.fromkeys(setting for setting, _, _ in seen))
    assert [setting.policy for setting in settings] == [row.policy for row in rows] == ["none", "topk", "random"]
    for row, setting in zip(rows, settings, strict=True):
        right = [logits.argmax(1) == targets for one, targets, logits in seen if one == setting]
        assert row.right == "".join(str(int(bit)) for bit in torch.cat(right))


def test_batch_size_changes_nothing_and_images_may_differ_in_size() -> None:
    model, data = a_model(), Images(9, sizes=(64, 80, 48))
    small, large = (found(measure(model, data, batch_size=size)) for size in (2, 9))
    assert replace(small[0], batch_size=0, confidence=0.0) == replace(large[0], batch_size=0, confidence=0.0)
    assert small[0].confidence == pytest.approx(large[0].confidence, rel=1e-4)


def test_each_policy_is_measured_and_zero_looks_once() -> None:
    rows = measure(a_model(), Images(6), looks=[0, 2, (2,), 0], policies=("topk", "random", "topk"))
    assert [(row.total_looks, row.policy) for row in rows] == [(0, "none"), (2, "topk"), (2, "random")]
    assert rows[2].macs < rows[1].macs


def test_levels_are_told_apart() -> None:
    model = a_model(levels=3, looks=(2, 1))
    rows = measure(model, Images(4), looks=[2, (2,), (1, 3)])
    assert [(row.looks, row.total_looks) for row in rows] == [((2, 1), 4), ((2, 0), 2), ((1, 3), 4)]


def cells_chosen(model: TNet, **options: object) -> list[list[set[int]]]:
    """For each forward pass, the cells looked at in each image."""
    passes: list[list[set[int]]] = []

    def keep(module: object, inputs: object, output: object) -> None:
        regions = output.regions.at_level(1)  # type: ignore[attr-defined]
        images = int(regions.image.max()) + 1
        passes.append([set(regions.cell[regions.image == image].tolist()) for image in range(images)])

    handle = model.register_forward_hook(keep)
    measure(model, Images(8), **options)
    handle.remove()
    return passes[-4 * len(options["looks"]) :]  # type: ignore[arg-type]


def test_random_looks_follow_from_the_seed_alone() -> None:
    model = a_model()
    options = {"looks": [1, 3], "policies": ("random",), "batch_size": 2}
    first = cells_chosen(model, seed=1, **options)
    torch.manual_seed(99)
    assert cells_chosen(model, seed=1, **options) == first
    assert cells_chosen(model, seed=2, **options) != first
    # Passes alternate between 1 and 3 looks; what one look saw, three see too.
    for one, three in zip(first[::2], first[1::2], strict=True):
        assert all(a < b for a, b in zip(one, three, strict=True))


def test_several_labels_an_image() -> None:
    model, data = a_model(multilabel=True, num_classes=3), Images(40, 3, multilabel=True)
    (row,) = measure(model, data)
    predicted = (probs_by_hand(model, data, 2) > 0.5).float()
    assert row.accuracy == pytest.approx(float((predicted == data.targets).all(1).float().mean()))
    assert 0 < row.accuracy < 1
    assert row.jaccard == pytest.approx(jaccard_score(data.targets.numpy(), predicted.numpy(), average="micro"))
    assert (row.top5, row.auc) == (None, None)


def test_two_classes_have_an_area_under_the_curve_if_both_occur() -> None:
    model, data = a_model(num_classes=2), Images(30, 2)
    (row,) = measure(model, data)
    assert row.auc == pytest.approx(roc_auc_score(data.targets, probs_by_hand(model, data, 2)[:, 1]), abs=1e-6)
    assert row.top5 is None
    data.targets[:] = 1
    (row,) = measure(model, data)
    assert row.auc is None


def a_clock(seconds: list[float]) -> Iterator[float]:
    """Readings of a clock before and after passes that take these times."""
    now = 0.0
    for duration in seconds:
        yield now
        now += duration
        yield now


def test_time_leaves_out_the_first_batch_and_a_short_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = a_clock([1000.0, 0.004, 0.012, 0.02, 1000.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    (row,) = measure(a_model(), Images(18), batch_size=4)
    assert (row.time_ms, row.time_ms_min, row.time_ms_max) == pytest.approx((3, 1, 5), rel=1e-6)
    assert row.batch_size == 4


def test_a_single_batch_is_timed_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = a_clock([1000.0, 0.003, 0.009, 0.006])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    (row,) = measure(a_model(), Images(3), batch_size=16)
    assert (row.time_ms, row.time_ms_min, row.time_ms_max) == pytest.approx((2, 1, 3), rel=1e-6)
    assert row.batch_size == 3


def test_progress_is_printed_in_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tnet.inference.progress._LINE_EVERY_S", -1.0)
    measure(a_model(), Images(6), progress=True)
    told = capsys.readouterr()
    assert [line.split(",")[0] for line in told.err.splitlines()] == ["evaluating: 4 of 6", "evaluating: 6 of 6"]
    measure(a_model(), Images(6), progress=False)
    assert capsys.readouterr().err == ""


def test_listed_looks_go_up_to_the_models_own() -> None:
    assert replace(CONFIG, looks=(3,)).listed_looks() == [0, 1, 2, 3]
    assert replace(CONFIG, levels=1, looks=()).listed_looks() == [0]
    # 1 and 1x2 deep, 2 without and with its second level.
    assert replace(CONFIG, levels=3, looks=(2, 2)).listed_looks() == [0, (2,), 1, 2]


@pytest.mark.parametrize(("looks", "message"), [
    ([0, 10], "10 locations in a grid of 3 x 3 cells"),
    ([(1, 1)], "2 levels of regions but the model has 1"),
    ([-1], "-1 locations"),
])  # fmt: skip
def test_looks_that_cannot_be_are_refused_before_any_image_is_read(looks: list[int], message: str) -> None:
    data = Images(4)
    with pytest.raises(GeometryError, match=message):
        measure(a_model(), data, looks=looks)
    assert data.asked == []


@pytest.mark.parametrize("options", [{"policies": ()}, {"batch_size": 0}, {"workers": -1}])
def test_nothing_to_measure_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="at least one policy"):
        measure(a_model(), Images(4), **options)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="single class"):
        measure(a_model(num_classes=1), Images(4, 1))


def test_data_must_have_the_models_classes() -> None:
    names = tuple(Images(1).classes)
    check_data_fits(CONFIG, Images(1))
    check_data_fits(replace(CONFIG, class_names=names), Images(1))
    with pytest.raises(DataError, match="no images"):
        check_data_fits(CONFIG, Images(0))
    with pytest.raises(DataError, match="3 classes but the model has 7"):
        check_data_fits(CONFIG, Images(1, 3))
    with pytest.raises(DataError, match="several labels per image but the model predicts one class"):
        check_data_fits(CONFIG, Images(1, multilabel=True))
    with pytest.raises(DataError, match="missing 'cat'"):
        check_data_fits(replace(CONFIG, class_names=(*names[:6], "cat")), Images(1))
    with pytest.raises(DataError, match="unknown 'class 7'"):
        check_data_fits(replace(CONFIG, class_names=names), Images(1, 8))
    with pytest.raises(DataError, match="another order"):
        check_data_fits(replace(CONFIG, class_names=names[::-1]), Images(1))


def test_answers_that_are_not_numbers_are_refused() -> None:
    model = a_model()
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match="made/0"):
        measure(model, Images(4))


def test_sampled_looks_use_the_models_own_sampling() -> None:
    model = a_model(policy=PolicyConfig(train="sample", temperature=1e-4))
    # Almost no temperature: sampling without replacement draws the most probable cells.
    sampled, top = cells_chosen(model, looks=[2], policies=("sample",), batch_size=2), None
    top = cells_chosen(model, looks=[2], policies=("topk",), batch_size=2)
    assert sampled == top


def bits(right: Tensor) -> str:
    return "".join(str(int(one)) for one in right)


@pytest.mark.parametrize("aggregation", ["mean", "weighted"])
def test_every_image_is_right_or_wrong_as_worked_out_by_hand(aggregation: str) -> None:
    model, data = a_model(aggregation=aggregation), Images(22)
    (found,) = measure(model, data, policies=("learned",))
    tops, fives, alone = [], [], []
    with torch.no_grad():
        for image, target in zip(data.images, data.targets, strict=True):
            output = model(image[None], looks=2, policy="topk")
            tops.append(output.logits[0].argmax() == target)
            fives.append(target in output.logits[0].topk(5).indices)
            attended = output.features[0, 1:]  # 2 regions, the whole image left out
            if aggregation == "mean":
                mean = (attended[0] + attended[1]) / 2
            else:
                weights = model.aggregation(attended[None]).weights[0]
                assert weights.sum() == pytest.approx(1, abs=1e-6) and abs(weights[0] - 0.5) > 1e-4
                mean = weights[0] * attended[0] + weights[1] * attended[1]
            alone.append((model.classifier.weight @ mean + model.classifier.bias).argmax() == target)
    assert (found.looks, found.policy) == ((2,), "learned")
    assert (found.right, found.right_top5, found.right_without_context) == (
        bits(torch.tensor(tops)), bits(torch.tensor(fives)), bits(torch.tensor(alone))
    )  # fmt: skip
    assert found.right != found.right_without_context != found.right_top5


def test_without_looks_nothing_is_without_context() -> None:
    model, image = a_model(), Images(1).images[0][None]
    with torch.no_grad():
        assert without_context(model, model(image, looks=0)) is None
    assert measure(model, Images(3), looks=(0,))[0].right_without_context is None


def test_several_labels_must_all_be_right() -> None:
    logits = torch.tensor([[1.0, -1.0, 2.0], [1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert is_right(logits, targets).tolist() == [True, False, True]
    assert is_right(logits, torch.tensor([0, 2, 1]), top=2).tolist() == [True, True, True]
    (found,) = measure(a_model(multilabel=True, num_classes=3), Images(6, 3, multilabel=True))
    assert len(found.right) == 6 and found.right_top5 is None


def test_settings_are_every_combination_once() -> None:
    model = a_model()
    assert settings(model, (0, 2, (2,), 0), ("learned", "random")) == [
        ((), "none", "topk"), ((2,), "learned", "topk"), ((2,), "random", "random")
    ]  # fmt: skip
    assert settings(model, (), ("learned",)) == [((2,), "learned", "topk")]
    deep = settings(TNet(three_levels()), (1, (3, 2)), ("learned",))
    assert [setting.looks for setting in deep] == [(1, 2), (3, 2)]


def test_what_a_model_does_not_know_is_refused() -> None:
    with pytest.raises(GeometryError, match="99"):
        settings(a_model(), (99,), ("learned",))
    with pytest.raises(ConfigError, match="policy"):
        settings(a_model(), (1,), ("sobel_mean",))
