"""What a process keeps of files between looks: a few open readers, and pictures that can only be decoded as a whole.

Both belong to one process. A forked child starts with none, and leaves those of its parent alone: they share file
positions with it, and locks that nobody would release.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from numpy.typing import NDArray

from tnet.scenes.readers.base import Reader, ReaderOptions

MAX_OPEN_READERS = 32
"""Files that a process keeps open."""

MAX_DECODED_BYTES = 512 * 2**20
"""Decoded pictures that a process keeps, of formats that cannot be read in windows."""


@dataclass(frozen=True)
class FileKey:
    """One state of one file, read in one way.

    Attributes:
        path: absolute.
        kind: the reader asked for, ``None`` for the one that suits the content.
        options: for the reader.
        stamp: tells the file from another that took its place.
    """

    path: str
    kind: str | None
    options: ReaderOptions
    stamp: tuple[int, ...]


class FileStats:
    """What was read of one file in this process, so far."""

    def __init__(self) -> None:
        self.readers: list[Reader] = []  # open ones, which go on counting
        self._closed_bytes = self._closed_tiles = 0

    @property
    def bytes_read(self) -> int:
        """Encoded bytes, as the file's readers count them."""
        return self._closed_bytes + sum(reader.bytes_read for reader in tuple(self.readers))

    @property
    def tiles_read(self) -> int:
        """Stored tiles decoded."""
        return self._closed_tiles + sum(reader.tiles_read for reader in tuple(self.readers))

    def finish(self, reader: Reader) -> None:
        """Keep what a reader counted that is about to be closed."""
        self._closed_bytes += reader.bytes_read
        self._closed_tiles += reader.tiles_read
        self.readers = [other for other in self.readers if other is not reader]


@dataclass(eq=False)
class _Open:
    key: FileKey
    reader: Reader
    stats: FileStats
    users: int = 1
    wanted: bool = True  # not closed meanwhile, and never failed


class ReaderPool:
    """Open readers, those least recently used closed first.

    A reader that is not thread-safe is lent to one thread at a time; a second thread that wants the same file
    meanwhile gets a reader of its own.

    Args:
        limit: readers kept open. More are open only while more than that are in use at once.
    """

    def __init__(self, limit: int = MAX_OPEN_READERS) -> None:
        self.limit = limit
        self._entries: list[_Open] = []  # least recently used first
        self._stats: WeakValueDictionary[FileKey, FileStats] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def stats(self, key: FileKey) -> FileStats:
        """Counts for a file; they last while somebody holds them, or a reader of the file is open."""
        with self._lock:
            return self._stats.setdefault(key, FileStats())

    @contextmanager
    def lend(self, key: FileKey, opener: Callable[[], Reader]) -> Iterator[Reader]:
        """Lend a reader of a file, open already or opened now; one that failed is closed when it comes back."""
        entry = self._take(key) or self._add(key, opener())
        try:
            yield entry.reader
        except BaseException:
            with self._lock:
                entry.wanted = False
            raise
        finally:
            with self._lock:
                entry.users -= 1
                surplus = self._take_out()
            _close(surplus)

    def close(self, key: FileKey) -> None:
        """Close the readers of a file; those in use, as soon as they come back."""
        with self._lock:
            for entry in self._entries:
                entry.wanted = entry.wanted and entry.key != key
            surplus = self._take_out()
        _close(surplus)

    def _take(self, key: FileKey) -> _Open | None:
        with self._lock:
            for entry in reversed(self._entries):
                if entry.key == key and entry.wanted and (entry.users == 0 or entry.reader.thread_safe):
                    entry.users += 1
                    self._entries.remove(entry)
                    self._entries.append(entry)
                    return entry
        return None

    def _add(self, key: FileKey, reader: Reader) -> _Open:
        stats = self.stats(key)
        entry = _Open(key, reader, stats)
        with self._lock:
            stats.readers.append(reader)
            self._entries.append(entry)
            surplus = self._take_out()
        _close(surplus)
        return entry

    def _take_out(self) -> list[_Open]:
        """Take out, of those not in use, what nobody wants and what is beyond the limit; the caller holds the lock."""
        idle = [entry for entry in self._entries if entry.users == 0]
        taken = [entry for entry in idle if not entry.wanted]
        kept = [entry for entry in idle if entry.wanted]
        beyond = len(self._entries) - len(taken) - self.limit
        taken += kept[: max(0, beyond)]
        for entry in taken:
            self._entries.remove(entry)
            entry.stats.finish(entry.reader)
        return taken


def _close(entries: list[_Open]) -> None:
    for entry in entries:
        entry.reader.close()


class DecodedPictures:
    """Decoded pictures, those least recently used dropped first; each is decoded by one thread, others wait for it.

    Args:
        budget_bytes: of those kept and those being decoded together; a single larger picture is kept alone.
    """

    def __init__(self, budget_bytes: int = MAX_DECODED_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._kept: OrderedDict[tuple[FileKey, int], NDArray[Any]] = OrderedDict()
        self._decoding: dict[tuple[FileKey, int], int] = {}
        self._changed = threading.Condition()

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(picture.nbytes for picture in self._kept.values())

    def get(self, key: tuple[FileKey, int], nbytes: int, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """A picture that is kept, else what ``decode`` makes.

        Args:
            key: file and level.
            nbytes: what it will take.
            decode: how to get it.
        """
        with self._changed:
            while key not in self._kept:
                if key not in self._decoding and self._make_room(nbytes):
                    self._decoding[key] = nbytes
                    break
                self._changed.wait()
            else:
                self._kept.move_to_end(key)
                return self._kept[key]
        try:
            picture = decode()
            with self._changed:
                self._kept[key] = picture
            return picture
        finally:
            with self._changed:
                del self._decoding[key]
                self._changed.notify_all()

    def drop(self, file: FileKey) -> None:
        """Forget the pictures of a file."""
        with self._changed:
            for key in [key for key in self._kept if key[0] == file]:
                del self._kept[key]

    def _make_room(self, nbytes: int) -> bool:
        """Drop pictures for one of that size; whether there is room now."""
        while self._kept and self.nbytes + sum(self._decoding.values()) + nbytes > self.budget_bytes:
            self._kept.popitem(last=False)
        return not self._decoding or sum(self._decoding.values()) + nbytes <= self.budget_bytes


readers = ReaderPool()
"""This process's open readers; set its ``limit`` to keep more or fewer."""

decoded = DecodedPictures()
"""This process's decoded pictures; set its ``budget_bytes`` to keep more or fewer."""

_of_parent: list[object] = []


def _start_anew() -> None:
    global readers, decoded
    _of_parent.extend((readers, decoded))  # not even closed: a lock inside a library may be held for ever
    readers, decoded = ReaderPool(readers.limit), DecodedPictures(decoded.budget_bytes)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_start_anew)
