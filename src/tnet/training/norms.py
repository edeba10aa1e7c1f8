"""Statistics of batch norm, measured anew with the weights as they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from tnet.backbones.base import batch_norms
from tnet.data.loading import train_loader
from tnet.data.sample import Batch
from tnet.models.base import Model
from tnet.training.data import TNetData
from tnet.training.module import TNetModule


@torch.no_grad()
def recalibrate_norms(model: Model, batches: Iterable[Batch]) -> None:
    """Replace the running statistics of batch norm by plain averages over some batches.

    The model looks as it does in evaluation (its policy, no dropout), so that the statistics are those of what will be
    seen; with ``batch_norm: per_level`` each population gets its own. Norms that no batch goes through keep theirs.

    Args:
        model: on the device of the batches; its mode is left as it was.
        batches: training images.
    """
    norms = batch_norms(model)
    if not norms:
        return
    training, momenta = model.training, [norm.momentum for norm in norms]
    before = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    if model.population_norms is not None:
        model.population_norms.reset()
    model.eval()
    for norm in norms:
        if model.population_norms is None:
            norm.reset_running_stats()
        norm.momentum = None  # average over all batches
        norm.train()
    try:
        for batch in batches:
            model(batch.images)
    finally:
        for norm, momentum, values in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            # A model may run a part in evaluation mode only (IPS, where it reuses embeddings): that has seen nothing.
            if model.population_norms is None and norm.num_batches_tracked == 0:
                norm.load_state_dict(values, strict=False)
        model.train(training)


class RecalibrateNorms(Callback):
    """Measures the statistics of batch norm anew before each validation, so that this is what is kept.

    Args:
        batches: training batches to average over.
    """

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the running statistics."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, TNetModule)
        assert isinstance(data, TNetData)
        train = data.recipe.train
        images = len(data.train_data)
        count = min(self.batches * train.batch_size, images)
        # Other images than the epoch's own first ones, and the same ones in a resumed run.
        seed = data.recipe.seed + 1
        loader = train_loader(data.train_data, train.batch_size, train.workers, seed, trainer.current_epoch, count)
        with torch.random.fork_rng(devices=[]):
            recalibrate_norms(pl_module.model, (_moved(batch, pl_module) for batch in loader))


def _moved(batch: Batch, module: pl.LightningModule) -> Any:
    return module.transfer_batch_to_device(batch, module.device, 0)
