"""``tnet suggest``, and the commands of the guide to one's own images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.data.groups import make_folds
from tnet.training.recipe import load_recipe


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert "Traceback" not in result.output and not isinstance(result.exception, AssertionError)
    return result.exit_code, result.output


@pytest.fixture
def photos(in_tmp_path: Path) -> Path:
    """Two classes that their colour tells apart, 200 x 160 px."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for channel, name in enumerate(("red", "green")):
            (in_tmp_path / "photos" / split / name).mkdir(parents=True)
            for index in range(count):
                levels = noise.integers(0, 100, (160, 200, 3), dtype=np.uint8)
                levels[:, :, channel] += 100
                Image.fromarray(levels).save(in_tmp_path / "photos" / split / name / f"{index}.png")
    return Path("photos")


def test_what_it_says(photos: Path) -> None:
    code, output = run("suggest", photos, "--backbone", "test_resnet")
    assert code == 0 and not Path("recipe.yaml").exists()
    assert "photos: 12 training and 4 validation images, 2 classes" in " ".join(output.split())
    for topic in ("backbone", "base", "levels", "grid", "looks", "rates", "reading", "batch", "epochs"):
        assert re.search(rf"^{topic} ", output, re.MULTILINE), topic
    assert "64 px" in output and "as proposed" in output and "warning: fewer than 20 training images" in output


def test_a_test_for_looks_with_weights_from_a_file(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnet.suggest.probe._STEPS", 5)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "weights.safetensors")
    options = ("--backbone", "test_resnet", "--weights", "weights.safetensors", "--no-progress")
    code, output = run("suggest", photos, *options, "--probe", 10, "--out", "made.yaml")
    assert code == 0, output
    assert re.search(r"^test +frozen features tell the class of \d+% at 64 px", output, re.MULTILINE)
    assert "starts from the weights in weights.safetensors" in output
    text = Path("made.yaml").read_text()
    assert "# test: frozen features tell" in text
    backbone = load_recipe("made.yaml").model.backbone  # type: ignore[attr-defined]
    assert (backbone.weights, backbone.pretrained) == ("weights.safetensors", False)


def test_groups_are_kept_together(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnet.suggest.probe._STEPS", 5)
    seen: list[list[str] | None] = []

    def folds(targets: Any, groups: list[str] | None, count: int, seed: int) -> Any:
        seen.append(groups)
        return make_folds(targets, groups, count, seed)

    monkeypatch.setattr("tnet.suggest.probe.make_folds", folds)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "weights.safetensors")
    rows = [f"{path},{path.parent.name},{path.stem}{path.parent.name}" for path in sorted(photos.glob("*/*/*.png"))]
    Path("all.csv").write_text("\n".join(["path,label,patient", *rows]))
    options = ("--backbone", "test_resnet", "--weights", "weights.safetensors", "--no-progress", "--probe", 10)
    code, output = run("suggest", "all.csv", *options, "--group-column", "patient", "--out", "made.yaml")
    assert code == 0, output
    assert seen[0] and set(seen[0]) <= {row.split(",")[2] for row in rows}
    assert load_recipe("made.yaml").data.group_column == "patient"
    code, output = run("suggest", "all.csv", *options, "--group-column", "eye")
    assert code == 1 and "eye" in output and len(output.strip().splitlines()) == 1
    code, output = run("suggest", photos, "--backbone", "test_resnet", "--group-pattern", "GROUP.*", "--out", "2.yaml")
    assert code == 0 and load_recipe("2.yaml").data.group_pattern == "GROUP.*", output


def test_a_test_for_looks_without_weights(photos: Path) -> None:
    code, output = run("suggest", photos, "--backbone", "bagnet77", "--probe", 10, "--out", "made.yaml")
    assert code == 1 and output.startswith("error: ") and "bagnet77 has none" in output
    code, output = run("suggest", photos, "--backbone", "test_resnet", "--weights", "none.pth", "--probe", 10)
    assert code == 1 and output.startswith("error: ") and "none.pth" in output
    assert not Path("made.yaml").exists()


@pytest.mark.slow
def test_the_recipe_trains_as_it_is(photos: Path) -> None:
    """All but the weights, which are not fetched in tests, and the time."""
    code, output = run("suggest", photos, "--backbone", "test_resnet", "--macs", "100M", "--out", "made.yaml")
    assert code == 0 and "next: tnet train made.yaml --out runs/made" in output
    recipe = load_recipe("made.yaml")
    assert recipe.data.root == "photos" and recipe.model.backbone.pretrained  # type: ignore[attr-defined]
    short = ["model.backbone.pretrained=false", "train.epochs=1", "train.images_per_epoch=4", "train.overlays=1"]
    short += ["train.workers=0", "train.accelerator=cpu"]
    code, output = run("train", "made.yaml", *short, "--out", "runs/made", "--no-progress")
    assert code == 0, output
    assert Path("runs/made/model/model.safetensors").is_file()


@pytest.mark.slow
def test_what_is_new_in_a_model_that_starts_from_the_plain_one(photos: Path) -> None:
    assert run("suggest", photos, "--backbone", "test_resnet", "--macs", "100M", "--out", "my made.yaml")[0] == 0
    short = ["model.backbone.pretrained=false", "train.epochs=1", "train.images_per_epoch=4", "train.overlays=0",
             "train.workers=0", "train.accelerator=cpu", "model.aggregation=mean", "--no-progress"]  # fmt: skip
    code, output = run("train", "my made.yaml", *short, "model.levels=1", "model.looks=[]", "--out", "runs/my plain")
    assert code == 0 and "next: tnet evaluate 'runs/my plain'" in output, output
    code, output = run("train", "my made.yaml", *short, "train.start_from=runs/my plain", "--out", "runs/made")
    assert code == 0, output
    (line,) = [line for line in output.splitlines() if line.startswith("not in runs/my plain, ")]
    # The weights of the backbone are there; the statistics of its batch norm over regions are what is new.
    assert re.search(r"\d+ of \d+ tensors of backbone \(first \S*region_", line) and line.endswith(", locator"), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["photos", "--macs", "much"], "'much'"),
        (["photos", "--macs", "1K"], "multiply-adds"),
        (["photos", "--backbone", "no-such"], "no-such"),
        (["photos", "--out", "there.yaml"], r"there\.yaml"),
        (["photos/train/red"], "photos/train/red"),
    ],
)
def test_what_is_refused_is_one_sentence(photos: Path, arguments: list[str], message: str) -> None:
    Path("there.yaml").write_text("mine")
    code, output = run("suggest", *arguments)
    assert code == 1 and re.search(message, output) and len(output.strip().splitlines()) == 1
    assert Path("there.yaml").read_text() == "mine"


# --- the guide


@pytest.fixture
def guide(repository: Path) -> str:
    return (repository / "docs" / "own_images.md").read_text(encoding="utf-8")


def test_the_guides_commands_exist(guide: str) -> None:
    """Every verb, option and number of arguments, by parsing without running."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", guide, re.DOTALL))
    inline = re.findall(r"`(tnet [a-z-]+ [^`]+)`", guide)
    lines = [line for line in (*blocks.splitlines(), *inline) if line.startswith("tnet ")]
    assert len(lines) > 12
    group: Any = typer.main.get_command(app)
    for line in lines:
        verb, *arguments = shlex.split(line, comments=True)[1:]
        assert verb in group.commands, line
        group.commands[verb].make_context(verb, arguments)


def test_the_guides_recipe_keys_exist(guide: str, photos: Path) -> None:
    assert run("suggest", photos, "--backbone", "test_resnet", "--out", "made.yaml")[0] == 0
    text = re.sub(r"`[^`]*model\.levels=1[^`]*`", "", guide)
    settings = re.findall(
        r"(?<![\w.])((?:model|objective|optim|data|train)\.[\w.]+=(?:\{.*?\}|\[.*?\]|[\w./-]+))", text
    )
    assert len(set(settings)) > 12
    for setting in set(settings):
        together = [setting]
        if setting.startswith(("model.levels", "model.looks")):
            together = ["model.levels=1", "model.looks=[]"] if "[]" in setting or "levels=1" in setting else [setting]
        load_recipe("made.yaml", together)
    recipe: Any = load_recipe("made.yaml")
    for key in set(re.findall(r"`((?:model|objective|optim|data|train)\.(?!csv|safetensors)[\w.]+)`", guide)):
        values = recipe
        for name in key.split("."):
            values = getattr(values, name)
