"""Open readers, and images that can only be decoded as a whole, which a process keeps between glimpses.

A forked child starts with neither, and leaves its parent's alone: it shares file positions with them, and locks
that nobody would release.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from tnet.scenes.readers.base import Reader, ReaderOptions

MAX_OPEN_READERS = 32
MAX_DECODED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class FileKey:
    """One version of one file, read in one way."""

    path: str  # absolute
    reader: str | None  # requested, not the one that was chosen
    options: ReaderOptions
    stamp: tuple[int, ...]  # distinguishes the file from another that took its place


class FileStats(NamedTuple):
    """Encoded bytes read and stored tiles decoded by the open readers of one file."""

    bytes_read: int
    tiles_read: int


@dataclass(eq=False)
class _Open:
    key: FileKey
    reader: Reader
    users: int = 1
    wanted: bool = True  # not closed meanwhile, and never failed


class ReaderPool:
    """Open readers; the least recently used are closed first. More than ``limit`` are open only while they are in use.

    A reader that is not thread-safe is lent to one thread at a time; another thread that needs the same file meanwhile
    gets a reader of its own.
    """

    def __init__(self, limit: int = MAX_OPEN_READERS) -> None:
        self.limit = limit
        self._entries: list[_Open] = []  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def stats(self, key: FileKey) -> FileStats:
        """Return the counts of a file's open readers."""
        with self._lock:
            readers = [entry.reader for entry in self._entries if entry.key == key]
        return FileStats(sum(reader.bytes_read for reader in readers), sum(reader.tiles_read for reader in readers))

    @contextmanager
    def lend(self, key: FileKey, opener: Callable[[], Reader]) -> Iterator[Reader]:
        """Lend a reader of a file, already open or opened now; one that failed is closed when it is returned."""
        entry = self._take(key)
        if entry is None:
            entry = _Open(key, opener())
            with self._lock:
                self._entries.append(entry)
            self._close_surplus()
        try:
            yield entry.reader
        except BaseException:
            with self._lock:
                entry.wanted = False
            raise
        finally:
            with self._lock:
                entry.users -= 1
            self._close_surplus()

    def close(self, key: FileKey) -> None:
        """Close the readers of a file; those in use as soon as they are returned."""
        with self._lock:
            for entry in self._entries:
                entry.wanted = entry.wanted and entry.key != key
        self._close_surplus()

    def _take(self, key: FileKey) -> _Open | None:
        with self._lock:
            for entry in reversed(self._entries):
                if entry.key == key and entry.wanted and (entry.users == 0 or entry.reader.thread_safe):
                    entry.users += 1
                    self._entries.remove(entry)
                    self._entries.append(entry)
                    return entry
        return None

    def _close_surplus(self) -> None:
        """Close idle readers that are unwanted or beyond the limit."""
        with self._lock:
            idle = [entry for entry in self._entries if entry.users == 0]
            removed = [entry for entry in idle if not entry.wanted]
            kept = [entry for entry in idle if entry.wanted]
            removed += kept[: max(0, len(self._entries) - len(removed) - self.limit)]
            for entry in removed:
                self._entries.remove(entry)
        for entry in removed:
            entry.reader.close()


class DecodedImages:
    """Decoded images; the least recently used are dropped first. Each is decoded by one thread; others wait for it.

    The budget is for images kept and being decoded together; a single larger image is kept alone.
    """

    def __init__(self, budget_bytes: int = MAX_DECODED_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._kept: OrderedDict[tuple[FileKey, int], NDArray[Any]] = OrderedDict()
        self._decoding: dict[tuple[FileKey, int], int] = {}
        self._changed = threading.Condition()

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(image.nbytes for image in self._kept.values())

    def get(self, key: tuple[FileKey, int], nbytes: int, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the image of a file and level that is kept, else the result of ``decode``, of ``nbytes`` bytes."""
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
            image = decode()
            with self._changed:
                self._kept[key] = image
            return image
        finally:
            with self._changed:
                del self._decoding[key]
                self._changed.notify_all()

    def drop(self, file: FileKey) -> None:
        """Drop the images of a file."""
        with self._changed:
            for key in [key for key in self._kept if key[0] == file]:
                del self._kept[key]

    def _make_room(self, nbytes: int) -> bool:
        """Drop images to make room for one of that size; return whether there is room now."""
        while self._kept and self.nbytes + sum(self._decoding.values()) + nbytes > self.budget_bytes:
            self._kept.popitem(last=False)
        return not self._decoding or sum(self._decoding.values()) + nbytes <= self.budget_bytes


# This process's pools; set `limit` and `budget_bytes` to keep more or fewer.
readers = ReaderPool()
decoded = DecodedImages()
_of_parent: list[object] = []


def _after_fork() -> None:
    global readers, decoded
    _of_parent.extend((readers, decoded))  # not even closed: a lock inside a library may be held forever
    readers, decoded = ReaderPool(readers.limit), DecodedImages(decoded.budget_bytes)


os.register_at_fork(after_in_child=_after_fork)
