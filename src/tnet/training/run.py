"""Training runs, from a recipe to a run directory.

A run directory holds ``recipe.yaml`` (every value spelled out), ``model/`` (the best model so far, or the last one:
safetensors, config.json, README.md), ``checkpoints/`` (to resume this run only), ``logs/`` (CSV and TensorBoard),
``metrics.csv``, ``curves.png`` and ``overlays/``.
"""

from __future__ import annotations

import logging
import pickle
import shutil
import sys
import time
import warnings
import zipfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from tnet.allocator import keep_freed_memory
from tnet.backbones.timm_backbone import TimmBackbone
from tnet.data.loading import LabelledData
from tnet.errors import CheckpointError, OutputError, TnetError, TrainingError
from tnet.explain.batch import explain_samples
from tnet.files import atomic_folder, make_folder
from tnet.inference.progress import is_terminal
from tnet.models.base import Model
from tnet.models.io import RECIPE_NAME, fill_from, load_model
from tnet.training import callbacks
from tnet.training.curves import plot_curves, read_metrics, write_metrics
from tnet.training.data import TNetData
from tnet.training.module import TNetModule
from tnet.training.recipe import Recipe, load_recipe, save_recipe, with_classes

LAST_CHECKPOINT = "checkpoints/last.ckpt"
# Lightning's warnings about a deprecated class that it uses itself, small datasets, and resumed runs.
_HARMLESS = ".*(treespec, LeafSpec|not have many workers|Checkpoint directory .* exists|number of training batches)"


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    recipe: Recipe  # with the dataset's classes
    model: Model  # the best or last one (``train.keep``), in evaluation mode
    metrics: list[dict[str, float]]  # one row per epoch
    train_seconds: float  # wall time including validation, without the time before a resume
    not_started: tuple[str, ...] = ()  # tensors that ``train.start_from`` lacks and that started at random


def train(
    recipe: Recipe, folder: str | Path, *, resume: bool = False, progress: bool = True, val_batches: int | None = None
) -> RunResult:
    """Train by a recipe.

    Args:
        recipe: the recipe.
        folder: run directory; must be new or empty unless resuming.
        resume: continue from the last checkpoint in ``folder``, if there is one.
        progress: show a progress bar.
        val_batches: number of batches to validate on, to try a recipe out; ``None`` for all.

    Raises:
        OutputError: the folder is in use or cannot be written.
        DataError: data is missing or inconsistent.
        ConfigError: the recipe cannot be built.
        CheckpointError: the checkpoint or the initial weights are damaged or do not fit.
        TrainingError: the loss became NaN, or the accelerator is missing.
        KeyboardInterrupt: Ctrl-C was pressed; a note says which epochs are kept and how to resume.
    """
    folder = Path(folder)
    checkpoint = _checkpoint_to_resume(folder, resume)
    is_new = not folder.exists() or not any(folder.iterdir())
    for key in ("start_from", "teacher"):  # before pretrained weights are downloaded
        model = getattr(recipe.train, key)
        if model is not None and not Path(model).exists():
            raise CheckpointError(f"train.{key} is {model}, which does not exist; give a run or saved model")
    data = TNetData(recipe)
    recipe = with_classes(recipe, data.classes, data.multilabel)
    data.recipe = recipe
    if checkpoint is not None:
        _check_same_recipe(recipe, folder)
    torch.manual_seed(recipe.seed)
    module = TNetModule(recipe)
    start_from = recipe.train.start_from if checkpoint is None else None
    not_started = tuple(fill_from(module.model, start_from)) if start_from is not None else ()
    make_folder(folder)
    save_recipe(recipe, folder / RECIPE_NAME)
    trainer = _trainer(recipe, folder, module, progress, val_batches)
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
        for part in module.modules():
            if isinstance(part, TimmBackbone):
                part.train_channels_last = True
    start = time.monotonic()
    try:
        _fit(trainer, module, data, checkpoint)
        seconds = time.monotonic() - start
        metrics = _write_curves(folder)
        trained = load_model(folder)
        draw_overlays(trained, data.val_data, folder / "overlays", recipe.train.overlays)
    except TnetError:
        if is_new and not (folder / LAST_CHECKPOINT).exists():  # nothing to use or resume
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except (KeyboardInterrupt, RuntimeError) as error:  # a RuntimeError: a worker was killed
        error.add_note(f"{len(_write_curves(folder))} epoch(s) are in {folder}; continue with --resume")
        raise
    return RunResult(folder, recipe, trained, metrics, seconds, not_started)


def _checkpoint_to_resume(folder: Path, resume: bool) -> Path | None:
    """Return the checkpoint to resume from; refuse to overwrite another run."""
    checkpoint = folder / LAST_CHECKPOINT
    if resume:
        return checkpoint if checkpoint.is_file() else None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty; give another --out, or --resume to continue its run")
    return None


def _check_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Refuse to resume a run of another recipe; only its length may change."""

    def without_length(recipe: Recipe) -> Recipe:
        train = replace(recipe.train, epochs=1, max_minutes=None, workers=0, overlays=0)
        return replace(recipe, train=train, title="")

    path = folder / RECIPE_NAME
    if path.is_file() and without_length(recipe) != without_length(load_recipe(path)):
        raise CheckpointError(f"{folder} holds a run of another recipe, {path}; use that, or give another --out")


def _trainer(recipe: Recipe, folder: Path, module: TNetModule, progress: bool, val_batches: int | None) -> pl.Trainer:
    train = recipe.train
    checkpoint = partial(ModelCheckpoint, folder / "checkpoints", enable_version_counter=False)
    active: list[Callback] = [
        checkpoint("best", monitor=module.monitor, mode="max"),
        # Not save_last=True above, which writes last.ckpt only in epochs that are the best so far.
        checkpoint(Path(LAST_CHECKPOINT).stem),
        callbacks.KeepModel(folder / "model", train.keep),
        callbacks.KeepSignals(),
    ]
    if train.ema_decay is not None:
        active.append(callbacks.AverageWeights(train.ema_decay))
    if train.recalibrate_batches:
        active.append(callbacks.RecalibrateNorms(train.recalibrate_batches))
    if train.max_minutes is not None:
        active.append(callbacks.TimeLimit(train.max_minutes))
    is_bar = progress and is_terminal(sys.stdout)
    if progress and not is_bar:
        active.append(callbacks.ProgressLines())
    if is_bar:
        minutes = train.max_minutes
        active.append(TQDMProgressBar(leave=False) if minutes is None else callbacks.TimedProgressBar(minutes))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        return pl.Trainer(
            accelerator=train.accelerator,
            devices=train.devices,
            precision=train.precision,
            max_epochs=train.epochs,
            callbacks=active,
            logger=[
                callbacks.AtomicCSVLogger(folder / "logs", name="csv", flush_logs_every_n_steps=10**9),
                TensorBoardLogger(folder / "logs", name="tensorboard"),
            ],
            plugins=[callbacks.AtomicCheckpointIO()],
            gradient_clip_val=recipe.optim.clip_norm,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            limit_val_batches=val_batches,
            log_every_n_steps=10**9,
            enable_progress_bar=is_bar,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        place, reason = f"{train.devices} x {train.accelerator}", str(error).splitlines()[0]
        remedy = "change train.accelerator, train.devices or train.precision"
        raise TrainingError(f"training on {place} with {train.precision} cannot start ({reason}); {remedy}") from None


def _fit(trainer: pl.Trainer, module: TNetModule, data: TNetData, checkpoint: Path | None) -> None:
    """Run the trainer, and translate its errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_HARMLESS)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except (pickle.UnpicklingError, EOFError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
            if checkpoint is None or trainer.global_step > 0 or isinstance(error, TrainingError):
                raise
            reason = str(error).splitlines()[0].split(". ")[0][:200] if str(error) else "it is cut off"
            remedy = "delete it to start over, or use the model/ beside it"
            raise CheckpointError(f"{checkpoint} cannot be resumed from ({reason}); {remedy}") from None
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            remedy = "set train.batch_size to at least 2, or raise model.base_px"
            raise TrainingError(f"batch norm has a single value of each channel to train on; {remedy}") from None
        except SystemExit as stop:  # raised by Lightning on Ctrl-C, which it then ignores
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            raise stop.__context__ from None


def _write_curves(folder: Path) -> list[dict[str, float]]:
    """Write the metrics of a run, with all its resumes, as a table and a figure."""
    rows = read_metrics(folder / "logs" / "csv")
    if rows:
        write_metrics(rows, folder / "metrics.csv")
        plot_curves(rows, folder / "curves.png")
    return rows


def draw_overlays(model: Model, data: LabelledData, folder: Path, count: int) -> None:
    """Draw the looks of a model at some validation samples, replacing the folder; remove it for a count of 0."""
    if count < 1 or len(data) < 1:
        shutil.rmtree(folder, ignore_errors=True)
        return
    with atomic_folder(folder) as temporary:
        explain_samples(model, data, count, temporary, device=next(model.parameters()).device, progress=False)
