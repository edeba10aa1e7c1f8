"""What the packaging promises, and that the guards in conftest.py do guard."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from tests.helpers import regions

from tnet.losses import divergence


@pytest.fixture
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def lock(repository: Path) -> str:
    return (repository / "requirements.lock").read_text(encoding="utf-8")


def normalized_name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


def test_the_lock_names_no_host(lock: str) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|\.(org|com|io|net|dev)\b", lock)


def test_every_locked_package_has_hashes(lock: str) -> None:
    pinned = re.findall(r"^[\w.-]+==.*$(?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?$)+", lock, flags=re.MULTILINE)
    entries = [line for line in lock.splitlines() if line and not line.startswith(("#", " "))]
    assert len(pinned) == len(entries) > 0


def test_the_lock_has_every_requirement(project: dict[str, Any], lock: str) -> None:
    groups = project["dependency-groups"]
    wanted = project["project"]["dependencies"] + groups["build"] + [r for r in groups["dev"] if isinstance(r, str)]
    locked = set(re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE))
    assert {normalized_name(requirement) for requirement in wanted} <= locked


def test_every_lower_bound_has_its_reason(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL).group(1)
    lines = [line.strip() for line in block.splitlines()]
    without = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if line.startswith('"') and (">=" not in line or not before.startswith("#") or before.startswith("# ---"))
    ]
    assert without == []


def test_types_are_shipped(repository: Path) -> None:
    assert (repository / "src" / "tnet" / "py.typed").is_file()


def test_shapes_are_checked() -> None:
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3), multilabel=False) == 0
    with pytest.raises(BeartypeCallHintViolation, match="Float"):
        divergence(torch.zeros(2, 3), torch.zeros(1, 3), multilabel=False)  # which PyTorch would broadcast
    table = regions([(0, 0, 4, 4)] * 2)
    with pytest.raises(BeartypeCallHintViolation, match="Int"):
        replace(table, image=table.image[:1])


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.invalid"])
def test_the_network_is_refused(host: str, network_attempts: list[str]) -> None:
    with pytest.raises(ConnectionRefusedError, match="offline"):
        socket.create_connection((host, 80), timeout=1)
    assert host in network_attempts[0]
    network_attempts.clear()  # else the guard fails this test, as it should any other


def test_the_network_is_refused_to_other_processes() -> None:
    fetch = "import urllib.request; urllib.request.urlopen('http://example.invalid', timeout=5)"
    done = subprocess.run([sys.executable, "-c", fetch], capture_output=True, text=True, check=False)
    assert "Connection refused" in done.stderr


def test_this_machine_is_not_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
