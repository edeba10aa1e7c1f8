"""Training on two devices, as two processes on the CPU, against one process with the same global batch."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_recipe

from tnet.data.loading import EpochSampler, Share, eval_loader, train_loader
from tnet.errors import ConfigError
from tnet.evaluation.evaluator import evaluate
from tnet.models.io import load_model
from tnet.training.data import TNetData
from tnet.training.recipe import load_recipe, parse_recipe
from tnet.training.run import LAST_CHECKPOINT, train

# Without batch norm, dropout and random looks, on which processes rightly differ.
RECIPE = """
model:
  backbone: {name: vit_tiny_patch16_224, kwargs: {embed_dim: 24, depth: 1, num_heads: 2}}
  base_px: 32
  grid: {rows: 2, cols: 2, cell_extent: 0.6}
  looks: [2]
  position: {kind: none}
  policy: {train: topk}
  dropout: 0.0
  in_channels: 1
objective: {reinforce_weight: 0.1}
data:
  kind: digits
  digits: {task: max, canvas_px: 96, target_copies: 1, other_digits: 0, noise_patterns: 2,
    images_train: 33, images_val: 7}
optim: {name: adam, lr: 0.003, schedule: constant, warmup: 0.0}
train: {epochs: 2, batch_size: 4, devices: 2, accelerator: cpu, overlays: 1, eval_policies: [topk], keep: last}
"""


def train_two(folder: Path, *arguments: str) -> str:
    """Train by the recipe in two processes, and return what they print."""
    (folder / "two.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "tnet", "train", "two.yaml", "--no-progress", *arguments]
    two = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert two.returncode == 0, two.stderr
    return two.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path: Path) -> None:
    train(parse_recipe(RECIPE, ["train.devices=1", "train.batch_size=8"]), tmp_path / "one", progress=False)
    assert train_two(tmp_path, "--out", "two").count("run directory: two") == 1  # only the first process speaks
    texts = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("one", "two")]
    rows = [list(csv.DictReader(text)) for text in texts]
    assert [len(part) for part in rows] == [2, 2]
    for first, second in zip(*rows, strict=True):
        assert first["step"] == second["step"]
        of_training = ("train/loss", "train/cross_entropy", "train/reinforce", "train/baseline", "train/accuracy")
        for key in (*of_training, "val/accuracy", "val/accuracy_0_looks", "val/balanced_accuracy"):
            assert float(second[key]) == pytest.approx(float(first[key]), abs=2e-4), key
    models = [load_model(tmp_path / name) for name in ("one", "two")]
    for (name, ours), theirs in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=1e-2, msg=name)
    # Seven validation images, each counted once: the accuracy of the kept model, measured by one process.
    recipe = load_recipe(tmp_path / "two" / "recipe.yaml")
    measured = evaluate(models[1], TNetData(recipe).val_data, looks=(2,), policies=["topk"], progress=False)[0]
    assert float(rows[1][-1]["val/accuracy"]) == pytest.approx(measured.accuracy, abs=1e-6)
    assert (tmp_path / "two" / "overlays").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_dies_ends_the_training(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "tnet", "train", "two.yaml", "--no-progress", "--out", "two", "train.epochs=999"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as first:
        try:
            while not (tmp_path / "two" / LAST_CHECKPOINT).exists() and first.poll() is None:
                time.sleep(0.1)
            (second,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
            # Lightning's observer wakes every 5 s: at once, beside the process that has yet to see the lost connection.
            first.send_signal(signal.SIGSTOP)
            os.kill(int(second), signal.SIGKILL)
            time.sleep(6)
            first.send_signal(signal.SIGCONT)
            _, errors = first.communicate(timeout=60)
        finally:
            first.kill()
    assert first.returncode == 1 and "Traceback" not in errors
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "another process of this training ended" in said[0]
    assert said[0].endswith("epoch(s) are in two; continue with --resume")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resumed_run_of_two_processes_ends_as_the_uninterrupted_one(tmp_path: Path) -> None:
    # Random looks and dropout too, which each process draws for itself.
    drawn = ("model.policy.train=sample", "model.dropout=0.5", "objective.reinforce_weight=0.1", "train.overlays=0")
    train_two(tmp_path, "--out", "whole", *drawn)
    train_two(tmp_path, "--out", "cut", *drawn, "train.epochs=1")
    half = load_model(tmp_path / "cut").state_dict()
    train_two(tmp_path, "--out", "cut", "--resume", *drawn)
    whole, cut = (load_model(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert not all(torch.equal(value, half[name]) for name, value in whole.items())
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]


def test_processes_share_the_batches_of_one() -> None:
    alone = list(EpochSampler(10, 25, seed=3, epoch=1))
    parts = [list(EpochSampler(10, 25, seed=3, epoch=1, batch=3, share=Share(rank, 2))) for rank in range(2)]
    assert [len(part) for part in parts] == [12, 12]  # 4 steps of 6; the last image is left out
    for step in range(4):
        together = parts[0][3 * step : 3 * step + 3] + parts[1][3 * step : 3 * step + 3]
        assert together == alone[6 * step : 6 * step + 6]


def test_no_image_is_validated_twice() -> None:
    data = TNetData(tiny_recipe(data={})).val_data
    names = [
        [name for batch in eval_loader(data, 3, 0, Share(rank, 3)) for name in batch.names] for rank in range(3)
    ]  # fmt: skip
    assert sorted(name for part in names for name in part) == sorted(data[index].name for index in range(16))
    assert [len(part) for part in names] == [6, 5, 5]


def test_steps_of_two_processes_are_as_many() -> None:
    data = TNetData(tiny_recipe(data={})).train_data
    loaders = [train_loader(data, 6, 0, 0, 0, 40, Share(rank, 2)) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [3, 3] == [len(list(loader)) for loader in loaders]


def test_more_devices_than_work_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="2 devices with train.batch_size 8 take 16 images per step, .* has 15;"):
        TNetData(tiny_recipe(train={"devices": 2, "images_per_epoch": 15}))
    with pytest.raises(ConfigError, match=r"train.devices is 20 but there are 16 validation image"):
        TNetData(tiny_recipe(train={"devices": 20, "batch_size": 1}))
    TNetData(tiny_recipe(train={"devices": 2, "images_per_epoch": 16}))
