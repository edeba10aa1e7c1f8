"""Lightning callbacks and plugins: atomic files, time limit, the model that is kept, averaged weights, batch norm."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer, TQDMProgressBar, WeightAveraging
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from tnet.backbones import TimmBackbone
from tnet.backbones.base import batch_norms
from tnet.backbones.fusion import fused_parts
from tnet.data.loading import train_loader
from tnet.data.sample import Batch
from tnet.files import atomic_path
from tnet.inference.progress import Lines
from tnet.models.base import Model
from tnet.models.io import default_card, save_model
from tnet.stop import STOP_SIGNALS
from tnet.text import markdown
from tnet.training.config import Keep
from tnet.training.curves import write_metrics
from tnet.training.data import TNetData
from tnet.training.module import TNetModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints under a temporary name first, so that a killed run leaves the last good one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint, completely or not at all."""
        content = io.BytesIO()  # torch.save would report a full disk as an error of its own
        torch.save(checkpoint, content)
        with atomic_path(path) as temporary:  # unlike Lightning's writer, which goes through TMPDIR
            temporary.write_bytes(content.getvalue())  # no copy, and no view that may outlive it in a traceback


class AtomicCSVLogger(CSVLogger):
    """Replaces the log at every save, as Lightning truncates it for new columns; a killed run keeps its epochs."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer that collects rows."""
        if not isinstance(self._experiment, _AtomicWriter):
            self._experiment = _AtomicWriter(self.log_dir)
        return self._experiment


class _AtomicWriter(ExperimentWriter):
    def save(self) -> None:
        if self.metrics:
            write_metrics(self.metrics, Path(self.metrics_file_path))


class LogTraining(Callback):
    """Logs the training metrics of an epoch before its checkpoint, so that a kill between the two loses nothing."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row that Lightning will write again."""
        row = {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("train/")}
        for logger in trainer.loggers:
            if isinstance(logger, AtomicCSVLogger):
                logger.log_metrics({**row, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
                logger.save()


class TimeLimit(Timer):
    """Ends training after some minutes, validation and time before a resume included; the schedule follows it."""

    def __init__(self, minutes: float) -> None:
        super().__init__(verbose=False)
        self.seconds = minutes * 60

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and set the share before a resume."""
        super().on_train_start(trainer, pl_module)
        self._set_share(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Set the share, and stop when time is up."""
        if self._set_share(trainer, pl_module) >= 1:
            trainer.should_stop = True

    def _set_share(self, trainer: pl.Trainer, module: pl.LightningModule) -> float:
        assert isinstance(module, TNetModule)
        # One clock for all processes, which must stop at the same step.
        module.elapsed_share = trainer.strategy.broadcast(min(1.0, self.time_elapsed() / self.seconds))
        return module.elapsed_share


class KeepSignals(Callback):
    """Keeps the program's handlers of signals: by Lightning's, SIGTERM is a success, and a second Ctrl-C ignored."""

    def __init__(self) -> None:
        self.handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def on_train_start(self, *_: Any, **__: Any) -> None:
        """Restore the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)

    on_exception = on_train_start


class ProgressLines(Callback):
    """Reports training steps in lines, for output that is not a terminal."""

    def __init__(self) -> None:
        self.lines = Lines()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Report the step."""
        step = f"step {args[-1] + 1} of {trainer.num_training_batches}"
        self.lines.show(f"epoch {trainer.current_epoch + 1}: {step}, loss {trainer.progress_bar_metrics['loss']:.3g}")


class TimedProgressBar(TQDMProgressBar):
    """Progress bar of a run with a time limit in minutes."""

    def __init__(self, minutes: float) -> None:
        super().__init__(leave=False)
        self.minutes = minutes

    def init_train_tqdm(self) -> Tqdm:
        """Return the bar of training steps."""
        bar = super().init_train_tqdm()
        bar.bar_format = f"{{desc}} {{n_fmt}} steps, {{elapsed}} of {self.minutes:.1f} min{{postfix}}"
        return bar


class LatestOfBest(ModelCheckpoint):
    """Keeps the checkpoint of the best epoch; of equal ones the last, as :class:`KeepModel` does."""

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether the epoch is to be kept."""
        best = self.best_model_score
        return super().check_monitor_top_k(trainer, current) or (current is not None and bool(current == best))


class KeepModel(Callback):
    """Saves the model after validation (``best``: unless an earlier one was better), for a stopped run to be used."""

    def __init__(self, folder: Path, which: Keep = "best") -> None:
        self.folder, self.which = folder, which
        self.best = float("-inf")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the model."""
        assert isinstance(pl_module, TNetModule)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        if self.which == "best":
            value = trainer.callback_metrics.get(pl_module.monitor)
            if value is None or float(value) < self.best:
                return
            self.best = float(value)
        save_model(pl_module.model, self.folder, card=self._card(trainer, pl_module), overwrite=True)

    def _card(self, trainer: pl.Trainer, module: TNetModule) -> str:
        metrics = sorted(item for item in trainer.callback_metrics.items() if item[0].startswith("val/"))
        values = [f"| {name.removeprefix('val/')} | {100 * float(value):.1f} % |" for name, value in metrics]
        title = markdown(module.recipe.title or module.recipe.model.line())
        return (
            f'{default_card(module.model.config)}\nTrained by the recipe "{title}" (`recipe.yaml` of the run), seed '
            f"{module.recipe.seed}, kept after epoch {trainer.current_epoch + 1}. Validation:\n\n"
            "| metric | value |\n|---|---|\n" + "\n".join(values) + "\n"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self.best = float(state_dict["best"])


class AverageWeights(WeightAveraging):
    """Keeps an exponential moving average of weights and buffers, which replaces them during validation.

    It must come after ``KeepModel`` in the list of callbacks and before ``RecalibrateNorms``, so that the average is
    recalibrated and kept. Checkpoints hold both.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            # The decay starts lower, so that the random initial weights soon leave the average.
            kept = min(decay, (1 + int(count)) / (10 + int(count)))
            return torch.lerp(current, averaged, kept) if averaged.is_floating_point() else current

        super().__init__(avg_fn=average)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap the average in."""
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: the average is swapped in earlier, and out after the best model is kept."""

    on_validation_epoch_end = on_validation_epoch_start

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap the trained weights back in."""
        super().on_validation_epoch_end(trainer, pl_module)


class ShareStatistics(Callback):
    """Averages the running statistics of several processes before validation, so that all measure the same model."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace them."""
        assert isinstance(pl_module, TNetModule)
        for value in pl_module.model.buffers() if trainer.world_size > 1 else ():
            if value.is_floating_point():
                value.copy_(trainer.strategy.reduce(value.clone(), reduce_op="mean"))


@torch.no_grad()
def recalibrate_norms(model: Model, batches: Iterable[Batch], kept: Collection[nn.Module] = ()) -> None:
    """Replace the running statistics of batch norm by plain averages over training batches on the model's device.

    The model runs as in evaluation (its policy, no dropout), so that the statistics describe its inputs there. Norms
    without input keep theirs, and so do those in ``kept``.
    """
    norms = [norm for norm in batch_norms(model) if norm not in kept]
    if not norms:
        return
    training, momenta = model.training, [norm.momentum for norm in norms]
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    if model.population_norms is not None:
        model.population_norms.reset(norms)
    model.eval()
    for norm in norms:
        if model.population_norms is None:
            norm.reset_running_stats()
        norm.momentum = None  # average over all batches
        norm.train()
    try:
        # Plain averages read a counter from the device, at which a compiled backbone would break in each norm.
        with torch.compiler.set_stance("force_eager"):
            for batch in batches:
                model(batch.images)
    finally:
        for norm, momentum, values in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            # A model may run a part in evaluation mode only (IPS with reused embeddings).
            if model.population_norms is None and norm.num_batches_tracked == 0:
                norm.load_state_dict(values, strict=False)
        model.train(training)


class RecalibrateNorms(Callback):
    """Recalibrates batch norm over some training batches before each validation, for the model that is kept too.

    Several processes take batches of their own, whose statistics :class:`ShareStatistics` averages. Frozen stages are
    recalibrated once, before training, since they cannot adapt to other statistics later.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Recalibrate all norms of a model with frozen stages."""
        assert isinstance(pl_module, TNetModule)
        if pl_module.frozen and trainer.global_step == 0:
            self._recalibrate(trainer, pl_module, kept=())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Recalibrate the norms that are not frozen."""
        assert isinstance(pl_module, TNetModule)
        self._recalibrate(trainer, pl_module, kept=pl_module.frozen)

    def _recalibrate(self, trainer: pl.Trainer, pl_module: TNetModule, kept: Collection[nn.Module]) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TNetData)
        train = data.recipe.train
        count = min(self.batches * train.batch_size * data.share.processes, len(data.train_data))
        # Not the first images of the epoch, and the same in a resumed run.
        seed = data.recipe.seed + 1
        loader = train_loader(
            data.train_data, train.batch_size, train.workers, seed, trainer.current_epoch, count, data.share
        )
        with torch.random.fork_rng(devices=[]):
            batches = (pl_module.transfer_batch_to_device(batch, pl_module.device, 0) for batch in loader)
            recalibrate_norms(pl_module.model, batches, kept)


class FuseFrozen(Callback):
    """Fuses frozen stages on the CPU while a model is trained, which is faster; its tensors stay as they are."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fuse them; after :class:`RecalibrateNorms`, since they do not change from then on."""
        assert isinstance(pl_module, TNetModule)
        model = pl_module.model
        if pl_module.device.type != "cpu" or model.population_norms is not None:  # which change with the level
            return
        config = model.config
        for part in model.modules():
            if isinstance(part, TimmBackbone):
                side_px = config.region_px or config.whole_px
                self.stack.enter_context(fused_parts(part, pl_module.frozen, config.in_channels, side_px))

    def teardown(self, *_: Any, **__: Any) -> None:
        """Restore them."""
        self.stack.close()

    on_exception = teardown
