"""README and docs: commands, recipe keys, links and Python examples are those of the package."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

import tnet
from tnet.cli.main import app
from tnet.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command_lines(text: str) -> list[str]:
    """Every ``tnet`` command line, continuation lines joined."""
    blocks = "\n".join(fenced(text, "(?:sh|bash)")).replace("\\\n", " ")
    inline = re.findall(r"`(tnet [a-z-]+ [^`]+)`", text)
    lines = (re.sub(r"^OMP_NUM_THREADS=1 ", "", line) for line in (*blocks.splitlines(), *inline))
    return [line for line in lines if re.match(r"tnet [a-z]", line) and not re.search(r"\[\w+|\.\.\.|COMMAND", line)]


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page: Path) -> None:
    """Every verb, option and number of arguments, without running anything."""
    group: Any = typer.main.get_command(app)
    for line in command_lines(page.read_text(encoding="utf-8")):
        verb, *arguments = shlex.split(line, comments=True)[1:]
        assert verb in group.commands, line
        command = group.commands[verb]
        if hasattr(command, "commands"):
            verb, *arguments = arguments
            command = command.commands[verb]
        if "--help" not in arguments:
            command.make_context(verb, arguments)


def test_the_readme_shows_the_main_verbs() -> None:
    verbs = {line.split()[1] for line in command_lines((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {"suggest", "train", "evaluate", "predict", "explain"} <= verbs


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{''.join(target)}:.* ## ", makefile, re.MULTILINE), (page, target)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_recipe_keys_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    keys = re.findall(r"(?<![\w./-])((?:model|objective|optim|data|train)\.[a-z_][\w.]*)(?=[=`:])", text)
    recipe = load_recipe(ROOT / "recipes" / "own_images.yaml")
    for key in {key for key in keys if not re.search(r"kwargs|\.(csv|safetensors|yaml|py|md|parquet|onnx)$", key)}:
        values: Any = recipe
        for name in key.split("."):
            if not hasattr(values, name) and key.startswith("model.type"):
                break
            values = getattr(values, name)


@pytest.mark.parametrize("page", ["docs/own_images.md"])
def test_settings_load(page: str) -> None:
    text = re.sub(r"`[^`]*model\.levels=1[^`]*`", "", (ROOT / page).read_text(encoding="utf-8"))
    settings = set(
        re.findall(r"(?<![\w.])((?:model|objective|optim|data|train)\.[\w.]+=(?:\{.*?\}|\[.*?\]|[\w./-]+))", text)
    )
    assert len(settings) > 12
    for setting in settings:
        plain = setting.startswith(("model.levels=1", "model.looks=[]"))
        load_recipe(ROOT / "recipes" / "own_images.yaml", ["model.levels=1", "model.looks=[]"] if plain else [setting])


def test_the_readme_python_example_runs() -> None:
    (example,) = fenced((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["output"].logits.shape == (2, 7) and names["loss"].total.isfinite()


def test_install_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page in PAGES:
        for found in re.findall(r"pip install '(?:tnet|\.)\[([\w,]+)\]'", page.read_text(encoding="utf-8")):
            assert set(found.split(",")) <= set(extras), page


def test_public_names_in_prose_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in set(re.findall(r"\btnet\.([A-Z]\w+|[a-z_]+(?=\())", text)):
            assert hasattr(tnet, name), (page, name)
