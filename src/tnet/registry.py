"""Registries of named parts, so that adding one touches its own file and one list.

Policies, aggregations, models, readers and datasets each have one, next to the protocol that its entries implement.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TypeVar

from tnet.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Mapping from names to entries.

    Args:
        what: noun for one entry in error messages, such as ``policy``.
        lazy: modules to import on first use, by name; for entries that are slow to import or would create an import
            cycle.
    """

    def __init__(self, what: str, lazy: Mapping[str, str] | None = None) -> None:
        self.what = what
        self._lazy = dict(lazy or {})
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class, function or object under ``name``, which must be free."""

        def add(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ConfigError(f"{self.what} {name!r} is already registered; choose another name")
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Return the entry of that name; raise ConfigError with a hint if it is unknown."""
        if name not in self._entries and name in self._lazy:
            import_module(self._lazy[name])
        if name not in self._entries:
            close = difflib.get_close_matches(str(name), list(self), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(close)}" if close else f"give one of {', '.join(self)}"
            raise ConfigError(f"unknown {self.what} {name!r}; {hint}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._lazy

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._lazy, *self._entries]))

    def __len__(self) -> int:
        return len({*self._lazy, *self._entries})
