"""Bundled recipes: found by name, listed, copied, and part of the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.errors import RecipeError
from tnet.training.bundled import bundled_recipes, find_recipe
from tnet.training.recipe import load_recipe


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["recipes", *arguments])
    return result.exit_code, result.output


def test_names_are_those_of_the_folder(repository: Path) -> None:
    found = bundled_recipes()
    assert {"own_images", "published/imagenet_tnet", "compare_digits"} <= found.keys()
    assert len(found) == len(list((repository / "recipes").rglob("*.yaml")))


@pytest.mark.parametrize("name", ["own_images", "recipes/own_images.yaml", "own_images.yaml"])
def test_recipes_are_found_by_name_and_files_come_first(name: str, in_tmp_path: Path) -> None:
    assert load_recipe(name).title == "Your own images"
    Path("own_images").write_text("title: mine")
    assert find_recipe("own_images") == Path("own_images") and load_recipe("own_images").title == "mine"


def test_every_recipe_has_a_title_and_says_how_to_run_it() -> None:
    for name, path in bundled_recipes().items():
        text = path.read_text(encoding="utf-8")
        assert "\ntitle: " in text and "# Task: " in text and "# Command: " in text, name


def test_unknown_names_are_refused(in_tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="published/none"):
        load_recipe("published/none")
    code, output = run("copy", "none")
    assert code == 1 and "'none'" in output
    code, output = run("copy", "compare_digits")
    assert code == 1 and "tnet compare compare_digits" in output


def test_the_list_has_names_and_titles() -> None:
    code, output = run()
    assert code == 0 and len(output.splitlines()) == len(bundled_recipes())
    assert any(line.split(maxsplit=1) == ["own_images", "Your own images"] for line in output.splitlines())


@pytest.mark.parametrize("name", ["own_images", "published/nabirds_tnet_b3"])
def test_a_copy_is_the_same_recipe_without_its_base(name: str, in_tmp_path: Path) -> None:
    code, output = run("copy", name, "--to", "mine.yaml")
    assert code == 0 and "tnet train mine.yaml" in output
    text = Path("mine.yaml").read_text()
    assert "\nbase:" not in text and text.startswith("# ")
    assert load_recipe("mine.yaml") == load_recipe(name)
    assert run("copy", name, "--to", "mine.yaml")[0] == 1, "nothing is overwritten"


def test_recipes_are_in_the_wheel(repository: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=repository, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import tnet, tnet.training.bundled as b; print(tnet.__file__, len(b.bundled_recipes()), sep=chr(10))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(tmp_path / "installed")}, check=True, capture_output=True, text=True
    )
    place, count = done.stdout.split("\n")[:2]
    assert str(tmp_path) in place and int(count) == len(bundled_recipes())
