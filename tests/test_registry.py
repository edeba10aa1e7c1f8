"""Registries: names, errors, entries whose module is imported on first use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from tnet.errors import ConfigError
from tnet.registry import Registry


@pytest.fixture
def shapes() -> Registry[Callable[[], int]]:
    registry: Registry[Callable[[], int]] = Registry("shape")

    @registry.register("square")
    def square() -> int:
        return 4

    return registry


def test_register_and_find(shapes: Registry[Callable[[], int]]) -> None:
    assert shapes["square"]() == 4
    assert list(shapes) == ["square"]


def test_unknown_name_suggests_a_close_one(shapes: Registry[Callable[[], int]]) -> None:
    with pytest.raises(ConfigError, match="'squar'.*square"):
        shapes["squar"]


def test_unknown_name_lists_all(shapes: Registry[Callable[[], int]]) -> None:
    with pytest.raises(ConfigError, match="'x'.*one of square"):
        shapes["x"]


def test_name_can_be_registered_once(shapes: Registry[Callable[[], int]]) -> None:
    with pytest.raises(ConfigError, match="'square'"):
        shapes.register("square")(lambda: 5)


def test_lazy_entry_is_imported_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[int] = Registry("number", lazy={"one": "tests_lazy_number"})
    assert list(registry) == ["one"] and "one" in registry and len(registry) == 1
    monkeypatch.setitem(sys.modules, "tests_lazy_number", ModuleType("tests_lazy_number"))
    with pytest.raises(ConfigError, match="'one'"):  # the module does not register what it should
        registry["one"]
    registry.register("one")(1)
    assert registry["one"] == 1
