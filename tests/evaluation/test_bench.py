"""Tests of the benchmark of a model: which systems are timed, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers import EVERY_KIND, tiny_config

from tnet.cost import multiply_adds
from tnet.errors import ConfigError, GeometryError, ImageSizeError
from tnet.evaluation.bench import bench, bench_table, plot_bench
from tnet.models import TNet
from tnet.models.kind import build_model

CONFIG = tiny_config(in_channels=3)


def test_looks_are_timed_beside_plain_networks() -> None:
    model = TNet(CONFIG)
    rows, notes = bench(
        model, looks=[0, 2, 5], batch_sizes=(1, 2), engines=["eager", "torch"], rounds=2, progress=False
    )
    assert not notes
    systems = {row.system: row for row in rows}
    # 32 px glimpses of halves: 64 px. Five looks cost six times as much as the whole at 32 px, more than at 64 px.
    assert list(systems) == ["0 looks", "2 looks", "5 looks", *(f"plain network, {px} px ({why})" for px, why in (
        (32, "base resolution"), (64, "full resolution"),
    ))]  # fmt: skip
    assert [systems[f"{n} looks"].macs for n in (0, 2, 5)] == [multiply_adds(model, n) for n in (0, 2, 5)]
    plain = systems["plain network, 64 px (full resolution)"]
    assert plain.looks is None and 3.5 < plain.macs / systems["0 looks"].macs < 4.5
    assert len(rows) == 5 * 2 * 2
    assert all(0 < row.low_ms <= row.median_ms <= row.high_ms for row in rows)
    table = bench_table(rows)
    assert table.count("\n") == 2 + 5 * 2 and "ms/image, batch 2" in table


@pytest.mark.slow
def test_a_plain_network_of_equal_cost_lies_between() -> None:
    model = TNet(CONFIG)
    rows, _ = bench(model, size_hw=(320, 320), looks=[3], batch_sizes=(1,), rounds=1, progress=False)
    own, _, equal, full = rows
    assert equal.system == "plain network, 64 px (equal cost)" and full.system.startswith("plain network, 320 px")
    assert 0.7 < equal.macs / own.macs < 1.4


@pytest.mark.slow
def test_other_models_are_timed_alone() -> None:
    rows, _ = bench(build_model(EVERY_KIND["saccader"]), looks=[2], batch_sizes=(1,), rounds=1, progress=False)
    assert [row.system for row in rows] == ["2 looks"]


def test_a_precision_that_the_device_lacks_is_an_error() -> None:
    with pytest.raises(ConfigError, match="does not compute in; use fp32"):
        bench(TNet(CONFIG), precision="fp16", progress=False)


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    rows, notes = bench(
        build_model(EVERY_KIND["dram"]),
        looks=[1],
        batch_sizes=(1,),
        engines=["torch", "onnx"],
        rounds=1,
        progress=False,
    )
    assert {row.engine for row in rows} == {"torch"}
    assert len(notes) == 1 and "ONNX Runtime" in notes[0] and "cannot be exported" in notes[0]
    plot_bench(rows, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "error", "value"),
    [
        ({"rounds": 0}, ConfigError, "rounds is 0"),
        ({"batch_sizes": ()}, ConfigError, r"batch_sizes \[\]"),
        ({"looks": [10**6]}, GeometryError, "1000000"),
        ({"size_hw": (16, 64)}, ImageSizeError, "64 x 16"),
    ],
)
def test_arguments_out_of_range(options: dict[str, object], error: type[Exception], value: str) -> None:
    with pytest.raises(error, match=value):
        bench(TNet(CONFIG), progress=False, **options)  # type: ignore[arg-type]
