"""``tnet recipes``: the recipes that come with the package."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from tnet.cli.common import OverwriteOption, say
from tnet.errors import RecipeError


def recipes(
    action: Annotated[
        Literal["copy"] | None, typer.Argument(help="copy: write a recipe to a file, with its base filled in.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Name of a recipe, such as published/imagenet_tnet.")] = None,
    to: Annotated[Path | None, typer.Option(help="File to write. [default: the recipe's name, in this folder]")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """List the bundled recipes by name and title, or copy one: `tnet recipes copy NAME`.

    `tnet train` accepts these names in place of a file, and `tnet compare` those of comparisons.
    """
    from tnet.training.bundled import bundled_recipes
    from tnet.training.recipe import read_text, read_yaml

    found = bundled_recipes()
    if action == "copy":
        if name is None:
            raise typer.BadParameter("copy needs the name of a recipe; see `tnet recipes`")
        _copy(name, found.get(name.removeprefix("recipes/").removesuffix(".yaml")), to, overwrite)
        return
    width = max(map(len, found), default=0)
    for bundled, path in found.items():
        say(f"{bundled:{width}}  {read_yaml(read_text(path, 'recipe'), str(path)).get('title', '')}")


def _copy(name: str, path: Path | None, to: Path | None, overwrite: bool) -> None:
    from tnet.files import check_outputs, write_text
    from tnet.training.recipe import dump_yaml, read_recipe, read_text

    if path is None:
        raise RecipeError(f"no bundled recipe is named {name!r}; see `tnet recipes`")
    if path.stem.startswith("compare_"):
        raise RecipeError(f"{name} is a comparison of other recipes; run it with `tnet compare {name}`")
    to = to or Path(path.name)
    check_outputs([to], inputs=[path], overwrite=overwrite)
    text = read_text(path, "recipe")
    if "\nbase:" in text:
        comments = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
        text = "".join(comments) + dump_yaml(read_recipe(path))
    write_text(to, text)
    say(f"written: {to}   next: tnet train {shlex.quote(str(to))}")
