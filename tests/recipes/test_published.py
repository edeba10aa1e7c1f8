"""The published recipes: each is the registered model, and says where it comes from; and each can be tried out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tnet.evaluation.cost import build_outline, count_parameters, multiply_adds
from tnet.models.base import ModelConfig
from tnet.models.config import TNetConfig
from tnet.models.registry import model_config
from tnet.training.recipe import Recipe, load_recipe
from tnet.training.smoke import smoke

SIZES = ("b0", "b1", "b2", "b3", "b4")
BIRDS = ("cub", "nabirds")

# What each recipe's model is called in the registry.
MODELS = {
    "imagenet_tnet": "tnet_bagnet77.imagenet",
    "imagenet_bagnet77": "bagnet77.imagenet",
    **{f"imagenet_saccader_{stage}": "saccader.imagenet" for stage in (1, 2, 3)},
    "imagenet_dram": "dram.imagenet",
    "fmow_tnet_448": "tnet_efficientnet_b0.fmow_448",
    "fmow_tnet_896": "tnet_efficientnet_b0.fmow_896",
    **{f"fmow_b0_{size}": "efficientnet_b0.fmow" for size in ("224", "224_crops", "448", "896")},
    **{f"{birds}_tnet_{size}": f"tnet_efficientnet_{size}.{birds}" for birds in BIRDS for size in SIZES},
    **{f"{birds}_{size}": f"efficientnet_{size}.{birds}" for birds in BIRDS for size in SIZES},
}

# Published parameters, running statistics included; without the scalar reward baseline, which is the objective's.
PARAMETERS = {
    "imagenet_tnet": 21_859_949,
    "imagenet_bagnet77": 20_546_664,
    "imagenet_saccader_3": 35_583_913,
    "imagenet_dram": 45_610_219,
    "fmow_tnet_448": 4_559_591,
    "fmow_tnet_896": 4_559_591,
    "fmow_b0_224": 4_128_986,
    "fmow_b0_896": 4_128_986,
    **dict(
        zip(
            (f"cub_tnet_{size}" for size in SIZES),
            (5_558_450, 8_069_458, 9_549_016, 12_872_622, 20_456_466),
            strict=True,
        )
    ),
    **dict(
        zip((f"cub_{size}" for size in SIZES), (4_305_764, 6_831_432, 8_050_362, 11_090_928, 18_032_416), strict=True)
    ),
}

# Published multiply-adds (G) with the number of locations, ours with the classification of each single feature on top.
GIGA = {
    ("imagenet_tnet", 1): 3.63, ("imagenet_tnet", 3): 7.24, ("imagenet_tnet", 5): 10.84,
    ("imagenet_bagnet77", None): 18.42, ("imagenet_saccader_3", None): 19.5,
    ("fmow_tnet_448", None): 1.1550, ("fmow_tnet_896", None): 1.9252,
    ("fmow_b0_224", None): 0.3846, ("fmow_b0_448", None): 1.5363, ("fmow_b0_896", None): 6.1432,
    ("cub_tnet_b0", 3): 1.5412, ("cub_tnet_b0", 5): 2.3111, ("cub_tnet_b4", 5): 9.0185, ("cub_b4", None): 5.9987,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipes(repository: Path) -> dict[str, Recipe]:
    return {path.stem: load_recipe(path) for path in sorted((repository / "recipes/published").glob("*.yaml"))}


def test_every_published_row_has_a_recipe(recipes: dict[str, Recipe]) -> None:
    assert recipes.keys() == MODELS.keys() and len(recipes) == 32


def plain(config: ModelConfig) -> ModelConfig:
    """Without what training chooses: looks, dropout and stochastic depth, and where weights come from."""
    if not isinstance(config, TNetConfig):
        return replace(config, looks=1)  # type: ignore[call-arg]
    kwargs = {key: value for key, value in config.backbone.kwargs.items() if key != "stochastic_depth"}
    backbone = replace(config.backbone, name=config.backbone.name.partition(".")[0], pretrained=False, kwargs=kwargs)
    return replace(config, backbone=backbone, looks=(1,) * len(config.looks), dropout=0.0)


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_s_model_is_the_registered_one(name: str, recipes: dict[str, Recipe]) -> None:
    expected, model = model_config(MODELS[name]), recipes[name].model
    if name in ("fmow_b0_448", "fmow_b0_896"):
        expected = replace(expected, base_px=int(name[-3:]))  # type: ignore[call-arg]
    assert plain(model) == plain(expected)


def test_recipes_say_where_they_come_from(recipes: dict[str, Recipe], repository: Path) -> None:
    for name in recipes:
        text = (repository / "recipes/published" / f"{name}.yaml").read_text()
        for part in ("# Source: ", "# Task: ", "# Published", "# Not run here.", f"recipes/published/{name}.yaml"):
            assert part in text, (name, part)


def test_what_differs_from_recipe_to_recipe(recipes: dict[str, Recipe]) -> None:
    """Optimiser, length, regularisation, as published."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, recipe in recipes.items():
        optim, train, model = recipe.optim, recipe.train, recipe.model
        assert (optim.name, optim.eps, optim.schedule, optim.drop_factor, optim.warmup, optim.clip_norm) == (
            "keras_adam", 1e-7, "step", 0.1, 0.0, None
        ), name  # fmt: skip
        depth = model.backbone.kwargs.get("stochastic_depth") if isinstance(model, TNetConfig) else None
        dropout = model.dropout if isinstance(model, TNetConfig) else None
        found[name] = (optim.lr, optim.backbone_lr, optim.drop_at, train.epochs, train.batch_size, dropout, depth)
    assert found["imagenet_tnet"] == found["imagenet_bagnet77"] == (1e-4, None, 0.8, 200, 64, 0.0, None)
    assert found["fmow_tnet_448"] == (1e-3, None, 0.8, 40, 64, 0.5, 0.3)
    assert found["fmow_tnet_896"] == (1e-3, None, 0.8, 10, 64, 0.5, 0.5)
    assert found["fmow_b0_224_crops"] == (1e-3, None, 0.8, 65, 64, 0.75, 0.5)
    assert found["fmow_b0_224"] == (1e-3, None, 0.8, 60, 64, 0.75, 0.5)
    assert found["fmow_b0_448"] == (1e-3, None, 0.8, 30, 32, 0.75, 0.3)
    assert found["fmow_b0_896"] == (1e-3, None, 0.8, 30, 32, 0.3, 0.2)
    for birds in BIRDS:
        for size in SIZES:
            epochs = 125 if size == "b4" else 200
            assert found[f"{birds}_tnet_{size}"] == (1e-3, 1e-4, 0.9, epochs, 64, 0.75, 0.5)
            assert found[f"{birds}_{size}"] == (1e-3, 5e-5, 0.9, 200, 64, 0.75, 0.5)


def test_the_augmentation_is_the_published_one_at_the_size_that_is_evaluated(recipes: dict[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        data, augment = recipe.data, recipe.data.augment
        assert data.kind == name.split("_")[0] and data.preprocess == f"reference_{augment.resize_px}", name
        crop = (augment.crop_area, augment.crop_aspect, augment.crop_aspect_absolute, augment.crop_box_share)
        assert crop == ((0.85, 1.0), (0.5, 2.0), True, 0.1) and augment.resize_methods == "eight"
        birds = data.kind in BIRDS
        assert augment.colour_cases == (not birds) and (augment.translation == 0.1) == birds
        assert (augment.rotation, augment.rotation_fill) == ((20.0, "black") if birds else (0.0, "edge"))
        assert data.boxes == ("none" if birds else "crop" if name.endswith("crops") else "cover")


def test_objectives_are_the_published_ones(recipes: dict[str, Recipe]) -> None:
    def weights(name: str) -> tuple[float, ...]:
        objective: Any = recipes[name].objective
        return (objective.joint_weight_ce, objective.joint_weight_reinforce, objective.reinforce_weight,
                objective.per_feature_levels, objective.contrastive_weight, objective.l2_weight)  # fmt: skip

    assert weights("imagenet_tnet") == (0.3, 0.3, 0.1, 0, 0, 0)
    assert weights("fmow_tnet_448") == (0.2, 0.2, 0.1, 0, 0, 0)
    assert weights("fmow_tnet_896") == (0.05, 0.05, 0.1, 2, 0, 0)
    assert weights("cub_tnet_b3") == (0.3, 0.3, 0.1, 0, 100, 1e-4)
    assert weights("nabirds_tnet_b3") == (0.3, 0.3, 0.1, 0, 50, 1e-4)
    assert weights("cub_b3")[5] == weights("nabirds_b3")[5] == 1e-4 and weights("fmow_b0_896")[5] == 1e-5
    scopes = {name: getattr(recipe.objective, "l2_scope", None) for name, recipe in recipes.items()}
    assert {scopes[name] for name in scopes if name.startswith(BIRDS)} == {"new"} and scopes["fmow_b0_448"] == "all"


def test_stages_go_on_from_each_other(recipes: dict[str, Recipe]) -> None:
    before = {name: recipe.train.start_from for name, recipe in recipes.items() if recipe.train.start_from}
    assert before == {
        "fmow_tnet_896": "runs/fmow_tnet_448",
        "imagenet_saccader_2": "runs/imagenet_saccader_1",
        "imagenet_saccader_3": "runs/imagenet_saccader_2",
    }
    stages = [recipes[f"imagenet_saccader_{stage}"].objective.stage for stage in (1, 2, 3)]  # type: ignore[union-attr]
    assert stages == ["representation", "location", "joint"]


def test_the_new_layers_of_birds_are_all_but_the_backbone(recipes: dict[str, Recipe]) -> None:
    parts = {name.split(".")[0] for name, _ in build_outline(recipes["cub_tnet_b0"].model).named_parameters()}
    assert parts == {"backbone", "classifier", "aggregation", "position", "locator"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str, recipes: dict[str, Recipe]) -> None:
    assert count_parameters(build_outline(recipes[name].model)).total == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "looks"), GIGA)
def test_multiply_adds_are_the_published_ones(name: str, looks: int | None, recipes: dict[str, Recipe]) -> None:
    found = multiply_adds(build_outline(recipes[name].model), looks) / 1e9
    assert found == pytest.approx(GIGA[name, looks], rel=2e-3)


# Of each data set and kind of model the cheapest, and the largest network.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["imagenet_tnet", "imagenet_saccader_2", "imagenet_dram", "fmow_tnet_896", "fmow_b0_224_crops", "cub_tnet_b0",
     "cub_b0", "nabirds_tnet_b4"],
)  # fmt: skip
def test_a_published_recipe_can_be_tried_out(name: str, recipes: dict[str, Recipe]) -> None:
    result = smoke(recipes[name], progress=False)
    assert len(result.metrics) == 1 and not result.folder.exists()
    assert type(result.recipe.model) is type(recipes[name].model)
