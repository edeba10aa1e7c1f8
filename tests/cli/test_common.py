from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer

from tnet.cli.common import parse_image_size, parse_looks, parse_looks_list, pick_device, recipe_of
from tnet.errors import ConfigError
from tnet.training.recipe import Recipe, save_recipe


def test_looks_are_a_number_or_one_number_a_level() -> None:
    assert parse_looks("0") == 0
    assert parse_looks(" 3 ") == 3
    assert parse_looks("2x1") == (2, 1)
    assert parse_looks_list(["0,1", "2x1,3"]) == [0, 1, (2, 1), 3]
    assert parse_looks_list([]) == []


@pytest.mark.parametrize("text", ["", "-1", "2.5", "x", "2x", "two", "1,2", "2X1", "9999999", "٣x"])
def test_what_is_not_a_number_of_looks_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="2x1"):
        parse_looks(text)


def test_image_sizes_are_height_by_width() -> None:
    assert parse_image_size("768x1024") == (768, 1024)
    assert parse_image_size("300X200") == (300, 200)
    assert parse_image_size("512") == (512, 512)


@pytest.mark.parametrize("text", ["", "x", "12x", "1.5", "-3", "12x13x14", "0", "10x0", "99999999"])
def test_what_is_not_a_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="not a size|out of range"):
        parse_image_size(text)


def test_devices() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'"):
        pick_device(name)


def test_the_recipe_lies_in_the_run_whose_model_is_named(tmp_path: Path) -> None:
    recipe = Recipe(title="found")
    save_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    for name in ("model", "other"):
        (tmp_path / "run" / name).mkdir()
    assert recipe_of(tmp_path / "run") == recipe_of(tmp_path / "run" / "model") == recipe
    assert recipe_of(tmp_path / "run" / "other") is None
    assert recipe_of(tmp_path / "nowhere") is None
