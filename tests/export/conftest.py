"""One small model and its exports, shared by the tests; exporting takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.export.forms import build
from tests.helpers import tiny_config, tiny_recipe
from typer.testing import CliRunner, Result

from tnet.backbones import BackboneConfig
from tnet.cli.main import app
from tnet.models import PolicyConfig, PositionConfig, TNet
from tnet.models.io import save_model
from tnet.training.recipe import save_recipe

# As few layers as there can be.
SMALL = BackboneConfig(
    "bagnet77",
    kwargs={"planes": [4] * 4, "blocks": [1] * 4, "expansion": 1, "feature_dim": 16, "spatial_dropout": 0.0},
)


def tnet(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def small(**changes: Any) -> TNet:
    names = ("ant", "bee", "cat", "dog", "elk")
    return build(tiny_config(**{"backbone": SMALL, "in_channels": 3, "class_names": names} | changes))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of two levels."""
    return save_model(small(), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="session")
def whole(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Its export for images of 90 x 70 px with 1 look, and what the command said."""
    folder = tmp_path_factory.mktemp("export") / "whole"
    return folder, tnet("export", saved, folder, "--size", "90x70", "--looks", 1)


@pytest.fixture(scope="session")
def saved_deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three levels, with batch norm per level, cells that overlap, and a recipe that downscales images."""
    run = tmp_path_factory.mktemp("run")
    changes = {"position": PositionConfig("concat"), "policy": PolicyConfig(max_overlap=0.5)}
    backbone = BackboneConfig("resnet10t", kwargs={"channels": [8, 8, 16, 16], "stem_width": 8})
    model = small(levels=3, looks=(3, 1), backbone=backbone, batch_norm="per_level", **changes)
    save_model(model, run / "model")
    save_recipe(tiny_recipe(data={"max_side_px": 180}), run / "recipe.yaml")
    return run


@pytest.fixture(scope="session")
def parts(saved_deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its parts."""
    folder = tmp_path_factory.mktemp("export") / "parts"
    assert tnet("export", saved_deep, folder, "--parts").exit_code == 0
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Blurred noise; the last is larger than the recipe of the run allows."""
    paths = []
    for number, (height, width) in enumerate(((150, 133), (140, 180), (200, 210))):
        pixels = np.random.default_rng(number).integers(256, size=(height // 6, width // 6, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths
