"""Sizes and multiply-adds of the registered models: as published, as PyTorch counts, and as arithmetic says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from tests.macs_formula import (
    Traversal,
    bagnet77,
    birds_tnet,
    efficientnet,
    fmow_tnet,
    imagenet_tnet,
    plain,
)

from tnet.cost import build_outline, count_parameters, full_image_multiply_adds, multiply_adds
from tnet.models.registry import list_models, model_config
from tnet.models.tnet import TNet

# Published: trainable parameters, and these with the running statistics of batch norm; those of traversal networks
# with the scalar reward baseline too, which here belongs to the objective. None: not published.
PUBLISHED_PARAMETERS = {
    "tnet_bagnet77.imagenet": (21_859_949, 21_859_950),
    "tnet_efficientnet_b0.fmow_448": (4_517_575, 4_559_592),
    "tnet_efficientnet_b0.fmow_896": (4_517_575, 4_559_592),
    "tnet_efficientnet_b0.cub": (5_516_434, 5_558_451),
    "tnet_efficientnet_b1.cub": (None, 8_069_459),
    "tnet_efficientnet_b2.cub": (None, 9_549_017),
    "tnet_efficientnet_b3.cub": (None, 12_872_623),
    "tnet_efficientnet_b4.cub": (None, 20_456_467),
    "bagnet77.imagenet": (20_546_664, 20_546_664),
    "efficientnet_b0.fmow": (4_086_970, 4_128_986),
    "efficientnet_b0.cub": (4_263_748, 4_305_764),
    "efficientnet_b1.cub": (None, 6_831_432),
    "efficientnet_b2.cub": (None, 8_050_362),
    "efficientnet_b3.cub": (None, 11_090_928),
    "efficientnet_b4.cub": (None, 18_032_416),
}

# Published, by looks: multiply-adds of one image.
PUBLISHED_TNET_MACS = {
    ("tnet_bagnet77.imagenet", ()): 1_824_065_266,
    ("tnet_bagnet77.imagenet", (1,)): 3_627_919_282,
    ("tnet_bagnet77.imagenet", (2,)): 5_431_773_298,
    ("tnet_bagnet77.imagenet", (3,)): 7_235_627_314,
    ("tnet_bagnet77.imagenet", (5,)): 10_843_335_346,
    ("tnet_efficientnet_b0.fmow_448", (2,)): 1_155_036_194,
    ("tnet_efficientnet_b0.fmow_896", (2, 1)): 1_925_172_436,
    ("tnet_efficientnet_b1.cub", (3,)): 2_276_290_090,
    ("tnet_efficientnet_b1.cub", (5,)): 3_413_855_210,
    ("tnet_efficientnet_b2.cub", (3,)): 2_633_603_842,
    ("tnet_efficientnet_b2.cub", (5,)): 3_949_708_770,
    ("tnet_efficientnet_b3.cub", (3,)): 3_848_662_402,
    ("tnet_efficientnet_b3.cub", (5,)): 5_772_189_602,
    ("tnet_efficientnet_b4.cub", (3,)): 6_013_020_378,
    ("tnet_efficientnet_b4.cub", (5,)): 9_018_466_458,
}
# Published to five digits only.
PUBLISHED_TNET_GMACS = {
    ("tnet_efficientnet_b0.cub", (3,)): 1.5412,
    ("tnet_efficientnet_b0.cub", (5,)): 2.3111,
}
# Published, by side of the image in pixels.
PUBLISHED_PLAIN_MACS = {
    ("bagnet77.imagenet", 224): 18_423_134_976,
    ("efficientnet_b0.cub", 448): 1_536_513_408,
    ("efficientnet_b1.cub", 448): 2_270_417_280,
    ("efficientnet_b2.cub", 448): 2_626_562_176,
    ("efficientnet_b3.cub", 448): 3_839_417_216,
    ("efficientnet_b4.cub", 448): 5_998_679_904,
}
PUBLISHED_PLAIN_GMACS = {
    ("efficientnet_b0.fmow", 224): 0.3846,
    ("efficientnet_b0.fmow", 448): 1.5363,
    ("efficientnet_b0.fmow", 896): 6.1432,
}

# The classes of each data set.
CLASSES = {"imagenet": 1000, "fmow": 62, "cub": 200, "nabirds": 555}

# Our own designs have no published description.
TNETS = [name for name in list_models("tnet_*") if not name.endswith(".own")]
PLAIN = [name for name in list_models() if getattr(model_config(name), "levels", 0) == 1]
PERMILLE = 1e-3  # what the way of counting may differ by; the formula follows the published way exactly


@cache
def outline_of_side(name: str, base_px: int) -> TNet:
    return build_outline(replace(model_config(name), base_px=base_px))


def outline(name: str, base_px: int | None = None) -> TNet:
    return outline_of_side(name, base_px or model_config(name).base_px)


@cache
def counted_macs(name: str, looks: tuple[int, ...] = (), px: int | None = None) -> int:
    return multiply_adds(outline(name, px), looks)


def mark_slow(cases: Iterable[str | tuple[str, Any]]) -> list[Any]:
    """Mark sizes above B0 and twins with another number of classes as slow."""
    fast = re.compile(r".*(bagnet77\.imagenet|_b0\.fmow\w*|_b0\.cub)")
    marked = []
    for case in cases:
        values = (case,) if isinstance(case, str) else case
        marked.append(pytest.param(*values, marks=() if fast.fullmatch(values[0]) else pytest.mark.slow))
    return marked


def tnet_formula(name: str) -> Traversal:
    """The description that belongs to ``tnet_efficientnet_SIZE.TAG`` and the like."""
    architecture, tag = name.split(".")
    if tag == "imagenet":
        return imagenet_tnet()
    if tag.startswith("fmow"):
        return fmow_tnet()
    return birds_tnet(architecture.rpartition("_")[2], CLASSES[tag])


def plain_formula(name: str, px: int, *, published: bool) -> int:
    """What ``bagnet77.TAG`` or ``efficientnet_SIZE.TAG`` costs on images of that side."""
    architecture, tag = name.split(".")
    glimpse = bagnet77(px) if architecture == "bagnet77" else efficientnet(architecture.rpartition("_")[2], px)
    return plain(glimpse, CLASSES[tag], published=published)


@pytest.mark.parametrize("name", mark_slow(PUBLISHED_PARAMETERS))
def test_parameters_are_those_published(name: str) -> None:
    model, (trainable, total) = outline(name), PUBLISHED_PARAMETERS[name]
    count = count_parameters(model)
    assert trainable in (None, count.trainable)
    assert count.total + (model.config.levels > 1) == total


# --- published figures


@pytest.mark.parametrize(("name", "looks"), mark_slow(PUBLISHED_TNET_MACS))
def test_multiply_adds_of_traversals_are_those_published(name: str, looks: tuple[int, ...]) -> None:
    published = PUBLISHED_TNET_MACS[name, looks]
    assert tnet_formula(name).macs(looks, published=True) == published
    counted = counted_macs(name, looks)
    if not looks:
        # Published with the locator, whose answer is of no use with 0 looks; it is not run here.
        counted += tnet_formula(name).locator()
    assert counted == pytest.approx(published, rel=PERMILLE)


@pytest.mark.parametrize(("name", "looks"), PUBLISHED_TNET_GMACS)
def test_multiply_adds_of_the_smallest_bird_traversal_are_those_published(name: str, looks: tuple[int, ...]) -> None:
    published = PUBLISHED_TNET_GMACS[name, looks]
    assert round(tnet_formula(name).macs(looks, published=True) / 1e9, 4) == published
    assert counted_macs(name, looks) / 1e9 == pytest.approx(published, rel=PERMILLE)


@pytest.mark.parametrize(("name", "px"), mark_slow(PUBLISHED_PLAIN_MACS))
def test_multiply_adds_of_plain_networks_are_those_published(name: str, px: int) -> None:
    published = PUBLISHED_PLAIN_MACS[name, px]
    assert plain_formula(name, px, published=True) == published
    assert counted_macs(name, px=px) == pytest.approx(published, rel=PERMILLE)


@pytest.mark.parametrize(("name", "px"), PUBLISHED_PLAIN_GMACS)
def test_multiply_adds_of_the_satellite_baselines_are_those_published(name: str, px: int) -> None:
    published = PUBLISHED_PLAIN_GMACS[name, px]
    assert round(plain_formula(name, px, published=True) / 1e9, 4) == published
    assert counted_macs(name, px=px) / 1e9 == pytest.approx(published, rel=PERMILLE)


@pytest.mark.parametrize("name", mark_slow(["tnet_efficientnet_b0.cub", "tnet_efficientnet_b1.cub"]))
def test_the_backbone_of_a_traversal_on_the_whole_image_costs_what_the_plain_network_does(name: str) -> None:
    assert full_image_multiply_adds(outline(name), (448, 448)) == PUBLISHED_PLAIN_MACS[name.removeprefix("tnet_"), 448]


# --- formula against PyTorch's counter


@pytest.mark.parametrize("name", mark_slow(TNETS))
def test_the_formula_says_what_is_counted_for_traversals(name: str) -> None:
    formula = tnet_formula(name)
    two_levels: list[tuple[int, ...]] = [(), (3,), (5,)]
    three_levels: list[tuple[int, ...]] = [(), (2,), (2, 1), (9, 3)]
    for looks in three_levels if model_config(name).levels > 2 else two_levels:
        assert counted_macs(name, looks) == formula.macs(looks, published=False)


@pytest.mark.parametrize("name", mark_slow(PLAIN))
def test_the_formula_says_what_is_counted_for_plain_networks(name: str) -> None:
    px = model_config(name).base_px
    assert counted_macs(name, px=px) == plain_formula(name, px, published=False)
