from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.evaluation.test_evaluator import a_model

from tnet.cost import count_parameters, multiply_adds
from tnet.errors import ConfigError
from tnet.evaluation import resources
from tnet.evaluation.resources import CostsConfig, devices_here, measure_costs


def test_costs_are_those_of_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def peak(model: object, size_hw: object, **options: object) -> int:
        asked.append((model, size_hw, options))
        return 1000

    monkeypatch.setattr(resources, "peak_memory_bytes", peak)
    model = a_model()
    config = CostsConfig(devices=("cpu",), batch_sizes=(1, 3), repeats=2, memory_batch_size=5)
    found = measure_costs(
        model, Path("x"), (64, 80), looks=(0, 1), policies=("learned", "random"), config=config, progress=False
    )
    assert [(cost.looks, cost.total_looks, cost.policy) for cost in found] == [
        ("0", 0, "none"), ("1", 1, "learned"), ("1", 1, "random")
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
