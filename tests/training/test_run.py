"""Complete runs: files, repeatability, resuming, errors."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from tests.helpers import TINY_RESNET, tiny_recipe
from torch import Tensor

from tnet.backbones import TimmBackbone
from tnet.backbones.base import Described
from tnet.data.config import DataConfig
from tnet.errors import CheckpointError, ConfigError, DataError, ImageError, OutputError, TrainingError
from tnet.files import claimed
from tnet.models.io import load_model
from tnet.objectives import Loss, Objective
from tnet.stop import Stopped
from tnet.training import run
from tnet.training.callbacks import AtomicCheckpointIO
from tnet.training.recipe import Recipe, load_recipe
from tnet.training.run import RunResult, train

LAST = "checkpoints/last.ckpt"


def recipe_of_two(**changes: Any) -> Recipe:
    """Two epochs of two steps."""
    train = {"epochs": 2, "images_per_epoch": 16} | changes.pop("train", {})
    return tiny_recipe(train=train, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run of two epochs to compare with; read only."""
    return train(recipe_of_two(train={"overlays": 1}), tmp_path_factory.mktemp("runs") / "finished", progress=False)


class Disturb(Callback):
    """Does something at one batch of the training."""

    def __init__(self, epoch: int, batch: int, what: Callable[[pl.LightningModule], None]) -> None:
        self.at, self.what = (epoch, batch), what

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            self.what(pl_module)


@contextmanager
def disturbed(epoch: int, batch: int, what: Callable[[pl.LightningModule], None]) -> Iterator[None]:
    """Runs inside do something at one batch of their training."""
    make = run._trainer

    def with_callback(*args: Any) -> pl.Trainer:
        trainer = make(*args)
        trainer.callbacks.append(Disturb(epoch, batch, what))  # type: ignore[attr-defined]
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_trainer", with_callback)
        yield


class PowerCutError(BaseException):
    """Nothing that anybody catches."""


def cut(module: pl.LightningModule) -> None:
    raise PowerCutError


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / LAST, weights_only=True)


def assert_same(first: Any, second: Any) -> None:
    """Nested mappings and lists of tensors and numbers, exactly."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def assert_same_run(first: RunResult, second: RunResult) -> None:
    assert first.metrics == second.metrics
    assert_same_end(first, second)


def assert_same_end(first: RunResult, second: RunResult) -> None:
    states = [checkpoint(result.folder) for result in (first, second)]
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(states[0][key], states[1][key])
    assert_same(dict(first.model.state_dict()), dict(second.model.state_dict()))


def no_leftovers(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.startswith(".")]


# --- what a run leaves


def test_a_run_leaves_what_it_promises(finished: RunResult) -> None:
    folder = finished.folder
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left >= {
        "recipe.yaml", "metrics.csv", "curves.png", "model/model.safetensors", "model/config.json", "model/README.md",
        "checkpoints/best.ckpt", LAST, "logs/csv/version_0/metrics.csv", "overlays/regions.json",
    }  # fmt: skip
    assert [path for path in left if "tfevents" in path] and [path for path in left if path.startswith("overlays/")]
    assert no_leftovers(folder)
    assert load_recipe(folder / "recipe.yaml") == finished.recipe
    assert finished.recipe.model.class_names == tuple("0123456789")
    assert finished.train_seconds > 0 and not finished.model.training
    assert_same(dict(load_model(folder).state_dict()), dict(finished.model.state_dict()))


def test_metrics_of_every_epoch(finished: RunResult) -> None:
    assert [row["epoch"] for row in finished.metrics] == [0, 1]
    for row in finished.metrics:
        assert row.keys() >= {
            "val/accuracy",
            "val/accuracy_0_looks",
            "val/accuracy_random",
            "train/loss",
            "train/baseline",
        }
        assert all(math.isfinite(value) for value in row.values())
    with (finished.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val/accuracy"]) for row in rows] == pytest.approx(
        [row["val/accuracy"] for row in finished.metrics]
    )


def test_the_model_kept_is_that_of_the_best_epoch_and_the_last_checkpoint_that_of_the_last(finished: RunResult) -> None:
    values = [row["val/accuracy"] for row in finished.metrics]
    best = torch.load(finished.folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == max(epoch for epoch, value in enumerate(values) if value == max(values))
    kept = {f"model.{name}": tensor for name, tensor in finished.model.state_dict().items()}
    assert_same(kept, {name: tensor for name, tensor in best["state_dict"].items() if name.startswith("model.")})
    assert (checkpoint(finished.folder)["epoch"], checkpoint(finished.folder)["global_step"]) == (1, 4)


# --- repeating


@pytest.mark.parametrize("workers", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(
    workers: int, finished: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of_two(train={"workers": workers, "overlays": 0})
    assert_same_run(finished, train(recipe, tmp_path / "again", progress=False))
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_another_seed_gives_another_run(finished: RunResult, tmp_path: Path) -> None:
    other = train(recipe_of_two(seed=1, train={"epochs": 1}), tmp_path / "other", progress=False)
    assert other.metrics[0]["train/loss"] != finished.metrics[0]["train/loss"]


# --- resuming


@pytest.mark.parametrize(("epoch", "batch"), [(1, 1), pytest.param(1, 0, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    epoch: int, batch: int, finished: RunResult, tmp_path: Path
) -> None:
    with disturbed(epoch, batch, cut), pytest.raises(PowerCutError):
        train(recipe_of_two(), tmp_path, progress=False)
    assert checkpoint(tmp_path)["epoch"] == epoch - 1
    load_model(tmp_path)  # what there is by then can be used
    assert_same_run(finished, train(recipe_of_two(), tmp_path, resume=True, progress=False))
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3


def test_a_kill_right_after_the_checkpoint_loses_no_metric(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = AtomicCheckpointIO.save_checkpoint

    def kill(self: AtomicCheckpointIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        save(self, checkpoint, path, storage_options)
        if Path(path).name == "last.ckpt":
            raise PowerCutError

    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", kill)
        train(recipe_of_two(), tmp_path, progress=False)
    assert checkpoint(tmp_path)["epoch"] == 0
    assert_same_run(finished, train(recipe_of_two(), tmp_path, resume=True, progress=False))


def test_training_on_the_cpu_keeps_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[bool] = set()
    describe = TimmBackbone.forward

    def forward(backbone: TimmBackbone, glimpses: Tensor) -> Described:
        if backbone.training:
            seen.add(backbone.train_channels_last)
        return describe(backbone, glimpses)

    monkeypatch.setattr(TimmBackbone, "forward", forward)
    train(recipe_of_two(model={"backbone": TINY_RESNET}, train={"epochs": 1}), tmp_path / "run", progress=False)
    assert seen == {True}


@pytest.mark.parametrize(
    ("ema_decay", "batches"),
    [(0.9, 2), *(pytest.param(*values, marks=pytest.mark.slow) for values in ((0.9, 0), (None, 2)))],
)
def test_averaged_weights_and_recalibrated_norms_are_kept_and_resumed(
    ema_decay: float | None, batches: int, tmp_path: Path
) -> None:
    recipe = recipe_of_two(
        train={"ema_decay": ema_decay, "recalibrate_batches": batches, "keep": "last"},
        model={"batch_norm": "per_level"},
    )
    with disturbed(1, 1, cut), pytest.raises(PowerCutError):
        train(recipe, tmp_path / "cut", progress=False)
    resumed = train(recipe, tmp_path / "cut", resume=True, progress=False)
    whole = train(recipe, tmp_path / "whole", progress=False)
    assert_same_run(whole, resumed)
    if ema_decay is None:
        return
    states = [checkpoint(result.folder) for result in (whole, resumed)]
    for key in ("current_model_state", "averaging_state"):
        assert_same(states[0][key], states[1][key])
    averaged, current = (
        {key[6:]: value for key, value in states[0][name].items() if key.startswith("model.")}
        for name in ("state_dict", "current_model_state")
    )
    assert_same(dict(whole.model.state_dict()), averaged)
    assert not torch.equal(averaged["classifier.weight"], current["classifier.weight"])


@pytest.mark.slow
def test_a_run_cut_off_before_its_first_checkpoint_starts_over(finished: RunResult, tmp_path: Path) -> None:
    with disturbed(0, 1, cut), pytest.raises(PowerCutError):
        train(recipe_of_two(), tmp_path, progress=False)
    assert not (tmp_path / LAST).exists()
    assert_same_run(finished, train(recipe_of_two(), tmp_path, resume=True, progress=False))


@pytest.mark.slow
def test_a_finished_run_can_be_resumed_for_nothing_and_for_longer(finished: RunResult, tmp_path: Path) -> None:
    """Without a schedule that depends on the length, a run made longer is a longer run."""
    steady = {"optim": {"schedule": "constant"}}
    short = train(recipe_of_two(train={"epochs": 1}, **steady), tmp_path / "a", progress=False)
    again = train(recipe_of_two(train={"epochs": 1}, **steady), tmp_path / "a", resume=True, progress=False)
    assert again.metrics == short.metrics
    longer = train(
        recipe_of_two(train={"epochs": 2, "overlays": 1}, **steady), tmp_path / "a", resume=True, progress=False
    )
    assert [row["epoch"] for row in longer.metrics] == [0, 1]
    assert_same_run(longer, train(recipe_of_two(train={"epochs": 2}, **steady), tmp_path / "b", progress=False))
    assert load_recipe(tmp_path / "a" / "recipe.yaml").train.epochs == 2


# --- stopping


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    def spoil(module: pl.LightningModule) -> None:
        with torch.no_grad():
            next(module.parameters()).fill_(math.nan)

    with disturbed(1, 1, spoil), pytest.raises(TrainingError, match=r"nan at step 3 \(in .*cross_entropy"):
        train(recipe_of_two(), tmp_path, progress=False)
    kept = checkpoint(tmp_path)
    assert kept["epoch"] == 0 and all(bool(torch.isfinite(tensor).all()) for tensor in kept["state_dict"].values())
    assert bool(torch.isfinite(load_model(tmp_path)(torch.rand(1, 1, 96, 96)).logits).all())
    assert no_leftovers(tmp_path)


def test_the_term_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Objective.forward

    def forward(self: Objective, *args: Any) -> Loss:
        loss = original(self, *args)
        terms = loss.terms | {"reinforce": loss.terms["reinforce"] * math.inf}
        return replace(loss, terms=terms, total=torch.stack(list(terms.values())).sum())

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(TrainingError, match=r"at step 0 \(in reinforce\)"):
        train(recipe_of_two(), tmp_path, progress=False)


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(tmp_path: Path) -> None:
    def spoil(module: pl.LightningModule) -> None:
        next(module.parameters()).register_hook(lambda gradient: gradient * math.nan)

    with disturbed(1, 0, spoil), pytest.raises(TrainingError, match="gradient .* step 2;"):
        train(recipe_of_two(), tmp_path, progress=False)
    assert checkpoint(tmp_path)["epoch"] == 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in load_model(tmp_path).state_dict().values())


@pytest.mark.slow
def test_a_learning_rate_far_too_high_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="became (nan|inf)|became infinite"):
        train(recipe_of_two(optim={"lr": 1000.0, "warmup": 0.0, "clip_norm": None}), tmp_path, progress=False)


def test_the_clock_ends_a_run_with_all_files(tmp_path: Path) -> None:
    result = train(recipe_of_two(train={"epochs": 1000, "max_minutes": 1e-4}), tmp_path, progress=False)
    assert [row["epoch"] for row in result.metrics] == [0] and "val/accuracy" in result.metrics[0]
    assert checkpoint(tmp_path)["global_step"] == 1 and (tmp_path / "curves.png").is_file()


def test_the_keyboard_stops_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    def interrupt(module: pl.LightningModule) -> None:
        signal.raise_signal(signal.SIGINT)

    # What a program has from its start; a test runner's worker process has it ignored.
    runner = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with disturbed(1, 1, interrupt), pytest.raises(KeyboardInterrupt) as caught:
            train(recipe_of_two(), tmp_path, progress=False)
        handler = signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, runner)
    assert caught.value.__notes__ == [f"1 epoch(s) are in {tmp_path}; continue with --resume"]
    assert (tmp_path / "metrics.csv").is_file() and (tmp_path / "curves.png").is_file()
    assert handler is signal.default_int_handler  # the program can still be interrupted
    assert checkpoint(tmp_path)["epoch"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_stops_a_run_that_can_be_resumed(tmp_path: Path, number: signal.Signals) -> None:
    def stop(*_: Any) -> None:
        raise Stopped(number)

    runner = signal.signal(number, stop)
    try:
        with disturbed(1, 1, lambda module: signal.raise_signal(number)), pytest.raises(Stopped) as caught:
            train(recipe_of_two(train={"workers": 1}), tmp_path, progress=False)
        handler = signal.getsignal(number)
    finally:
        signal.signal(number, runner)
    assert caught.value.number == number and handler is stop
    assert caught.value.__notes__ == [f"1 epoch(s) are in {tmp_path}; continue with --resume"]
    assert checkpoint(tmp_path)["epoch"] == 0 and multiprocessing.active_children() == []


def test_without_a_terminal_steps_are_reported_in_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tnet.inference.progress._LINE_EVERY_S", -1.0)
    train(recipe_of_two(train={"epochs": 1}), tmp_path, progress=True)
    out, err = capfd.readouterr()
    steps = [line.partition(",")[0] for line in err.splitlines() if line.startswith("epoch")]
    assert steps == ["epoch 1: step 1 of 2", "epoch 1: step 2 of 2"] and out == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PyTorch notes the dead worker again
def test_a_worker_that_is_killed_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    def kill(module: pl.LightningModule) -> None:
        # One only: PyTorch raises again for each that is noticed later, in whatever code runs by then.
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        time.sleep(5)

    with disturbed(1, 1, kill), pytest.raises(RuntimeError, match="killed by signal: Killed") as caught:
        train(recipe_of_two(train={"workers": 1}), tmp_path, progress=False)
    assert caught.value.__notes__ == [f"1 epoch(s) are in {tmp_path}; continue with --resume"]


def test_a_single_value_per_channel_cannot_be_normalized(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"batch norm .*train\.batch_size"):
        train(recipe_of_two(train={"batch_size": 1}, model={"base_px": 16}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- what is refused


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_checkpoint_that_was_cut_short(finished: RunResult, tmp_path: Path, share: float) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    path = folder / LAST
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be resumed from"):
        train(recipe_of_two(train={"epochs": 9}), folder, resume=True, progress=False)
    assert (folder / "model" / "model.safetensors").is_file()


def test_a_folder_in_use_is_not_written_to(finished: RunResult, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="--resume"):
        train(recipe_of_two(), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    with pytest.raises(OutputError, match="not empty"):
        train(recipe_of_two(), finished.folder, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    with pytest.raises(OutputError, match=r"notes\.txt"):
        train(recipe_of_two(), tmp_path / "notes.txt", progress=False)
    with pytest.raises(OutputError, match="cannot be written"):
        train(recipe_of_two(), tmp_path / "notes.txt" / "run", progress=False)


def test_a_folder_in_which_another_process_trains_is_refused_with_its_owner(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        for resume in (False, True):
            with pytest.raises(OutputError, match=rf"run is in use by process {os.getpid()} on .* since"):
                train(recipe_of_two(), tmp_path / "run", resume=resume, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_only_a_run_is_resumed(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "notes.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="holds no run to resume"):
        train(recipe_of_two(), tmp_path, resume=True, progress=False)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"} and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("out", ["data/train/run", "data/val/up/run", "link/train/run", "data/train"])
def test_runs_and_overviews_stay_outside_the_images(out: str, in_tmp_path: Path) -> None:
    data = small_pictures(in_tmp_path / "data")
    (in_tmp_path / "link").symlink_to("data")
    before = sorted(in_tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="inside the folder of images"):
        train(replace(recipe_of_two(), data=data), out, progress=False)
    with pytest.raises(OutputError, match=r"data\.overview_folder"):
        train(replace(recipe_of_two(), data=replace(data, overview_folder=out)), "run", progress=False)
    assert sorted(in_tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("recipe", "error"),
    [
        (recipe_of_two(model={"backbone": replace(recipe_of_two().model.backbone, name="resnet10x")}), ConfigError),
        (recipe_of_two(model={"in_channels": 3}), ConfigError),
        (recipe_of_two(data={"kind": "folder", "root": "nowhere"}), DataError),
    ],
)
def test_a_recipe_that_cannot_be_run_leaves_no_folder(
    recipe: Recipe, error: type[Exception], in_tmp_path: Path
) -> None:
    with pytest.raises(error):
        train(recipe, in_tmp_path / "run", progress=False)
    assert list(in_tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_accelerator_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.accelerator"):
        train(recipe_of_two(train={"accelerator": "gpu"}), tmp_path, progress=False)


@pytest.fixture
def copied(finished: RunResult, tmp_path: Path) -> Path:
    """The recipe and the last checkpoint of the finished run, to resume from."""
    for name in ("recipe.yaml", LAST):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 5}, r"\(seed 0 -> 5\);"),
        ({"train": {"batch_size": 4}}, r"\(train.batch_size 8 -> 4\);"),
        ({"model": {"looks": (1,)}, "optim": {"lr": 0.5}}, r"\(model.looks \[2\] -> \[1\], optim.lr 0.001 -> 0.5\);"),
    ],
)
def test_a_run_is_not_resumed_with_another_recipe(changes: dict[str, Any], named: str, copied: Path) -> None:
    before = (copied / "recipe.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=rf"another recipe, .*recipe\.yaml {named}"):
        train(recipe_of_two(**changes), copied, resume=True, progress=False)
    assert (copied / "recipe.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "damage", ["truncated", "another", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("empty", "text"))]
)
def test_a_damaged_checkpoint_is_not_resumed_from(damage: str, copied: Path) -> None:
    path = copied / LAST
    content = path.read_bytes()
    if damage == "another":
        torch.save({"something": torch.zeros(3)}, path)
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"not a checkpoint"}[damage])
    damaged = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be resumed"):
        train(recipe_of_two(), copied, resume=True, progress=False)
    assert path.read_bytes() == damaged


def test_a_checkpoint_that_would_run_code_does_not(copied: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    torch.save(torch.load(copied / LAST, weights_only=True) | {"more": Attack()}, copied / LAST)
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        train(recipe_of_two(), copied, resume=True, progress=False)
    assert not trace.exists()


# --- other kinds of runs


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({"model": {"levels": 1, "looks": ()}}, "val/accuracy_0_looks"),
        ({"model": {"levels": 3, "looks": (2, 1), "batch_norm": "per_level"}}, "val/accuracy"),
        pytest.param({"train": {"eval_policies": ("random",)}}, "val/accuracy_random", marks=pytest.mark.slow),
        pytest.param(
            {"train": {"precision": "bf16-mixed"}, "optim": {"name": "adam", "backbone_lr": 1e-4}},
            "val/accuracy",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_runs_of_other_recipes(changes: dict[str, Any], metric: str, tmp_path: Path) -> None:
    changes = changes | {"train": {"epochs": 1, "images_per_epoch": 16} | changes.get("train", {})}
    result = train(recipe_of_two(**changes), tmp_path, progress=False)
    assert metric in result.metrics[0]


def test_a_run_over_several_labels(tmp_path: Path) -> None:
    digits = replace(recipe_of_two().data.digits, task="multi", target_copies=2, other_digits=1)
    result = train(recipe_of_two(data={"digits": digits}, train={"epochs": 1}), tmp_path, progress=False)
    assert result.model.config.multilabel and math.isfinite(result.metrics[0]["train/loss"])


@pytest.mark.filterwarnings("ignore::tnet.errors.RepeatedImagesWarning")
def test_a_run_over_images_of_different_sizes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("up", "down"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i, size in enumerate(((64, 48), (50, 80), (64, 48))):
                picture = Image.linear_gradient("L").resize(size)
                (picture if name == "up" else picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)).save(
                    folder / f"{i}.png"
                )
    data = DataConfig(kind="folder", root=str(tmp_path / "data"))
    recipe = replace(recipe_of_two(train={"epochs": 1, "images_per_epoch": None, "batch_size": 3}), data=data)
    result = train(recipe, tmp_path / "run", progress=False)
    assert result.recipe.model.class_names == ("down", "up") and 0 <= result.metrics[0]["val/accuracy"] <= 1


def small_pictures(folder: Path) -> DataConfig:
    """Two classes, of two pictures of 40 x 30 px in each part."""
    for part in ("train", "val"):
        for name in ("up", "down"):
            (folder / part / name).mkdir(parents=True)
            for index in range(2):
                Image.linear_gradient("L").resize((40, 30)).save(folder / part / name / f"{index}.png")
    return DataConfig(kind="folder", root=str(folder))


@pytest.mark.filterwarnings("ignore::tnet.errors.RepeatedImagesWarning")
@pytest.mark.slow
def test_small_images_are_enlarged_for_a_model_that_does_not_look_closer(tmp_path: Path) -> None:
    whole = {"levels": 1, "looks": ()}
    recipe = recipe_of_two(model=whole, train={"epochs": 1, "images_per_epoch": None, "overlays": 2})
    result = train(replace(recipe, data=small_pictures(tmp_path / "data")), tmp_path / "run", progress=False)
    regions = json.loads((result.folder / "overlays" / "regions.json").read_text())
    assert [record["true_label"] for record in regions] == ["down", "up"], "not the first ones, which are of one class"


@pytest.mark.filterwarnings("ignore::tnet.errors.RepeatedImagesWarning")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_picture_is_one_sentence_and_leaves_no_folder(tmp_path: Path, workers: int) -> None:
    recipe = recipe_of_two(model={"base_px": 24}, train={"images_per_epoch": None, "workers": workers})
    recipe = replace(recipe, data=small_pictures(tmp_path / "data"))
    damaged = tmp_path / "data" / "train" / "up" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(ImageError) as caught:
        train(recipe, tmp_path / "run", progress=False)
    assert str(damaged) in str(caught.value) and "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["start_from", "teacher"])
def test_models_to_learn_from_that_are_not_there(key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"train\.{key} is nowhere"):
        train(recipe_of_two(train={key: "nowhere"}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_images_that_are_too_small_are_refused_before_training(tmp_path: Path) -> None:
    recipe = replace(recipe_of_two(), data=small_pictures(tmp_path / "data"))
    with pytest.raises(ImageError, match=r"train/down/0\.png.*40 x 30 px.*32 px"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "is_terminal", lambda stream: True)
    train(recipe_of_two(train={"epochs": 1, "images_per_epoch": 8}), tmp_path, progress=True)
    shown = "".join(capsys.readouterr())
    assert "Epoch 0" in shown and "loss=" in shown


def test_moved_images_are_no_reason_not_to_resume(copied: Path) -> None:
    recipe = load_recipe(copied / "recipe.yaml")
    moved = replace(recipe, data=replace(recipe.data, root="/elsewhere", overview_folder="cache"))
    run._check_same_recipe(moved, copied)
    with pytest.raises(CheckpointError, match=r"\(data.train train -> other\);"):
        run._check_same_recipe(replace(moved, data=replace(moved.data, train="other")), copied)


def test_training_ends_when_validation_gets_no_better(tmp_path: Path) -> None:
    recipe = recipe_of_two(train={"epochs": 8, "patience": 2}, optim={"lr": 1e-12})
    result = train(recipe, tmp_path / "run", progress=False)
    assert len(result.metrics) == 3  # the first, and two that are no better


def test_a_logger_whose_package_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train.logger is wandb, whose package is not installed; pip install wandb"):
        train(recipe_of_two(train={"logger": "wandb"}), tmp_path / "run", progress=False)


def test_accuracy_of_each_class_is_in_the_log(finished: RunResult) -> None:
    (last,) = finished.metrics[-1:]
    recalls = {name: value for name, value in last.items() if "recall" in name}
    assert list(recalls) == [f"val/recall_{index}_{index}" for index in range(10)]
    assert all(0 <= value <= 1 for value in recalls.values()) and "val/balanced_accuracy" in last
