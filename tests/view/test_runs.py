"""Runs: what the viewer shows is what the model does, and nothing is computed twice."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import TINY_RESNET, tiny_config
from tests.view.conftest import Viewer

import tnet
from tnet.baselines.ips import IPSConfig
from tnet.models import LocatorConfig, TNet
from tnet.models.calibration import Calibration
from tnet.models.kind import build_model
from tnet.scenes import FileScene
from tnet.scenes.memory import MemoryScene
from tnet.scenes.reading import ReadMode, ReadOptions
from tnet.traversal import BestFirst, LookGain
from tnet.view import runs


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.tensor(pixels).permute(2, 0, 1)


def boxes_of(run: dict) -> list[list[int]]:
    return [region["box"] for region in run["regions"]]


@pytest.mark.parametrize(
    ("name", "policy", "looks"), [("slide.tif", "topk", 4), ("bee/tall.png", "topk", 0), ("bee/tall.png", "centre", 3)]
)
def test_regions_are_those_of_predict(
    shared: Viewer, model: TNet, root: Path, name: str, policy: str, looks: int
) -> None:
    run = shared.run(name, looks, policy=policy)
    (expected,) = tnet.predict(model, root / name, looks=looks, policy=policy)
    assert sorted(boxes_of(run)[1:]) == sorted(list(region.box_l0_yxyx) for region in expected.regions)
    assert run["answers"][-1]["probs"][expected.index] == pytest.approx(expected.probability, abs=1e-4)
    by_box = {tuple(region["box"]): region for region in run["regions"]}
    for region in expected.regions:
        shown = by_box[region.box_l0_yxyx]
        assert shown["top"][1] == pytest.approx(region.probability, abs=1e-4)
        assert shown["weight"] == pytest.approx(region.weight, abs=1e-4)
    assert [answer["looks"] for answer in run["answers"]] == list(range(looks + 1))
    assert not run["stopped"]


def test_regions_of_three_levels_are_those_of_predict(deep_model: TNet, root: Path) -> None:
    run = Viewer(deep_model, root).run("slide.tif", 2)
    (expected,) = tnet.predict(deep_model, root / "slide.tif", looks=2)
    assert len(expected.regions) == 6
    assert sorted(boxes_of(run)[1:]) == sorted(list(region.box_l0_yxyx) for region in expected.regions)
    # After each look at level 1 come those inside it.
    assert [region["level"] for region in run["regions"]] == [0, 1, 2, 2, 1, 2, 2]
    assert [region["parent"] for region in run["regions"]] == [-1, 0, 1, 1, 0, 4, 4]


@pytest.mark.parametrize(("score", "mode"), [("path", "lazy"), ("density", "auto")])
def test_a_search_is_best_first(
    model: TNet, root: Path, pixels: np.ndarray, score: Literal["path", "density"], mode: ReadMode
) -> None:
    run = Viewer(model, root, read=ReadOptions(mode)).run("slide.tif", 5, mode="search", score=score)
    image = FileScene(root / "slide.tif") if mode == "lazy" else [as_tensor(pixels)]
    output = model(image, search=BestFirst(5, levels=2, score=score))
    assert boxes_of(run) == output.regions.box_l0_yxyx.tolist()
    assert run["answers"][-1]["probs"] == pytest.approx(output.logits[0].softmax(0).tolist(), abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"mode": "search"}, {"policy": "sample"}])
def test_more_looks_go_on_from_fewer(viewer: Viewer, counted: Callable[[], int], settings: dict) -> None:
    first = viewer.run(looks=2, **settings)
    assert counted() == 3
    more = viewer.run(looks=5, **settings)
    assert counted() == 3
    assert more["run"] == first["run"]
    assert boxes_of(more)[:3] == boxes_of(first) and len(more["regions"]) == 6
    assert more["answers"][:3] == first["answers"]
    fewer = viewer.run(looks=2, **settings)
    assert counted() == 0
    assert fewer["regions"] == first["regions"] and fewer["answers"] == first["answers"]
    assert fewer["cells"] == first["cells"]
    other = viewer.run("ant/image1.png", looks=0, **settings)
    assert counted() == 1 and other["run"] != first["run"]


@pytest.mark.parametrize("mode", ["policy", "search"])
def test_an_asked_region_is_the_next_row(viewer: Viewer, counted: Callable[[], int], mode: str) -> None:
    viewer.run(looks=2, mode=mode)
    counted()
    box = [50, 60, 400, 610]
    run = viewer.run(looks=2, mode=mode, asked=[box])
    assert counted() == 1
    assert boxes_of(run)[3] == box and [region["asked"] for region in run["regions"]] == [False] * 3 + [True]
    assert len(run["answers"]) == 4 and run["answers"][3]["probs"] != run["answers"][2]["probs"]
    further = viewer.run(looks=3, mode=mode, asked=[box, [0, 0, 100, 100]])
    assert counted() == 2
    assert [region["asked"] for region in further["regions"]] == [False] * 3 + [True, False, True]
    # Fewer looks than before: the region comes after these.
    again = viewer.run(looks=1, mode=mode, asked=[box])
    assert len(again["regions"]) == 2 or boxes_of(again)[2] == box
    alone = viewer.run(looks=1, mode=mode, asked=[[1, 2, 300, 400]])
    assert boxes_of(alone)[2] == [1, 2, 300, 400]
    without = viewer.run(looks=3, mode=mode)
    assert not any(region["asked"] for region in without["regions"]) and len(without["regions"]) == 4


def test_cells_are_where_it_would_look(shared: Viewer, model: TNet, pixels: np.ndarray) -> None:
    run = shared.run(looks=3)
    (cells,) = run["cells"]
    output = model([as_tensor(pixels)], looks=3)
    assert cells["row"] == 0 and cells["probs"] == pytest.approx(output.location_probs[0].tolist(), abs=1e-5)
    # The looks are the most probable cells, best first.
    best = np.argsort(-np.array(cells["probs"]))[:3]
    assert [cells["boxes"][cell] for cell in best] == boxes_of(run)[1:]


def test_looks_show_what_the_network_saw(shared: Viewer, pixels: np.ndarray) -> None:
    run = shared.run(looks=2, asked=[[100, 100, 300, 300]])
    scene = MemoryScene(as_tensor(pixels))
    for row, region in enumerate(run["regions"]):
        answer = shared.client.get("/api/look", params={"run": run["run"], "row": row})
        shown = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert answer.headers["content-type"] == "image/png" and shown.shape == (32, 32, 3)
        seen = scene.glimpse(tuple(region["box"]), 32, channels=3, resize="antialias", fill=(0.5,))
        assert np.array_equal(shown, (seen * 255).round().permute(1, 2, 0).numpy())


def test_looks_of_another_size_than_the_overview(root: Path) -> None:
    torch.manual_seed(0)
    viewer = Viewer(TNet(tiny_config(in_channels=3, look_px=48)).eval(), root)
    run, sides = viewer.run(looks=1), []
    for row in (0, 1):
        answer = viewer.client.get("/api/look", params={"run": run["run"], "row": row})
        sides.append(Image.open(io.BytesIO(answer.content)).size)
    assert sides == [(32, 32), (48, 48)]


def calibrated(model: TNet) -> TNet:
    """A copy that stops after one look if it is certain by more than a half."""
    twin = TNet(model.config).eval()
    twin.load_state_dict(model.state_dict())
    gains = tuple(LookGain((0.0, 1.0), (1.0, 0.0)) for _ in range(4))
    twin.calibration = Calibration("confidence", 4, 2, "path", gains, (0.9, 0.1), (1.0, 3.0), (0.5, 0.9), 10)
    return twin


def test_stopping(model: TNet, root: Path, pixels: np.ndarray) -> None:
    twin = calibrated(model)
    viewer = Viewer(twin, root)
    assert viewer.get("/api/model")["calibrated"]
    assert twin.calibration is not None
    for stop in ({"mean_looks": 1.5}, {"at_least": 0.8}):
        run = viewer.run(looks=64, mode="search", stop=stop)
        asked = {"accuracy" if name == "at_least" else name: value for name, value in stop.items()}
        expected = twin([as_tensor(pixels)], search=twin.calibration.search(**asked))
        assert boxes_of(run) == expected.regions.box_l0_yxyx.tolist() and run["done"]
        assert run["stopped"] == (len(expected.regions) < 5)  # it takes four looks at most
    assert len(viewer.run(looks=64, mode="search", stop={"mean_looks": 1.5})["regions"]) < 5
    assert not viewer.run(looks=0, mode="search", stop={"mean_looks": 1.5})["stopped"]
    within = viewer.run(looks=9, mode="search", stop={"max_ms": 0.001})
    assert len(within["regions"]) == 1 and within["stopped"]


def test_scores_from_what_was_collected(root: Path) -> None:
    collected = LocatorConfig(context="collected")
    for changes in ({}, {"levels": 3, "looks": (2, 2)}):
        torch.manual_seed(0)
        model = TNet(tiny_config(in_channels=3, locator=collected, aggregation="canvas", **changes)).eval()
        viewer = Viewer(model, root)
        for looks in (1, 3):
            run = viewer.run(looks=looks)
            (expected,) = tnet.predict(model, root / "slide.tif", looks=looks)
            assert sorted(boxes_of(run)[1:]) == sorted(list(region.box_l0_yxyx) for region in expected.regions)
            assert run["answers"][-1]["probs"][expected.index] == pytest.approx(expected.probability, abs=1e-4)


def test_models_that_cannot_be_led(root: Path) -> None:
    plain = TNet(tiny_config(in_channels=3, levels=1, looks=())).eval()
    viewer = Viewer(plain, root)
    about = viewer.get("/api/model")
    assert not about["can_search"] and about["max_looks"] == 0 and about["scores"] == []
    run = viewer.run(looks=0)
    assert len(run["regions"]) == len(run["answers"]) == 1 and run["cells"] == [] and run["done"]
    assert "cannot be led" in viewer.error(400, "slide.tif", 0, mode="search")
    assert "cannot be led" in viewer.error(400, "slide.tif", 0, asked=[[0, 0, 50, 50]])
    assert "looks 2" in viewer.error(400, "slide.tif", 2)


def test_a_model_that_looks_in_its_own_way(root: Path) -> None:
    torch.manual_seed(0)
    patches = {"in_channels": 3, "patch_px": 32, "looks": 2, "step": 4}
    model = build_model(IPSConfig(backbone=TINY_RESNET, backbone_stages=4, heads=2, hidden=8, **patches)).eval()
    viewer = Viewer(model, root)
    assert viewer.get("/api/model")["default_looks"] == 2
    run = viewer.run("ant/image1.png", 2)
    (expected,) = tnet.predict(model, root / "ant" / "image1.png", looks=2)
    assert boxes_of(run)[1:] == [list(region.box_l0_yxyx) for region in expected.regions] and run["done"]
    assert run["answers"][0]["probs"][expected.index] == pytest.approx(expected.probability, abs=1e-5)
    assert viewer.client.get("/api/look", params={"run": run["run"], "row": 1}).status_code == 200


def test_images_are_small_or_downscaled(model: TNet, root: Path, viewer: Viewer) -> None:
    small = viewer.run("ant/image1.png", 1)
    assert small["regions"][0]["box"] == [0, 0, 100, 130]
    read = ReadOptions("memory", max_side_px=110)
    run = Viewer(model, root, read=read).run("slide.tif", 2, asked=[[0, 0, 350, 1100]])
    (expected,) = tnet.predict(model, root / "slide.tif", looks=2, read=read)
    assert run["regions"][0]["box"] == [0, 0, 700, 1100]
    assert sorted(boxes_of(run)[1:3]) == sorted(list(region.box_l0_yxyx) for region in expected.regions)
    assert boxes_of(run)[3] == [0, 0, 350, 1100]


def test_exports(viewer: Viewer) -> None:
    run = viewer.run(looks=3, asked=[[0, 0, 350, 550]])

    def export(form: str, **more: int) -> tuple[bytes, str]:
        answer = viewer.client.get("/api/export", params={"run": run["run"], "format": form, **more})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''slide")
        return answer.content, answer.headers["content-type"]

    record = json.loads(export("json")[0])
    assert record["path"] == "slide.tif" and len(record["regions"]) == 4
    assert [list(region["box_l0_yxyx"]) for region in record["regions"]] == boxes_of(run)[1:]
    assert len(json.loads(export("json", rows=2)[0])["regions"]) == 1
    shapes = json.loads(export("geojson")[0])
    assert [len(shape["geometry"]["coordinates"][0]) for shape in shapes["features"]] == [5] * 4
    (task,) = json.loads(export("labelstudio")[0])
    value = task["predictions"][0]["result"][3]["value"]
    assert (value["x"], value["y"], value["width"], value["height"]) == (0, 0, 50, 50)
    content, kind = export("png")
    assert kind == "image/png" and content.startswith(b"\x89PNG")
    answer = viewer.client.get("/api/export", params={"run": run["run"], "format": "json", "rows": 99})
    assert answer.status_code == 404


def test_runs_that_are_gone(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_MAX_RUNS", 2)
    for address in ("/api/look?run=nothing&row=0", "/api/export?run=nothing&format=json"):
        answer = viewer.client.get(address)
        assert answer.status_code == 404 and "no longer kept" in answer.json()["error"]
    first = viewer.run(looks=0)["run"]
    for policy in ("centre", "random"):
        viewer.run(looks=1, policy=policy)
    assert viewer.client.get("/api/look", params={"run": first, "row": 0}).status_code == 404


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"looks": 10}, "looks 10 asks for 10 locations"),
        ({"mode": "search", "stop": {"mean_looks": 2}}, "not calibrated"),
        ({"stop": {"max_ms": 5}}, "mode search"),
        ({"mode": "search", "score": "gain"}, "predicts no gains"),
        ({"asked": [[5, 5, 5, 90]]}, "shows nothing"),
        ({"asked": [[9000, 0, 9999, 50]]}, "shows nothing"),
        ({"looks": -1}, "looks is not valid"),
        ({"looks": 2.5}, "looks is not valid"),
        ({"mode": "guess"}, "mode is not valid"),
        ({"asked": [[0, 0, 10, 10]] * 33}, "asked is not valid"),
        ({"asked": [[0, 0, 10]]}, "asked.0.3 is not valid"),
        ({"asked": [[0, 0, 10, 2**60]]}, "asked.0.3 is not valid"),
        ({"mode": "search", "stop": {"max_ms": 0}}, "stop.max_ms is not valid"),
        ({"surprise": 1}, "surprise is not valid"),
    ],
)
def test_settings_that_make_no_sense(shared: Viewer, settings: dict, problem: str) -> None:
    assert problem in shared.error(400, "slide.tif", **({"looks": 2} | settings))
    assert len(shared.run(looks=2)["regions"]) == 3


def test_a_model_that_fails_does_not_end_the_server(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    with monkeypatch.context() as patch:
        patch.setattr(TNet, "describe", fail)
        assert "RuntimeError: shapes do not fit" in viewer.error(500, "slide.tif")
    assert "shapes do not fit" in caplog.text
    with torch.no_grad():
        viewer.app.state.runs.model.classifier.bias.add_(torch.nan)
    try:
        assert "NaN" in viewer.error(400, "slide.tif")
    finally:
        viewer.app.state.runs.model.load_state_dict(_finite(viewer.app.state.runs.model))
    assert len(viewer.run(looks=2)["regions"]) == 3


def _finite(model: TNet) -> dict:
    return {name: value.nan_to_num() for name, value in model.state_dict().items()}


def test_a_corrupt_image_and_one_that_vanishes(viewer: Viewer, root: Path) -> None:
    message = viewer.error(422, "bee/broken.png")
    assert message.startswith("image bee/broken.png cannot be read") and str(root) not in message
    gone = root / "gone.png"
    gone.write_bytes((root / "ant" / "image1.png").read_bytes())
    viewer.run("gone.png", 1)
    run = viewer.run("gone.png", 2)
    gone.unlink()
    assert "there is no image 'gone.png'" in viewer.error(404, "gone.png", 3)
    answer = viewer.client.get("/api/look", params={"run": run["run"], "row": 0})
    assert answer.status_code == 422 and "no such file" in answer.json()["error"]
    assert len(viewer.run(looks=2)["regions"]) == 3


def test_an_image_that_is_replaced_is_run_again(viewer: Viewer, root: Path) -> None:
    changing = root / "changing.png"
    changing.write_bytes((root / "ant" / "image1.png").read_bytes())
    before = viewer.run("changing.png", 1)
    changing.write_bytes((root / "ant" / "image2.png").read_bytes())
    answer = viewer.client.get("/api/look", params={"run": before["run"], "row": 0})
    assert answer.status_code == 404 and "was replaced" in answer.json()["error"]
    after = viewer.run("changing.png", 1)
    assert after["run"] != before["run"] and after["answers"] != before["answers"]
    changing.unlink()
