from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.evaluation.test_looks import Images, a_model
from tests.helpers import three_levels
from torch import Tensor

from tnet.errors import CheckpointError, ConfigError, DataError, GeometryError
from tnet.evaluation import compare_measure
from tnet.evaluation.compare_measure import (
    Accuracy,
    Setting,
    devices_here,
    is_right,
    measure_accuracy,
    measure_costs,
    settings,
    without_context,
)
from tnet.evaluation.compare_suite import CostsConfig
from tnet.evaluation.cost import count_parameters, multiply_adds
from tnet.models.tnet import TNet


def measure(model: TNet, data: Images, **options: object) -> list[Accuracy]:
    arguments = {"looks": (2,), "policies": ("learned",), "batch_size": 4, "progress": False, **options}
    return measure_accuracy(model, data, **arguments)  # type: ignore[arg-type]


def bits(right: Tensor) -> str:
    return "".join(str(int(one)) for one in right)


@pytest.mark.parametrize("aggregation", ["mean", "weighted"])
def test_every_image_is_right_or_wrong_as_worked_out_by_hand(aggregation: str) -> None:
    model, data = a_model(aggregation=aggregation), Images(22)
    (found,) = measure(model, data)
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
    assert found.setting == Setting("2", 2, "learned")
    assert (found.top1, found.top5, found.without_context) == (
        bits(torch.tensor(tops)), bits(torch.tensor(fives)), bits(torch.tensor(alone))
    )  # fmt: skip
    assert found.top1 != found.without_context != found.top5


def test_without_looks_nothing_is_without_context() -> None:
    model, image = a_model(), Images(1).images[0][None]
    with torch.no_grad():
        assert without_context(model, model(image, looks=0)) is None
    assert measure(model, Images(3), looks=(0,))[0].without_context is None


def test_several_labels_must_all_be_right() -> None:
    logits = torch.tensor([[1.0, -1.0, 2.0], [1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert is_right(logits, targets).tolist() == [True, False, True]
    assert is_right(logits, torch.tensor([0, 2, 1]), top=2).tolist() == [True, True, True]
    (found,) = measure(a_model(multilabel=True, num_classes=3), Images(6, 3, multilabel=True))
    assert len(found.top1) == 6 and found.top5 is None


def test_what_is_drawn_follows_from_the_seed() -> None:
    model, data = a_model(), Images(40)
    options = {"looks": (1,), "policies": ("random",)}
    first = measure(model, data, seed=1, **options)
    torch.manual_seed(99)
    assert measure(model, data, seed=1, **options) == first
    assert measure(model, data, seed=2, **options) != first


def test_each_setting_is_measured_once() -> None:
    model = a_model()
    assert list(settings(model, (0, 2, (2,), 0), ("learned", "random"))) == [
        Setting("0", 0, "none"), Setting("2", 2, "learned"), Setting("2", 2, "random")
    ]  # fmt: skip
    assert list(settings(model, (), ("learned",))) == [Setting("2", 2, "learned")]
    assert settings(model, (1,), ("learned", "centre")) == {
        Setting("1", 1, "learned"): {"looks": (1,), "policy": "topk"},
        Setting("1", 1, "centre"): {"looks": (1,), "policy": "centre"},
    }
    assert list(settings(TNet(three_levels()), (1, (3, 2)), ("learned",))) == [
        Setting("1x2", 3, "learned"), Setting("3x2", 9, "learned")
    ]  # fmt: skip


def test_what_a_model_does_not_know_is_refused() -> None:
    with pytest.raises(GeometryError, match="99"):
        settings(a_model(), (99,), ("learned",))
    with pytest.raises(ConfigError, match="policy"):
        settings(a_model(), (1,), ("sobel_mean",))


def test_models_and_data_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="classes"):
        measure(a_model(num_classes=4), Images(3))
    with pytest.raises(GeometryError, match="99"):
        measure(a_model(), Images(3), looks=(99,))
    broken = a_model()
    torch.nn.init.constant_(broken.classifier.bias, torch.nan)
    with pytest.raises(CheckpointError, match="not a number"):
        measure(broken, Images(3))


def test_costs_are_those_of_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def peak(model: object, size_hw: object, **options: object) -> int:
        asked.append((model, size_hw, options))
        return 1000

    monkeypatch.setattr(compare_measure, "peak_memory_bytes", peak)
    model = a_model()
    config = CostsConfig(devices=("cpu",), batch_sizes=(1, 3), repeats=2, memory_batch_size=5)
    found = measure_costs(
        model, Path("x"), (64, 80), looks=(0, 1), policies=("learned", "random"), config=config, progress=False
    )
    assert [cost.setting for cost in found] == [
        Setting("0", 0, "none"), Setting("1", 1, "learned"), Setting("1", 1, "random")
    ]  # fmt: skip
    assert [cost.macs for cost in found] == [
        multiply_adds(model, 0), multiply_adds(model, 1), multiply_adds(model, 1, policy="random")
    ]  # fmt: skip
    count = count_parameters(model)
    for cost in found:
        assert (cost.parameters, cost.total_parameters) == (count.trainable, count.total)
        assert cost.image_size_hw == (64, 80)
    for cost in found[:2]:
        assert [(t.device, t.batch_size, t.repeats) for t in cost.times] == [("cpu", 1, 2), ("cpu", 3, 2)]
        assert all(0 < time.min_ms <= time.median_ms <= time.max_ms for time in cost.times)
        assert [use.peak_bytes for use in cost.memory] == [1000]
    assert (found[2].times, found[2].memory) == ((), ())  # a control's costs are not the model's
    assert asked == [
        (Path("x"), (64, 80), {"batch_size": 5, "device": "cpu", "looks": (), "policy": "topk"}),
        (Path("x"), (64, 80), {"batch_size": 5, "device": "cpu", "looks": (1,), "policy": "topk"}),
    ]


def test_images_that_would_fill_memory_are_refused() -> None:
    config = CostsConfig(devices=("cpu",), batch_sizes=(16,))
    with pytest.raises(ConfigError, match="batches of up to 16 need more than"):
        measure_costs(
            a_model(), Path("x"), (50_000, 50_000), looks=(), policies=("learned",), config=config, progress=False
        )


def test_devices_that_are_not_there_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices_here(("cpu", "cuda", "cuda:1")) == ("cpu",)
