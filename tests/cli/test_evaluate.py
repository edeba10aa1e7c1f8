from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tests.fakes import make_fake
from typer.testing import CliRunner

from tnet.backbones import BackboneConfig
from tnet.cli.main import app
from tnet.data.config import DataConfig
from tnet.data.digits import DigitsConfig
from tnet.data.published import PUBLISHED
from tnet.geometry import Grid
from tnet.models.config import LocatorConfig, TNetConfig
from tnet.models.io import save_model
from tnet.models.tnet import TNet
from tnet.scenes.reading import ReadOptions
from tnet.training.recipe import Recipe, save_recipe

CONFIG = TNetConfig(
    backbone=BackboneConfig(
        "bagnet77", kwargs={"planes": [4] * 4, "blocks": [1] * 4, "expansion": 1, "feature_dim": 24}
    ),
    num_classes=10,
    in_channels=1,
    base_px=32,
    grid=Grid(3, 3, 0.5),
    looks=(2,),
    locator=LocatorConfig(hidden=4),
    class_names=tuple("0123456789"),
)
DIGITS = DigitsConfig(
    canvas_px=64, digit_px=16, noise_patterns=1, noise_px=8, images_train=8, images_val=6, images_test=3
)
FILES = ["evaluation.csv", "evaluation.md", "evaluation.png"]


def evaluate(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--device", "cpu"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "evaluation.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def a_run(folder: Path, config: TNetConfig = CONFIG, data: DataConfig | None = None) -> Path:
    save_model(TNet(config), folder / "model")
    save_recipe(Recipe(model=config, data=data or DataConfig(kind="digits", digits=DIGITS)), folder / "recipe.yaml")
    return folder


def pictures(folder: Path, names: list[str]) -> Path:
    """Noise at ``folder/<name>``."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(256, size=(48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return a_run(tmp_path / "run")


@pytest.fixture
def cats_and_dogs(tmp_path: Path) -> Path:
    """A saved model of two classes, without a recipe."""
    return save_model(TNet(replace(CONFIG, num_classes=2, class_names=("cat", "dog"))), tmp_path / "saved")


def test_a_run_is_evaluated_on_its_own_validation_images(run: Path) -> None:
    code, output = evaluate(run)
    assert code == 0
    assert "synthetic digits (majority), val images: 6 images, 10 classes" in output
    assert [(row["looks"], row["policy"], row["images"]) for row in rows_of(run / "evaluation")] == [
        ("0", "none", "6"), ("1", "topk", "6"), ("2", "topk", "6")
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == FILES
    page = (run / "evaluation" / "evaluation.md").read_text()
    shown = [line for line in output.splitlines() if line.startswith("|")]
    assert len(shown) == 5
    assert [line for line in page.splitlines() if line.startswith("|")] == shown
    for word in ("multiply-adds (M)", "parameters (M)", "ms/image", "95 % interval"):
        assert word in shown[0]


def test_looks_policies_and_the_folder_can_be_chosen(run: Path, tmp_path: Path) -> None:
    code, output = evaluate(
        run, "--looks", "0,3", "--looks", "1", "--policy", "topk", "--policy", "random", "--out", tmp_path / "a" / "b",
        "--split", "test", "--batch-size", "2", "--no-progress",
    )  # fmt: skip
    assert code == 0
    assert "test images: 3 images" in output
    assert [(row["looks"], row["policy"], row["batch_size"]) for row in rows_of(tmp_path / "a" / "b")] == [
        ("0", "none", "2"), ("3", "topk", "2"), ("3", "random", "2"), ("1", "topk", "2"), ("1", "random", "2")
    ]  # fmt: skip
    assert not (run / "evaluation").exists()


def test_a_second_evaluation_takes_the_place_of_the_first(run: Path) -> None:
    assert evaluate(run, "--looks", "0")[0] == 0
    (run / "evaluation" / "notes.txt").write_text("mine")
    assert evaluate(run, "--looks", "9")[0] == 0
    assert [row["looks"] for row in rows_of(run / "evaluation")] == ["9"]
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [*FILES, "notes.txt"]


def test_the_model_folder_of_a_run_stands_for_the_run(run: Path) -> None:
    code, output = evaluate(run / "model", "--looks", "0")
    assert code == 0
    assert "val images: 6 images" in output
    assert (run / "model" / "evaluation" / "evaluation.csv").is_file()


def test_a_folder_of_class_folders(cats_and_dogs: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pets", ["cat/1.png", "dog/1.png", "dog/deep/2.png"])
    code, output = evaluate(cats_and_dogs, folder)
    assert code == 0
    assert f"{folder}: 3 images, 2 classes" in output
    assert "AUC" in output


def test_a_table_keeps_the_models_order_of_classes(cats_and_dogs: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "pets", ["1.png", "2.png"])
    table = tmp_path / "pets" / "list.csv"
    table.write_text("file,kind\n1.png,dog\n2.png,dog\n")
    model = TNet(replace(CONFIG, num_classes=2, class_names=("cat", "dog")))
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 9.0]))
    save_model(model, cats_and_dogs, overwrite=True)
    code, _ = evaluate(cats_and_dogs, table, "--path-column", "file", "--label-column", "kind", "--looks", "0")
    assert code == 0
    # The table names dogs only; they are still the model's second class.
    assert float(rows_of(cats_and_dogs / "evaluation")[0]["accuracy"]) == 1


def test_a_table_of_several_labels(tmp_path: Path) -> None:
    config = replace(CONFIG, num_classes=3, class_names=("boat", "car", "tree"), multilabel=True)
    save_model(TNet(config), tmp_path / "saved")
    pictures(tmp_path / "views", ["1.png", "2.png"])
    (tmp_path / "views" / "list.csv").write_text("path,label\n1.png,car|tree\n2.png,boat\n")
    code, output = evaluate(tmp_path / "saved", tmp_path / "views" / "list.csv")
    assert code == 0
    assert "Jaccard" in output and "exact match" in output


def test_images_of_a_recipe_on_disk(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pets", [f"{split}/{kind}/{n}.png" for split in ("train", "val", "test")
                                        for kind in ("cat", "dog") for n in range(len(split) - 2)])  # fmt: skip
    config = replace(CONFIG, num_classes=2, class_names=("cat", "dog"))
    run = a_run(tmp_path / "run", config, DataConfig(root=str(root)))
    for split, images in (("val", 2), ("test", 4)):
        code, output = evaluate(run, "--split", split, "--looks", "0")
        assert code == 0
        assert f"{root / split}: {images} images" in output
    (tmp_path / "pets" / "test" / "cat").rename(tmp_path / "pets" / "test" / "cow")
    code, output = evaluate(run, "--split", "test")
    assert code == 1
    assert "'cat'" in output and "'cow'" in output


def test_a_recipes_table_has_its_test_table_beside_it(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pets", ["1.png", "2.png", "3.png"])
    (root / "list.csv").write_text("path,label\n1.png,cat\n2.png,dog\n")
    (root / "test.csv").write_text("path,label\n3.png,dog\n")
    config = replace(CONFIG, num_classes=2, class_names=("cat", "dog"))
    run = a_run(tmp_path / "run", config, DataConfig(kind="table", root=str(root), train="list.csv", val="list.csv"))
    for split, images in (("val", 2), ("test", 1)):
        code, output = evaluate(run, "--split", split, "--looks", "0")
        assert code == 0
        assert f": {images} images, 2 classes" in output


def test_splits_of_a_published_data_set(tmp_path: Path) -> None:
    config = replace(CONFIG, num_classes=2, class_names=("001.Made_bird_1", "002.Made_bird_2"))
    root = make_fake("cub", tmp_path / "cub", classes=2, images_per_class=3, side_px=48)
    run = a_run(tmp_path / "run", config, DataConfig(kind="cub", root=str(root), val=None))
    for split, line in (("val", rf"0\.2 of {root / 'train'}: [1-3] images"), ("test", f"{root / 'test'}: 2 images")):
        code, output = evaluate(run, "--split", split, "--looks", "0")
        assert code == 0 and re.search(f"{line}, 2 classes", output)
    root = make_fake("imagenet", tmp_path / "imagenet", classes=2, side_px=48)
    run = a_run(tmp_path / "other", config, DataConfig(kind="imagenet", root=str(root)))
    code, output = evaluate(run, "--split", "test")
    assert code == 1 and "imagenet has no split 'test'" in output


def test_a_model_from_elsewhere_by_the_recipe_of_a_data_set(tmp_path: Path) -> None:
    root = make_fake("nabirds", tmp_path / "birds", classes=3, images_per_class=3, side_px=48)
    names = tuple(reversed(PUBLISHED["nabirds"].read(root, "train").classes))  # as a checkpoint may number them
    torch.manual_seed(0)
    model = TNet(replace(CONFIG, num_classes=3, class_names=()))
    images = PUBLISHED["nabirds"].read(root, "test", reading=ReadOptions(channels=1))
    with torch.inference_mode():
        right = [
            names[int(model.eval()(sample.image[None], looks=0).logits.argmax())] == images.classes[sample.target]
            for sample in images
        ]
    recipe = tmp_path / "birds.yaml"
    recipe.write_text("data: {kind: nabirds, root: elsewhere, val: test}\n")
    named = TNet(replace(CONFIG, num_classes=3, class_names=names))
    named.load_state_dict(model.state_dict())
    folder = save_model(named, tmp_path / "named")
    code, output = evaluate(folder, root, "--recipe", recipe, "--looks", "0")
    assert code == 0 and f"{root / 'test'}: {len(images)} images, 3 classes" in output and "does not know" not in output
    assert float(rows_of(folder / "evaluation")[0]["accuracy"]) == pytest.approx(sum(right) / len(right), abs=1e-4)
    folder = save_model(model, tmp_path / "nameless")
    code, output = evaluate(folder, root, "--recipe", recipe, "--looks", "0")
    assert code == 0 and "the model has no class names" in output
    code, output = evaluate(folder, "--recipe", recipe)
    assert code == 1 and "elsewhere does not exist" in output


@pytest.mark.slow
def test_a_row_is_called_what_is_typed_for_it(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", replace(CONFIG, levels=3, looks=(2, 1)))
    assert evaluate(run)[0] == 0
    rows = {row["looks"]: row for row in rows_of(run / "evaluation")}
    assert set(rows) == {"0", "2x0", "1x1", "2x1"}
    assert evaluate(run, "--looks", "2x0")[0] == 0
    (again,) = rows_of(run / "evaluation")
    assert all(again[name] == rows["2x0"][name] for name in ("looks", "macs", "accuracy"))


def test_what_is_named_instead_of_its_parts(cats_and_dogs: Path, tmp_path: Path) -> None:
    root = pictures(tmp_path / "pets", [f"{part}/{kind}/0.png" for part in ("train", "val") for kind in ("cat", "dog")])
    code, output = evaluate(cats_and_dogs, root)
    assert code == 1 and str(root / "train") in output
    recipe = tmp_path / "pets.yaml"
    recipe.write_text(f"data: {{kind: folder, root: {root}}}\n")
    code, output = evaluate(cats_and_dogs, "--recipe", recipe, "--split", "test")
    assert code == 1 and str(root / "test") in output


def test_more_looks_than_cells(run: Path) -> None:
    code, output = evaluate(run, "--looks", "0,10")
    assert code == 1
    assert "error: " in output and "between 0 and 9" in output
    assert list((run / "evaluation").iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["--looks", "some"], ["--policy", "best"], ["--split", "train"], ["--batch-size", "0"]]
)
def test_wrong_usage(run: Path, arguments: list[str]) -> None:
    assert evaluate(run, *arguments)[0] == 2
    assert not (run / "evaluation").exists()


def test_unknown_class_folders(cats_and_dogs: Path, tmp_path: Path) -> None:
    code, output = evaluate(cats_and_dogs, pictures(tmp_path / "zoo", ["cat/1.png", "emu/1.png"]))
    assert code == 1
    assert "'dog'" in output and "'emu'" in output


def test_unknown_labels(cats_and_dogs: Path, tmp_path: Path) -> None:
    pictures(tmp_path, ["1.png"])
    (tmp_path / "list.csv").write_text("path,label\n1.png,emu\n")
    code, output = evaluate(cats_and_dogs, tmp_path / "list.csv")
    assert code == 1
    assert "'emu'" in output


@pytest.mark.parametrize(("name", "message"), [("nowhere", "error: "), ("nowhere.csv", "error: ")])
def test_images_that_are_not_there(cats_and_dogs: Path, tmp_path: Path, name: str, message: str) -> None:
    code, output = evaluate(cats_and_dogs, tmp_path / name)
    assert code == 1
    assert message in output and str(tmp_path / name) in output


def test_a_model_without_a_recipe_needs_images(cats_and_dogs: Path) -> None:
    code, output = evaluate(cats_and_dogs)
    assert code == 1
    assert "has no recipe.yaml" in output and f"tnet evaluate {cats_and_dogs} IMAGES" in output


def test_a_run_without_a_model(run: Path) -> None:
    (run / "model").rename(run / "elsewhere")
    code, output = evaluate(run)
    assert code == 1
    assert "config.json" in output
    assert not (run / "evaluation").exists()


def test_weights_of_another_model(run: Path, tmp_path: Path) -> None:
    other = save_model(TNet(replace(CONFIG, aggregation="weighted")), tmp_path / "other")
    (other / "model.safetensors").rename(run / "model" / "model.safetensors")
    code, output = evaluate(run)
    assert code == 1
    assert "model.safetensors" in output


def test_truncated_weights(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    code, output = evaluate(run)
    assert code == 1
    assert "model.safetensors" in output


def test_a_picture_that_cannot_be_read_stops_it_and_leaves_nothing(cats_and_dogs: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pets", ["cat/1.png", "dog/1.png"])
    broken = folder / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    code, output = evaluate(cats_and_dogs, folder)
    assert code == 1
    assert str(broken) in output
    assert list((cats_and_dogs / "evaluation").iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_before_the_work(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "evaluation").write_text("in the way")
    monkeypatch.setattr("tnet.evaluation.evaluator.evaluate", lambda *_, **__: pytest.fail("evaluated for nothing"))
    code, output = evaluate(run)
    assert code == 1
    assert "evaluation cannot be written" in output and "--out" in output
    assert (run / "evaluation").read_text() == "in the way"


def test_a_device_that_is_not_there(run: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(run), "--device", "toaster"])
    assert result.exit_code == 1
    assert "'toaster'" in result.output


def test_a_folder_of_images_with_further_channels_is_read_lazily(tmp_path: Path) -> None:
    for index, name in enumerate(["a/0.tif", "a/1.tif", "b/0.tif"]):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        bands = np.random.default_rng(index).integers(256, size=(64, 64, 4), dtype=np.uint8)
        tifffile.imwrite(
            tmp_path / "images" / name, bands, tile=(32, 32), photometric="minisblack", planarconfig="contig"
        )
    config = replace(CONFIG, in_channels=4, num_classes=2, class_names=("a", "b"))
    run = a_run(tmp_path / "run", config, DataConfig(root=str(tmp_path)))
    status, output = evaluate(run, tmp_path / "images", "--looks", "1")
    assert status == 0 and "3 images, 2 classes" in output, output
    status, output = evaluate(run, tmp_path / "images", "--read", "memory")
    assert status == 1 and "the model takes 4" in output.replace("\n", " ") and "--read lazy" in output


def test_boxes_measure_where_it_looks(cats_and_dogs: Path, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    folder = pictures(tmp_path / "pets", ["cat/1.png", "dog/1.png", "dog/2.png"])
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("path,x,y,w,h\ncat/1.png,0,0,64,48\ndog/2.png,30,20,4,4\nval/3.png,0,0,1,1\n")
    plain = save_model(
        TNet(replace(CONFIG, levels=1, looks=(), num_classes=2, class_names=("cat", "dog"))), tmp_path / "plain"
    )
    arguments = (cats_and_dogs, folder, "--looks", "0,2", "--boxes", boxes, "--gradcam", plain, "--curve-images", "1")
    code, output = evaluate(*arguments)
    assert code == 0, output
    assert "2 images with boxes" in output and "Rows of the table of boxes about other images: 1" in output
    out = cats_and_dogs / "evaluation"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*FILES, "attention.csv", "attention.json", "attention.png"]
    )
    with (out / "attention.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["looks"], row["policy"]) for row in rows] == [
        ("0", "none"), ("2", "topk"), ("2", "random"), ("2", "centre"), ("2", "gradcam")
    ]  # fmt: skip
    stored = json.loads((out / "attention.json").read_text())
    assert [record["policy"] for record in stored] == [row["policy"] for row in rows]
    assert stored[1]["image_share"] == pytest.approx(float(rows[1]["image_share"]), rel=1e-5)
    assert "## Where it looks" in (out / "evaluation.md").read_text()
    assert evaluate(*arguments[:6], "--curve-images", "0")[0] == 0  # what was written before is replaced


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gradcam", "runs/plain"], "which --boxes measures"),
        (["--boxes", "missing.csv"], "missing.csv does not exist"),
        (["--boxes", "none.csv"], "no box of the table none.csv is of one of the 2 images"),
        (["--boxes", "boxes.csv", "--gradcam", "saved"], "saved is a TNet of 2 levels"),
        (["--boxes", "boxes.csv", "--out", "pets"], "is an input"),
    ],
)
def test_boxes_that_cannot_be_used(cats_and_dogs: Path, in_tmp_path: Path, arguments: list[str], message: str) -> None:
    pytest.importorskip("captum")
    folder = pictures(Path("pets"), ["cat/1.png", "dog/1.png"])
    Path("boxes.csv").write_text("path,y0,x0,y1,x1\ncat/1.png,0,0,9,9\n")
    Path("none.csv").write_text("path,y0,x0,y1,x1\nbird/1.png,0,0,9,9\n")
    if arguments[-1] == "pets":
        (folder / "attention.csv").hardlink_to("boxes.csv")
    code, output = evaluate(cats_and_dogs, folder, "--looks", "1", *arguments)
    assert code == 1 and message in " ".join(output.split()), output
    assert not list(in_tmp_path.rglob("evaluation.*"))


def test_boxes_need_images_in_files(run: Path, tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("path,y0,x0,y1,x1\na.png,0,0,9,9\n")
    code, output = evaluate(run, "--boxes", tmp_path / "boxes.csv")
    assert code == 1 and "these are synthetic" in output
