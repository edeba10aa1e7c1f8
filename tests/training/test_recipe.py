"""Recipes: what is read, what is refused and how that reads, and that what is written is read back the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import tiny_recipe

from tnet.errors import ConfigError, GeometryError, RecipeError
from tnet.training.recipe import OptimConfig, Recipe, TrainConfig, load_recipe, parse_recipe, save_recipe, with_classes


def test_an_empty_recipe_is_all_defaults() -> None:
    assert parse_recipe("") == parse_recipe("{}") == parse_recipe("# nothing\n") == Recipe()


def test_a_recipe_by_sections() -> None:
    recipe = parse_recipe("""
title: A title
seed: 7
model:
  backbone: {name: resnet10t, kwargs: {channels: [8, 8, 16, 16]}}
  levels: 3
  looks: [2, 1]
objective: {joint_weight_ce: 0.05}
optim: {name: adam, lr: 1e-4, eps: 1e-7}
data: {kind: digits, digits: {task: max}}
train: {epochs: 5, eval_policies: [random, centre]}
""")
    assert (recipe.title, recipe.seed, recipe.model.looks, recipe.optim.name) == ("A title", 7, (2, 1), "adam")
    assert recipe.model.backbone.kwargs == {"channels": [8, 8, 16, 16]}
    assert (recipe.optim.lr, recipe.optim.eps, recipe.objective.joint_weight_ce) == (1e-4, 1e-7, 0.05)
    assert recipe.data.digits.task == "max" and recipe.train.eval_policies == ("random", "centre")
    assert recipe.train.batch_size == TrainConfig().batch_size


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.e3", 1e3), ("2.5e-3", 2.5e-3), ("+1e2", 100.0), ("1e+2", 100.0), (".5", 0.5),
     (".5e1", 5.0), ("3", 3.0), ("0.001", 0.001), ("1_000.5", 1000.5), (".inf", float("inf"))],
)  # fmt: skip
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    assert parse_recipe(f"optim: {{lr: {text}}}").optim.lr == value


@pytest.mark.parametrize("text", ["1e", "e5", "1-4", "1.2.3", "--1e3", "1e5x"])
def test_what_looks_like_a_number_but_is_none(text: str) -> None:
    with pytest.raises(RecipeError, match=r"optim\.lr"):
        parse_recipe(f"optim: {{lr: {text}}}")
    assert parse_recipe(f"title: {text}").title == text


def test_a_file_and_values_over_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {epochs: 3}\ndata:\n  root: photos\n")
    overrides = ["train.epochs=5", "model.looks=[4]", "optim.lr=1e-5", "data.val=null", "model.grid={rows: 3, cols: 4}"]
    recipe = load_recipe(path, overrides)
    assert (recipe.train.epochs, recipe.model.looks, recipe.optim.lr, recipe.data.val) == (5, (4,), 1e-5, None)
    assert (recipe.model.grid.rows, recipe.model.grid.cols, recipe.data.root) == (3, 4, "photos")
    assert load_recipe(path) == parse_recipe("train: {epochs: 3}\ndata: {root: photos}")
    assert parse_recipe("", ["seed=1", "seed=2"]).seed == 2


# --- what is refused


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("modell: {}", RecipeError, "a.yaml: unknown key 'modell'; did you mean 'model'?"),
        ("model: {base_pix: 3}", RecipeError, "a.yaml: unknown key 'model.base_pix'; did you mean 'base_px'?"),
        ("model: {backbone: {nam: x}}", RecipeError, "a.yaml: unknown key 'model.backbone.nam'; did you mean 'name'?"),
        ("1: 2", RecipeError, "a.yaml: unknown key '1'; the keys here are title, seed"),
        ("train:", RecipeError, "a.yaml: train must hold keys and values, not NoneType"),
        ("- a", RecipeError, "a.yaml: a recipe holds keys and values, not list"),
        ("just words", RecipeError, "a.yaml: a recipe holds keys and values, not str"),
        ("model: {base_px: wide}", RecipeError, "a.yaml: model.base_px: "),
        ("title: 3", RecipeError, "a.yaml: title: "),
        ("model: {locator: {kind: squeze}}", RecipeError, "a.yaml: model.locator.kind: "),
        ("train: {eval_policies: [guess]}", RecipeError, "a.yaml: train.eval_policies: "),
        ("train: {epochs: 0}", ConfigError, "a.yaml: train.epochs is 0; give at least 1"),
        ("model: {looks: [99]}", ConfigError, "a.yaml: model.looks asks for 99 locations in a grid of 5 x 5"),
        ("model: {grid: {cell_extent: 3}}", GeometryError, "a.yaml: grid cell_extent is 3.0"),
        ("data: {digits: {canvas_px: 3}}", ConfigError, "a.yaml: digit_px is 28 but must be at most canvas_px, 3"),
        ("a: 1\nb: [", RecipeError, "a.yaml line 2: not YAML"),
        ("a: b: c", RecipeError, "a.yaml line 1: not YAML"),
        ("\ta: 1", RecipeError, "a.yaml line 1: not YAML"),
        ("[" * 5000, RecipeError, "a.yaml: nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]", RecipeError, "a.yaml line 1: not YAML"),
        ("title: 2024-13-45", RecipeError, "a.yaml: not YAML (month must be in 1..12"),
        ("title: !!int many", RecipeError, "a.yaml: not YAML (invalid literal for int()"),
        ("title: \0", RecipeError, "a.yaml: not YAML"),
        ("seed: -1", ConfigError, "a.yaml: seed is -1"),
        ("seed: 4294967296", ConfigError, "a.yaml: seed is 4294967296"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_names_file_key_and_value(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_recipe(text, source="a.yaml")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "override", ["epochs", "=3", "train.epochs.x=3", "train.epochs=[", "epoch=3", "train.epochs=many"]
)
def test_values_over_a_recipe_that_cannot_be(override: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe("train: {epochs: 2}", [override])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe .*none\.yaml cannot be read \(No such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"cannot be read \(Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        load_recipe(tmp_path / "bytes.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(RecipeError, match="larger than 1048576 bytes"):
        load_recipe(tmp_path / "large.yaml")


@pytest.mark.parametrize(
    ("cls", "values"),
    [(OptimConfig, {name: value}) for name, value in [
        ("lr", 0.0), ("lr", float("nan")), ("backbone_lr", -1.0), ("warmup", 1.0), ("warmup", -0.1), ("drop_at", 0.0),
        ("eps", 0.0), ("weight_decay", -1.0), ("drop_factor", -1.0), ("clip_norm", 0.0), ("clip_norm", -1.0)]]
    + [(TrainConfig, {name: value}) for name, value in [
        ("epochs", 0), ("batch_size", 0), ("devices", 0), ("workers", -1), ("overlays", -1), ("images_per_epoch", 0),
        ("max_minutes", 0.0), ("recalibrate_batches", -1)]],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(cls: type, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        cls(**values)


# --- the resolved recipe


def test_a_saved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    names = ("1e3", "1e5", "12", "null", "yes", "3.5", "a: b", "é ", "1:30", "[x]")
    recipe = with_classes(replace(tiny_recipe(seed=3), title="1e-3"), names, True)
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe.model.class_names == names and recipe.model.num_classes == 10 and recipe.model.multilabel
    text = (tmp_path / "recipe.yaml").read_text()
    for key in ("joint_weight_ce", "clip_norm", "images_per_epoch", "cell_extent", "canvas_px"):
        assert f"{key}: " in text  # every value spelled out, defaults too


def test_every_recipe_in_the_repository_is_read_and_read_back(repository: Path, tmp_path: Path) -> None:
    paths = sorted([*(repository / "recipes").glob("**/*.yaml"), *(repository / "src/tnet").glob("**/*.yaml")])
    paths = [path for path in paths if not path.name.startswith("compare_")]  # suites of recipes
    assert paths
    for path in paths:
        recipe = load_recipe(path)
        assert recipe.title and "# Task:" in path.read_text()
        save_recipe(recipe, tmp_path / path.name)
        assert load_recipe(tmp_path / path.name) == recipe
