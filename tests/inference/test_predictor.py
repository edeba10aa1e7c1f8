from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import pictures, three_levels, tiny_config
from torch import Tensor

import tnet
from tnet.data.transforms import named_transform
from tnet.errors import CheckpointError, ConfigError, DataError, GeometryError, ImageError
from tnet.geometry import axis_cells
from tnet.inference import predictor as module
from tnet.inference.predictor import check_image_size, iter_predictions, load_input
from tnet.inference.records import Prediction, Unreadable
from tnet.models.config import LocatorConfig, TNetConfig
from tnet.models.io import save_model
from tnet.models.tnet import TNet
from tnet.scenes import FileScene
from tnet.scenes.decode import load_image
from tnet.scenes.memory import MemoryScene
from tnet.scenes.reading import ReadOptions
from tnet.traversal import BestFirst

NAMES = ("ant", "bee", "cat", "dog", "elk")
CONFIG = tiny_config(class_names=NAMES, locator=LocatorConfig("squeeze", logits="none"))


@pytest.fixture(scope="module")
def model() -> TNet:
    torch.manual_seed(3)
    return spread(TNet(CONFIG))


def spread(model: TNet) -> TNet:
    """Enlarge what a new network says, so that neither classes nor places are nearly equal."""
    with torch.no_grad():
        model.classifier.weight.mul_(20)
        assert model.locator is not None
        for parameter in model.locator.parameters():
            parameter.mul_(4)
    return model.eval()


def put(path: Path, height: int = 64, width: int = 64, seed: int = 0, **options: Any) -> Path:
    """A grey picture of large blots, which a smaller copy shows too."""
    blots = np.random.default_rng(seed).integers(256, size=(8, 8), dtype=np.uint8)
    Image.fromarray(blots).resize((width, height), Image.Resampling.BILINEAR).save(path, **options)
    return path


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    sizes = [(64, 64), (80, 48), (64, 64), (40, 120), (33, 70)]
    return [put(tmp_path / f"{i}.png", *size, seed=i) for i, size in enumerate(sizes)]


def predict(model: TNet, paths: Sequence[Path], **options: Any) -> list[Prediction | Unreadable]:
    return list(iter_predictions(model, paths, **{"progress": False, **options}))


def same(found: Sequence[Prediction | Unreadable], expected: Sequence[Prediction | Unreadable]) -> None:
    """Equal but for rounding: a batch of another size adds up in another order."""
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, Prediction) and isinstance(b, Prediction)
        assert (a.path, a.label, a.index, a.size_hw) == (b.path, b.label, b.index, b.size_hw)
        assert [(r.number, r.box_l0_yxyx, r.label) for r in a.regions] == [
            (r.number, r.box_l0_yxyx, r.label) for r in b.regions
        ]
        assert [p for _, p in a.top5] == pytest.approx([p for _, p in b.top5], abs=1e-4)


def test_a_prediction_says_what_the_model_says(model: TNet, paths: list[Path]) -> None:
    (told,) = predict(model, paths[3:4])
    assert isinstance(told, Prediction)
    with torch.inference_mode():
        output = model([load_image(paths[3], channels=1)])
    probs = output.logits[0].softmax(0)
    order = probs.argsort(descending=True).tolist()
    assert (told.path, told.size_hw) == (str(paths[3]), (40, 120))
    assert (told.label, told.labels, told.index) == (NAMES[order[0]], (NAMES[order[0]],), order[0])
    assert told.top5 == tuple((NAMES[i], pytest.approx(float(probs[i]), abs=1e-5)) for i in order)
    assert told.probability == told.top5[0][1]
    assert len(told.regions) == 2
    for i, region in enumerate(told.regions):
        alone = output.feature_logits[0, 1 + i].softmax(0)
        assert list(region.box_l0_yxyx) == output.regions.at_level(1).box_l0_yxyx[i].tolist()
        assert (region.level, region.parent, region.cell) == (1, -1, int(output.regions.at_level(1).cell[i]))
        place = float(output.location_probs[0, region.cell])
        assert region.location_probability == pytest.approx(place, abs=1e-5)
        assert region.weight == pytest.approx(float(output.weights[0, 1 + i]), abs=1e-5)
        assert (region.label, region.probability) == (
            NAMES[int(alone.argmax())],
            pytest.approx(float(alone.max()), abs=1e-5),
        )
    chances = {region.number: region.location_probability or 0.0 for region in told.regions}
    assert set(chances) == {"1", "2"} and chances["1"] > chances["2"]


def test_regions_of_deeper_levels_lie_in_the_parent_that_their_number_names(paths: list[Path]) -> None:
    torch.manual_seed(1)
    model = spread(TNet(three_levels(locator=LocatorConfig("squeeze", logits="none"), looks=(2, 3))))
    for told in predict(model, paths[:2]):
        assert isinstance(told, Prediction)
        assert [region.level for region in told.regions] == [1] * 2 + [2] * 6
        assert {region.number for region in told.regions[2:]} == {f"{i}.{j}" for i in (1, 2) for j in (1, 2, 3)}
        for region in told.regions[2:]:
            parent = told.regions[region.parent]
            assert parent.level == 1 and region.number.startswith(f"{parent.number}.")
            for axis in (0, 1):
                start, size = parent.box_l0_yxyx[axis], parent.box_l0_yxyx[axis + 2] - parent.box_l0_yxyx[axis]
                cells = axis_cells(size, 3, 0.5)
                index = divmod(region.cell, 3)[axis]
                assert region.box_l0_yxyx[axis] == start + cells.starts_px[index]
                assert region.box_l0_yxyx[axis + 2] - region.box_l0_yxyx[axis] == cells.cell_px
        assert sum(region.weight for region in told.regions) == pytest.approx(8 / 9, abs=1e-4)  # the whole is the ninth
        siblings = {r.number: r.location_probability or 0.0 for r in told.regions if r.number.startswith("1.")}
        assert siblings["1.1"] >= siblings["1.2"] >= siblings["1.3"]


def test_batch_size_changes_nothing(model: TNet, paths: list[Path]) -> None:
    alone = predict(model, paths, batch_size=1)
    assert [found.path for found in alone] == [str(path) for path in paths]
    same(predict(model, paths, batch_size=3), alone)
    assert len({found.top5 for found in alone if isinstance(found, Prediction)}) == len(paths)


def test_two_workers_give_exactly_the_same(model: TNet, paths: list[Path]) -> None:
    assert predict(model, paths, workers=2, batch_size=2) == predict(model, paths, workers=0, batch_size=2)


def test_a_batch_is_closed_by_memory_too(model: TNet, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = TNet.forward

    def watched(self: TNet, images: list[Tensor], *rest: Any) -> Any:
        sizes.append(len(images))
        return forward(self, images, *rest)

    monkeypatch.setattr(TNet, "forward", watched)
    expected = predict(model, paths, batch_size=4)
    assert sizes == [4, 1]
    sizes.clear()
    monkeypatch.setattr(module, "_BATCH_BYTES", 64 * 64 * 2)
    same(predict(model, paths, batch_size=4), expected)
    assert sizes == [2, 1, 2]


def test_looks_and_policy_are_passed_on(model: TNet, paths: list[Path]) -> None:
    (none,) = predict(model, paths[:1], looks=0)
    assert isinstance(none, Prediction) and none.regions == ()
    (all_cells,) = predict(model, paths[:1], looks=9)
    assert isinstance(all_cells, Prediction)
    assert sorted(region.cell for region in all_cells.regions) == list(range(9))
    (centre,) = predict(model, paths[:1], looks=1, policy="centre")
    assert isinstance(centre, Prediction)
    assert [(r.cell, r.number, r.location_probability) for r in centre.regions] == [(4, "1", None)]


def test_boxes_of_a_shrunk_picture_are_in_its_own_pixels(model: TNet, tmp_path: Path) -> None:
    path = put(tmp_path / "large.png", 200, 320)
    (own,) = predict(model, [path])
    (shrunk,) = predict(model, [path], read=ReadOptions("auto", max_side_px=80))
    assert isinstance(own, Prediction) and isinstance(shrunk, Prediction)
    assert own.size_hw == shrunk.size_hw == (200, 320)
    by_cell = {region.cell: region.box_l0_yxyx for region in own.regions}
    common = [region for region in shrunk.regions if region.cell in by_cell]
    assert common
    for region in common:
        assert region.box_l0_yxyx == pytest.approx(
            by_cell[region.cell], abs=4
        )  # a pixel of the copy is four of its own


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_boxes_of_a_shrunk_picture_are_those_of_it_upright(model: TNet, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(tmp_path / "turned.jpg", 100, 200, exif=exif)
    (found,) = predict(model, [path], read=ReadOptions("auto", max_side_px=100))
    assert isinstance(found, Prediction)
    assert found.size_hw == ((200, 100) if orientation == 6 else (100, 200))
    picture = load_input(path, model.config, read=ReadOptions("auto", max_side_px=100))
    assert picture.image.shape == ((1, 100, 50) if orientation == 6 else (1, 50, 100))


def test_colour_models_get_colour(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "colour.png")
    picture = load_input(tmp_path / "colour.png", replace(CONFIG, in_channels=3))
    assert torch.equal(picture.image, torch.from_numpy(colours).permute(2, 0, 1))
    with pytest.raises(ConfigError, match="channels"):
        load_input(tmp_path / "colour.png", replace(CONFIG, in_channels=4))


def test_several_labels_are_those_above_one_half(paths: list[Path]) -> None:
    torch.manual_seed(0)
    model = TNet(tiny_config(class_names=NAMES, multilabel=True)).eval()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([-1.0, 2.0, 1.0, -3.0, 0.0]))
    (told,) = predict(model, paths[:1])
    assert isinstance(told, Prediction)
    assert (told.label, told.labels, told.index) == ("bee|cat", ("bee", "cat"), 1)
    assert told.probability == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-5)
    with torch.no_grad():
        model.classifier.bias.fill_(-1)
    (told,) = predict(model, paths[:1])
    assert isinstance(told, Prediction) and (told.label, told.labels) == ("", ())


def test_classes_without_names_are_called_by_their_index(paths: list[Path]) -> None:
    (told,) = predict(TNet(tiny_config()), paths[:1])
    assert isinstance(told, Prediction) and told.label == str(told.index)


# --- bad input


def test_pictures_that_cannot_be_read_stop_or_are_skipped(model: TNet, paths: list[Path]) -> None:
    paths[1].write_bytes(paths[0].read_bytes()[:200])
    paths[3].write_bytes(b"")
    paths.append(paths[0].parent / "gone.png")
    with pytest.raises(ImageError, match=r"1\.png cannot be read: it is truncated"):
        predict(model, paths)
    found = predict(model, paths, skip_unreadable=True, batch_size=3)
    assert [isinstance(item, Unreadable) for item in found] == [False, True, False, True, False, True]
    assert [item.path for item in found] == [str(path) for path in paths]
    assert isinstance(found[3], Unreadable) and "3.png cannot be read: the file is empty" in found[3].error
    assert isinstance(found[5], Unreadable) and "no such file" in found[5].error
    same([found[4]], predict(model, [paths[4]]))
    with pytest.raises(ImageError, match=r"1\.png cannot be read: it is truncated[^\n]*$"):
        predict(model, paths, workers=1)


def test_predictions_before_a_bad_picture_come_out(model: TNet, paths: list[Path]) -> None:
    paths[3].write_bytes(b"no picture")
    found = iter_predictions(model, paths, progress=False, batch_size=2)
    assert [next(found).path for _ in range(3)] == [str(path) for path in paths[:3]]
    with pytest.raises(ImageError, match="3.png"):
        next(found)


def test_only_bad_pictures_and_skipping(model: TNet, tmp_path: Path) -> None:
    (found,) = predict(model, [tmp_path / "gone.png"], skip_unreadable=True)
    assert isinstance(found, Unreadable)


def test_a_picture_smaller_than_the_base_is_refused_unless_allowed(model: TNet, tmp_path: Path) -> None:
    path = put(tmp_path / "small.png", 31, 200)
    with pytest.raises(ImageError, match=r"small\.png has 200 x 31 pixels.*32 px"):
        predict(model, [path])
    (skipped,) = predict(model, [path], skip_unreadable=True)
    assert isinstance(skipped, Unreadable)
    (told,) = predict(model, [path], allow_small=True)
    assert isinstance(told, Prediction) and told.size_hw == (31, 200)
    check_image_size((32, 200), model.config, "exact")
    with pytest.raises(ImageError, match="small"):  # what counts is the picture as the model gets it
        predict(model, [put(path, 64, 128)], read=ReadOptions("auto", max_side_px=60))


def test_a_picture_without_a_pixel_for_each_cell_is_refused(tmp_path: Path) -> None:
    config = three_levels()
    with pytest.raises(ImageError, match=r"tiny has 2 x 40 pixels, too few for regions at level 1 \(a region of 2 px"):
        check_image_size((40, 2), replace(config, grid=replace(config.grid, cell_extent=0.2)), "tiny", allow_small=True)
    with pytest.raises(ImageError, match=r"too few for regions at level 2"):
        check_image_size((40, 2), config, "tiny", allow_small=True)
    check_image_size((40, 2), config, "tiny", looks=(2,), allow_small=True)
    check_image_size((40, 2), config, "tiny", looks=(), allow_small=True)


def test_images_too_small_for_cells_are_seen_whole_by_a_search(model: TNet, tmp_path: Path) -> None:
    sizes = [(1, 1), (1, 500), (64, 64), (500, 1), (4, 40)]
    paths = [put(tmp_path / f"{i}.png", *size, seed=i) for i, size in enumerate(sizes)]
    search = BestFirst(looks=12, levels=3)
    found = predict(model, paths, search=search, allow_small=True)
    assert [item.size_hw for item in found if isinstance(item, Prediction)] == sizes
    counts = [len(item.regions) for item in found if isinstance(item, Prediction)]
    assert counts == [0, 0, 12, 0, 12]
    refused = predict(model, paths, search=search, skip_unreadable=True)
    assert [isinstance(item, Unreadable) for item in refused] == [True, True, False, True, True]
    same(refused[2:3], found[2:3])


def test_a_strip_in_squares(model: TNet, tmp_path: Path) -> None:
    path = put(tmp_path / "strip.png", 64, 256)
    (found,) = predict(model, [path], search=BestFirst(looks=5, levels=2, aspect="keep"))
    assert isinstance(found, Prediction) and found.size_hw == (64, 256)
    assert [region.level for region in found.regions] == [1] * 5
    assert {region.number for region in found.regions} == {"1", "2", "3", "4", "5"}
    assert sum(region.weight or 0.0 for region in found.regions) == pytest.approx(5 / 9, abs=1e-4)
    sides = {(r.box_l0_yxyx[2] - r.box_l0_yxyx[0], r.box_l0_yxyx[3] - r.box_l0_yxyx[1]) for r in found.regions}
    assert sides == {(32, 32)}


def test_a_scene_that_fails_in_mid_search_is_skipped_alone(model: TNet) -> None:
    class Broken(MemoryScene):
        def glimpse(self, box: Any, *args: Any, **options: Any) -> Tensor:
            if box[0] > 0:
                raise ImageError("bad.tif cannot be read: damaged; copy it again")
            return super().glimpse(box, *args, **options)

    pixels = pictures((64, 64), (64, 96), (80, 80))
    scenes = [kind(image) for kind, image in zip((MemoryScene, Broken, MemoryScene), pixels, strict=True)]
    search = BestFirst(looks=9, levels=2)
    found = list(iter_predictions(model, scenes, search=search, progress=False, skip_unreadable=True))
    assert [isinstance(item, Unreadable) for item in found] == [False, True, False]
    with pytest.raises(ImageError, match=r"bad\.tif"):
        list(iter_predictions(model, scenes, search=search, progress=False))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"looks": 10}, GeometryError),
        ({"looks": (1, 1)}, GeometryError),
        ({"batch_size": 0}, ConfigError),
        ({"workers": -1}, ConfigError),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(
    model: TNet, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):  # before the first picture is asked for
        iter_predictions(model, [Path("not-read.png")], progress=False, **options)


# --- the public function


@pytest.mark.filterwarnings("ignore::tnet.errors.PassedOverWarning")
def test_predict_takes_models_folders_files_and_tensors(model: TNet, paths: list[Path], tmp_path: Path) -> None:
    expected = predict(model, paths)
    saved = save_model(model, tmp_path / "run" / "model")
    assert tnet.predict(model, paths[0].parent) == expected
    loaded = tnet.predict(saved.parent, paths, device="cpu")  # prepared for inference
    assert loaded == tnet.predict(model.prepare_for_inference(), paths)
    same(loaded, expected)
    same(tnet.predict(model, str(paths[0])), expected[:1])
    same(tnet.predict(str(saved), [paths[0]], device="cpu"), expected[:1])
    tensors = [load_image(path, channels=1) for path in paths]
    found = tnet.predict(model, tensors)
    assert [item.path for item in found] == ["0", "1", "2", "3", "4"]
    same([replace(item, path=str(path)) for item, path in zip(found, paths, strict=True)], expected)
    assert [item.label for item in tnet.predict(model, torch.stack([tensors[0], tensors[2]]))] == [
        expected[0].label,  # type: ignore[union-attr]
        expected[2].label,  # type: ignore[union-attr]
    ]
    assert tnet.predict(model.train(), tensors[3], looks=0)[0].regions == () and model.training
    model.eval()
    (scene,) = tnet.predict(model, FileScene(paths[3]))
    same([replace(scene, path=str(paths[3]))], expected[3:4])


def test_predict_reads_files_as_the_runs_recipe_says(model: TNet, tmp_path: Path) -> None:
    run, path = tmp_path / "run", put(tmp_path / "large.png", 200, 320)
    save_model(model, run / "model")
    (run / "recipe.yaml").write_text("data: {max_side_px: 80, preprocess: reference_64}")
    read = ReadOptions("auto", max_side_px=80, prepare=named_transform("reference_64"))
    for folder in (run, run / "model"):
        assert tnet.predict(folder, path, device="cpu") == tnet.predict(model, path, read=read)
    assert tnet.predict(run, path, device="cpu", read=ReadOptions()) == tnet.predict(model, path)
    for text in ("base: other.yaml", "data: {max_side_px: x}", "a: [", "[]"):
        (run / "recipe.yaml").write_text(text)
        with pytest.raises(tnet.TnetError, match=r"recipe\.yaml"):
            tnet.predict(run, path)


def test_predict_refuses_small_images_and_nothing(model: TNet) -> None:
    with pytest.raises(tnet.ImageError, match="8 pixels"):
        tnet.predict(model, torch.zeros(1, 8, 8, dtype=torch.uint8))
    with pytest.raises(tnet.DataError):
        tnet.predict(model, [])


def test_no_images_are_refused_at_once(model: TNet) -> None:
    with pytest.raises(DataError, match="no images"):
        iter_predictions(model, [])


def test_a_model_whose_weights_are_damaged_is_told(paths: list[Path]) -> None:
    model = TNet(CONFIG)
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"infinite or NaN.*0\.png"):
        predict(model, paths)


def test_the_bar_is_on_standard_error(
    model: TNet, paths: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tnet.inference.progress.is_terminal", lambda stream: True)
    predict(model, paths, progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "5/5" in shown.err
    predict(model, paths, progress=False)
    assert capsys.readouterr().err == ""


def test_a_model_in_training_mode_predicts_in_evaluation_mode(paths: list[Path]) -> None:
    torch.manual_seed(0)
    config: TNetConfig = replace(CONFIG, dropout=0.9)
    model = TNet(config).train()
    assert predict(model, paths) == predict(model, paths)
