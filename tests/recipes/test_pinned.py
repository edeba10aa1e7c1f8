"""Published models and recipes are spelled out: a change of a default must not change them.

After a change that is meant: ``python -m tests.recipes.test_pinned``, from the root of the repository.
"""

from __future__ import annotations

import gzip
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tnet.config import to_plain
from tnet.models.kind import kind_of
from tnet.models.registry import list_models, model_config
from tnet.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
PINNED = ROOT / "tests/data/pinned.json.gz"


def published_models() -> list[str]:
    return [name for name in list_models() if not name.endswith(".own")]


def published_recipes() -> list[str]:
    """Paths of recipes; for rows of a comparison, the suite's path and the name of the row."""
    paths = [path for path in sorted(ROOT.glob("recipes/**/*.yaml")) if path.stem != "own_images"]
    names = [str(path.relative_to(ROOT)) for path in [*paths, ROOT / "src/tnet/demo/digits.yaml"]]
    return [
        name if row is None else f"{name}#{row}"
        for name in names
        for row in ([row["name"] for row in suite(name)] if "/compare_" in name else [None])
    ]


def suite(path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))["rows"]
    return rows


def plain_model(name: str) -> dict[str, Any]:
    config = model_config(name)
    return {"type": kind_of(config), **to_plain(config)}


def plain_recipe(name: str) -> dict[str, Any]:
    path, _, row_name = name.partition("#")
    recipe: Recipe
    if row_name:
        row = next(row for row in suite(path) if row["name"] == row_name)
        recipe = load_recipe((ROOT / path).parent / row["recipe"], row.get("overrides", ()))
    else:
        recipe = load_recipe(ROOT / path)
    plain: dict[str, Any] = to_plain(recipe)
    return {**plain, "model": {"type": kind_of(recipe.model), **plain["model"]}}


@lru_cache(maxsize=1)
def pinned() -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = json.loads(gzip.decompress(PINNED.read_bytes()))
    return content


def test_every_published_name_is_pinned() -> None:
    assert sorted(pinned()["models"]) == sorted(published_models())
    assert sorted(pinned()["recipes"]) == sorted(published_recipes())


@pytest.mark.parametrize("name", published_models())
def test_model_is_as_published(name: str) -> None:
    assert plain_model(name) == pinned()["models"][name]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * bool(re.search("_b[1-4].yaml", name)))
        for name in published_recipes()
    ],
)
def test_recipe_is_as_published(name: str) -> None:
    found, expected = plain_recipe(name), pinned()["recipes"][name]
    for section in expected:
        assert found[section] == expected[section], section
    assert found.keys() == expected.keys()


if __name__ == "__main__":
    content = {
        "models": {name: plain_model(name) for name in published_models()},
        "recipes": {name: plain_recipe(name) for name in published_recipes()},
    }
    PINNED.write_bytes(gzip.compress(json.dumps(content, sort_keys=True).encode(), mtime=0))
