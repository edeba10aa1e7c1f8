"""What happens around the steps of a run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback, TQDMProgressBar, WeightAveraging
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from tnet.models.io import default_card, save_model
from tnet.training.curves import write_metrics
from tnet.training.module import TNetModule
from tnet.training.recipe import Keep


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their final name first, so that a killed run leaves the last good one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all."""
        final = Path(path)
        temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            super().save_checkpoint(checkpoint, temporary, storage_options)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)


class AtomicCSVLogger(CSVLogger):
    """Writes the whole log at every save beside its name first, so that a killed run leaves all its epochs.

    Lightning's own empties the file and writes it again when there is a new column, as there is after every start of a
    run: the metrics of training come after those of validation. Killed just then, the run lost its epochs.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What gathers the rows and writes them."""
        if not isinstance(self._experiment, _AtomicWriter):
            self._experiment = _AtomicWriter(self.log_dir)
        return self._experiment


class _AtomicWriter(ExperimentWriter):
    """Keeps the rows that it has written."""

    def save(self) -> None:
        """Write all rows so far."""
        if self.metrics:
            write_metrics(self.metrics, Path(self.metrics_file_path))


class TimeLimit(Callback):
    """Ends training after a time, and lets the schedule know how much of it is gone.

    Args:
        minutes: of training, validation included; time before a resume counts too.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.before = 0.0
        self.started: float | None = None

    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self.before + (time.monotonic() - self.started if self.started is not None else 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and tell the schedule about the time before a resume."""
        self.started = time.monotonic()
        self._tell(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Tell the schedule, and stop when time is up."""
        if self._tell(pl_module) >= 1:
            trainer.should_stop = True

    def _tell(self, module: pl.LightningModule) -> float:
        """Let the schedule know the share of the time that is gone."""
        assert isinstance(module, TNetModule)
        module.elapsed_share = min(1.0, self.elapsed() / self.seconds)
        return module.elapsed_share

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return {"seconds": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.before = float(state_dict["seconds"])


class TimedProgressBar(TQDMProgressBar):
    """A progress bar for a run that ends by time: the time there is, not a guess from the number of steps.

    Args:
        minutes: until the run ends.
    """

    def __init__(self, minutes: float) -> None:
        super().__init__(leave=False)
        self.minutes = minutes

    def init_train_tqdm(self) -> Tqdm:
        """The bar of the training steps."""
        bar = super().init_train_tqdm()
        bar.bar_format = f"{{desc}} {{n_fmt}} steps, {{elapsed}} of {self.minutes:.1f} min{{postfix}}"
        return bar


class KeepModel(Callback):
    """Writes ``model/`` after a validation, so that a stopped run can be used.

    Args:
        folder: of the model.
        which: ``best`` writes it whenever validation is better than before, ``last`` every time.
    """

    def __init__(self, folder: Path, which: Keep = "best") -> None:
        self.folder, self.which = folder, which
        self.best = float("-inf")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the model if it is to be kept."""
        assert isinstance(pl_module, TNetModule)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        if self.which == "best":
            value = trainer.callback_metrics.get(pl_module.monitor)
            if value is None or float(value) <= self.best:
                return
            self.best = float(value)
        save_model(pl_module.model, self.folder, card=self._card(trainer, pl_module))

    @staticmethod
    def _card(trainer: pl.Trainer, module: TNetModule) -> str:
        """The model card: what it is, and how it did in validation when it was kept."""
        values = [
            f"| {name.removeprefix('val/')} | {100 * float(value):.1f} % |"
            for name, value in sorted(trainer.callback_metrics.items())
            if name.startswith("val/")
        ]
        title = module.recipe.title or module.description()
        return (
            f'{default_card(module.model.config)}\nTrained by the recipe "{title}" (`recipe.yaml` of the run), seed '
            f"{module.recipe.seed}, kept after epoch {trainer.current_epoch + 1}. Validation:\n\n"
            "| metric | value |\n|---|---|\n" + "\n".join(values) + "\n"
        )

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = float(state_dict["best"])


class AverageWeights(WeightAveraging):
    """Keeps an exponential moving average of weights and buffers, which takes their place in validation.

    The average is in the module from the start of validation to its very end, and so before batch norm is measured
    anew and until the best model is kept: in the list of callbacks it must come before ``RecalibrateNorms`` and after
    ``KeepModel``. Checkpoints hold both.

    Args:
        decay: what each step keeps of the average; less in the first ones, ``(1 + n) / (10 + n)`` after ``n``, or the
            random weights of the start would stay in it for long.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            kept = min(decay, (1 + int(count)) / (10 + int(count)))
            # Counts and the like are not averaged.
            return torch.lerp(current, averaged, kept) if averaged.is_floating_point() else current

        super().__init__(avg_fn=average)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in."""
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It is in already."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It stays until the best model is kept."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the weights that are trained back."""
        super().on_validation_epoch_end(trainer, pl_module)
