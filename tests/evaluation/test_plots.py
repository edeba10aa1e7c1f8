"""The curve of a run is of the accuracy that its best model was chosen by."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tnet.evaluation.attention import AttentionRow, Estimate
from tnet.evaluation.plots import plot_attention, plot_training, run_curve


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


@pytest.mark.figures
@pytest.mark.parametrize("has_curves", [False, True])
def test_attention_is_drawn_with_and_without_curves(tmp_path: Path, has_curves: bool) -> None:
    share = Estimate(0.5, 0.25, 0.75)
    changed = share if has_curves else None
    rows = [
        AttentionRow((n,), n, policy, 9, *[share] * 6, 9 * has_curves, changed, changed, 1.0, 0.0)
        for n in (1, 2)
        for policy in ("topk", "random", "gradcam")
    ]
    none = [AttentionRow((), 0, "none", 9, *[None] * 6, 9, share, share, 1.0, None)] if has_curves else []
    plot_attention([*none, *rows], tmp_path / "attention.png")
    with Image.open(tmp_path / "attention.png") as figure:
        assert figure.width > (1500 if has_curves else 900)
