"""Comparisons as a whole: what is done, what is kept, what is done again."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.helpers import tiny_config, tiny_recipe

from tnet.errors import ConfigError, TrainingError
from tnet.evaluation.comparison import work
from tnet.evaluation.comparison.run import Comparison, compare
from tnet.evaluation.comparison.suite import RowConfig, Suite
from tnet.evaluation.comparison.work import _cached, _minutes_kept, content_key, recipe_key
from tnet.evaluation.evaluator import LooksRow
from tnet.evaluation.resources import CostsConfig
from tnet.files import make_folder
from tnet.models import build_model
from tnet.models.io import load_model, model_digest, save_model
from tnet.models.tnet import TNet
from tnet.training.guide import GuideConfig
from tnet.training.recipe import Recipe, load_recipe, save_recipe

COSTS = CostsConfig(devices=("cpu",), batch_sizes=(1,), repeats=1, warmup=1, memory_batch_size=0)


# The package's attribute of that name is the function.
compare_module = sys.modules[compare.__module__]


class Log:
    """What a comparison did: which rows it trained, evaluated and timed."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, line: str) -> None:
        self.done.append(line)

    def take(self) -> list[str]:
        """Rows and what was done with them, since the last time."""
        verbs = ("resuming", "training", "evaluating", "measuring costs", "failed")
        found = [f"{line.split(',')[0].split(':')[0].split(' failed')[0]}: "
                 f"{next(verb for verb in verbs if verb in line)}" for line in self.done]  # fmt: skip
        self.done.clear()
        return found


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; the command's own test draws."""
    monkeypatch.setattr(compare_module.report, "plot_comparison", lambda lines, folder: [])
    monkeypatch.setattr(compare_module, "plot_training", lambda curves, path: path.touch())


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace training: save an untrained model and one epoch of metrics. Caching does not depend on training."""

    def train(recipe: Recipe, folder: Path, **options: object) -> SimpleNamespace:
        torch.manual_seed(recipe.seed)
        config = replace(recipe.model, num_classes=10, class_names=tuple("0123456789"))
        save_model(build_model(config), folder / "model")
        save_recipe(recipe, folder / "recipe.yaml")
        log = make_folder(folder / "logs" / "csv" / "version_0")
        (log / "metrics.csv").write_text("epoch,step,val/accuracy\n0,2,0.5\n")
        return SimpleNamespace(train_seconds=1.0)

    monkeypatch.setattr(work, "train", train)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    save_recipe(tiny_recipe(train={"epochs": 1}), tmp_path / "tiny.yaml")
    return str(tmp_path / "tiny.yaml")


def a_suite(tiny: str, *rows: RowConfig, **changes: Any) -> Suite:
    return Suite(rows=rows or (RowConfig("A", tiny, looks=(0, 2)),), costs=COSTS, **changes)


def run(suite: Suite, folder: Path, log: Log, **options: Any) -> Comparison:
    result = compare(suite, folder, progress=False, say=log, **options)
    assert not result.failures or options.get("only") != (), result.failures
    return result


ALL = ["A: training", "A: evaluating", "A: measuring costs"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_training")
def test_only_what_changed_is_done_again(tiny: str, tmp_path: Path, log: Log) -> None:
    out = tmp_path / "out"
    suite = a_suite(tiny)
    first = run(suite, out, log)
    assert log.take() == ALL
    assert run(suite, out, log).lines == first.lines
    assert log.take() == []
    # A name and a title are no content, nor is how many processes read images.
    renamed = replace(suite, title="B", workers=0, rows=(replace(suite.rows[0], name="B"),))
    assert [line.row for line in run(renamed, out, log).lines] == ["B", "B"]
    assert log.take() == []
    # Other looks: no training.
    run(replace(suite, rows=(replace(suite.rows[0], looks=(1,)),)), out, log)
    assert log.take() == ALL[1:]
    # Other repeats: times alone. Other split: images alone.
    run(replace(suite, costs=replace(COSTS, repeats=2)), out, log)
    assert log.take() == ALL[2:]
    assert run(replace(suite, split="test"), out, log).lines[0].top1 is not None
    assert ALL[1] in log.take()
    # Another recipe, by its overrides, its file or its data.
    run(replace(suite, overrides=("optim.lr=0.01",)), out, log)
    assert log.take() == ALL
    data = load_recipe(tiny).data
    run(replace(suite, data=replace(data, digits=replace(data.digits, seed=5))), out, log)
    assert log.take() == ALL
    save_recipe(tiny_recipe(train={"epochs": 2}), tiny)
    run(suite, out, log)
    assert log.take() == ALL


@pytest.mark.slow
@pytest.mark.usefixtures("quick_training")
def test_what_is_damaged_or_forced_is_done_again(tiny: str, tmp_path: Path, log: Log) -> None:
    out = tmp_path / "out"
    suite = a_suite(tiny, RowConfig("A", tiny), RowConfig("B", tiny, ("optim.lr=0.01",)))
    run(suite, out, log)
    log.take()
    for path in out.glob("cache/*/accuracy-*.json"):
        path.write_text(path.read_text()[:-30])
    run(suite, out, log)
    assert log.take() == ["A: evaluating", "B: evaluating"]
    result = run(suite, out, log, only=["A"], force=True)
    assert log.take() == ALL
    assert [line.row for line in result.lines] == ["A", "B"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_training")
def test_rows_of_the_same_recipe_are_trained_once_even_if_forced(tiny: str, tmp_path: Path, log: Log) -> None:
    suite = a_suite(tiny, RowConfig("A", tiny), RowConfig("B", tiny))
    run(suite, tmp_path / "out", log, force=True)
    assert log.take() == ALL
    run(suite, tmp_path / "out", log, force=True)
    assert log.take() == ALL


@pytest.mark.usefixtures("quick_training")
def test_rows_not_asked_for_are_shown_if_they_are_there(tiny: str, tmp_path: Path, log: Log) -> None:
    suite = a_suite(tiny, RowConfig("A", tiny), RowConfig("B", tiny, ("optim.lr=0.01",)))
    result = run(suite, tmp_path / "out", log, only=["B"])
    assert ([line.row for line in result.lines], result.missing) == (["B"], ["A"])
    assert "Not measured yet: A." in (tmp_path / "out" / "comparison.md").read_text()
    result = run(suite, tmp_path / "out", log, only=["A"])
    assert ([line.row for line in result.lines], result.missing) == (["A", "B"], [])
    with pytest.raises(ConfigError, match="'C'"):
        compare(suite, tmp_path / "out", only=["C"])


@pytest.mark.slow
def test_stages_go_on_from_each_other_seed_by_seed(tiny: str, tmp_path: Path, log: Log) -> None:
    out = tmp_path / "out"
    first = RowConfig("first", tiny, measure=False)
    second = RowConfig("second", tiny, ("optim.lr=1e-9", "optim.warmup=0"), after="first")
    suite = a_suite(tiny, first, second, seeds=(0, 1))
    result = run(suite, out, log)
    assert log.take() == [
        "first: training", "first: training", "second: training", "second: training", "second: evaluating",
        "second: evaluating", "second: measuring costs",
    ]  # fmt: skip
    (line,) = result.lines
    assert (line.row, line.seeds) == ("second", 2)
    assert line.top1 is not None and line.top1.std is not None
    assert line.effort is not None and (line.effort.steps, line.effort.images) == (6, 48)  # both stages
    # Steps so small change nothing that shows: each starts from the first stage's model of its own seed.
    for path in out.glob("cache/*/run/recipe.yaml"):
        recipe = load_recipe(path)
        if recipe.train.start_from is not None:
            before = load_recipe(Path(recipe.train.start_from).parent / "recipe.yaml")
            assert before.seed == recipe.seed and before.train.start_from is None
            old, new = load_model(recipe.train.start_from), load_model(path.parent)
            difference = (old.classifier.weight - new.classifier.weight).abs().max()
            assert float(difference.detach()) < 1e-6
    assert run(suite, out, log).lines == result.lines and log.take() == []
    # Another first stage is another start.
    run(replace(suite, seeds=(0,), rows=(replace(first, overrides=("optim.lr=0.01",)), second)), out, log)
    assert log.take() == ["first: training", "second: training", "second: evaluating", "second: measuring costs"]


@pytest.mark.slow
def test_saved_and_registered_models(tiny: str, tmp_path: Path, log: Log) -> None:
    saved = save_model(TNet(tiny_config(num_classes=10, class_names=tuple("0123456789"))), tmp_path / "saved")
    costs = replace(COSTS, image_size_hw=(96, 96))
    rows = (RowConfig("S", model=str(saved)), RowConfig("R", registered="tnet_bagnet77.imagenet", looks=(0,)))
    suite = replace(a_suite(tiny, *rows, data=load_recipe(tiny).data), costs=costs)
    result = run(suite, tmp_path / "out", log)
    assert result.failures == {}
    assert log.take() == ["S: evaluating", "S: measuring costs", "R: measuring costs"]
    s, r = result.lines
    assert s.top1 is not None and (s.effort, r.top1, r.effort) == (None, None, None)
    assert r.cost is not None and r.cost.parameters == 21_859_949
    run(suite, tmp_path / "out", log)
    assert log.take() == []
    save_model(
        TNet(tiny_config(num_classes=10, class_names=tuple("0123456789"))), saved, overwrite=True
    )  # other weights
    run(suite, tmp_path / "out", log)
    assert log.take() == ["S: evaluating", "S: measuring costs"]
    # Without data, neither knows what to be measured on.
    result = compare(replace(suite, data=None, costs=COSTS), tmp_path / "out", progress=False, say=log)
    assert "saved has no recipe.yaml" in result.failures["S"]
    assert "row 'R' has no images" in result.failures["R"]


@pytest.mark.usefixtures("quick_training")
def test_a_failure_of_any_kind_leaves_the_other_rows(
    tiny: str, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = work.train

    def fails(recipe: Any, *args: Any, **options: Any) -> Any:
        if recipe.optim.lr == 0.5:
            raise TrainingError("the loss became nan; train anew")
        if recipe.optim.lr == 0.25:
            raise ZeroDivisionError("a bug")
        return train(recipe, *args, **options)

    monkeypatch.setattr(work, "train", fails)
    rows = [RowConfig(name, tiny, (f"optim.lr={lr}",)) for name, lr in (("A", 0.5), ("B", 0.25), ("C", 0.001))]
    result = compare(a_suite(tiny, *rows), tmp_path / "out", progress=False, say=log)
    assert result.failures == {"A": "the loss became nan; train anew", "B": "ZeroDivisionError: a bug"}
    assert [line.row for line in result.lines] == ["C"]
    assert any("Traceback" in line for line in log.done)


@pytest.fixture
def interrupted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation is interrupted by Ctrl-C."""
    measure, times = work.evaluate, iter([True])

    def interrupt(*args: Any, **options: Any) -> Any:
        if next(times, False):
            raise KeyboardInterrupt
        return measure(*args, **options)

    monkeypatch.setattr(work, "evaluate", interrupt)


@pytest.mark.usefixtures("quick_training")
def test_an_interruption_says_how_to_go_on(tiny: str, tmp_path: Path, log: Log, interrupted_once: None) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        run(a_suite(tiny), tmp_path / "out", log)
    assert caught.value.__notes__ == [f"results so far are in {tmp_path / 'out'}; the same command resumes"]
    assert log.take() == ALL[:2]
    run(a_suite(tiny), tmp_path / "out", log)
    assert log.take() == ALL[1:]


def test_rows_of_many_images_are_cached(tmp_path: Path) -> None:
    measures = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "confidence"), 0.5)
    times = dict.fromkeys(("time_ms", "time_ms_min", "time_ms_max"), 1.0)
    counts = {"total_looks": 0, "images": 10_000, "macs": 1, "parameters": 1, "batch_size": 1}
    unknown = dict.fromkeys(("top5", "auc", "jaccard"))
    row = LooksRow((), policy="none", device="cpu", right="01" * 5000, **counts, **measures, **times, **unknown)
    path = tmp_path / "rows.json"
    assert _cached(path, LooksRow, lambda: [row], make=True) == _cached(path, LooksRow, lambda: [], make=False) == [row]


def test_keys_are_of_content(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    assert recipe_key(recipe) == recipe_key(replace(recipe, title="x", train=replace(recipe.train, workers=2)))
    others = [tiny_recipe(seed=1), tiny_recipe(optim={"lr": 0.5}), tiny_recipe(data={"max_side_px": 5})]
    save_model(TNet(tiny_config()), tmp_path / "a" / "model")
    others.append(tiny_recipe(train={"start_from": str(tmp_path / "a")}))
    assert len({recipe_key(other) for other in [recipe, *others]}) == 5
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert model_digest(tmp_path / "a") == model_digest(tmp_path / "b" / "model")
    moved = tiny_recipe(train={"start_from": str(tmp_path / "b")})
    assert recipe_key(moved) == recipe_key(others[-1])  # the same weights elsewhere
    guides = [GuideConfig(teacher=str(tmp_path / name), maps=maps) for name in "ab" for maps in (None, f"{name}.st")]
    keys = [recipe_key(tiny_recipe(train={"guide": guide})) for guide in guides]
    assert keys[:2] == keys[2:] and len({recipe_key(recipe), *keys}) == 3
    assert recipe_key(tiny_recipe(train={"guide": GuideConfig(teacher="self")})) not in (recipe_key(recipe), *keys)
    with pytest.raises(ConfigError, match="has no config.json"):
        model_digest(tmp_path)
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) != content_key({"a": 1, "b": 3})


def test_time_before_a_kill_counts_up_to_the_last_checkpoint(tmp_path: Path) -> None:
    assert _minutes_kept(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    for name, seconds in (("recipe.yaml", 1000), ("checkpoints/last.ckpt", 1090)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    assert _minutes_kept(tmp_path) == 1.5
    os.utime(tmp_path / "recipe.yaml", (2000, 2000))  # a second part, killed before its first checkpoint
    assert _minutes_kept(tmp_path) == 0
