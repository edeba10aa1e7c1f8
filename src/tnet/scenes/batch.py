"""A batch of scenes whose pixels are read in threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from tnet.errors import GeometryError
from tnet.geometry import Regions
from tnet.scenes.base import BoxL0, Resize, Scene

DEFAULT_THREADS = min(8, os.cpu_count() or 1)  # they mostly wait for the disk, or decode without the GIL

T = TypeVar("T")

_executors: dict[int, ThreadPoolExecutor] = {}
_executors_lock = threading.Lock()


def _after_fork() -> None:
    """Reset in a forked child: the threads stayed in the parent, and one of them may have held the lock."""
    global _executors, _executors_lock
    _executors, _executors_lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class LazyBatch:
    """Scenes of any sizes, of which only the seen regions are read.

    ``threads`` regions are read at a time; 0 reads them in turn without threads, with the same result. ``fill`` is the
    value outside an image in [0, 1]: one, or one per channel.
    """

    is_normalized = False

    def __init__(
        self,
        scenes: Sequence[Scene],
        channels: int,
        resize: Resize = "antialias",
        fill: Sequence[float] = (0.0,),
        threads: int = DEFAULT_THREADS,
        device: torch.device | str = "cpu",
    ) -> None:
        if not scenes or not all(isinstance(scene, Scene) for scene in scenes):
            raise GeometryError("scenes are empty or contain something else; give at least one scene")
        if threads < 0:
            raise GeometryError(f"threads is {threads}; give at least 0, which reads without threads")
        self.scenes = tuple(scenes)
        self.channels, self.resize, self.fill = channels, resize, tuple(fill)
        self.threads, self.device = threads, torch.device(device)
        self._sizes_hw: list[tuple[int, int]] | None = None

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of each image, level-0 pixels; opens the files."""
        if self._sizes_hw is None:
            self._sizes_hw = self._map(lambda scene: scene.size_hw, [(scene,) for scene in self.scenes])
        return list(self._sizes_hw)

    def glimpse(self, regions: Regions, size_px: int) -> Float[Tensor, "regions channels size size"]:
        """Return the pixels of each region, ``float32`` in [0, 1]; of several unreadable images the first raises."""
        boxes = zip(regions.image.tolist(), regions.box_l0_yxyx.tolist(), strict=True)
        glimpses = self._map(self._look, [(self.scenes[image], tuple(box), size_px) for image, box in boxes])
        is_pinned = self.device.type == "cuda"  # so that the copy is asynchronous
        pixels = torch.empty(len(regions), self.channels, size_px, size_px, pin_memory=is_pinned)
        for place, glimpse in zip(pixels, glimpses, strict=True):
            place.copy_(glimpse)
        return pixels.to(self.device, non_blocking=is_pinned)

    def _look(self, scene: Scene, box_l0_yxyx: BoxL0, size_px: int) -> Tensor:
        return scene.glimpse(box_l0_yxyx, size_px, channels=self.channels, resize=self.resize, fill=self.fill)

    def _map(self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
        """Call a function in threads, if there are any, and return the results in order."""
        if not self.threads:
            return [function(*each) for each in arguments]
        executor = _executor(self.threads)
        futures: list[Future[T]] = [executor.submit(function, *each) for each in arguments]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)  # nothing continues to read after the call
            raise


def _executor(threads: int) -> ThreadPoolExecutor:
    with _executors_lock:
        if threads not in _executors:
            _executors[threads] = ThreadPoolExecutor(threads, thread_name_prefix="tnet-read")
        return _executors[threads]
