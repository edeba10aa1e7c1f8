"""One small saved model for all verbs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_config

from tnet.models.io import save_model
from tnet.models.tnet import TNet


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = TNet(tiny_config(class_names=("ant", "bee", "cat", "dog", "elk")))
    return save_model(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved_model: Path, tmp_path: Path) -> Path:
    """A copy, so that a test may put a recipe beside it."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))
