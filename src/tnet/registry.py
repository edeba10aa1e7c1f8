"""Things of one kind by name, so that adding one touches its own file and one list.

Knows nothing of what it holds. Each kind (policies, aggregations, models, readers, datasets) has one registry, next to
the protocol or base class that its entries implement.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TypeVar

from tnet.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Entries by name.

    Args:
        what: what an entry is, for error messages: ``policy``.
        lazy: module that registers a name when it is imported, by name; for entries that would close an import cycle or
            are slow to import.
    """

    def __init__(self, what: str, lazy: Mapping[str, str] | None = None) -> None:
        self.what = what
        self._lazy = dict(lazy or {})
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class, function or object under ``name``.

        Raises:
            ConfigError: the name is taken by another entry.
        """

        def add(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ConfigError(f"{self.what} {name!r} is registered already; choose another name")
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry of that name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self._entries and name in self._lazy:
            import_module(self._lazy[name])
        if name not in self._entries:
            close = difflib.get_close_matches(str(name), list(self), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(close)}" if close else f"give one of {', '.join(self)}"
            raise ConfigError(f"{self.what} {name!r} is not known; {hint}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._lazy

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._lazy, *self._entries]))

    def __len__(self) -> int:
        return len({*self._lazy, *self._entries})

    def name_of(self, entry: object) -> str:
        """The name under which an entry is registered.

        Raises:
            ConfigError: it is not.
        """
        for name, known in self._entries.items():
            if known is entry:
                return name
        raise ConfigError(f"{entry!r} is not a registered {self.what}; register it first")
