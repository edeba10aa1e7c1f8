"""Peak memory, measured in processes of their own; a few seconds each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_config

from tnet.errors import ConfigError
from tnet.evaluation.memory import peak_memory_bytes
from tnet.models.io import save_model
from tnet.models.tnet import TNet


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(TNet(tiny_config()), tmp_path_factory.mktemp("models") / "model")


@pytest.mark.slow
def test_more_images_take_more_memory(model: Path) -> None:
    few = peak_memory_bytes(model, (64, 64), 2, batch_size=1)
    many = peak_memory_bytes(model, (1024, 1024), 2, batch_size=64)
    # 64 images of 1 MiB in memory at least, and of some ten thousand parameters no gigabytes.
    assert 0 < few < 64 * 2**20
    assert few + 64 * 2**20 < many < few + 640 * 2**20


@pytest.mark.slow
def test_what_fails_there_is_said_here(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"could not be measured with 1 image.*asks for 99 locations.*memory_batch"):
        peak_memory_bytes(model, (64, 64), 99)


def test_it_does_not_wait_for_ever(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"within 0.01 s; set costs.memory_batch_size lower"):
        peak_memory_bytes(model, (64, 64), timeout_s=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_peak_allocation_on_a_gpu(model: Path) -> None:
    few = peak_memory_bytes(model, (64, 64), 2, batch_size=1, device="cuda")
    many = peak_memory_bytes(model, (1024, 1024), 2, batch_size=64, device="cuda")
    assert few + 64 * 2**20 <= many
