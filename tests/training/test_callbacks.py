from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.helpers import tiny_recipe
from torch import Tensor

from tnet.data.sample import Batch
from tnet.errors import OutputError
from tnet.models.io import load_model
from tnet.training.callbacks import (
    AtomicCheckpointIO,
    AtomicCSVLogger,
    AverageWeights,
    KeepModel,
    TimeLimit,
)
from tnet.training.curves import Row, read_metrics
from tnet.training.module import TNetModule
from tnet.training.run import train

# --- checkpoints


def test_a_checkpoint_replaces_the_one_before(tmp_path: Path) -> None:
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"value": value}, tmp_path / "new" / "last.ckpt")
    assert torch.load(tmp_path / "new" / "last.ckpt", weights_only=True) == {"value": 2}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, path)

    def full(path: Path, content: Any) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))  # not a folder that must have room
    with pytest.raises(OutputError, match=r"last\.ckpt cannot be written \(No space left on device\); make room"):
        AtomicCheckpointIO().save_checkpoint({"value": 2}, path)
    assert torch.load(path, weights_only=True) == {"value": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


# --- the log


def test_a_log_has_all_its_rows_whenever_a_run_is_killed(tmp_path: Path) -> None:
    logger = AtomicCSVLogger(tmp_path, name="csv", flush_logs_every_n_steps=10**9)
    seen: list[list[Row]] = []

    def look(frame: FrameType, event: str, argument: object) -> Any:
        """Where the run could be killed: after every line of what is called."""
        rows = read_metrics(tmp_path / "csv")
        if not seen or rows != seen[-1]:
            seen.append(rows)
        return look

    values: list[Row] = [{"val/accuracy": 0.5}, {"train/loss": 2.5, "val/accuracy_0_looks": 0.25}, {"train/loss": 1.25}]
    before = sys.gettrace()
    sys.settrace(look)
    try:
        for step, row in enumerate(values):
            logger.log_metrics({"epoch": step, **row}, step)
            logger.save()
            logger.save()
        logger.finalize("success")
    finally:
        sys.settrace(before)
    rows = [{"epoch": float(step), "step": float(step), **row} for step, row in enumerate(values)]
    assert seen == [rows[:count] for count in range(4)]
    assert [path.name for path in (tmp_path / "csv" / "version_0").iterdir()] == ["metrics.csv"]


# --- the model that is kept


class _Trainer(pl.Trainer):
    """What is asked of a trainer, and no more."""

    sanity_checking = False
    is_global_zero = True
    current_epoch = 0
    callback_metrics: Any = None

    def __init__(self, accuracy: float | None) -> None:
        values = {"val/accuracy": accuracy, "val/accuracy_0_looks": 0.25, "train/loss": 3.0}
        self.callback_metrics = {name: torch.tensor(v) for name, v in values.items() if v is not None}


def validate(callback: KeepModel, module: TNetModule, accuracy: float | None, **changes: Any) -> None:
    trainer = _Trainer(accuracy)
    for name, value in changes.items():
        setattr(trainer, name, value)
    callback.on_validation_end(trainer, module)


def mark(module: TNetModule, value: float) -> None:
    with torch.no_grad():
        next(module.model.parameters()).fill_(value)


def marked(folder: Path) -> float:
    return next(load_model(folder).parameters()).flatten()[0].item()


def test_the_best_model_is_kept_and_not_the_last(tmp_path: Path) -> None:
    module, keep = TNetModule(tiny_recipe()), KeepModel(tmp_path / "model")
    for value, accuracy in ((1.0, 0.5), (2.0, 0.75), (3.0, 0.75), (4.0, 0.25)):
        mark(module, value)
        validate(keep, module, accuracy)
    assert marked(tmp_path / "model") == 3, "of equal epochs the later one"
    again = KeepModel(tmp_path / "model")
    again.load_state_dict(keep.state_dict())
    mark(module, 5.0)
    validate(again, module, 0.7)
    assert marked(tmp_path / "model") == 3, "a resumed run remembers what was best"
    validate(again, module, 0.8)
    assert marked(tmp_path / "model") == 5


def test_the_last_model_may_be_kept(tmp_path: Path) -> None:
    module, keep = TNetModule(tiny_recipe()), KeepModel(tmp_path / "model", "last")
    for value, accuracy in ((1, 0.5), (2, 0.25), (3, None)):
        mark(module, value)
        validate(keep, module, accuracy)
        assert marked(tmp_path / "model") == value
    validate(keep, module, 0.5, is_global_zero=False)


def test_nothing_is_kept_before_it_was_measured_nor_by_another_process(tmp_path: Path) -> None:
    module, keep = TNetModule(tiny_recipe()), KeepModel(tmp_path / "model")
    validate(keep, module, None)
    validate(keep, module, 0.5, sanity_checking=True)
    validate(keep, module, 0.5, is_global_zero=False)
    assert not (tmp_path / "model").exists()


def test_the_card_says_what_was_trained_and_how_well_it_did(tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(seed=41), title="Digits at dawn")
    validate(KeepModel(tmp_path / "model"), TNetModule(recipe), 0.625, current_epoch=6)
    card = (tmp_path / "model" / "README.md").read_text()
    for words in ('"Digits at dawn"', "seed 41", "epoch 7", "| accuracy | 62.5 % |", "| accuracy_0_looks | 25.0 % |"):
        assert words in card
    assert "loss" not in card
    validate(KeepModel(tmp_path / "other"), TNetModule(tiny_recipe()), 0.5)
    assert "resnet10t at 32 px" in (tmp_path / "other" / "README.md").read_text(), "without a title, what it is"


def test_a_model_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        validate(KeepModel(tmp_path / "file" / "model"), TNetModule(tiny_recipe()), 0.5)


# --- time


class _Clock:
    """A clock that steps and nothing else move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def test_the_schedule_follows_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    module, trainer, limit = TNetModule(tiny_recipe()), pl.Trainer(logger=False, accelerator="cpu"), TimeLimit(2.0)
    assert limit.time_elapsed() == 0
    limit.on_train_start(trainer, module)
    clock.now += 30
    limit.on_train_batch_end(trainer, module)
    assert module.elapsed_share == 0.25 and not trainer.should_stop

    resumed, after = TNetModule(tiny_recipe()), TimeLimit(2.0)
    after.load_state_dict(limit.state_dict())
    clock.now += 10_000  # nobody trained
    after.on_train_start(trainer, resumed)
    assert resumed.elapsed_share == 0.25, "the first step after a resume knows too"
    clock.now += 89
    after.on_train_batch_end(trainer, resumed)
    assert resumed.elapsed_share == pytest.approx(119 / 120) and not trainer.should_stop
    clock.now += 2
    after.on_train_batch_end(trainer, resumed)
    assert resumed.elapsed_share == 1 and trainer.should_stop


def test_a_run_ends_when_time_is_up_with_validation_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    rates: list[float] = []
    original = TNetModule.training_step

    def training_step(module: TNetModule, batch: Batch, batch_index: int) -> Tensor:
        clock.now += 10
        rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        return original(module, batch, batch_index)

    monkeypatch.setattr(TNetModule, "training_step", training_step)
    recipe = tiny_recipe(
        train={"epochs": 1000, "images_per_epoch": 16, "max_minutes": 0.5, "overlays": 0},
        optim={"lr": 1.0e-3, "schedule": "step", "drop_at": 0.3, "warmup": 0.0},
    )
    result = train(recipe, tmp_path, progress=False)
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4]), "the schedule follows the time, of which each step takes a third"
    assert [row["epoch"] for row in result.metrics] == [0, 1]
    assert "val/accuracy" in result.metrics[-1], "the epoch that was cut short is measured"
    assert (tmp_path / "model").is_dir() and (tmp_path / "checkpoints" / "last.ckpt").is_file()
    assert time.monotonic() == clock.now


# --- averaged weights


class _Stepping(_Trainer):
    """A trainer that says how many steps were taken."""

    global_step = 0


def first(module: TNetModule) -> float:
    return next(module.model.parameters()).flatten()[0].item()


def test_the_average_follows_slowly_and_is_in_place_during_validation_only() -> None:
    callback, module, trainer = AverageWeights(0.5), TNetModule(tiny_recipe()), _Stepping(None)
    callback.setup(trainer, module, "fit")
    expected = 0.0
    for step, value in enumerate((1.0, 3.0, 5.0, -2.0), start=1):
        mark(module, value)
        trainer.global_step = step  # type: ignore[misc]
        callback.on_train_batch_end(trainer, module, None, None, 0)
        kept = min(0.5, step / (9 + step))  # n = step - 1 averaged before: (1 + n) / (10 + n)
        expected = value if step == 1 else kept * expected + (1 - kept) * value
    assert first(module) == -2.0
    for hook in (callback.on_validation_start, callback.on_validation_epoch_start, callback.on_validation_epoch_end):
        hook(trainer, module)
        assert first(module) == pytest.approx(expected, abs=1e-6)  # values of up to 5 in 32 bits
    callback.on_validation_end(trainer, module)
    assert first(module) == -2.0


def test_counts_are_not_averaged() -> None:
    callback, module, trainer = AverageWeights(0.9), TNetModule(tiny_recipe()), _Stepping(None)
    callback.setup(trainer, module, "fit")
    name = next(name for name, _ in module.named_buffers() if name.endswith("num_batches_tracked"))
    for step in (1, 2):
        module.get_buffer(name).fill_(100 * step)
        trainer.global_step = step  # type: ignore[misc]
        callback.on_train_batch_end(trainer, module, None, None, 0)
    callback.on_validation_start(trainer, module)
    assert int(module.get_buffer(name)) == 200
