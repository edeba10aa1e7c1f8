"""``tnet train``: train by a recipe, into a run directory."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnet.cli.common import ProgressOption, say

if TYPE_CHECKING:
    from tnet.training.run import RunResult


def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML), or the name of a bundled one: see `tnet recipes`.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides: key=value, such as data.root=photos train.epochs=5.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory [default: runs/<recipe name>].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the directory.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only try the recipe: two steps on synthetic images; nothing is kept.")
    ] = False,
    progress: ProgressOption = True,
) -> None:
    """Train a model by a recipe.

    Writes a run directory: recipe.yaml (every value spelled out), model/ (safetensors, config.json, README.md),
    metrics.csv, curves.png, overlays/, logs/ (CSV and TensorBoard) and checkpoints/ (to resume).
    """
    if smoke:
        if out is not None or resume:
            raise typer.BadParameter(f"{'--out' if out else '--resume'} cannot be used with --smoke; leave it out")
        _smoke(recipe, overrides or [], progress)
        return
    from tnet.training.recipe import load_recipe
    from tnet.training.run import is_first
    from tnet.training.run import train as run

    folder = out or Path("runs") / recipe.stem
    result = run(load_recipe(recipe, overrides or []), folder, resume=resume, progress=progress)
    if not is_first():
        return
    if result.not_started:
        say(f"\nnot in {result.recipe.train.start_from}, initialized at random: {', '.join(_parts(result))}")
    last = result.metrics[-1] if result.metrics else {}
    named = {name.removeprefix("val/"): value for name, value in last.items() if "val/" in name}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in named.items() if not name.startswith("recall"))
    say(f"\ntrained in {result.train_seconds / 60:.1f} min; last epoch: {shown}")
    quoted = shlex.quote(str(folder))
    say(f"run directory: {folder}   curves: {folder / 'curves.png'}   next: tnet evaluate {quoted}")


def _parts(result: RunResult) -> list[str]:
    """Name the parts of the model that started at random; for partial ones the number of tensors, and the first."""
    tensors = Counter(name.split(".")[0] for name in result.model.state_dict())
    new: dict[str, list[str]] = {}
    for name in result.not_started:
        new.setdefault(name.split(".")[0], []).append(name)
    return [
        part if len(names) == tensors[part] else f"{len(names)} of {tensors[part]} tensors of {part} (first {names[0]})"
        for part, names in sorted(new.items())
    ]


def _smoke(recipe: Path, overrides: list[str], progress: bool) -> None:
    from tnet.training.recipe import load_recipe
    from tnet.training.smoke import smoke

    try:
        result = smoke(load_recipe(recipe, overrides), progress=progress)
    except KeyboardInterrupt as stop:
        stop.add_note("nothing is kept")
        raise
    say(
        f"{recipe} works: two steps on synthetic images and validation in {result.train_seconds:.0f} s; nothing is kept"
    )
