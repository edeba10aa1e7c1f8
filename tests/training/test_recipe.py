"""Recipes: parsing, overrides, bases, errors, and that what is written is read back the same."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import tiny_recipe

from tnet.errors import ConfigError, GeometryError, RecipeError
from tnet.models import LocatorConfig
from tnet.training.config import OptimConfig, TrainConfig
from tnet.training.recipe import (
    Recipe,
    dump_yaml,
    load_recipe,
    parse_recipe,
    read_yaml,
    save_recipe,
    with_classes,
)  # fmt: skip


def test_an_empty_recipe_has_the_defaults() -> None:
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
     (".5e1", 5.0), ("3", 3.0), ("0.001", 0.001), ("1_00.5", 100.5)],
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


# --- a recipe over another one


def test_a_recipe_overrides_its_base(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "first.yaml").write_text(
        "title: First\noptim: {lr: 0.5}\ntrain: {epochs: 3}\n"
        "model: {levels: 3, looks: [2, 1], backbone: {name: resnet10t, kwargs: {stem_width: 8}}}\n"
    )
    path = tmp_path / "second.yaml"
    path.write_text(
        "base: below/first.yaml\ntitle: Second\n"
        "model: {looks: [4, 4], backbone: {kwargs: {output_stride: 32}}}\ntrain: {batch_size: 2}\n"
    )
    recipe = load_recipe(path, ["train.epochs=5"])
    assert (recipe.title, recipe.model.levels, recipe.model.looks) == ("Second", 3, (4, 4))
    assert recipe.model.backbone.name == "resnet10t"
    assert recipe.model.backbone.kwargs == {"stem_width": 8, "output_stride": 32}
    assert (recipe.optim.lr, recipe.train.epochs, recipe.train.batch_size) == (0.5, 5, 2)
    save_recipe(recipe, tmp_path / "alone.yaml")
    assert "base:" not in (tmp_path / "alone.yaml").read_text()
    assert load_recipe(tmp_path / "alone.yaml") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: a.yaml", r"a\.yaml has a base itself"),
        ("base: none.yaml", r"none\.yaml"),
        ("base: [a.yaml]", r"base is \['a\.yaml'\]"),
        ("base:", r"base is None"),
        ("base: list.yaml", r"list\.yaml: .* not list"),
        ("base: odd.yaml", r"'modell'"),
    ],
)
def test_invalid_bases(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "odd.yaml").write_text("modell: {}")
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "a.yaml")


def test_text_has_no_base() -> None:
    with pytest.raises(RecipeError, match="'base'"):
        parse_recipe("base: a.yaml")


# --- what is refused


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("modell: {}", RecipeError, "a.yaml: unknown key 'modell'; did you mean 'model'?"),
        ("model: {base_pix: 3}", RecipeError, "a.yaml: unknown key 'model.base_pix'; did you mean 'base_px'?"),
        ("model: {backbone: {nam: x}}", RecipeError, "a.yaml: unknown key 'model.backbone.nam'; did you mean 'name'?"),
        ("1: 2", RecipeError, "a.yaml: unknown key '1'; the keys here are title, seed"),
        ("train:", RecipeError, "a.yaml: train must hold keys and values, not NoneType"),
        ("- a", RecipeError, "a.yaml: a recipe must hold keys and values, not list"),
        ("just words", RecipeError, "a.yaml: a recipe must hold keys and values, not str"),
        ("model: {base_px: wide}", RecipeError, "a.yaml: model.base_px is "),
        ("title: 3", RecipeError, "a.yaml: title is "),
        ("model: {locator: {kind: squeze}}", RecipeError, "a.yaml: model.locator.kind is "),
        ("train: {eval_policies: guess}", RecipeError, "a.yaml: train.eval_policies is "),
        ("train: {epochs: 0}", ConfigError, "a.yaml: train.epochs is 0; give at least 1"),
        ("model: {looks: [99]}", ConfigError, "a.yaml: model.looks asks for 99 locations in a grid of 5 x 5"),
        ("model: {grid: {cell_extent: 3}}", GeometryError, "a.yaml: grid cell_extent is 3.0"),
        ("data: {digits: {canvas_px: 3}}", ConfigError, "a.yaml: digit_px is 28"),
        ("a: 1\nb: [", RecipeError, "a.yaml line 2: invalid YAML"),
        ("a: b: c", RecipeError, "a.yaml line 1: invalid YAML"),
        ("seed: 1\ntrain: {epochs: 2, epochs: 3}", RecipeError, "a.yaml line 2: epochs is given twice; keep one"),
        ("seed: 1\nseed: 2", RecipeError, "a.yaml line 2: seed is given twice; keep one"),
        ("\ta: 1", RecipeError, "a.yaml line 1: invalid YAML"),
        ("[" * 5000, RecipeError, "a.yaml: nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]", RecipeError, "a.yaml line 1: invalid YAML"),
        ("title: 2024-13-45", RecipeError, "a.yaml: invalid YAML (month must be in 1..12"),
        ("title: !!int many", RecipeError, "a.yaml: invalid YAML (invalid literal for int()"),
        ("title: \0", RecipeError, "a.yaml: invalid YAML"),
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
    with pytest.raises(RecipeError, match=r"none\.yaml .*No such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        load_recipe(tmp_path / "bytes.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(RecipeError, match="1048576"):
        load_recipe(tmp_path / "large.yaml")


@pytest.mark.parametrize(
    ("cls", "values"),
    [(OptimConfig, {name: value}) for name, value in [
        ("lr", 0.0), ("lr", float("nan")), ("backbone_lr", -1.0), ("warmup", 1.0), ("warmup", -0.1), ("drop_at", 0.0),
        ("eps", 0.0), ("weight_decay", -1.0), ("drop_factor", -1.0), ("clip_norm", 0.0), ("clip_norm", -1.0)]]
    + [(TrainConfig, {name: value}) for name, value in [
        ("epochs", 0), ("batch_size", 0), ("devices", 0), ("workers", -1), ("overlays", -1), ("images_per_epoch", 0),
        ("max_minutes", 0.0), ("max_gmacs", 0.0), ("recalibrate_batches", -1), ("ema_decay", 0.0), ("ema_decay", 1.0),
        ("mixup_alpha", -0.1), ("mixup_alpha", float("nan")),
        ("teacher_weight", 0.0), ("teacher_temperature", float("nan"))]],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(cls: type, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        cls(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "model.looks"),
        ({"model": {"levels": 1, "looks": (), "multilabel": True}}, "labels"),
        ({"model": {"levels": 1, "looks": ()}, "objective": {"contrastive_weight": 1.0}}, "contrastive_weight"),
    ],
)
def test_mixing_pictures_is_refused_where_it_has_no_meaning(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"mixup_alpha is 0.2.*{message}"):
        replace(tiny_recipe(**changes), train=TrainConfig(mixup_alpha=0.2))


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


def test_predicted_gains_are_trained_or_absent() -> None:
    value = LocatorConfig(value=True)
    tiny_recipe(model={"locator": value}, objective={"gain_weight": 1.0})
    with pytest.raises(ConfigError, match=r"model\.locator\.value .* objective\.gain_weight"):
        tiny_recipe(model={"locator": value})
    with pytest.raises(ConfigError, match="both of them, or neither"):
        tiny_recipe(objective={"gain_weight": 1.0})


def test_worth_needs_two_looks_or_none_and_a_teacher_excludes_mixup() -> None:
    tiny_recipe(model={"levels": 1, "looks": ()}, objective={"worth_weight": 1.0})
    with pytest.raises(ConfigError, match=r"worth_weight .*\[1\]"):
        tiny_recipe(model={"looks": (1,)}, objective={"worth_weight": 1.0})
    with pytest.raises(ConfigError, match=r"teacher and train.mixup_alpha"):
        TrainConfig(teacher="runs/plain", mixup_alpha=0.2)


def _expanding(line: str) -> str:
    """YAML in which each of ten lines repeats the one before nine times: 9^10 values."""
    lines = ["a: &a {k: 1}"]
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True):
        lines.append(line.format(name=name, nine=", ".join([f"*{before}"] * 9)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_expanding("{name}: &{name} [{nine}]"), "line 6: .*more than 131,072 values"),
        (_expanding("{name}: &{name} {{<<: [{nine}]}}"), "line .*more than 131,072 values"),
        ("data: &d {root: *d}", "line 1: .*inside itself"),
        ("title: &t [*t]", "line 1: .*inside itself"),
        pytest.param("title: [" + "a," * 140_000 + "]", "line 1: .*more than 131,072 values", marks=pytest.mark.slow),
        ("seed: 1" + ":1" * 5000, "line 1: .*number of 10,001 characters"),
        ("seed: " + "1" * 5000, "line 1: .*number of 5,000 characters"),
        ("model: {backbone: {kwargs: {" + ", ".join(f"k{n}: 1" for n in range(1025)) + "}}}", "kwargs has 1,025 keys"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_yaml_that_would_hang_or_fill_memory_is_refused(text: str, reason: str) -> None:
    start = time.process_time()
    with pytest.raises(RecipeError, match=reason):
        parse_recipe(text)
    assert time.process_time() - start < 20


def test_aliases_and_merge_keys_of_sane_size_work() -> None:
    recipe = parse_recipe("data: &d {root: here, read: lazy}\ntrain: {epochs: 2}\n")
    assert recipe.data.root == "here"
    merged = read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "text")
    assert merged == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


@pytest.mark.parametrize("as_base", [False, True])
def test_recipes_that_are_no_regular_files_are_refused_at_once(as_base: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    names = {"pipe.yaml": "not a regular file", "/dev/zero": "not a regular file", "folder.yaml": "Is a directory"}
    for name, reason in {**names, "a\0b.yaml": "its name has control characters"}.items():
        path: Path = tmp_path / name
        if as_base:
            path = tmp_path / "recipe.yaml"
            path.write_text(dump_yaml({"base": name}))
        with pytest.raises(RecipeError, match=f"cannot be read .{reason}") as caught:
            load_recipe(path)
        assert "\0" not in str(caught.value)
