from __future__ import annotations

import platform
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tnet.cli.main import app
from tnet.threads import usable_cpus

GOOD = SimpleNamespace(
    kind="pillow", extra="", installed=True, versions={"pillow": "13.0", "numpy": "2.4"}, works=True, detail=""
)
MISSING = SimpleNamespace(
    kind="openslide", extra="wsi", installed=False, versions={}, works=False, detail="slides of scanners"
)
BROKEN = SimpleNamespace(
    kind="rasterio", extra="geo", installed=True, versions={"rasterio": "1.4"}, works=False, detail="libgdal is gone"
)


def doctor(monkeypatch: pytest.MonkeyPatch, *statuses: Any) -> tuple[int, list[str]]:
    module = ModuleType("tnet.scenes.readers.doctor")
    module.reader_status = lambda: list(statuses)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    result = CliRunner().invoke(app, ["doctor"])
    return result.exit_code, result.output.splitlines()


def test_versions_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, lines = doctor(monkeypatch, GOOD)
    assert code == 0
    assert lines[0].startswith(f"Python       {platform.python_version()} ")
    torch_line = next(line for line in lines if line.startswith("torch "))
    assert torch_line.split()[1].startswith(torch.__version__.partition("+")[0])
    cpus = f"{torch.get_num_threads()} threads ({usable_cpus()} usable CPUs, "
    assert any(line.startswith(f"  works    cpu         {cpus}") for line in lines)
    assert "  works    pillow      pillow 13.0, numpy 2.4" in lines


def test_what_is_missing_is_no_failure_and_has_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = doctor(monkeypatch, GOOD, MISSING)
    assert code == 0
    assert "  missing  openslide   slides of scanners; pip install 'tnet[wsi]'" in lines


def test_what_is_installed_but_broken_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = doctor(monkeypatch, GOOD, BROKEN, MISSING)
    assert code == 1
    assert "  BROKEN   rasterio    rasterio 1.4; libgdal is gone" in lines
    assert lines[-1].startswith("Something that is installed does not work")


def test_a_gpu_that_does_not_compute_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*shape: int, device: str) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    about = SimpleNamespace(name="Made", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda name: about)
    monkeypatch.setattr(torch, "zeros", zeros)
    code, lines = doctor(monkeypatch, GOOD)
    assert code == 1
    line = next(line for line in lines if "cuda:0" in line)
    assert line.startswith("  BROKEN   cuda:0      Made, 8 GiB: ") and "no kernel image" in line


def test_the_readers_of_this_machine() -> None:
    readers = pytest.importorskip("tnet.scenes.readers.doctor")
    result = CliRunner().invoke(app, ["doctor"])
    statuses = readers.reader_status()
    assert result.exit_code == int(any(status.installed and not status.works for status in statuses))
    listed = result.output.partition("Readers of images\n")[2].splitlines()
    assert [line.split()[1] for line in listed[: len(statuses)]] == [status.kind for status in statuses]
