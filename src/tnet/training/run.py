"""Training runs, from a recipe to a run directory.

A run directory holds ``recipe.yaml`` (every value spelled out), ``model/`` (the best model so far, or the last one:
safetensors, config.json, README.md), ``checkpoints/`` (to resume this run only), ``logs/`` (CSV and TensorBoard),
``metrics.csv``, ``curves.png``, ``overlays/``, and ``unreadable.csv`` if images were left out (``data.unreadable``).
"""

from __future__ import annotations

import errno
import logging
import pickle
import shutil
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch._dynamo.exc import TorchDynamoException

from tnet.allocator import keep_freed_memory
from tnet.backbones.base import Backbone
from tnet.backbones.timm_backbone import TimmBackbone
from tnet.config import shown, to_plain
from tnet.data.loading import LabelledData
from tnet.data.repeats import find_repeats
from tnet.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    ImageSizeError,
    OutputError,
    RepeatedImagesWarning,
    TnetError,
    TrainingError,
    first_line,
)
from tnet.explain.batch import REGIONS_NAME, explain_samples
from tnet.files import CLAIM_NAME, cannot_write, claimed, make_folder
from tnet.inference.progress import is_terminal
from tnet.models.base import Model
from tnet.models.io import RECIPE_NAME, fill_from, load_model
from tnet.scenes.find import listed_figures
from tnet.training import callbacks
from tnet.training.curves import plot_curves, read_metrics, write_metrics
from tnet.training.data import TNetData
from tnet.training.effort import within_effort
from tnet.training.guide import SELF
from tnet.training.module import TNetModule
from tnet.training.readable import UNREADABLE_NAME, RecordUnreadable
from tnet.training.recipe import Recipe, load_recipe, save_recipe, with_classes

LAST_CHECKPOINT = "checkpoints/last.ckpt"
# Lightning's warnings about a deprecated class that it uses itself, small datasets, and resumed runs.
_GRACE_SECONDS = 30
_HARMLESS = (
    ".*(treespec, LeafSpec|not have many workers|Checkpoint directory .* exists|number of training batches"
    "|broadcast_buffers|sync_dist=True"  # metrics are shared when they are computed
    "|in eval mode at the start)"  # frozen stages
)


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
        OutputError: the folder is in use, inside the images, or cannot be written.
        DataError: data is missing or inconsistent.
        ConfigError: the recipe cannot be built.
        CheckpointError: the checkpoint or the initial weights are damaged or do not fit.
        TrainingError: the loss became NaN, or the accelerator is missing.
        KeyboardInterrupt: Ctrl-C was pressed; a note says which epochs are kept and how to resume.
    """
    folder = Path(folder)
    _check_outside(recipe, folder)
    with claimed(folder) if is_first() else nullcontext():
        try:
            return _train(recipe, folder, resume, progress, val_batches)
        except ImageError as error:
            if recipe.data.unreadable == "raise" and not isinstance(error, ImageSizeError):
                error.add_note("data.unreadable=skip leaves such images out")
            raise


def is_first() -> bool:
    """Return whether this process starts the others of a training on several devices, and writes its files."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _train(recipe: Recipe, folder: Path, resume: bool, progress: bool, val_batches: int | None) -> RunResult:
    """Train in a folder that this process has claimed."""
    checkpoint = _checkpoint_to_resume(folder, resume)
    is_new = not _names_in(folder)
    sources = {"start_from": recipe.train.start_from, "teacher": recipe.train.teacher}
    if recipe.train.guide.teacher != SELF:
        sources["guide.teacher"] = recipe.train.guide.teacher
    for key, model in sources.items():  # before pretrained weights are downloaded
        if model is not None and not Path(model).exists():
            raise CheckpointError(f"train.{key} is {model}, which does not exist; give a run or saved model")
    data = TNetData(recipe)
    recipe = with_classes(recipe, data.train_data.classes, data.train_data.multilabel)
    data.recipe = within_effort(recipe, data.train_data)
    if checkpoint is not None:
        _check_same_recipe(recipe, folder)
    for repeat in find_repeats(data.train_data, data.val_data) if is_first() and val_batches is None else ():
        warnings.warn(repeat, RepeatedImagesWarning, stacklevel=3)
    torch.manual_seed(recipe.seed)
    module = TNetModule(recipe)
    if module.guide is not None:
        on_gpu = recipe.train.accelerator != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        module.guide.open_maps(data.train_data, recipe.train.batch_size, recipe.train.workers, device, progress)
    start_from = recipe.train.start_from if checkpoint is None else None
    not_started = tuple(fill_from(module.model, start_from)) if start_from is not None else ()
    if is_first():
        save_recipe(recipe, folder / RECIPE_NAME)
    trainer = _trainer(data.recipe, folder, module, progress, val_batches)
    if data.most_unreadable:
        record = RecordUnreadable(folder / UNREADABLE_NAME, data.most_unreadable)
        trainer.callbacks.insert(0, record)  # type: ignore[attr-defined]
    if recipe.train.compile:
        for part in module.modules():
            if isinstance(part, Backbone):
                part.compile()
    if isinstance(trainer.accelerator, CPUAccelerator):
        keep_freed_memory()
        for part in module.modules():
            if isinstance(part, TimmBackbone):
                part.train_channels_last = True
    start = time.monotonic()
    try:
        _fit(trainer, module, data, checkpoint)
        seconds = time.monotonic() - start
        trainer.strategy.barrier()  # until the first process has saved the model
        metrics = _write_curves(folder) if is_first() else read_metrics(folder / "logs" / "csv")
        trained = load_model(folder)
        if is_first():
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
    names = _names_in(folder)
    if not resume:
        if names and is_first():  # the others start when the first has written its recipe
            raise OutputError(f"{folder} exists and is not empty; give another --out, or --resume to continue its run")
        return None
    if checkpoint.is_file():
        return checkpoint
    if names - {RECIPE_NAME} and not (folder / "logs" / "csv").is_dir():
        raise OutputError(f"{folder} is not empty and holds no run to resume; give another --out")
    return None


def _names_in(folder: Path) -> set[str]:
    """Return the names of the files in a folder, without the claim on it."""
    return {path.name for path in folder.iterdir()} - {CLAIM_NAME}


def _check_outside(recipe: Recipe, folder: Path) -> None:
    """Refuse to write among the class folders, of which the run would become one."""
    data, maps = recipe.data, recipe.train.guide.maps
    outputs = {"--out": folder, "data.overview_folder": data.overview_folder, "train.guide.maps": maps}
    for split in (data.train, data.val) if data.kind not in ("digits", "table") else ():
        images = Path(data.root) / (split or "")
        for key, path in outputs.items():
            if split and path and Path(path).resolve().is_relative_to(images.resolve()):
                raise OutputError(f"{path} is inside the folder of images {images}; give another {key}, outside of it")


def _check_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Refuse to resume a run of another recipe; only its length, and the place of the images, may change."""

    def compared(recipe: Recipe) -> dict[str, Any]:
        train = replace(recipe.train, epochs=10**6, max_minutes=None, max_gmacs=None, patience=None, workers=0)
        train = replace(train, overlays=0, logger="none")
        data = replace(recipe.data, root="", overview_folder=None, unreadable="raise", unreadable_cap=0.0)
        return _flat(to_plain(replace(recipe, train=train, data=data, title="")))

    path = folder / RECIPE_NAME
    if not path.is_file():
        return
    old, new = compared(load_recipe(path)), compared(recipe)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if keys:
        changes = [f"{key} {shown(old.get(key))} -> {shown(new.get(key))}" for key in keys[:5]]
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        what = f"{folder} holds a run of another recipe, {path} ({', '.join(changes)}{more})"
        raise CheckpointError(f"{what}; use that, or give another --out")


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    if not isinstance(value, dict):
        return {key: value}
    parts = (_flat(item, f"{key}.{name}" if key else name) for name, item in value.items())
    return {name: item for part in parts for name, item in part.items()}


class _PatientDDP(DDPStrategy):
    """DDP whose main process has the time to say why it ends.

    If a process has ended, Lightning's observer, which looks every 5 s, kills the main one, perhaps before that has
    raised the error of the lost connection.
    """

    def setup_environment(self) -> None:
        super().setup_environment()
        for thread in threading.enumerate():
            if isinstance(thread, _ChildProcessObserver):
                thread._terminate_all = partial(_kill_later, thread._terminate_all)  # type: ignore[method-assign]


def _kill_later(kill: Callable[[], None]) -> None:
    time.sleep(_GRACE_SECONDS)
    kill()


def _trainer(recipe: Recipe, folder: Path, module: TNetModule, progress: bool, val_batches: int | None) -> pl.Trainer:
    train = recipe.train
    place = folder / "checkpoints"
    active: list[Callback] = [
        callbacks.LatestOfBest(place, "best", monitor=module.monitor, mode="max", enable_version_counter=False),
        callbacks.LogTraining(),
        # Not save_last=True above, which writes last.ckpt only in epochs that are the best so far.
        ModelCheckpoint(place, Path(LAST_CHECKPOINT).stem, save_on_train_epoch_end=True, enable_version_counter=False),
        callbacks.KeepModel(folder / "model", train.keep),
        callbacks.KeepSignals(),
    ]
    if train.patience is not None:
        active.append(EarlyStopping(module.monitor, patience=train.patience, mode="max"))
    if train.ema_decay is not None:
        active.append(callbacks.AverageWeights(train.ema_decay))
    if train.recalibrate_batches:
        active.append(callbacks.RecalibrateNorms(train.recalibrate_batches))
    freezes = train.frozen_stages or train.frozen_overview
    if freezes and not train.compile and train.ema_decay is None:  # an average has statistics of its own
        active.append(callbacks.FuseFrozen())
    active.append(callbacks.ShareStatistics())
    if train.max_minutes is not None:
        active.append(callbacks.TimeLimit(train.max_minutes))
    is_bar = progress and is_terminal(sys.stdout)
    if progress and not is_bar:
        active.append(callbacks.ProgressLines())
    if is_bar:
        minutes = train.max_minutes
        active.append(TQDMProgressBar(leave=False) if minutes is None else callbacks.TimedProgressBar(minutes))
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    loggers = [
        callbacks.AtomicCSVLogger(folder / "logs", name="csv", flush_logs_every_n_steps=10**9),
        *_more_loggers(recipe, folder),
    ]
    try:
        return pl.Trainer(
            accelerator=train.accelerator, devices=train.devices, precision=train.precision, max_epochs=train.epochs,
            # Processes may validate different numbers of batches, and a stage may leave parameters out.
            strategy=_PatientDDP(broadcast_buffers=False, find_unused_parameters=True) if train.devices > 1 else "auto",
            use_distributed_sampler=False, reload_dataloaders_every_n_epochs=1,
            callbacks=active, plugins=[callbacks.AtomicCheckpointIO()], gradient_clip_val=recipe.optim.clip_norm,
            logger=loggers, num_sanity_val_steps=0, limit_val_batches=val_batches, log_every_n_steps=10**9,
            enable_progress_bar=is_bar, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        device, reason = f"{train.devices} x {train.accelerator}", first_line(error)
        remedy = "change train.accelerator, train.devices or train.precision"
        raise TrainingError(f"training on {device} with {train.precision} cannot start ({reason}); {remedy}") from None


def _more_loggers(recipe: Recipe, folder: Path) -> list[Logger]:
    """Return the logger of the recipe besides CSV."""
    name, place = recipe.train.logger, folder / "logs"
    try:
        if name == "wandb":
            return [WandbLogger(name=folder.name, save_dir=make_folder(place), project="tnet")]
        if name == "mlflow":
            return [MLFlowLogger("tnet", folder.name, save_dir=str(place / "mlflow"))]
    except ModuleNotFoundError:
        remedy = f"pip install {name}, or set train.logger to tensorboard"
        raise ConfigError(f"train.logger is {name}, whose package is not installed; {remedy}") from None
    return [TensorBoardLogger(place, name="tensorboard")] if name == "tensorboard" else []


def _fit(trainer: pl.Trainer, module: TNetModule, data: TNetData, checkpoint: Path | None) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_HARMLESS)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except TorchDynamoException as error:
            reason = first_line(getattr(error, "inner_exception", error))
            problem = f"train.compile is true, but the backbone cannot be compiled ({reason})"
            raise TrainingError(f"{problem}; install a C++ compiler, or set it to false") from None
        except (pickle.UnpicklingError, EOFError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
            if checkpoint is None or trainer.global_step > 0 or isinstance(error, TrainingError):
                raise
            reason = str(error).splitlines()[0].split(". ")[0][:200] if str(error) else "it is cut off"
            remedy = "delete it to start over, or use the model/ beside it"
            raise CheckpointError(f"{checkpoint} cannot be resumed from ({reason}); {remedy}") from None
        except OSError as error:  # of a library that writes in the run directory without naming the file
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
                raise cannot_write(trainer.default_root_dir, error) from None
            raise
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
    """Draw the looks of a model at some validation samples, in place of earlier figures; none for a count of 0."""
    old = {REGIONS_NAME, *listed_figures(folder / REGIONS_NAME)}
    if count > 0 and len(data) > 0:
        place = next(model.parameters()).device
        drawn = explain_samples(model, data, count, folder, device=place, progress=False, overwrite=True)
        old -= {REGIONS_NAME, *(path.name for path in drawn if isinstance(path, Path))}
    for name in old:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
