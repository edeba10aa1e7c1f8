from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import pictures, regions, tiny_config
from torch import Tensor
from torch.utils.data import Dataset

from tnet.baselines.ips import IPS, IPSConfig
from tnet.data.folder import LabelledImages
from tnet.data.loading import LabelledData
from tnet.data.sample import Sample
from tnet.errors import ConfigError, DataError, GeometryError
from tnet.evaluation.attention import GRADCAM, AttentionRow, Estimate, bootstrap, measure_attention
from tnet.evaluation.gradcam import GradCam
from tnet.evaluation.report import attention_notes, attention_records, attention_table
from tnet.geometry import Grid
from tnet.models.base import Model
from tnet.models.config import LocatorConfig
from tnet.models.tnet import TNet
from tnet.scenes import TensorBatch
from tnet.scenes.reading import ReadOptions

# Four cells of 32 x 32 px over 64 x 64 px; "centre" takes them in raster order.
FOUR = Grid(2, 2, 0.5)
BOXES = {
    0: torch.tensor([[8.0, 8.0, 24.0, 24.0]]),  # the middle of cell 0
    1: torch.tensor([[0.0, 16.0, 32.0, 48.0]]),  # half in cell 0, half in cell 1
    3: torch.tensor([[40.0, 40.0, 60.0, 60.0], [36.0, 36.0, 40.0, 40.0]]),  # both in cell 3
}


class Images(Dataset[Sample]):
    """Noise; keeps count of what was asked for."""

    def __init__(self, count: int = 5, side: int = 64) -> None:
        self.images = pictures(*[(side, side)] * count)
        self.classes, self.multilabel = list("vwxyz"), False
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        return Sample(self.images[index], torch.tensor(0), f"made/{index}")


def a_model(**changes: Any) -> TNet:
    torch.manual_seed(3)
    return TNet(tiny_config(**{"grid": FOUR, "looks": (2,), **changes})).eval()


def measure(model: Model, data: LabelledData | None = None, **options: Any) -> dict[tuple[int, str], AttentionRow]:
    options = {"looks": [1, 2], "curve_images": 0, "batch_size": 2, "progress": False, "boxes": BOXES, **options}
    rows = measure_attention(model, data or Images(), **options)
    return {(row.total_looks, row.policy): row for row in rows}


def means(row: AttentionRow) -> list[float]:
    shares = row.pointing, row.pointing_any, row.hit, row.hit_any, row.box_share, row.image_share
    return [share.mean for share in shares if share is not None]


def test_shares_are_those_worked_out_by_hand() -> None:
    data = Images()
    rows = measure(a_model(), data)
    assert data.asked == [0, 1, 3]  # only images with boxes
    assert list(rows) == [(n, policy) for n in (1, 2) for policy in ("learned", "random", "centre")]
    # Cell 0 has its middle at (16, 16): in the boxes of images 0 and 1. It shows the middle of the first alone.
    assert means(rows[1, "centre"]) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3, (1 + 0.5 + 0) / 3, 0.25])
    # Cells 0 and 1 share the box of image 1, whose middle (16, 32) is in cell 1.
    assert means(rows[2, "centre"]) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 2 / 3, 2 / 3, 0.5])
    assert {row.images for row in rows.values()} == {3} and {row.curve_images for row in rows.values()} == {0}
    assert rows[1, "centre"].answer_ms is None and rows[1, "random"].extra_ms is None
    assert rows[1, "learned"].extra_ms == 0 and float(rows[2, "learned"].answer_ms or 0) > 0


@pytest.mark.parametrize(
    "changes",
    [{}, {"looks": (2,), "locator": LocatorConfig(context="collected")}, {"levels": 3, "looks": (2, 1)}],
    ids=["two levels", "one by one", "three levels"],
)
def test_looks_are_those_of_the_whole_model(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = a_model(**changes), Images(3)
    every = {index: torch.tensor([[0.0, 0.0, 64.0, 64.0]]) for index in range(3)}
    shares, deepest = [], len(model.config.looks)
    for image in data.images:
        with torch.no_grad():
            found = model(image[None]).regions.at_level(deepest).box_l0_yxyx
        canvas = torch.zeros(64, 64)
        for y0, x0, y1, x1 in found.clamp(0, 64).tolist():
            canvas[y0:y1, x0:x1] = 1
        shares.append(float(canvas.mean()))
    seen = []
    monkeypatch.setattr(TNet, "answer", lambda *_: pytest.fail("answered without need"))
    monkeypatch.setattr(TNet, "encode", lambda self, pixels, regions, real=TNet.encode: (
        seen.append(regions.depth), real(self, pixels, regions))[1])  # fmt: skip
    monkeypatch.setattr("tnet.evaluation.attention._Times.answer", lambda *_: 1.0)
    rows = measure(model, data, boxes=every, looks=[model.config.looks], policies=("learned",))
    (row,) = rows.values()
    assert row.image_share is not None and row.image_share.mean == pytest.approx(np.mean(shares))
    assert deepest == 2 or "locator" in changes or max(seen) == 0  # the overview says where
    assert max(seen) < 2


def test_other_models_are_measured_by_their_regions() -> None:
    config = IPSConfig(num_classes=5, in_channels=1, backbone=tiny_config().backbone, patch_px=16, looks=2)
    torch.manual_seed(7)
    rows = measure(IPS(config).eval(), looks=[2], curve_images=1)
    torch.manual_seed(7)
    net = IPS(config).eval()
    torch.manual_seed(8)
    assert means(measure(net, looks=[2], curve_images=1)[2, "random"]) == means(rows[2, "random"])
    assert {policy for _, policy in rows} == {"none", "learned", "random", "centre"}
    assert rows[2, "centre"].image_share is not None
    assert rows[2, "centre"].image_share.mean == pytest.approx(2 * 16 * 16 / 64**2)


def test_random_looks_follow_from_the_seed() -> None:
    every = {index: torch.tensor([[0.0, 0.0, 32.0, 32.0]]) for index in range(20)}
    rows = [
        measure(a_model(), Images(20), boxes=every, policies=("random",), seed=seed, batch_size=3) for seed in (1, 1, 2)
    ]
    first, again, other = ([means(row) for row in found.values()] for found in rows)
    assert first == again != other
    assert first[1][2] == first[0][2] <= first[1][3]  # the first of 2 looks is the one of 1


def test_deletion_and_insertion_end_where_nothing_and_all_is_left() -> None:
    model, data = a_model(), Images()
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    rows = measure(model, data, looks=[1, 4], policies=("centre",), curve_images=2)
    intact, grey = [], []
    for index in (0, 3):  # every second of three
        with torch.no_grad():
            probs = model(data.images[index][None]).logits.softmax(1)[0]
            mean = TensorBatch([data.images[index]]).glimpse(regions([(0, 0, 64, 64)]), 16).mean()
            gone = model(torch.full((1, 1, 64, 64), 2 * float(mean) - 1)).logits.softmax(1)[0]  # normalised
        intact.append(float(probs.max()))
        grey.append(float(gone[probs.argmax()]))
    none, one, four = rows[0, "none"], rows[1, "centre"], rows[4, "centre"]
    assert none.curve_images == four.curve_images == 2 and none.pointing is None
    assert none.deletion is not None and none.deletion.mean == pytest.approx(np.mean(intact), abs=1e-5)
    assert four.deletion is not None and four.deletion.mean == pytest.approx(np.mean(grey), abs=1e-5)
    assert four.insertion is not None and four.insertion.mean == pytest.approx(np.mean(intact), abs=1e-5)
    assert one.deletion is not None and one.insertion is not None and none.insertion is not None
    assert len({one.deletion, four.deletion, none.deletion, one.insertion, none.insertion}) == 5


def test_intervals_are_of_resampled_images() -> None:
    values = np.stack([np.r_[np.ones(40), np.zeros(60)], np.ones(100)], axis=1)
    share, sure = bootstrap(values)
    half = 1.96 * (0.4 * 0.6 / 100) ** 0.5
    assert share.mean == pytest.approx(0.4) and sure == Estimate(1, 1, 1)
    assert (share.low, share.high) == pytest.approx((0.4 - half, 0.4 + half), abs=0.02)
    assert bootstrap(values) == [share, sure]


def test_gradcam_takes_as_many_windows_of_the_size_of_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("captum")
    plain = GradCam(TNet(tiny_config(levels=1, looks=())), "plain")

    def lower_right(self: GradCam, pixels: Tensor, classes: Tensor) -> Tensor:
        return torch.tensor([[0.0, 0.0], [0.0, 1.0]]).expand(len(pixels), 2, 2)

    monkeypatch.setattr(GradCam, "maps", lower_right)
    rows = measure(a_model(), plain=plain)
    assert [policy for _, policy in rows][3] == GRADCAM
    # Its first window is cell 3: only the third image has its boxes there, the middle (48, 48) in one of them.
    assert means(rows[1, GRADCAM]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 0.25])
    assert means(rows[2, GRADCAM])[5] == pytest.approx(0.5)
    assert float(rows[1, GRADCAM].extra_ms or 0) > 0 and float(rows[1, GRADCAM].answer_ms or 0) > 0
    assert "gradcam: " in attention_notes(list(rows.values()))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"boxes": {}}, ConfigError, "no boxes"),
        ({"looks": [0]}, ConfigError, "no looks"),
        ({"looks": [5]}, GeometryError, "5 locations"),
        (
            {"boxes": {1: torch.tensor([[0.0, 64.0, 9.0, 70.0]])}},
            DataError,
            "x 64 to 70 is outside image made/1, 64 x 64",
        ),
        ({"boxes": {1: torch.tensor([[-9.0, 0.0, 0.0, 5.0]])}}, DataError, "outside image made/1"),
    ],
)
def test_what_cannot_be_measured(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(a_model(), **options)


def test_boxes_are_cut_to_the_image() -> None:
    rows = measure(a_model(), boxes={0: torch.tensor([[-32.0, -32.0, 16.0, 16.0]])}, looks=[1], policies=("centre",))
    (row,) = rows.values()
    # 16 x 16 px are left; the middle of cell 0, (16, 16), is just outside, and that of the box, (8, 8), in the cell.
    assert means(row) == [0, 0, 1, 1, 1, 0.25]


@pytest.mark.parametrize("reading", [ReadOptions("memory", max_side_px=64), ReadOptions("lazy", channels=1)])
def test_boxes_are_in_pixels_of_the_image_as_stored(tmp_path: Path, reading: ReadOptions) -> None:
    for index, image in enumerate(pictures((128, 128), (128, 128))):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{index}.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    data = LabelledImages(paths, torch.tensor([0, 1]), list("vwxyz"), reading=replace(reading, channels=1))
    boxes = {1: torch.tensor([[0.0, 32.0, 64.0, 96.0]])}  # half of it in cell 0, 64 px wide in the file
    rows = measure(a_model(), data, boxes=boxes, looks=[1], policies=("centre",), curve_images=1)
    assert means(rows[1, "centre"]) == [1, 1, 0, 0, 0.5, 0.25]
    assert rows[1, "centre"].curve_images == 1


def test_a_table_and_records() -> None:
    share = Estimate(0.25, 0.125, 0.5)
    row = AttentionRow((2,), 2, "topk", 7, share, share, share, share, share, share, 0, None, None, 3.0, 0.0)
    header, _, line = (text.split("|")[1:-1] for text in attention_table([row]).splitlines())
    found = dict(zip(map(str.strip, header), map(str.strip, line), strict=True))
    assert found["pointing %"] == "25.0 (12.5 to 50.0)" and found["image seen %"] == "25.0"
    assert found["ms/image + regions"] == "3.00 + 0.00" and not any("deletion" in name for name in found)
    assert "Deletion" not in attention_notes([row]) and "7 images with boxes" in attention_notes([row])
    (record,) = attention_records([row])
    assert (record["looks"], record["hit"], record["hit_low"], record["hit_high"]) == ("2", 0.25, 0.125, 0.5)
    assert record["deletion"] is None and record["deletion_low"] is None
