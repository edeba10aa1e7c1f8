"""``tnet recipes``: the recipes that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

recipes = typer.Typer(name="recipes", help="List the bundled recipes, or copy one.", rich_markup_mode=None)


@recipes.callback(invoke_without_command=True)
def _list(context: typer.Context) -> None:
    """List the bundled recipes: name and title. `tnet train NAME` takes a name."""
    if context.invoked_subcommand is not None:
        return
    from tnet.training.bundled import bundled_recipes
    from tnet.training.recipe import read_text, read_yaml

    found = bundled_recipes()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        title = read_yaml(read_text(path, "recipe"), str(path)).get("title", "")
        verb = "   (for tnet compare)" if path.stem.startswith("compare_") else ""
        typer.echo(f"{name:{width}}  {title}{verb}")


@recipes.command()
def copy(
    name: Annotated[str, typer.Argument(help="Name of a bundled recipe, such as published/imagenet_tnet.")],
    to: Annotated[Path | None, typer.Option(help="File to write. [default: the recipe's name, here]")] = None,
) -> None:
    """Copy a bundled recipe, with the values of its base filled in."""
    from tnet.errors import OutputError, RecipeError
    from tnet.files import write_text
    from tnet.training.bundled import bundled_recipes
    from tnet.training.recipe import dump_yaml, read_recipe, read_text

    path = bundled_recipes().get(name.removeprefix("recipes/").removesuffix(".yaml"))
    if path is None:
        raise RecipeError(f"no bundled recipe is named {name!r}; see `tnet recipes`")
    if path.stem.startswith("compare_"):
        raise RecipeError(f"{name} is a comparison of other recipes, not a recipe; run it with `tnet compare {name}`")
    to = to or Path(path.name)
    if to.exists():
        raise OutputError(f"{to} already exists; give another name with --to")
    text = read_text(path, "recipe")
    if "\nbase:" in text:
        comments = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
        text = "".join(comments) + dump_yaml(read_recipe(path))
    write_text(to, text)
    typer.echo(f"written: {to}   next: tnet train {to}")
