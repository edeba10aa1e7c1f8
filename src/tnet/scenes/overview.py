"""A small copy of a scene (square, antialiased, 8-bit), kept so that coarse glimpses cost no reads.

It serves any glimpse that needs no more resolution than it has, as a stored level of a pyramid would; all others go to
the scene. The choice depends on the glimpse alone, not on what happens to be kept, so results do not either.

A glimpse that it serves is an average of averages. With ``px`` twice the requested size, glimpses of the whole differ
from direct ones by 0.2 to 2.6 of 255 levels on average (photographs to grainy scans), and by 5 to 35 at the sharpest
edges; glimpses of parts that need its full resolution by up to twice that.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tnet.errors import ConfigError
from tnet.files import atomic_path
from tnet.scenes.base import BoxL0, Resize, Scene
from tnet.scenes.file import FileScene
from tnet.scenes.memory import level_in_memory
from tnet.scenes.resample import resample

MAX_OVERVIEW_BYTES = 512 * 2**20
_TOLERANCE = 0.01  # a copy may be this much coarser than requested, as stored levels may
_HEADER_BYTES = 2**16  # more than an overview's file has besides its pixels


class Overview(NamedTuple):
    """A small copy of a whole scene, and the height and width of each of the scene's levels, finest first."""

    pixels: UInt8[Tensor, "channels px px"]
    levels: tuple[tuple[int, int], ...]


class OverviewStore:
    """Overviews of a process (shared with forked children); the least recently used are dropped first."""

    def __init__(self, budget_bytes: int = MAX_OVERVIEW_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._kept: OrderedDict[str, Overview] = OrderedDict()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(overview.pixels.numel() for overview in self._kept.values())

    def get(self, key: str) -> Overview | None:
        """Return an overview that is kept."""
        with self.lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: str, overview: Overview) -> None:
        """Keep an overview, unless it is larger than the whole budget."""
        if overview.pixels.numel() > self.budget_bytes:
            return
        with self.lock:
            self._kept[key] = overview
            self._kept.move_to_end(key)
            while self.nbytes > self.budget_bytes:
                self._kept.popitem(last=False)


overviews = OverviewStore()  # this process's store; set `budget_bytes` to keep more or fewer


def _new_lock() -> None:
    overviews.lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_new_lock)


class OverviewScene:
    """A scene whose coarse glimpses are served from a small copy of it, made at the first of them.

    Copies of files, identified by path, size, modification time and options, are kept in a store of the process
    (:data:`overviews`) and in a folder, if given (``channels * px * px`` bytes each); copies of other scenes by this
    object alone. Smaller scenes get none. Glimpses with the ``bilinear`` filter, which depends on single pixels, and
    with other channels go to the scene. It pickles with its copy, so that a data loader's worker can make it for the
    training process.
    """

    def __init__(self, scene: Scene, px: int, channels: int, folder: Path | None = None) -> None:
        if px < 1 or channels < 1:
            raise ConfigError(f"an overview has {px} px and {channels} channels; give at least 1 of each")
        self.scene, self.name = scene, scene.name
        self.px, self.channels, self.folder = px, channels, folder
        self._key: str | None = None
        self._overview: Overview | None = None

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _restored, (self.scene, self.px, self.channels, self.folder, self._key, self._overview)

    def __repr__(self) -> str:
        return f"OverviewScene({self.scene!r}, {self.px})"

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width, level-0 pixels; opens the scene only if no overview is kept."""
        return self.levels[0]

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each stored resolution, finest first."""
        kept = self._kept()
        return self.scene.levels if kept is None else kept.levels

    def warm(self) -> None:
        """Make the overview now; raises ``ImageError`` or ``OutputError`` (the folder)."""
        self._get_or_make()

    def serves(self, box_l0_yxyx: BoxL0, size_px: int) -> bool:
        """Return whether a glimpse needs no more resolution than the overview has."""
        height, width = self.size_hw
        if min(height, width) < self.px:
            return False
        y0, x0, y1, x1 = box_l0_yxyx
        wanted_px = size_px * (1 - _TOLERANCE)
        return (y1 - y0) * self.px >= wanted_px * height and (x1 - x0) * self.px >= wanted_px * width

    def glimpse(
        self, box_l0_yxyx: BoxL0, size_px: int, *, channels: int, resize: Resize, fill: Sequence[float]
    ) -> Float[Tensor, "channels size size"]:
        """Return the pixels of one box; see :meth:`tnet.scenes.Scene.glimpse`."""
        if resize == "antialias" and channels == self.channels and size_px > 0 and self.serves(box_l0_yxyx, size_px):
            overview = self._get_or_make()
            assert overview is not None
            down_y, down_x = (side / self.px for side in self.size_hw)
            y0, x0, y1, x1 = box_l0_yxyx
            level = level_in_memory(overview.pixels.permute(1, 2, 0).numpy())
            box = (y0 / down_y, x0 / down_x, y1 / down_y, x1 / down_x)
            return resample(level, box, size_px, resize=resize, fill=fill)
        return self.scene.glimpse(box_l0_yxyx, size_px, channels=channels, resize=resize, fill=fill)

    def _kept(self) -> Overview | None:
        """Return the overview if it is kept by this object, by the process or in the folder."""
        if self._overview is None:
            if self._key is None:
                self._key = _key_of(self.scene, self.px, self.channels)
            overview = overviews.get(self._key) if self._key else None
            if overview is None and self._key and self.folder is not None:
                overview = _load(_file_of(self.folder, self._key), self.px, self.channels)
                if overview is not None:
                    overviews.put(self._key, overview)
            self._overview = overview
        return self._overview

    def _get_or_make(self) -> Overview | None:
        """Return the overview, made if it is not kept; ``None`` for a scene that gets none."""
        kept = self._kept()
        if kept is not None:
            return kept
        levels = self.scene.levels
        if min(levels[0]) < self.px:
            return None
        whole = (0, 0, *levels[0])
        pixels = self.scene.glimpse(whole, self.px, channels=self.channels, resize="antialias", fill=(0.0,))
        overview = Overview((pixels * 255).round().to(torch.uint8), levels)
        if self._key:
            overviews.put(self._key, overview)
            if self.folder is not None:
                with atomic_path(_file_of(self.folder, self._key)) as temporary:
                    stored = {"pixels": overview.pixels.contiguous(), "levels": torch.tensor(levels)}
                    temporary.write_bytes(save(stored))
        self._overview = overview
        return overview


def _restored(
    scene: Scene, px: int, channels: int, folder: Path | None, key: str | None, overview: Overview | None
) -> OverviewScene:
    """Unpickle a scene; this process then keeps its overview too."""
    restored = OverviewScene(scene, px, channels, folder)
    if overview is not None:
        kept = overviews.get(key) if key else None
        if kept is None:
            # Copied from the memory shared with the worker that made it, each piece of which keeps a file open.
            kept = overview._replace(pixels=overview.pixels.clone())
            if key:
                overviews.put(key, kept)
        restored._key, restored._overview = key, kept
    return restored


def _key_of(scene: Scene, px: int, channels: int) -> str:
    if not isinstance(scene, FileScene):
        return ""
    path = scene.path.absolute()
    try:
        # A folder changes whenever something is added to it; the files with the description of its format do not.
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        files += sorted([*path.glob("*/.zarray"), *path.glob("*/zarr.json")])
        stamps = [(str(file), status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]
    except OSError:
        return ""  # the scene will report the problem
    text = repr((str(path), stamps, scene.options, px, channels))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _file_of(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key[2:]}.safetensors"


def _load(path: Path, px: int, channels: int) -> Overview | None:
    """Load an overview; ``None`` if it is missing or damaged."""
    try:
        if path.stat().st_size > channels * px * px + _HEADER_BYTES:
            return None
        with safe_open(path, framework="pt") as file:
            pixels, levels = file.get_tensor("pixels"), file.get_tensor("levels")
    except (OSError, SafetensorError):
        return None
    is_valid = pixels.dtype == torch.uint8 and pixels.shape == (channels, px, px)
    is_valid = is_valid and levels.dtype == torch.int64 and levels.ndim == 2 and levels.shape[1] == 2
    if not is_valid or len(levels) < 1 or int(levels.min()) < 1 or int(levels[0].min()) < px:
        return None
    return Overview(pixels, tuple(map(tuple, levels.tolist())))
