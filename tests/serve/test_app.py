"""The endpoint: predictions, limits, and what is refused."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from tests.helpers import tiny_config
from tests.serve.fakes import SlowOptions

from tnet.errors import ImageError
from tnet.inference.predictor import DEFAULT_READ, predict
from tnet.models.tnet import TNet
from tnet.serve.app import Limits, create_app
from tnet.serve.decoding import Decoder

LIMITS = Limits(body_bytes=20_000, waiting=4, seconds=5, batch_size=4)


@pytest.fixture(scope="module")
def model() -> TNet:
    torch.manual_seed(0)
    return TNet(tiny_config(class_names=("ant", "bee", "cat", "dog", "elk"))).eval()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for index in range(3):
        noise = np.random.default_rng(index).integers(256, size=(64, 80), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{index}.png")
    (root.parent / "secret.png").write_bytes((root / "0.png").read_bytes())
    return root


@pytest.fixture(scope="module")
def client(model: TNet, root: Path) -> Iterator[TestClient]:
    app = create_app(model, DEFAULT_READ, hosts=["testserver"], root=root, limits=LIMITS)
    with TestClient(app) as client:
        yield client


def send(client: TestClient, data: bytes, kind: str = "image/png", query: str = "") -> Any:
    return client.post(f"/predict{query}", content=data, headers={"content-type": kind})


def test_answers_are_those_of_predict(client: TestClient, model: TNet, root: Path) -> None:
    for looks in (None, 0, 2):
        (expected,) = predict(model, root / "1.png", looks=looks)
        query = "" if looks is None else f"?looks={looks}"
        sent = send(client, (root / "1.png").read_bytes(), query=query)
        named = client.post(f"/predict{query}", json={"path": "1.png"})
        assert sent.status_code == named.status_code == 200
        as_json = json.loads(json.dumps({**asdict(expected), "path": "1.png"}))
        assert named.json() == as_json
        assert sent.json() == {**as_json, "path": ""}


@pytest.mark.parametrize(
    ("data", "kind", "query", "status", "error"),
    [
        (b"no image", "image/png", "", 422, "(sent)"),
        (b"", "image/png", "", 400, "no body"),
        (b"x" * 20_001, "image/png", "", 413, "more than 0.0190735 MB"),
        (b"{}", "application/json", "", 400, "not JSON with a path"),
        (b'{"path": 3}', "application/json", "", 400, "not JSON with a path"),
        (b'{"path": "../secret.png"}', "application/json", "", 404, "below the root"),
        (b'{"path": "/etc/passwd"}', "application/json", "", 404, "below the root"),
        (b'{"path": "none.png"}', "application/json", "", 404, "below the root"),
        (b"a=b", "application/x-www-form-urlencoded", "", 415, "send the bytes of an image"),
        (b"x", "image/png", "?looks=99", 400, "looks"),
        (b"x", "image/png", "?looks=a", 400, "looks is not valid"),
    ],
)
def test_what_is_refused(client: TestClient, data: bytes, kind: str, query: str, status: int, error: str) -> None:
    answer = send(client, data, kind, query)
    assert answer.status_code == status and error in answer.text
    assert "/tmp" not in answer.text


def test_small_images_are_refused_and_the_server_goes_on(client: TestClient, root: Path) -> None:
    small = io.BytesIO()
    Image.new("L", (8, 8)).save(small, "PNG")
    answer = send(client, small.getvalue())
    assert answer.status_code == 422 and "8 x 8 pixels" in answer.json()["error"]
    assert send(client, (root / "0.png").read_bytes()).status_code == 200


def test_health_metrics_and_hosts(client: TestClient) -> None:
    assert client.get("/health").json()["classes"] == ["ant", "bee", "cat", "dog", "elk"]
    metrics = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    assert int(metrics["tnet_images_total"]) >= 1 and metrics["tnet_requests_running"] == "0"
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/predict").status_code == 405
    assert client.get("/none").status_code == 404


def test_too_many_requests_are_refused_at_once(client: TestClient, model: TNet, root: Path, monkeypatch: Any) -> None:
    data, go, statuses = (root / "0.png").read_bytes(), threading.Event(), []
    forward = TNet.forward

    def held(*arguments: Any, **options: Any) -> Any:
        assert go.wait(20)
        return forward(*arguments, **options)

    monkeypatch.setattr(TNet, "forward", held)
    threads = [threading.Thread(target=lambda: statuses.append(send(client, data).status_code)) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while "tnet_requests_running 4" not in client.get("/metrics").text and time.monotonic() < until:
        time.sleep(0.01)
    refused = send(client, data)
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    go.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4


@pytest.mark.slow
def test_images_that_take_too_long_or_kill_cost_a_process_and_no_more() -> None:
    decoder = Decoder(SlowOptions(), seconds=0.5)
    try:
        assert decoder.decode(b"fine").shape == (1, 2, 3)
        with pytest.raises(ImageError, match="more than 0.5 s to decode"):
            decoder.decode(b"slow")
        assert decoder.decode(b"fine").shape == (1, 2, 3)
        with pytest.raises(ImageError, match="the process that decoded the image ended"):
            decoder.decode(b"crash")
        assert decoder.decode(b"fine").shape == (1, 2, 3)
    finally:
        decoder.close()
