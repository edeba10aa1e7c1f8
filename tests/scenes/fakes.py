"""A reader of pictures in memory, which notes what it is asked."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tnet.errors import ImageError
from tnet.scenes import file
from tnet.scenes.readers.base import ImageInfo, ReaderOptions, StoredLevel

Window = tuple[int, int, int, int]


class FakeReader:
    """Levels are arrays ``[height, width, channels]``, or functions that make a window."""

    def __init__(self, info: ImageInfo, levels: Sequence[Any], path: Path, thread_safe: bool = True) -> None:
        self.info, self.levels, self.path, self.thread_safe = info, levels, path, thread_safe
        self.asked: list[tuple[int, Window]] = []
        self.bytes_read = self.tiles_read = 0
        self.closed = False
        self.process = os.getpid()
        self.busy = threading.Lock()
        self.fails: Exception | None = None

    def read(self, level: int, box_yxyx: Window) -> NDArray[Any]:
        assert not self.closed, "a closed reader was used"
        assert os.getpid() == self.process, "a reader was used in another process"
        alone = self.busy.acquire(blocking=False)
        assert alone or self.thread_safe, "two threads used one reader"
        try:
            y0, x0, y1, x1 = box_yxyx
            height, width = self.info.levels[level].size_hw
            assert 0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width, "what is not stored was asked for"
            self.asked.append((level, box_yxyx))
            if self.fails is not None:
                raise self.fails
            self.tiles_read += 1
            self.bytes_read += (y1 - y0) * (x1 - x0)
            pixels = self.levels[level]
            return pixels(box_yxyx) if callable(pixels) else pixels[y0:y1, x0:x1]
        finally:
            if alone:
                self.busy.release()

    def close(self) -> None:
        assert not self.closed, "a reader was closed twice"
        self.closed = True


class Shelf:
    """Stands for the folder of files and for ``open_reader``: which pictures there are, and which readers were made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures: dict[Path, tuple[ImageInfo, Sequence[Any], bool]] = {}
        self.opened: list[FakeReader] = []

    def add(
        self,
        name: str,
        *levels: NDArray[Any],
        downsample_yx: Sequence[tuple[float, float]] | None = None,
        thread_safe: bool = True,
        **info: Any,
    ) -> Path:
        """Put up a picture; the levels' downsamples are the ratios of their sizes if not given."""
        full = levels[0].shape
        stored = []
        for index, level in enumerate(levels):
            down = (full[0] / level.shape[0], full[1] / level.shape[1])
            stored.append(StoredLevel(level.shape[:2], downsample_yx[index] if downsample_yx else down))
        defaults = {"color": {1: "grey", 3: "rgb"}.get(full[2], "bands"), "tile_hw": (16, 16)}
        return self.add_as(
            name,
            ImageInfo(tuple(stored), full[2], levels[0].dtype, **(defaults | info)),
            levels,
            thread_safe=thread_safe,
        )

    def add_as(self, name: str, info: ImageInfo, levels: Sequence[Any], thread_safe: bool = True) -> Path:
        path = self.folder / name
        path.write_text(name)
        self.pictures[path] = (info, levels, thread_safe)
        return path

    def open_reader(self, path: Path, options: ReaderOptions, name: str | None = None) -> FakeReader:
        if path not in self.pictures:
            raise ImageError(f"image {path} has an unsupported format")
        info, levels, thread_safe = self.pictures[path]
        self.opened.append(FakeReader(info, levels, path, thread_safe))
        return self.opened[-1]

    @property
    def asked(self) -> list[tuple[int, Window]]:
        """What all readers were asked, and forget it."""
        asked = [request for reader in self.opened for request in reader.asked]
        for reader in self.opened:
            reader.asked.clear()
        return asked


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Files whose readers are :class:`FakeReader`, in a process that has nothing open."""
    from tnet.scenes import cache

    made = Shelf(tmp_path)
    monkeypatch.setattr(file, "open_reader", made.open_reader)
    monkeypatch.setattr(cache, "readers", cache.ReaderPool())
    monkeypatch.setattr(cache, "decoded", cache.DecodedImages())
    return made


def noise(height: int, width: int, channels: int = 3, dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    """No two places look alike."""
    top = np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1
    return (np.random.default_rng(seed).random((height, width, channels)) * (top + (top > 1))).astype(dtype)
