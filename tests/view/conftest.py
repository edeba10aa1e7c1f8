"""A folder of images, good and bad, and a viewer of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from tests.helpers import three_levels, tiny_config

from tnet.models import TNet
from tnet.scenes.pyramid import write_pyramid
from tnet.view.app import create_app

HOSTILE = "<img src=x onerror=alert(1)>.png"
ADDRESS = "http://localhost:8765"


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise: no two places look alike, and JPEG changes little."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Pixels of ``slide.tif``."""
    return noise(700, 1100)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("viewer")
    root = folder / "images"
    for name in ("ant", "bee", ".hidden"):
        (root / name).mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "outside.png")
    write_pyramid(folder / "outside.png", root / "slide.tif", smallest_px=128)
    Image.fromarray(noise(90, 120, 1)).save(root / HOSTILE)
    for number in (1, 2, 10):
        Image.fromarray(noise(100, 130, number)).save(root / "ant" / f"image{number}.png")
    Image.fromarray(noise(300, 80, 5)).save(root / "bee" / "tall.png")
    Image.fromarray(noise(96, 96, 6)).save(root / ".hidden" / "secret.png")
    (root / "bee" / "broken.png").write_bytes((root / "ant" / "image1.png").read_bytes()[:300])
    (root / "notes.txt").write_text("not an image", encoding="utf-8")
    (root / "link.png").symlink_to(folder / "outside.png")
    (root / "linked").symlink_to(folder)
    (root / "inner.png").symlink_to(root / "ant" / "image1.png")
    return root


@pytest.fixture(scope="session")
def model() -> TNet:
    torch.manual_seed(0)
    config = tiny_config(in_channels=3, class_names=("ant", "bee", "<b>", "dog", "elk"))
    model = TNet(config).eval()
    with torch.no_grad():  # so that each look changes the answer
        model.classifier.weight.mul_(20)
        image = torch.tensor(noise(96, 96, 3)).permute(2, 0, 1)[None]
        model.classifier.bias.sub_(model(image, looks=0).logits[0])
    return model


@pytest.fixture(scope="session")
def deep_model() -> TNet:
    torch.manual_seed(0)
    return TNet(three_levels(in_channels=3)).eval()


class Viewer:
    """A viewer's page: what it sends, the browser's part included."""

    def __init__(self, model: Any, root: Path, **options: Any) -> None:
        self.app = create_app(model, root, **options)
        self.client = TestClient(self.app, base_url=ADDRESS)
        self.token = self.get("/api/model")["token"]

    def get(self, address: str, **query: Any) -> Any:
        answer = self.client.get(address, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, address: str, body: Any, **headers: str) -> Any:
        known = {"origin": ADDRESS, "x-tnet-token": self.token}
        return self.client.post(address, json=body, headers=known | headers)

    def run(self, path: str = "slide.tif", looks: int = 2, **more: Any) -> Any:
        answer = self.post("/api/run", {"path": path, "looks": looks, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def error(self, status: int, path: str, looks: int = 2, **more: Any) -> str:
        answer = self.post("/api/run", {"path": path, "looks": looks, **more})
        assert answer.status_code == status, answer.text
        return str(answer.json()["error"])


@pytest.fixture
def viewer(model: TNet, root: Path) -> Viewer:
    return Viewer(model, root)


@pytest.fixture(scope="session")
def shared(model: TNet, root: Path) -> Viewer:
    """A viewer that several tests use, for what leaves no trace."""
    return Viewer(model, root)


@pytest.fixture
def counted(model: TNet, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The number of regions that the backbone has seen since the last call."""
    seen, describe = [0], TNet.describe

    def counting(self: TNet, pixels: Any, is_region: Any) -> Any:
        seen[0] += len(pixels)
        return describe(self, pixels, is_region)

    def count() -> int:
        number, seen[0] = seen[0], 0
        return number

    monkeypatch.setattr(TNet, "describe", counting)
    return count
