"""What verbs and saving functions may write: never over an input, over what exists only if asked, and nothing else."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from tests.fakes import make_fake
from tests.helpers import tiny_config, tiny_recipe
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.data.digits import MegapixelDigits
from tnet.demo.run import run_demo
from tnet.errors import OutputError
from tnet.explain import explain_paths, explain_samples, look, save_explanation
from tnet.explain.geojson import write_all_geojson
from tnet.inference import predict, write_predictions
from tnet.models.io import load_model, save_model
from tnet.models.tnet import TNet
from tnet.scenes.pyramid import write_pyramid
from tnet.training.recipe import save_recipe
from tnet.training.run import train

# Verb, arguments, and the file that it writes; MODEL is a saved model without a recipe.
FILES = {
    "predict csv": (["predict", "MODEL", "photos/ant/a.png", "--out", "new/out.csv"], "new/out.csv"),
    "predict jsonl": (["predict", "MODEL", "photos", "--out", "out.jsonl"], "out.jsonl"),
    "explain file": (["explain", "MODEL", "photos/ant/a.png", "--out", "out.png"], "out.png"),
    "explain list": (["explain", "MODEL", "photos/ant/a.png", "--out", "out.png"], "out.regions.json"),
    "explain folder": (["explain", "MODEL", "photos/ant", "--out", "new"], "new/a.png"),
    "explain default": (["explain", "MODEL", "photos/ant"], "explained/regions.json"),
    "explain geojson": (
        ["explain", "MODEL", "photos/ant/a.png", "--out", "new", "--geojson", "out.geojson"], "out.geojson",
    ),
    "explain geojson folder": (["explain", "MODEL", "photos/ant", "--out", "new", "--geojson", "g"], "g/a.geojson"),
    "explain export": (["explain", "MODEL", "photos/ant/a.png", "--out", "new", "--export", "cvat"], "new/cvat.xml"),
    "evaluate csv": (["evaluate", "MODEL", "photos", "--looks", "0", "--out", "new"], "new/evaluation.csv"),
    "evaluate boxes": (
        ["evaluate", "MODEL", "photos", "--looks", "1", "--boxes", "boxes.csv", "--out", "new"], "new/attention.csv",
    ),
    "evaluate page": (["evaluate", "MODEL", "photos", "--looks", "0", "--out", "new"], "new/evaluation.md"),
    "report": (["report", "MODEL", "--data", "photos", "--looks", "0", "--out", "new/out.html"], "new/out.html"),
    "report predictions": (["report", "predictions.csv"], "predictions.html"),
    "suggest": (["suggest", "photos", "--backbone", "test_resnet", "--out", "out.yaml"], "out.yaml"),
    "recipes": (["recipes", "copy", "own_images"], "own_images.yaml"),
    "recipes to": (["recipes", "copy", "own_images", "--to", "new/out.yaml"], "new/out.yaml"),
    "pyramid": (["pyramid", "photos/ant/a.png", "out.tif"], "out.tif"),
    "data": (["data", "check", "cub", "cub", "--json", "out.json"], "out.json"),
    "compare": (["compare", "suite.yaml", "--out", "new"], "new/comparison.csv"),
    "bench": (
        ["bench", "MODEL", "--engine", "torch", "--looks", "1", "--batch-size", "1", "--rounds", "1", "--out", "new"],
        "new/bench.csv",
    ),
    "compare plot": (["compare", "suite.yaml", "--out", "new"], "new/accuracy_macs.png"),
}  # fmt: skip
USUAL = (
    "predict csv",
    "explain folder",
    "evaluate csv",
    "report predictions",
    "suggest",
    "recipes",
    "pyramid",
    "data",
    "compare",
    "bench",
)  # one per verb
# Verbs that write folders which must be new or empty; train --resume goes on in the folder of a run.
FOLDERS = {
    "export": ["export", "MODEL", "--format", "torch-export", "OUT"],
    "import-tf": ["import-tf", "gone.npz", "OUT", "--model", "tnet_efficientnet_b0.cub"],
    "train": ["train", "tiny.yaml", "--out", "OUT"],
    "train resume": ["train", "tiny.yaml", "--resume", "--out", "OUT"],
    "demo": ["demo", "--smoke", "--out", "OUT"],
}
WRITE_NOTHING = {"models", "info", "doctor", "serve", "view"}

# Verb, arguments with a place for the output, and the input that the output must not be.
INPUTS = {
    "predict manifest": (["predict", "MODEL", "list.csv", "--out", "OUT"], "list.csv"),
    "explain file": (["explain", "MODEL", "photos/ant/a.png", "--out", "OUT"], "photos/ant/a.png"),
    "explain one of a folder": (["explain", "MODEL", "list.csv", "--out", "DIR"], "photos/ant/a.png"),
    "explain beside": (["explain", "MODEL", "photos/ant/a.png", "--out", "DIR"], "photos/ant/a.png"),
    "explain all": (["explain", "MODEL", "photos", "--out", "DIR"], "photos/bee/b.png"),
    "pyramid": (["pyramid", "scene.tif", "OUT"], "scene.tif"),
    "evaluate": (["evaluate", "MODEL", "evaluation.csv", "--looks", "0", "--out", "DIR"], "evaluation.csv"),
    "evaluate boxes": (
        ["evaluate", "MODEL", "photos", "--looks", "1", "--boxes", "attention.csv", "--out", "DIR"],
        "attention.csv",
    ),
    "report": (["report", "MODEL", "--data", "evaluation.csv", "--out", "OUT"], "evaluation.csv"),
    "report images": (["report", "MODEL", "--data", "photos", "--out", "OUT"], "photos/ant/a.png"),
    "report predictions": (["report", "predictions.csv", "--out", "OUT"], "predictions.csv"),
    "suggest": (["suggest", "list.csv", "--out", "OUT"], "list.csv"),
    "data": (["data", "check", "cub", "cub", "--json", "OUT"], "cub/images.txt"),
}


@pytest.fixture
def place(saved_model: Path, in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of two classes, lists of them, a recipe and a suite, in the working directory."""
    rows = ["path,label"]
    for index, name in enumerate(("ant/a", "bee/b", "cat/c", "dog/d", "elk/e")):
        path = in_tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True)
        noise = np.random.default_rng(index).integers(256, size=(64, 48), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        Image.fromarray(noise.T).save(path.with_name("2.png"))
        rows.append(f"photos/{name}.png,{path.parent.name}")
    for name in ("list.csv", "evaluation.csv"):
        Path(name).write_text("\n".join(rows) + "\n")
    for name in ("boxes.csv", "attention.csv"):
        Path(name).write_text("path,x,y,w,h\nant/a.png,8,8,16,16\n")
    Path("predictions.csv").write_text("path,label,probability\nphotos/ant/a.png,ant,0.5\n")
    Image.fromarray(noise).save("scene.tif")
    save_recipe(tiny_recipe(train={"epochs": 1, "images_per_epoch": 8}), "tiny.yaml")
    Path("suite.yaml").write_text("title: mine\nrows: [{name: a, recipe: tiny.yaml}]\n")
    make_fake("cub", in_tmp_path / "cub", classes=2, side_px=16)
    Path("MODEL").symlink_to(saved_model)
    monkeypatch.setattr("tnet.models.io.load_model", functools.cache(load_model))  # half the time of these tests
    return in_tmp_path


def run(arguments: list[str]) -> tuple[int, str]:
    quiet = (
        ["--no-progress"]
        if arguments[0] in ("predict", "explain", "evaluate", "report", "pyramid", "train", "demo", "bench")
        else []
    )
    result = CliRunner().invoke(app, [*arguments, *quiet])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def tree(root: Path) -> dict[str, Any]:
    """Every file with its content, every link with its target, every folder."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        found[name] = path.readlink() if path.is_symlink() else path.is_dir() or path.read_bytes()
    return found


@contextmanager
def unchanged(root: Path) -> Iterator[None]:
    before = tree(root)
    yield
    assert tree(root) == before


def test_every_verb_is_here() -> None:
    group: Any = typer.main.get_command(app)
    writing = {arguments[0] for arguments, _ in FILES.values()} | {arguments[0] for arguments in FOLDERS.values()}
    in_its_own_tests = {"calibrate", "crossval", "split"}  # the first writes into the model
    assert writing | WRITE_NOTHING | in_its_own_tests == set(group.commands)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in USUAL else pytest.mark.slow) for case in FILES]
)
def test_a_file_that_exists_is_replaced_only_if_asked(case: str, place: Path) -> None:
    arguments, out = FILES[case]
    path = place / out
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with unchanged(place):
        code, output = run(arguments)
    assert code == 1 and len(output.strip().splitlines()) == 1 and "exists" in output and "--overwrite" in output
    path.unlink()
    path.symlink_to("nowhere")
    with unchanged(place):
        assert run(arguments)[0] == 1
    path.unlink()
    if arguments[0] == "compare":
        return
    path.mkdir()
    (path / "mine").touch()
    with unchanged(place):
        assert run([*arguments, "--overwrite"])[0] == 1


@pytest.mark.parametrize(
    "case",
    # Compare takes long, and data check fails for other reasons.
    [
        pytest.param(case, marks=[] if case in ("recipes", "pyramid") else pytest.mark.slow)
        for case in FILES
        if not case.startswith(("compare", "data"))
    ],
)
def test_a_file_is_replaced_if_asked_and_others_stay(case: str, place: Path) -> None:
    arguments, out = FILES[case]
    path = place / out
    path.parent.mkdir(exist_ok=True)
    (path.parent / "notes.txt").write_text("mine")
    path.write_text("mine")
    assert run([*arguments, "--overwrite"])[0] == 0
    assert path.read_bytes() != b"mine" and (path.parent / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_in_use_stays_as_it_is(case: str, place: Path) -> None:
    for out in ("photos", "photos/ant", "tiny.yaml"):
        with unchanged(place):
            code, output = run([out if part == "OUT" else part for part in FOLDERS[case]])
        assert code == 1 and out in output, output


@pytest.mark.parametrize(
    "way",
    ["itself", "hard link", *(pytest.param(way, marks=pytest.mark.slow) for way in ("detour", "link", "folder link"))],
)
@pytest.mark.parametrize("case", INPUTS)
def test_an_output_is_never_an_input(case: str, way: str, place: Path) -> None:
    arguments, source = INPUTS[case]
    if case == "data" and way in ("link", "hard link"):  # the file in the dataset would stay as it is
        return
    out = Path(source)
    if way == "detour":
        out = Path("photos", "..", source)
    elif way == "folder link":
        Path("elsewhere").symlink_to(out.parent.absolute())
        out = Path("elsewhere", out.name)
    elif way != "itself":
        out = Path("elsewhere", out.name)
        out.parent.mkdir()
        os.link(source, out) if way == "hard link" else out.symlink_to(Path(source).absolute())
    arguments = [{"OUT": str(out), "DIR": str(out.parent)}.get(part, part) for part in arguments]
    for more in ([], ["--overwrite"]):
        with unchanged(place):
            code, output = run([*arguments, *more])
        assert code == 1 and output.count("error: ") == 1, output


def test_a_file_in_an_image_that_is_a_folder_is_an_input(place: Path) -> None:
    Path("scene.zarr").mkdir()
    for arguments in (["predict", "MODEL", "scene.zarr", "--out", "scene.zarr/0.csv"],
                      ["explain", "MODEL", "scene.zarr", "--out", "scene.zarr/more"],
                      ["pyramid", "scene.zarr", "scene.zarr/0.tif"]):  # fmt: skip
        with unchanged(place):
            code, output = run(arguments)
        assert code == 1 and "is an input" in output


def test_two_outputs_are_not_one_file(place: Path) -> None:
    with unchanged(place):
        code, output = run(
            ["explain", "MODEL", "photos/ant/a.png", "--out", "new", "--geojson", "new/../new/Regions.json"]
        )
    assert code == 1 and "written twice" in output


@pytest.mark.slow
def test_an_evaluation_replaces_its_own_results_unasked(place: Path) -> None:
    arguments = ["evaluate", "MODEL", "photos", "--looks", "0", "--out", "new"]
    assert run(arguments)[0] == 0
    Path("new/evaluation.csv").write_text("old")
    assert run(arguments)[0] == 0 and Path("new/evaluation.csv").read_text() != "old"


# --- saving functions


def saving(place: Path) -> dict[str, tuple[Callable[..., Any], str]]:
    """Each saving function, called with a path and ``overwrite``, and the name of what it writes."""
    net, picture = load_model(place / "MODEL"), place / "photos/ant/a.png"
    pixels = torch.from_numpy(np.array(Image.open(picture)))[None]
    found, digits = predict(net, [picture]), MegapixelDigits(tiny_recipe().data.digits, "val")
    torch.manual_seed(0)
    ten = TNet(tiny_config(num_classes=10)).eval()
    return {
        "save_model": (lambda path, **how: save_model(net, path, **how), "model"),
        "save_pretrained": (lambda path, **how: net.save_pretrained(path, **how), "model"),
        "write_predictions": (lambda path, **how: write_predictions(found, path, **how), "a.csv"),
        "save_explanation": (lambda path, **how: save_explanation(look(net, pixels), path, **how), "a.png"),
        "explain_paths": (lambda path, **how: explain_paths(net, [picture], path, progress=False, **how), "a.png"),
        "explain_samples": (
            lambda path, **how: explain_samples(ten, digits, 1, path, progress=False, **how), "a.png",
        ),
        "write_all_geojson": (lambda path, **how: write_all_geojson([(found[0], None)], path, **how), "a.geojson"),
        "write_pyramid": (lambda path, **how: write_pyramid(picture, path, **how), "a.tif"),
    }  # fmt: skip


def test_saving_functions_replace_only_their_own_files_and_only_if_asked(place: Path) -> None:
    for name, (save, target) in saving(place).items():
        folder = place / name
        folder.mkdir()
        (folder / "mine").write_text("mine")
        path = folder / target
        if path.suffix:
            path.write_text("mine")
        else:
            path.mkdir()
            for file in ("mine", "README.md"):
                (path / file).write_text("mine")
        with unchanged(place), pytest.raises(OutputError, match="overwrite=True"):
            save(path)
        save(path, overwrite=True)
        written = path if path.suffix else path / "README.md"
        assert written.read_bytes() != b"mine", name
        kept = [file for file in folder.rglob("mine") if file.read_text() == "mine"]
        assert len(kept) == (1 if path.suffix else 2), name


def test_saving_functions_do_not_turn_files_into_folders_or_folders_into_files(place: Path) -> None:
    for name, (save, target) in saving(place).items():
        path = place / name / target
        path.parent.mkdir()
        path.mkdir() if path.suffix else path.write_text("mine")
        with unchanged(place), pytest.raises(OutputError, match="is a (file|folder)"):
            save(path, overwrite=True)


def test_training_and_the_demo_stay_out_of_folders_in_use(place: Path) -> None:
    for call in (lambda out: train(tiny_recipe(), out, progress=False), lambda out: run_demo(out, smoke=True)):
        with unchanged(place), pytest.raises(OutputError):
            call(place / "photos")
        with unchanged(place), pytest.raises(OutputError):
            call(place / "list.csv")


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_all_that_is_written_honours_the_umask(umask: int, place: Path) -> None:
    before = os.umask(umask)
    try:
        for name, (save, target) in saving(place).items():
            save(place / "all" / name / target)
        train(tiny_recipe(train={"epochs": 1, "images_per_epoch": 8, "overlays": 1}), place / "all/run", progress=False)
    finally:
        os.umask(before)
    for path in (place / "all").rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
