"""Freed memory stays with the process after `keep_freed_memory`."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from tnet.allocator import keep_freed_memory

RESIDENT = """
import sys
from tnet.allocator import keep_freed_memory

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) / 256

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident_mib()
block = bytearray(b"x") * 200_000_000
del block
print(resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_only_on_request() -> None:
    grown = {}
    for how in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", RESIDENT, how], capture_output=True, text=True, check=True)
        grown[how] = float(done.stdout)
    assert grown["leave"] < 20 and grown["keep"] > 150


def test_no_effect_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the C library was called"))
    assert not keep_freed_memory()
