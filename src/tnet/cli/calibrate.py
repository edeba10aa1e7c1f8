"""``tnet calibrate``: when an image has been looked at enough."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tnet.cli import common
from tnet.cli.evaluate import DATA_HELP, RECIPE_HELP, Split, open_labelled
from tnet.errors import ConfigError

_TITLE = "# Accuracy against mean cost"
_LOOKS_HELP = "Largest number of looks per image. [default: twice the model's own]"
_PROBABILITIES_HELP = (
    "Fit probabilities instead, of any model: a temperature that makes them as high as answers are often right."
)
_LEAST_HELP = "Looks that every image takes before it may be done."
_SCORE_HELP = "Order of best-first search: path probability, the same per area, or gain as the model predicts it."
_LEVELS_HELP = "Levels to search, including the whole image; more than in training are allowed. [default: the model's]"


def calibrate(
    run: common.ModelArgument,
    data: Annotated[Path | None, typer.Argument(help=DATA_HELP)] = None,
    looks: Annotated[int | None, typer.Option(min=1, max=100_000, help=_LOOKS_HELP)] = None,
    least: Annotated[int, typer.Option(min=0, help=_LEAST_HELP)] = 0,
    levels: Annotated[int | None, typer.Option(min=2, max=32, help=_LEVELS_HELP)] = None,
    measure: Annotated[
        Literal["confidence", "margin"], typer.Option(help="What must be large for an image to be done.")
    ] = "confidence",
    score: Annotated[Literal["path", "density", "gain"], typer.Option(help=_SCORE_HELP)] = "path",
    probabilities: Annotated[bool, typer.Option("--probabilities", help=_PROBABILITIES_HELP)] = False,
    recipe: Annotated[Path | None, typer.Option(help=RECIPE_HELP)] = None,
    split: Annotated[Split, typer.Option(help="Split of the recipe's data, if DATA is omitted.")] = "val",
    batch_size: common.BatchSizeOption = 16,
    workers: common.WorkersOption = 0,
    device: common.DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for the results. [default: RUN/calibration]")] = None,
    overwrite: common.OverwriteOption = False,
    progress: common.ProgressOption = True,
) -> None:
    """Fit when to stop looking, so that easy images take few looks.

    Searches labelled images best-first and measures what further looks gain after an answer of some certainty. Prints
    accuracy against mean cost, of stopping and of the same number of looks for every image, and saves the gains in the
    model's folder. After it, `tnet predict --budget 2.5` takes 2.5 looks per image on average, and `--at-least 0.95` as
    many as an accuracy of 95 % took. Use images that the model was not trained on.
    """
    from tnet.evaluation.frontier import measure_curves
    from tnet.evaluation.plots import plot_frontier
    from tnet.evaluation.report import frontier_table, write_csv
    from tnet.evaluation.stopping import fit_calibration
    from tnet.files import write_text
    from tnet.geometry import total_looks
    from tnet.models.calibration import CALIBRATION_NAME
    from tnet.models.io import load_model, model_folder
    from tnet.text import markdown
    from tnet.traversal import BestFirst

    place = common.pick_device(device)
    if probabilities:
        _fit_probabilities(run, data, recipe, split, batch_size, workers, place, progress)
        return
    model = common.searchable(load_model(run, calibrated=False), run)
    images, source = open_labelled(model.config, run, data, recipe, split)
    search = BestFirst(looks or 2 * total_looks(model.config.looks), levels or model.config.levels, score=score)
    if least >= search.looks:
        raise ConfigError(f"--least is {least} of at most {search.looks} looks; give fewer, or more --looks")
    folder = out or run / "calibration"
    page = common.results_page(folder, "calibration", _TITLE, [data], overwrite)
    common.say(f"{model.config.line()}\n{source}: {len(images)} images, up to {search.looks} looks\n")
    curves = measure_curves(
        model, images, search, batch_size=batch_size, workers=workers, device=place, progress=progress
    )
    fit = fit_calibration(curves, model, search, measure, least)
    table = f"{frontier_table(fit.rows)}\n{fit.note}"
    common.say(table)
    write_text(page, f"{_TITLE}: {markdown(run.resolve().name)}\n\n{markdown(source)}\n\n{table}")
    write_csv([vars(row) for row in fit.rows], folder / "calibration.csv")
    plot_frontier(fit.rows, folder / "calibration.png")
    write_text(model_folder(run) / CALIBRATION_NAME, fit.calibration.text())
    common.say(f"written: {page}, calibration.csv, calibration.png")
    common.say(f"written: {model_folder(run) / CALIBRATION_NAME}")


def _fit_probabilities(
    run: Path,
    data: Path | None,
    recipe: Path | None,
    split: Split,
    batch_size: int,
    workers: int,
    device: str,
    progress: bool,
) -> None:
    """Save the temperature in the model's configuration, if it helps on images left out of the fit, and report both."""
    from tnet.evaluation.probabilities import collect_logits, fit_calibration
    from tnet.models.io import load_model, save_temperature

    model = load_model(run).to(device)
    images, source = open_labelled(model.config, run, data, recipe, split)
    logits = collect_logits(model, images, batch_size=batch_size, workers=workers, progress=progress)
    found = fit_calibration(*logits)
    path = save_temperature(run, found.temperature)
    kept = "" if found.helps else ", since another does not lower the error"
    common.say(f"{source}: {len(images)} images, temperature {found.temperature:.3f}{kept}")
    before, after = f"{found.error_before:.1%} before", f"{found.error_after:.1%} after"
    common.say(f"expected calibration error: {before}, {after}, on halves left out of the fit")
    common.say(f"written: {path}")
