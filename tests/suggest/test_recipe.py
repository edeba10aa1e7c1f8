"""Proposals follow from sizes, numbers and budget; what is written is what was proposed."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tnet.backbones import BackboneConfig
from tnet.cost import build_outline, multiply_adds
from tnet.data.config import DataConfig
from tnet.errors import ConfigError
from tnet.geometry import total_looks
from tnet.models.config import TNetConfig
from tnet.models.registry import model_config
from tnet.objectives import ObjectiveConfig
from tnet.suggest.plan import Weights, choose_plan
from tnet.suggest.reasons import data_warnings, model_reasons, model_warnings
from tnet.suggest.recipe import OBJECTIVE, OPTIM, Proposal, explain, parse_macs, propose, recipe_text
from tnet.suggest.survey import ImageFacts, Survey
from tnet.training.config import TrainConfig
from tnet.training.recipe import load_recipe, parse_recipe

BACKBONE = "test_resnet"  # weights made at 160 px


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a network, of which nothing here may make use."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def survey_of(
    *sizes_hw: tuple[int, int], counts: tuple[int, ...] = (300, 250), root: str = "photos", **facts: bool | int
) -> Survey:
    shown = tuple(ImageFacts(Path(f"{index}.png"), size, **facts) for index, size in enumerate(sizes_hw))  # type: ignore[arg-type]
    names = tuple(f"class {index}" for index in range(len(counts)))
    return Survey(DataConfig(root=root), names, False, counts, sum(counts), 80, shown)


@cache  # the same questions come up in several tests
def ask(*sizes_hw: tuple[int, int], budget: int | None = None, backbone: str = BACKBONE, **changes: object) -> Proposal:
    return propose(survey_of(*sizes_hw, **changes), budget_macs=budget, backbone=backbone)  # type: ignore[arg-type]


def model_of(proposal: Proposal) -> TNetConfig:
    assert isinstance(proposal.recipe.model, TNetConfig)
    return proposal.recipe.model


def warned(proposal: Proposal) -> str:
    return "\n".join(proposal.warnings)


# --- geometry


@pytest.mark.parametrize(
    ("size_hw", "base_px", "levels"),
    [
        ((227, 227), 80, 2),
        ((480, 640), 160, 3),
        ((1296, 1936), 160, 4),
    ],
)
def test_the_last_look_shows_native_resolution(size_hw: tuple[int, int], base_px: int, levels: int) -> None:
    proposal = ask(size_hw)
    model = model_of(proposal)
    assert (model.base_px, model.levels) == (base_px, levels)
    region_px = max(size_hw) * model.grid.cell_extent ** (levels - 1)
    assert region_px == pytest.approx(base_px, rel=1e-3)
    assert "native resolution" in explain(proposal) and not proposal.warnings


def test_larger_and_longer_images_at_inference() -> None:
    proposal = ask(*[(320, 320)] * 8, (1200, 1200), (320, 900))
    model, text = model_of(proposal), " ".join(explain(proposal).split())
    region_px = [1200 * model.grid.cell_extent**level for level in (2, 3)]
    assert model.levels == 2 and region_px[0] > model.base_px > region_px[1]
    assert "the largest images have 1200 px and take 4 levels to native resolution, 2 are trained" in text
    assert "add --levels 4 and --looks 3 or more to tnet predict" in text
    assert "1 of 10 images are 1.5 times as long as wide" in text and "--aspect keep" in text
    text = " ".join(explain(ask((320, 320))).split())
    assert "--levels" not in text and "--aspect" not in text


def test_the_paper_sizes() -> None:
    """Fundus photographs, with the backbone that is taken by default: 224 px, 3 levels of 5 x 5 cells of 0.34."""
    model = model_of(ask((1296, 1936), backbone="mobilenetv2_100"))
    assert (model.base_px, model.levels, model.looks, model.grid.rows) == (224, 3, (2, 2), 5)
    assert model.grid.cell_extent == pytest.approx(0.34, abs=0.001) and model.normalization[0][0] == 0.485


def test_no_picture_is_smaller_than_the_base() -> None:
    proposal = ask(*[(1000, 1000)] * 9, (100, 140))
    assert model_of(proposal).base_px == 96
    assert re.search(r"9\.png \(100 x 140 px\) is far smaller than most", warned(proposal))
    proposal = ask(*[(1000, 1000)] * 9, (40, 40))
    assert model_of(proposal).levels == 1 and "9.png (40 x 40 px)" in warned(proposal)


@pytest.mark.parametrize("size_hw", [(28, 28), (50, 400)])
def test_small_pictures_get_the_plain_network(size_hw: tuple[int, int]) -> None:
    proposal = ask(size_hw)
    assert model_of(proposal).looks == () and "too small to gain" in warned(proposal)
    assert parse_recipe(recipe_text(proposal)) == proposal.recipe


@pytest.mark.slow
def test_transformers_get_whole_patches() -> None:
    proposal = ask((2000, 2000), backbone="vit_small_patch14_dinov2")
    assert model_of(proposal).base_px == 224 and proposal.macs_full is None
    assert "2000 x 2000 px" in explain(proposal)


# --- budget


def test_without_a_budget_it_is_half_of_full_resolution() -> None:
    proposal = ask((227, 227))
    assert proposal.macs_full is not None and proposal.macs <= proposal.macs_full / 2
    assert "at most half as much as the plain backbone" in explain(proposal)
    near = ask((100, 100))
    assert near.macs_full is not None and near.macs_full / 2 < near.macs < near.macs_full
    assert model_of(near).looks == (1,) and "less than twice" in warned(near)


def test_the_plain_network_of_the_same_cost_is_named_and_its_recipe_is_this_one(tmp_path: Path) -> None:
    proposal = ask((1296, 1936))
    side = re.search(r"costs as much with levels: 1, looks: \[\], base_px: (\d+)", " ".join(explain(proposal).split()))
    assert side is not None
    (tmp_path / "recipe.yaml").write_text(recipe_text(proposal))
    changes = ["model.levels=1", "model.looks=[]", f"model.base_px={side[1]}", "model.num_classes=2"]
    plain = load_recipe(tmp_path / "recipe.yaml", changes).model
    assert isinstance(plain, TNetConfig)
    assert multiply_adds(build_outline(plain)) == pytest.approx(proposal.macs, rel=0.1)
    assert "costs as much" not in explain(ask((28, 28)))


def test_costs_are_those_of_the_recipe() -> None:
    proposal = ask((1296, 1936))
    outline = build_outline(replace(proposal.recipe.model, num_classes=2))
    assert multiply_adds(outline) == proposal.macs and multiply_adds(outline, 0) == proposal.macs_base


@pytest.mark.parametrize("share", [3.0, 0.3, 0.05])
def test_a_budget_is_kept(share: float) -> None:
    free = ask((1296, 1936))
    budget = int(free.macs * share)
    proposal = ask((1296, 1936), budget=budget)
    assert proposal.macs <= budget
    model = model_of(proposal)
    if share > 1:
        assert proposal.recipe == free.recipe
    else:
        assert (model.base_px, total_looks(model.looks)) != (160, total_looks(model_of(free).looks))
    if share == 0.05:
        assert re.search("does not reach native resolution|leaves nothing for looks", warned(proposal))


def test_a_budget_that_nothing_fits() -> None:
    with pytest.raises(ConfigError, match=r"1\.00 M .*test_resnet \(16\.4 M at 64 px\)"):
        ask((500, 500), budget=1_000_000)


@pytest.mark.parametrize(
    ("text", "macs"), [("1.0G", 10**9), ("300M", 3 * 10**8), ("2e8", 2 * 10**8), (" 1.5 g", 15 * 10**8), ("7", 7)]
)
def test_budgets_are_read(text: str, macs: int) -> None:
    assert parse_macs(text) == macs


@pytest.mark.parametrize("text", ["", "much", "G", "-1G", "0", "nan", "inf", "1.0GB", "1,5G", "1e999", "0.1"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ConfigError, match="multiply-adds"):
        parse_macs(text)


def test_no_such_backbone() -> None:
    with pytest.raises(ConfigError, match="resnet10q"):
        ask((500, 500), backbone="resnet10q")


# --- the rest


def test_training_follows_the_number_of_pictures() -> None:
    few, many = ask((227, 227), counts=(4, 5)), ask((227, 227), counts=(9000, 9000))
    assert few.recipe.train.batch_size == 2 and few.recipe.train.epochs == 50
    assert many.recipe.train.batch_size == 32 and many.recipe.train.epochs == 5
    assert few.recipe.data.augment.brightness and not many.recipe.data.augment.brightness
    assert many.recipe.optim.backbone_lr == 1e-4
    (short,), (enough,) = ([r.text for r in proposal.reasons if r.topic == "epochs"] for proposal in (few, many))
    assert short.startswith("50 of 4 steps each, 200 steps instead of 2000")
    assert "aiming at" in enough


@pytest.mark.parametrize(
    ("size_hw", "looks", "expected"),
    [
        ((227, 227), (3,), ObjectiveConfig(worth_weight=1.0, reinforce_weight=0.0)),
        ((480, 640), (2, 1), ObjectiveConfig(worth_weight=1.0)),  # the second is alone in its region
        ((100, 100), (1,), ObjectiveConfig()),
        ((28, 28), (), ObjectiveConfig()),
    ],
)
def test_the_locator_learns_from_worth_where_looks_can_be_compared(
    size_hw: tuple[int, int], looks: tuple[int, ...], expected: ObjectiveConfig
) -> None:
    proposal = ask(size_hw)
    assert (model_of(proposal).looks, proposal.recipe.objective) == (looks, expected)
    text = recipe_text(proposal)
    assert ("\nobjective:\n" in text) is (expected != ObjectiveConfig())
    assert parse_recipe(text) == proposal.recipe


def test_slides_are_read_lazily_and_turned() -> None:
    recipe = ask((20_000, 30_000), is_lazy=True, has_no_up=True).recipe
    assert recipe.data.read == "lazy" and recipe.data.augment.quarter_turns and recipe.data.augment.vertical_flip


def test_a_backbone_without_weights_starts_at_random() -> None:
    assert Weights.of("resnet10t").hub_id
    proposal = ask((600, 600), backbone="bagnet77")
    assert not model_of(proposal).backbone.pretrained and proposal.recipe.optim.backbone_lr is None
    assert "starts at random" in explain(proposal) and "Offline" not in recipe_text(proposal)


def test_warnings() -> None:
    def about(*sizes_hw: tuple[int, int], **changes: object) -> str:
        return "\n".join(data_warnings(survey_of(*sizes_hw, **changes)))  # type: ignore[arg-type]

    assert "class 1 (5)" in about((600, 600), counts=(300, 5))
    assert "class 0 has 300 training images, class 1 only 25" in about((600, 600), counts=(300, 25))
    assert "sizes vary" in about((300, 300), (600, 600), (1000, 1000))
    assert "up to 8 bands" in about((600, 600), bands=8, is_lazy=True)
    assert "tnet pyramid" in about((6000, 6000), is_lazy=True, is_flat=True)
    assert not about((600, 600), (640, 640), counts=(300, 150))
    from_a_phone = replace(survey_of((600, 600)), left_out=((".cr2", 1), (".heic", 30)))
    assert "left out: 1 .cr2, 30 .heic" in "\n".join(data_warnings(from_a_phone))


def test_weights_in_the_cache_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    survey, weights = survey_of((600, 600)), Weights.of(BACKBONE)
    plan = choose_plan(survey, weights, None)
    assert "HF_HUB_OFFLINE" in "\n".join(model_warnings(survey, plan, weights, None))
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("0" * 40) / "model.safetensors").write_bytes(b"weights")
    assert not list(model_warnings(survey, plan, weights, None))
    assert "in the local cache" in next(model_reasons(survey, plan, weights, None)).text


# --- in writing


@pytest.mark.parametrize(
    "root", ["photos", "1e5", "null", "a: b # c", "new\nline", 'quo"te', "naïve été", "\udcff", "line\u2028s", "\x07"]
)
def test_the_recipe_reads_back_for_any_folder_name(root: str) -> None:
    proposal = ask((600, 600))
    title, data = f"{root}, 2 classes", replace(proposal.recipe.data, root=root)
    survey, recipe = replace(proposal.survey, data=data), replace(proposal.recipe, title=title, data=data)
    proposal = replace(proposal, survey=survey, recipe=recipe)
    text = recipe_text(proposal)
    assert parse_recipe(text) == recipe
    text.encode()
    explain(proposal).encode()
    assert max(map(len, text.splitlines())) <= 120


def test_every_reason_and_warning_is_a_comment() -> None:
    proposal = ask((600, 600), counts=(300, 5))
    comments = " ".join(line.strip(" #") for line in recipe_text(proposal).splitlines() if line.strip()[:1] == "#")
    for text in (*(reason.text for reason in proposal.reasons), *proposal.warnings):
        assert text in comments
    shown = " ".join(explain(proposal).split())
    assert all(reason.text in shown for reason in proposal.reasons)


# --- one set of defaults


def test_own_images_and_proposals_have_the_same_constants(repository: Path) -> None:
    own = load_recipe(repository / "recipes/own_images.yaml")
    assert own.model == TNetConfig(backbone=BackboneConfig(pretrained=True))
    assert (own.objective, own.optim) == (OBJECTIVE, OPTIM)
    assert own.train.recalibrate_batches == TrainConfig().recalibrate_batches
    proposed = model_of(ask((1296, 1936)))
    assert (
        replace(proposed, base_px=224, backbone=own.model.backbone, levels=2, looks=(3,), grid=own.model.grid)
        == own.model
    )
    assert model_config("tnet_mobilenetv2_100.own") == replace(TNetConfig(), num_classes=1000)
