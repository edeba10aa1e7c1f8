"""Models on the Hub, offline: loading from a cache, and the files that are pushed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import hub_mixin
from tests.helpers import tiny_config

from tnet.baselines.saccader import Saccader
from tnet.errors import CheckpointError
from tnet.models.base import Model
from tnet.models.io import load_model, save_model
from tnet.models.tnet import TNet

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Cache of the Hub with the model you/photos."""
    saved = save_model(TNet(tiny_config(class_names=tuple("abcde"))), tmp_path / "saved")
    repository = tmp_path / "cache" / "models--you--photos"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved, repository / "snapshots" / ("0" * 40))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [TNet, Model])
def test_cached_model_loads_offline(cache: Path, kind: type[Model]) -> None:
    model = kind.from_pretrained("you/photos", cache_dir=cache)
    expected = load_model(cache.parent / "saved")
    assert isinstance(model, TNet) and not model.training and model.config == expected.config
    images = torch.rand(2, 1, 96, 96)
    assert torch.equal(model(images).logits, expected(images).logits)


def test_from_pretrained_loads_a_folder(cache: Path) -> None:
    assert TNet.from_pretrained(cache.parent / "saved").config == load_model(cache.parent / "saved").config


def test_missing_model(cache: Path) -> None:
    for name in ("you/others", "no such name", "a/b/c"):
        with pytest.raises(CheckpointError, match=f"model {name} "):
            TNet.from_pretrained(name, cache_dir=cache)


def test_model_of_another_class(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="you/photos is a TNet, not a Saccader"):
        Saccader.from_pretrained("you/photos", cache_dir=cache)


def test_pickled_weights_are_ignored(cache: Path) -> None:
    folder = next((cache / "models--you--photos" / "snapshots").iterdir())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TNet.from_pretrained("you/photos", cache_dir=cache)


def test_save_pretrained_writes_the_files_of_save_model(tmp_path: Path) -> None:
    model = TNet(tiny_config())
    assert model.save_pretrained(tmp_path / "model") is None
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    assert load_model(tmp_path / "model").config == model.config


def test_push_to_hub_uploads_the_files_of_save_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            sent["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            sent["private"] = options["private"]
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
            sent["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            sent["model"] = load_model(folder_path)
            return f"commit of {repo_id}"

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    model = TNet(tiny_config())
    assert model.push_to_hub("you/photos", private=True, token="t") == "commit of you/photos"
    assert (sent["files"], sent["private"], sent["token"]) == (FILES, True, "t")
    assert sent["model"].config == model.config
    url = model.save_pretrained(tmp_path / "photos", push_to_hub=True, repo_id="you/more", private=False)
    assert url == "commit of you/more" and sent["private"] is False
