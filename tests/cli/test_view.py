"""``tnet view``: what it says when it cannot start, and how it starts and ends."""

from __future__ import annotations

import errno
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from tests.helpers import pictures, tiny_config
from torchvision.transforms.functional import to_pil_image
from typer.testing import CliRunner

from tnet.cli import view
from tnet.cli.main import app
from tnet.errors import ConfigError
from tnet.models import TNet
from tnet.models.io import save_model
from tnet.view.serve import address_of, listen


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    to_pil_image(pictures((300, 400))[0]).save(tmp_path / "images" / "a.png")
    return tmp_path / "images"


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["view", *map(str, arguments), "--no-open", "--device", "cpu"])
    assert result.exit_code == 1 and "Traceback" not in result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_problems_are_sentences(model: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "missing" in refused(model, "--root", tmp_path / "missing", "--port", 0)
    assert "is not a folder" in refused(model, "--root", root / "a.png", "--port", 0)
    assert "config.json" in refused(root, "--root", root, "--port", 0)
    assert "missing.csv does not exist" in refused(
        model, "--root", root, "--port", 0, "--predictions", tmp_path / "missing.csv"
    )
    assert "ends with" in refused(model, "--root", root, "--port", 0, "--labels", tmp_path / "labels.txt")
    monkeypatch.setattr(view, "find_spec", lambda _: None)
    assert "pip install 'tnet[view]'" in refused(model, "--root", root)


def test_a_port_in_use(model: Path, root: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        message = refused(model, "--root", root, "--port", port)
        assert f"port {port} of 127.0.0.1 is in use" in message and "--port" in message
        with pytest.raises(ConfigError, match="in use"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("number", "problem"),
    [(errno.EADDRNOTAVAIL, "not an address of this machine"), (errno.EACCES, "give a --port of 1024 or more")],
)
def test_addresses_that_cannot_be_used(number: int, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **options: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(socket, "create_server", fail)
    with pytest.raises(ConfigError, match=problem):
        listen("127.0.0.1", 80)


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as local, listen("0.0.0.0", 0) as everywhere:
        assert address_of(local) == f"http://127.0.0.1:{local.getsockname()[1]}/"
        assert address_of(everywhere) == f"http://localhost:{everywhere.getsockname()[1]}/"
    if socket.has_ipv6:
        with listen("::1", 0) as new:
            assert address_of(new) == f"http://[::1]:{new.getsockname()[1]}/"


@pytest.mark.slow
def test_it_serves_ten_people_and_ends_at_once(root: Path, tmp_path: Path) -> None:
    model = save_model(TNet(tiny_config()), tmp_path / "model")
    # A shell that runs the tests in the background has them ignore Ctrl-C.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "import sys; sys.argv[0] = 'tnet'; from tnet.cli.main import main; main()"
    command = [sys.executable, "-c", code, "view", str(model), "--root", str(root), "--port", "0", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0]
            browse = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
            with browse(f"{address}api/model", timeout=30) as answer:
                token = json.load(answer)["token"]
            failures: list[Exception] = []

            def look_around(person: int) -> None:
                try:
                    for _ in range(5):
                        tile = f"{address}api/tile?path=a.png&level={person % 9}&col=0&row=0"
                        browse(tile, timeout=30).close()
                    body = json.dumps({"path": "a.png", "looks": person % 9}).encode()
                    headers = {"X-Tnet-Token": token, "Origin": address.rstrip("/"), "Content-Type": "application/json"}
                    request = urllib.request.Request(f"{address}api/run", body, headers)
                    with browse(request, timeout=30) as answer:
                        assert len(json.load(answer)["regions"]) == 1 + person % 9
                except Exception as error:
                    failures.append(error)

            people = [threading.Thread(target=look_around, args=(person,)) for person in range(10)]
            for person in people:
                person.start()
            for person in people:
                person.join()
            assert not failures
            # A browser keeps its connection open.
            host, port = address.removeprefix("http://").rstrip("/").split(":")
            with socket.create_connection((host, int(port))) as idle:
                idle.sendall(b"GET /api/model HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert idle.recv(100).startswith(b"HTTP/1.1 200")
                process.send_signal(signal.SIGINT)
                started = time.monotonic()
                while idle.recv(1000):  # the rest of the answer, until the server hangs up
                    pass
                assert time.monotonic() - started < 3
                _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
