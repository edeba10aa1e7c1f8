"""Trainings that are killed again and again, and end as if they had not been."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_recipe
from tests.training.test_run import assert_same

from tnet.models.io import load_model
from tnet.training.recipe import Recipe
from tnet.training.run import LAST_CHECKPOINT, train

# All of the record: TNET_KILLS=20
KILLS = int(os.environ.get("TNET_KILLS", 3))


def kill_at_random(recipe: Recipe, out: Path, epoch_s: float, seed: int) -> Iterator[None]:
    """Start or resume a training, and kill it: in the start and first epochs, or soon after it wrote a checkpoint."""
    draw, last = random.Random(seed), out / LAST_CHECKPOINT

    def written() -> int:
        return last.stat().st_mtime_ns if last.exists() else 0

    for kill in range(KILLS):
        before = written()
        process = multiprocessing.get_context("fork").Process(
            target=train, args=(recipe, out), kwargs={"resume": True, "progress": False}
        )
        process.start()
        until = time.monotonic() + 60
        while kill % 3 and process.is_alive() and written() == before and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 2 * epoch_s))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "finished; give it more epochs"
        yield


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kills_change_nothing(tmp_path: Path) -> None:
    # Dropout, sampled looks, a schedule, averaged weights and measured statistics: all that a resumed run must restore.
    train_for = {"epochs": 4 * KILLS, "ema_decay": 0.9, "recalibrate_batches": 2, "logger": "none"}
    recipe = tiny_recipe(train=train_for)
    whole = train(recipe, tmp_path / "whole", progress=False)
    out = tmp_path / "killed"
    for _ in kill_at_random(recipe, out, whole.train_seconds / recipe.train.epochs, seed=KILLS):
        if (out / "model").exists():
            load_model(out)
        if (out / LAST_CHECKPOINT).exists():
            torch.load(out / LAST_CHECKPOINT, weights_only=True)
    killed = train(recipe, out, resume=True, progress=False)
    assert killed.metrics == whole.metrics and len(whole.metrics) == recipe.train.epochs
    same = ["metrics.csv", "recipe.yaml", "model/model.safetensors", "model/config.json", "model/README.md"]
    assert [name for name in same if (out / name).read_bytes() != (whole.folder / name).read_bytes()] == []
    states = [torch.load(folder / LAST_CHECKPOINT, weights_only=True) for folder in (whole.folder, out)]
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(states[0][key], states[1][key])
    assert [path for path in out.rglob("*") if path.name.startswith(".")] == []
