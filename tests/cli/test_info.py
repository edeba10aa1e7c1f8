from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.helpers import TINY_RESNET
from typer.testing import CliRunner

from tnet.backbones import BackboneConfig
from tnet.cli.main import app
from tnet.cost import cost_by_module, count_parameters, multiply_adds
from tnet.geometry import Grid
from tnet.models import registry
from tnet.models.config import LocatorConfig, PositionConfig, TNetConfig
from tnet.models.io import save_model
from tnet.models.tnet import TNet
from tnet.training.recipe import Recipe, save_recipe

CONFIG = TNetConfig(
    backbone=BackboneConfig("bagnet77", kwargs={"planes": [4] * 4, "expansion": 1, "feature_dim": 24}),
    num_classes=7,
    in_channels=1,
    base_px=32,
    grid=Grid(3, 3, 0.5),
    looks=(2,),
    locator=LocatorConfig(hidden=4),
)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["info", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def table(output: str) -> dict[str, list[str]]:
    """Lines of all tables, by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    save_recipe(Recipe(model=CONFIG), tmp_path / "made.yaml")
    return tmp_path / "made.yaml"


def test_parts_and_looks_of_a_recipe(recipe: Path) -> None:
    code, output = run(recipe)
    assert code == 0
    model = TNet(CONFIG)
    rows = table(output)
    assert rows["part"] == ["parameters", "0 looks", "1 looks", "2 looks"]
    assert list(rows)[2:] == ["backbone", "position", "locator", "aggregation", "classifier", "total"]
    for part in cost_by_module(model, 2):
        assert rows[part.name][0] == f"{part.parameters.trainable:,}"
        assert float(rows[part.name][3]) == pytest.approx(part.macs / 1e6, rel=1e-3, abs=1e-6)
    assert rows["total"][0] == f"{count_parameters(model).trainable:,}"
    assert [float(cell) for cell in rows["total"][1:]] == [
        pytest.approx(multiply_adds(model, looks) / 1e6, rel=1e-3) for looks in range(3)
    ]
    assert "multiply-adds (M)" in output and "grid         3 x 3 cells, each 0.5" in output


def test_looks_can_be_chosen(recipe: Path) -> None:
    code, output = run(recipe, "--looks", "9,0", "--looks", "9")
    assert code == 0
    assert table(output)["part"][1:] == ["9 looks", "0 looks"]


def test_a_saved_model_and_its_run_say_the_same_as_the_recipe(recipe: Path, tmp_path: Path) -> None:
    save_model(TNet(CONFIG), tmp_path / "run" / "model")
    expected = table(run(recipe, "--looks", 1)[1])
    for target in (tmp_path / "run", tmp_path / "run" / "model"):
        code, output = run(target, "--looks", 1)
        assert code == 0
        assert table(output) == expected


def test_a_run_without_a_model_yet_is_described_by_its_recipe(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "started").mkdir()
    recipe.rename(tmp_path / "started" / "recipe.yaml")
    code, output = run(tmp_path / "started")
    assert code == 0
    assert "without a model yet" in output


def test_pretrained_weights_are_not_fetched(tmp_path: Path) -> None:
    # The network is out of bounds in tests, so that this fails if anything asks for them.
    backbone = BackboneConfig("resnet10t", pretrained=True)
    save_recipe(Recipe(model=replace(CONFIG, backbone=backbone)), tmp_path / "pretrained.yaml")
    code, output = run(tmp_path / "pretrained.yaml", "--looks", "0")
    assert code == 0
    assert "resnet10t" in output


def test_weights_of_a_file_are_not_read(tmp_path: Path) -> None:
    backbone = BackboneConfig("resnet10t", weights=str(tmp_path / "gone.safetensors"))
    save_recipe(Recipe(model=replace(CONFIG, backbone=backbone)), tmp_path / "started.yaml")
    assert run(tmp_path / "started.yaml", "--looks", "0")[0] == 0


def test_a_registered_model_by_name() -> None:
    code, output = run("tnet_efficientnet_b0.fmow_896", "--image-size", "896")
    assert code == 0
    rows = table(output)
    assert rows["part"] == ["parameters", "0 looks", "2x0 looks", "1x1 looks", "2x1 looks"]
    assert rows["total"] == ["4,517,575", "0.3851", "1.155", "1.155", "1.926"]
    assert rows["0"] == ["1", "896 x 896", "4.00"]
    assert rows["1"] == ["2", "448 x 448", "2.00"]
    assert rows["2"] == ["2", "224 x 224", "1.00"]
    assert "6.143 G multiply-adds, 3.190 times" in output
    assert "levels: 3, grid: {rows: 3, cols: 3, cell_extent: 0.5}, looks: [2, 1]" in output


def test_a_plain_network_has_no_locator(tmp_path: Path) -> None:
    save_recipe(Recipe(model=replace(CONFIG, levels=1, looks=())), tmp_path / "plain.yaml")
    code, output = run(tmp_path / "plain.yaml")
    assert code == 0
    assert "locator" not in output and table(output)["part"] == ["parameters", "0 looks"]


def test_an_image_smaller_than_a_glimpse_is_not_worth_a_traversal(recipe: Path) -> None:
    code, output = run(recipe, "--image-size", "20x30")
    assert code == 0
    assert "20 x 30 px" in output and "32 px" in output


@pytest.mark.parametrize(("arguments", "message"), [
    (["--looks", "10"], "between 0 and 9"),
    (["--looks", "1x1"], "the model has 1"),
    (["--image-size", "1"], "a region of 1 px cannot hold 3 cells"),
])  # fmt: skip
def test_what_the_model_does_not_allow_is_an_error(recipe: Path, arguments: list[str], message: str) -> None:
    code, output = run(recipe, *arguments)
    assert code == 1
    assert output.splitlines()[-1].startswith("error: ") and message in output


@pytest.mark.parametrize("arguments", [["--looks", "many"], ["--image-size", "big"]])
def test_what_cannot_be_read_is_wrong_usage(recipe: Path, arguments: list[str]) -> None:
    assert run(recipe, *arguments)[0] == 2


def test_targets_that_are_nothing_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.yaml").write_text("model: {bass_px: 32}\n")
    code, output = run("tnet_bagnet77.imagenett")
    assert code == 1
    assert output.startswith("error: tnet_bagnet77.imagenett ")
    assert "did you mean tnet_bagnet77.imagenet" in output
    for target, message in (
        ("empty", "config.json"),
        ("wrong.yaml", "'model.bass_px'"),
        ("none.yaml", "none.yaml"),
    ):
        code, output = run(tmp_path / target)
        assert code == 1
        assert output.startswith("error: ") and message in output


# --- all registered models


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, TNetConfig]:
    """Small models in place of the registered ones: three levels, none but the first, and two sets of statistics."""
    configs = {
        "plain.a": replace(CONFIG, levels=1, looks=(), base_px=40),
        "tnet_deep.a": replace(CONFIG, levels=3, looks=(2, 1)),
        "tnet_resnet.b": replace(CONFIG, backbone=TINY_RESNET, batch_norm="per_level", position=PositionConfig("none")),
    }
    monkeypatch.setattr(registry, "_REGISTRY", {name: lambda made=made: made for name, made in configs.items()})
    return configs


def test_a_table_of_all_registered_models(registered: dict[str, TNetConfig]) -> None:
    result = CliRunner().invoke(app, ["info", "--table"])
    assert result.exit_code == 0
    rows = table(result.stdout)
    header = ["base px", "levels", "looks", "trainable", "total", "multiply-adds (G)", "at 0 looks (G)"]
    assert rows.pop("name") == header
    assert [name for name in rows if not name.startswith("-")] == list(registered)
    looks = {"plain.a": "0", "tnet_deep.a": "2x1", "tnet_resnet.b": "2"}
    for name, config in registered.items():
        model = TNet(config)
        count = count_parameters(model)
        assert rows[name][:3] == [str(config.base_px), str(config.levels), looks[name]]
        assert rows[name][3:5] == [f"{count.trainable:,}", f"{count.total:,}"]
        # Printed with six digits after the point: these models cost less than a G by far.
        for cell, macs in zip(rows[name][5:], (multiply_adds(model), multiply_adds(model, 0)), strict=True):
            assert float(cell) == pytest.approx(macs / 1e9, rel=1e-3, abs=6e-7)
    assert rows["plain.a"][5] == rows["plain.a"][6]
    assert rows["tnet_resnet.b"][3] != rows["tnet_resnet.b"][4]  # batch norm
    assert "statistics of batch norm" in result.stdout and "1 multiply-add is 2 FLOPs" in result.stdout


@pytest.mark.usefixtures("registered")
def test_a_pattern_selects_models_and_progress_leaves_the_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnet.inference.progress.is_terminal", lambda stream: True)
    with_bar = CliRunner().invoke(app, ["info", "--table", "plain.*"])
    without = CliRunner().invoke(app, ["info", "--table", "plain.*", "--no-progress"])
    assert [name for name in table(without.stdout) if "." in name] == ["plain.a"]
    assert with_bar.stdout == without.stdout
    assert "counting" in with_bar.stderr and "1/1" in with_bar.stderr and not without.stderr


def test_a_table_of_published_models() -> None:
    code, output = run("--table", "tnet_efficientnet_b0.fmow_448")
    assert code == 0
    rows = table(output)
    assert rows["tnet_efficientnet_b0.fmow_448"] == ["224", "2", "2", "4,517,575", "4,559,591", "1.155", "0.3851"]


@pytest.mark.usefixtures("registered")
def test_a_pattern_that_names_nothing_is_an_error() -> None:
    code, output = run("--table", "*.c")
    assert code == 1 and output.startswith("error: ") and "'*.c'" in output


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--table"),
    (["--table", "--looks", "2"], "--looks"),
    (["--table", "plain.a", "--image-size", "64"], "--image-size"),
])  # fmt: skip
def test_a_table_and_a_single_model_are_one_or_the_other(arguments: list[str], message: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert message in output
