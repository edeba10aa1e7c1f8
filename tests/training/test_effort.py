"""A budget in multiply-adds: the images seen follow the cost of one, and the schedule follows the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.helpers import TINY_RESNET, tiny_config, tiny_recipe

from tnet.baselines.ips import IPSConfig
from tnet.baselines.patches import PatchObjectiveConfig
from tnet.cost import build_outline, multiply_adds
from tnet.data.digits import MegapixelDigits
from tnet.training.effort import within_effort
from tnet.training.module import TNetModule
from tnet.training.recipe import Recipe, load_recipe
from tnet.training.run import train

MACS = multiply_adds(build_outline(tiny_config()))


def bounded(recipe: Recipe) -> tuple[int, int | None]:
    """Epochs and images per epoch within the effort."""
    train = within_effort(recipe, MegapixelDigits(recipe.data.digits, "train")).train
    return train.epochs, train.images_per_epoch


@pytest.mark.parametrize(
    ("images", "changes", "epochs", "per_epoch"),
    [
        (24, {}, 1, 24),
        (31, {}, 1, 24),  # whole steps of 8
        (48, {}, 2, 24),
        (47, {}, 2, 16),  # 5 steps, in equal epochs
        (1, {}, 1, 8),  # at least one step
        (10**6, {}, 3, 24),  # the recipe ends before
        (64, {"images_per_epoch": None}, 2, 32),  # of 40 images
        (64, {"images_per_epoch": None, "batch_size": 64}, 1, 40),
        (48, {"devices": 2}, 3, 16),
    ],
)  # fmt: skip
def test_images_within_a_budget(images: int, changes: dict[str, int | None], epochs: int, per_epoch: int) -> None:
    recipe = tiny_recipe(train={"max_gmacs": images * MACS / 1e9, **changes})
    assert bounded(recipe) == (epochs, per_epoch)
    assert bounded(tiny_recipe(train=changes)) == (3, changes.get("images_per_epoch", 24))  # without a budget


@pytest.mark.parametrize(
    ("whole", "looking", "epochs", "per_epoch"),
    [
        (48, 1, 3, 8),  # 2 of the epochs see whole images, at a third of the cost: 17 images of 40 with looks
        (48, 24, 3, 24),
        (48, 32, 4, 16),  # equal epochs: 2 steps each, not 3 in the first two
        (48, 10**6, 5, 24),  # the recipe ends before
        (1, 0, 3, 8),  # the epoch with looks stays
    ],
)
def test_epochs_without_looks_cost_less(whole: int, looking: int, epochs: int, per_epoch: int) -> None:
    macs = whole * multiply_adds(build_outline(tiny_config()), 0) + looking * MACS
    recipe = tiny_recipe(train={"max_gmacs": macs / 1e9, "epochs": 5, "no_looks_epochs": 2})
    assert bounded(recipe) == (epochs, per_epoch)


def test_a_model_of_twice_the_cost_sees_half_the_images() -> None:
    double = tiny_config(looks=(5,))
    recipe = replace(tiny_recipe(train={"max_gmacs": 48 * MACS / 1e9}), model=double)
    assert multiply_adds(build_outline(double)) == pytest.approx(2 * MACS, rel=0.01)
    assert bounded(recipe) == (1, 24)


def test_the_cost_of_what_depends_on_the_size_is_that_of_the_images() -> None:
    config = IPSConfig(in_channels=1, backbone=TINY_RESNET, backbone_stages=4, patch_px=32, looks=2, step=4)
    recipe = tiny_recipe()
    budget = 24 * multiply_adds(build_outline(config), image_size_hw=(96, 96)) / 1e9
    recipe = Recipe(model=config, objective=PatchObjectiveConfig(), data=recipe.data, train=recipe.train)
    recipe = replace(recipe, train=replace(recipe.train, max_gmacs=budget))
    assert bounded(recipe) == (1, 24)  # its typical image of 960 px costs 100 times as much


def test_a_run_keeps_its_budget_and_finishes_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    progress = TNetModule.progress

    def recorded(module: TNetModule, step: int) -> float:
        shares.append(progress(module, step))
        return shares[-1]

    monkeypatch.setattr(TNetModule, "progress", recorded)
    recipe = tiny_recipe(train={"epochs": 1000, "max_gmacs": 32.5 * MACS / 1e9})
    result = train(recipe, tmp_path, progress=False)
    assert [row["step"] for row in result.metrics] == [1, 3] and shares[-1] == 1
    assert load_recipe(tmp_path / "recipe.yaml").train == recipe.train  # as it was given


@pytest.mark.parametrize("suite", ["digits", "imagenette"])
def test_systems_of_a_suite_have_one_budget(suite: str) -> None:
    names = ("tnet", "ips", "attention_sampling", "dram", "bagnet77_lowd")
    budgets = {load_recipe(f"baselines/{name}_{suite}").train.max_gmacs for name in names}
    stages = [load_recipe(f"baselines/saccader_{stage}_{suite}").train.max_gmacs or 0 for stage in (1, 2, 3)]
    assert budgets == {sum(stages)} == {900}
