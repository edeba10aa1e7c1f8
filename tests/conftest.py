"""What every test runs under: checked shapes, no network, fixed seeds, two threads, no display."""

from __future__ import annotations

import functools
import gc
import ipaddress
import os
import random
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read once, when the library is imported; processes that tests start inherit them. The proxies lead nowhere: an HTTP
# client in such a process, out of reach of the guard below, is refused at once instead of reaching the network.
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"))

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
import typer.testing
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook
from matplotlib.figure import Figure
from PIL import Image

if "tnet" in sys.modules:
    raise RuntimeError("tnet was imported before tests/conftest.py, so that its shapes would go unchecked")
# In functions with shapes, every annotated argument and return value, and every shape in one, is checked on each call
# in this process, as mypy reads them, so that 1 is welcome where a float is asked for. mypy alone checks others, or
# the suite would take a quarter longer. The hook decorates with `jaxtyping.jaxtyped`, which is replaced by ours.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_with_shapes = jaxtyping.jaxtyped


def _has_shapes(function: Any) -> bool:
    names = set(re.findall(r"\w+", " ".join(map(str, getattr(function, "__annotations__", {}).values()))))
    return any("jaxtyping." in repr(function.__globals__.get(name)) for name in names)


def _jaxtyped(*, typechecker: object) -> Callable[[Any], Any]:
    """Check an argument once, and not, as jaxtyping does for better messages, before the call and after it."""

    def decorate(item: Any) -> Any:
        if isinstance(item, type):
            if "__dataclass_fields__" in vars(item):
                item.__init__ = decorate(item.__init__)
            return item
        if isinstance(item, classmethod | staticmethod):
            return type(item)(decorate(item.__func__))
        if isinstance(item, property):
            return property(*(function and decorate(function) for function in (item.fget, item.fset, item.fdel)))
        return _with_shapes(typechecker=None)(_checked(item)) if _has_shapes(item) else item

    return decorate


jaxtyping.jaxtyped = _jaxtyped
_source = Path(__file__).parents[1] / "src"
_shaped = [path for path in _source.rglob("*.py") if "jaxtyping" in path.read_text(encoding="utf-8")]
_modules = [".".join(path.relative_to(_source).with_suffix("").parts) for path in _shaped]
install_import_hook(_modules, None)

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Derandomised: a failure on one machine is a failure on all. `--hypothesis-profile=thorough` goes looking for more.
hypothesis.settings.register_profile("tnet", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("tnet")

_network_attempts: list[str] = []


def _host_of(event: str, args: tuple[Any, ...]) -> str | None:
    """The host that an audited socket call is about to reach; None where there is none, as for a Unix socket."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        connection, address = args
        internet = connection.family in (socket.AF_INET, socket.AF_INET6)
        return str(address[0]) if internet and address else None
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        return args[0].decode() if isinstance(args[0], bytes) else args[0]
    return None


def _is_this_machine(host: str) -> bool:
    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    host = _host_of(event, args)
    if host is not None and not _is_this_machine(host):
        _network_attempts.append(f"{event} {host}")
        raise ConnectionRefusedError(f"tests are offline, and this one wants {host} ({event})")


# An audit hook sees every call that Python makes, also those of code that kept its own reference to a socket function.
sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def network_attempts() -> Iterator[list[str]]:
    """Fail a test that reached for the network, even where the code under test swallowed the refusal."""
    _network_attempts.clear()
    yield _network_attempts
    assert not _network_attempts, f"reached for the network: {_network_attempts}"


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed keeps a stack trace of each call for GPUs to come


@pytest.fixture(autouse=True)
def blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures blank where they are a by-product: drawing was a quarter of the suite's time.

    Tests that look at figures are marked ``figures``; they draw every kind.
    """
    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr(Figure, "savefig", _save_blank)


def _save_blank(figure: Figure, path: Any, **options: object) -> None:
    Image.new("RGB", (2, 2)).save(path, None if isinstance(path, (str, Path)) else "png")


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is also the working directory, for commands that write where they stand."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout, for tests of recipes and documents."""
    return Path(__file__).resolve().parent.parent


# Typer builds all verbs for every call of its runner: a twelfth of the tests of the command line.
typer.testing._get_command = functools.cache(typer.testing._get_command)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking over PyTorch and all tests again and again: a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let what was frozen go, or extension modules complain at exit that it leaked."""
    gc.unfreeze()
