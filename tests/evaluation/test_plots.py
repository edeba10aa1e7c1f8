"""The curve of a run is of the accuracy that its best model was chosen by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tnet.evaluation.plots import plot_training, run_curve


def epochs(*names: str) -> list[dict[str, float]]:
    return [
        {"epoch": i, "step": 10 * i + 9, "train/accuracy": 1.0} | dict.fromkeys(names, 0.1 * (i + 1)) for i in range(2)
    ]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["val/accuracy", "val/accuracy_0_looks", "val/accuracy_random"], "val/accuracy"),
        (["val/accuracy_0_looks", "val/accuracy_sample"], "val/accuracy_sample"),
        (["val/accuracy_0_looks"], "val/accuracy_0_looks"),
    ],
)
def test_the_model_s_own_looks_come_first(names: list[str], wanted: str) -> None:
    metrics = epochs(*names)
    for epoch in metrics:
        epoch |= {name: 0.9 for name in names if name != wanted}
    curve = run_curve("a", metrics, batch_size=4)
    assert curve.images == (40, 80)
    assert curve.accuracy == pytest.approx((0.1, 0.2))


def test_a_run_without_a_finished_epoch_has_no_points() -> None:
    assert run_curve("a", [], 4).images == ()


@pytest.mark.figures
def test_curves_are_drawn_whole(tmp_path: Path) -> None:
    curves = [
        run_curve("a", epochs("val/accuracy"), 4),
        run_curve("a", epochs("val/accuracy"), 4),
        run_curve("b", [], 4),
    ]
    plot_training(curves, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["training.png"]
