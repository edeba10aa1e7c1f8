"""``tnet doctor``: installed software, and whether it works."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tnet.cli.common import say
from tnet.errors import ConfigError

if TYPE_CHECKING:
    from tnet.scenes.readers.doctor import ReaderStatus


def doctor() -> None:
    """Check Python, PyTorch, devices, and the readers of image files.

    Exits with status 1 if something that is installed does not work; missing software is not a failure.
    """
    from tnet.scenes.readers.doctor import reader_status

    for line in _software():
        say(line)
    say("\nDevices")
    failed = False
    for device, text, is_there, works in _devices():
        failed |= is_there and not works
        say(f"  {_mark(is_there, works)}  {device:<12}{text}")
    say("\nReaders of images")
    for status in reader_status():
        failed |= status.installed and not status.works
        say(f"  {_mark(status.installed, status.works)}  {status.kind:<12}{_about(status)}")
    if failed:
        say("\nSomething that is installed does not work (BROKEN); try to install it again.")
        raise typer.Exit(1)


def _software() -> list[str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    lines = [f"Python       {platform.python_version()} ({platform.system()} {platform.machine()})"]
    for name in ("tnet", "torch", "torchvision", "timm", "lightning", "numpy", "pillow"):
        try:
            release = version(name)
        except PackageNotFoundError:
            release = "not installed"
        lines.append(f"{name:<13}{release}")
    return lines


def _devices() -> list[tuple[str, str, bool, bool]]:
    """Return name, description, presence and health of each PyTorch device."""
    import torch

    from tnet.cli.common import pick_device
    from tnet.threads import reasons

    devices = [("cpu", f"{torch.get_num_threads()} threads ({reasons()})", True, True)]
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in names:
        text, works = "", True
        if name.startswith("cuda"):
            properties = torch.cuda.get_device_properties(name)
            text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        try:
            pick_device(name)
        except ConfigError as error:
            text, works = f"{text}: {error}", False
        devices.append((name, text, True, works))
    if not names:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        devices.append(("gpu", f"none that PyTorch can use (PyTorch is built {built})", False, False))
    return devices


def _mark(installed: bool, works: bool) -> str:
    return ("works  " if works else "BROKEN ") if installed else "missing"


def _about(status: ReaderStatus) -> str:
    """Return versions, details and install command of a reader."""
    parts = [", ".join(f"{name} {version}" for name, version in status.versions.items())] if status.versions else []
    parts += [status.detail] if status.detail else []
    parts += [f"pip install 'tnet[{status.extra}]'"] if not status.installed and status.extra else []
    return "; ".join(parts)
