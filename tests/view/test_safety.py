"""What the viewer refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.websockets import WebSocketDisconnect
from tests.view.conftest import ADDRESS, HOSTILE, Viewer

from tnet.models import TNet
from tnet.view import runs, safety
from tnet.view.errors import NotFoundError
from tnet.view.safety import find_image

ADDRESSES = ("/", "/static/index.html", "/api/model", "/api/images", "/api/image?path=slide.tif", "/nothing")


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_answer_has_the_headers(shared: Viewer, address: str) -> None:
    headers = shared.client.get(address).headers
    policy = headers["content-security-policy"]
    for directive in ("default-src 'self'", "script-src 'self'", "object-src 'none'", "frame-ancestors 'none'"):
        assert directive in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers and "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "link.png", "linked/outside.png", "../outside.png", "ant/../../outside.png",
        "ant/../slide.tif", "./slide.tif", "ant//image1.png", ".hidden/secret.png", "notes.txt", "ant", "", "/", ".",
        "..", "slide.tif\0", "slide.tif\0.png", "\0", "a" * 5000 + ".png", "a" * 300 + ".png", "missing.png",
        "ant\\image1.png", "C:/slide.tif", "file:///etc/passwd.png", "~/slide.tif", "\ud800.png", "slide.tif/x.png",
    ],
)  # fmt: skip
def test_paths_that_lead_elsewhere(root: Path, path: str) -> None:
    with pytest.raises(NotFoundError, match="there is no image .* below the root; choose one from the list"):
        find_image(root, path)


def test_paths_that_lead_elsewhere_have_no_route(shared: Viewer, root: Path) -> None:
    absolute = str(root / "slide.tif")
    for path in ("link.png", "../outside.png", absolute, ".hidden/secret.png", "slide.tif\0"):
        for address in ("/api/image", "/api/thumb", "/api/tile"):
            answer = shared.client.get(address, params={"path": path, "level": 0, "col": 0, "row": 0})
            assert answer.status_code == 404 and "below the root" in answer.json()["error"]
        assert "below the root" in shared.error(404, path)


def test_links_in_a_circle_and_links_inside(root: Path) -> None:
    circle = root / "circle.png"
    circle.symlink_to(circle)
    try:
        with pytest.raises(NotFoundError):
            find_image(root, "circle.png")
    finally:
        circle.unlink()
    assert find_image(root, "inner.png") == root / "inner.png"
    assert find_image(root, HOSTILE) == root / HOSTILE


def test_links_out_of_an_image_that_is_a_folder(model: TNet, pixels: np.ndarray, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    root = tmp_path / "images"
    for place in (tmp_path / "outside.zarr", root / "chunk.zarr", root / "row.zarr"):
        zarr.create_array(place, shape=(700, 1100), dtype="uint8", chunks=(350, 1100))[:] = pixels[..., 0]
    for link in (root / "chunk.zarr" / "c" / "1" / "0", root / "row.zarr" / "c" / "1", root / "all.zarr"):
        if link.exists():
            link.rename(tmp_path / link.parts[-2])
        link.symlink_to(tmp_path / "outside.zarr" / link.relative_to(root / link.relative_to(root).parts[0]))
    viewer = Viewer(model, root)
    assert [item["path"] for item in viewer.get("/api/images")["items"]] == ["chunk.zarr", "row.zarr"]
    for name in ("chunk.zarr", "row.zarr"):
        for address in ("/api/thumb", "/api/tile"):
            answer = viewer.client.get(address, params={"path": name, "level": 11, "col": 0, "row": 2})
            assert answer.status_code == 422 and "a link that leads out of it" in answer.json()["error"]
            assert str(tmp_path) not in answer.text
        assert "a link that leads out of it" in viewer.error(422, name)
    assert "below the root" in viewer.error(404, "all.zarr")


def test_static_files_are_a_fixed_list(shared: Viewer) -> None:
    assert shared.client.get("/").headers["content-type"].startswith("text/html")
    for name in ("", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd", "index.html/", "app.py"):
        answer = shared.client.get(f"/static/{name}")
        assert answer.status_code == 404 and answer.json()["error"], name
    for name in ("/docs", "/redoc", "/openapi.json", "/api", "/api/", "/api/label"):
        assert shared.client.get(name).status_code in (404, 405)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:1234", 200), ("127.0.0.1:8765", 200), ("[::1]:8765", 200), ("LOCALHOST", 200),
        ("evil.example", 403), ("evil.example:8765", 403), ("localhost.evil.example", 403), ("192.168.0.7", 403),
        ("127.0.0.1.evil.example", 403), ("", 403), ("localhost@evil.example", 403), ("[", 403), ("evil.example#", 403),
    ],
)  # fmt: skip
def test_hosts(shared: Viewer, host: str, status: int) -> None:
    answer = shared.client.get("/api/model", headers={"host": host})
    assert answer.status_code == status
    assert status == 200 or "this server is not addressed as" in answer.json()["error"]


def test_a_host_that_was_given(model: TNet, root: Path) -> None:
    named = Viewer(model, root, host="viewer.lab").client
    assert named.get("/api/model", headers={"host": "viewer.lab:8765"}).status_code == 200
    assert named.get("/api/model", headers={"host": "10.0.0.1"}).status_code == 403
    everywhere = Viewer(model, root, host="0.0.0.0").client
    assert everywhere.get("/api/model", headers={"host": "10.0.0.1:8765"}).status_code == 200
    assert everywhere.get("/api/model", headers={"host": "evil.example"}).status_code == 403


RUN = {"path": "slide.tif", "looks": 0}


@pytest.mark.parametrize(
    ("headers", "status", "problem"),
    [
        ({"origin": "http://evil.example"}, 403, "own page"),
        ({"origin": "http://localhost:1"}, 403, "own page"),
        ({"origin": "null"}, 403, "own page"),
        ({"origin": ""}, 403, "own page"),
        ({"origin": "ftp://localhost:8765"}, 403, "own page"),
        ({"origin": "http://localhost:8765.evil.example"}, 403, "own page"),
        ({"x-tnet-token": "guess"}, 403, "reload"),
        ({"x-tnet-token": ""}, 403, "reload"),
        ({"x-tnet-token": "\xff"}, 403, "reload"),
        ({"content-type": "text/plain"}, 415, "JSON"),
        ({"content-type": "application/x-www-form-urlencoded"}, 415, "JSON"),
        ({"sec-fetch-site": "cross-site"}, 403, "another site"),
        ({"content-length": "99999999"}, 413, "64 kilobytes"),
        ({"content-length": "-5"}, 413, "64 kilobytes"),
        ({"content-length": "9" * 5000}, 413, "64 kilobytes"),
    ],
)
def test_posts_of_others(shared: Viewer, headers: dict[str, Any], status: int, problem: str) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = shared.post("/api/run", RUN, **raw)
    assert answer.status_code == status and problem in answer.json()["error"]


def test_a_post_without_origin(shared: Viewer) -> None:
    answer = shared.client.post("/api/run", json=RUN, headers={"x-tnet-token": shared.token})
    assert answer.status_code == 403


def test_tokens_differ(model: TNet, root: Path) -> None:
    assert Viewer(model, root).token != Viewer(model, root).token


def test_other_sites_may_link_but_not_embed(shared: Viewer) -> None:
    elsewhere = {"sec-fetch-site": "cross-site"}
    assert shared.client.get("/", headers=elsewhere).status_code == 200
    for address in ADDRESSES[1:]:
        assert shared.client.get(address, headers=elsewhere).status_code == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "BREW"])
def test_methods(shared: Viewer, method: str) -> None:
    assert shared.client.request(method, "/api/images").status_code == 405


def test_nothing_changes_by_get(shared: Viewer) -> None:
    for address in ("/api/run?path=slide.tif&looks=1", "/api/label?path=slide.tif&label=ant"):
        answer = shared.client.get(address)
        assert answer.status_code in (404, 405) and answer.json()["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff", b"[" * 60000, b'{"path": "slide.tif", "looks": NaN}',
     b'{"path": 5, "looks": 1}', b'{"path": "slide.tif", "looks": 1e400}', b'{"path": "\\ud800.png", "looks": 1}'],
)  # fmt: skip
def test_bodies_that_are_no_request(shared: Viewer, body: bytes) -> None:
    headers = {"origin": ADDRESS, "x-tnet-token": shared.token, "content-type": "application/json"}
    answer = shared.client.post("/api/run", content=body, headers=headers)
    assert answer.status_code in (400, 404) and answer.json()["error"]


def test_a_body_that_hides_its_length(shared: Viewer) -> None:
    headers = {"origin": ADDRESS, "x-tnet-token": shared.token, "content-type": "application/json"}
    answer = shared.client.post("/api/run", content=(b" " * 8192 for _ in range(20)), headers=headers)
    assert answer.status_code == 413 and "64 kilobytes" in answer.json()["error"]


def test_too_many_requests(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "MAX_REQUESTS", 0)
    answer = viewer.client.get("/api/model")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert "too many requests" in answer.json()["error"]
    monkeypatch.undo()
    assert viewer.client.get("/api/model").status_code == 200


def test_too_many_wait_for_the_model(
    model: TNet, root: Path, monkeypatch: pytest.MonkeyPatch, counted: Callable[[], int]
) -> None:
    monkeypatch.setattr(runs, "_MAX_WAITING", 1)
    viewer, inside, go_on = Viewer(model, root), threading.Event(), threading.Event()
    describe = TNet.describe

    def slow(self: TNet, *arguments: Any) -> Any:
        inside.set()
        assert go_on.wait(20)
        return describe(self, *arguments)

    monkeypatch.setattr(TNet, "describe", slow)
    first = threading.Thread(target=viewer.run, args=("slide.tif", 0))
    first.start()
    try:
        assert inside.wait(20)
        answer = viewer.post("/api/run", {"path": "ant/image1.png", "looks": 0})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert "busy" in answer.json()["error"]
        # Whoever only looks around does not wait.
        assert viewer.client.get("/api/thumb?path=slide.tif").status_code == 200
    finally:
        go_on.set()
        first.join()
    assert viewer.post("/api/run", {"path": "ant/image1.png", "looks": 0}).status_code == 200


def test_names_never_reach_a_page(shared: Viewer) -> None:
    for address in ("/api/images", f"/api/image?path={HOSTILE}", f"/{HOSTILE}", f"/static/{HOSTILE}"):
        answer = shared.client.get(address)
        assert answer.headers["content-type"] == "application/json"
    assert HOSTILE.encode() not in shared.client.get("/").content
    about = shared.get("/api/model")
    assert about["classes"][2] == "<b>"


def test_a_web_socket(shared: Viewer) -> None:
    with pytest.raises(WebSocketDisconnect), shared.client.websocket_connect("/"):
        pass
