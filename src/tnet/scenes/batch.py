"""Several scenes looked at together, their pixels read in parallel."""

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

DEFAULT_THREADS = min(8, os.cpu_count() or 1)
"""Threads that read, unless told otherwise. They mostly wait for the disk, or decode without holding Python's lock."""

T = TypeVar("T")

_executors: dict[int, ThreadPoolExecutor] = {}
_executors_lock = threading.Lock()


def _start_anew() -> None:
    """In a forked child: the threads stayed in the parent, and one of them may have held the lock."""
    global _executors, _executors_lock
    _executors, _executors_lock = {}, threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_start_anew)


class LazyBatch:
    """Scenes of any sizes, of which only what is looked at is read.

    Args:
        scenes: one for each image.
        channels: of what is given out.
        resize: see :data:`tnet.scenes.base.Resize`.
        fill: value outside an image, in [0, 1]: one, or one a channel.
        threads: regions read at a time; 0 reads one after another without threads. What is given out is the same.
        device: where pixels are given out.

    Raises:
        GeometryError: there is no scene, or something else among them.
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
            raise GeometryError("there must be one scene or more, and nothing else, in a list of scenes")
        if threads < 0:
            raise GeometryError(f"threads is {threads}; give 0, to read without threads, or more")
        self.scenes = tuple(scenes)
        self.channels = channels
        self.resize = resize
        self.fill = tuple(fill)
        self.threads = threads
        self.device = torch.device(device)
        self._sizes_hw: list[tuple[int, int]] | None = None
        self._ahead: tuple[tuple[Any, ...], list[Future[Tensor]]] | None = None

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of each image, level-0 pixels; opens the files."""
        if self._sizes_hw is None:
            futures = [self._submit(_size_hw, scene) for scene in self.scenes]
            self._sizes_hw = _results(futures)
        return list(self._sizes_hw)

    def glimpse(self, regions: Regions, size_px: int) -> Float[Tensor, "regions channels size size"]:
        """Pixels of each region, resized to ``size_px`` squared.

        Args:
            regions: boxes in level-0 pixels; what lies outside an image is filled.
            size_px: side of the result.

        Returns:
            ``float32`` in [0, 1].

        Raises:
            ImageError: an image cannot be read; of several, the first in the order of regions.
        """
        asked, ahead = _what(regions, size_px), self._ahead
        self._ahead = None
        futures = ahead[1] if ahead and ahead[0] == asked else self._start(regions, size_px)
        pinned = self.device.type == "cuda"  # so that the copy need not be waited for
        pixels = torch.empty(len(regions), self.channels, size_px, size_px, pin_memory=pinned)
        for place, glimpse in zip(pixels, _results(futures), strict=True):
            place.copy_(glimpse)
        return pixels.to(self.device, non_blocking=pinned)

    def prefetch(self, regions: Regions, size_px: int) -> None:
        """Start to read what the next call of :meth:`glimpse` will ask for, while something else is computed.

        An error is kept for that call. Without threads this does nothing.
        """
        if self.threads:
            self._ahead = (_what(regions, size_px), self._start(regions, size_px))

    def _start(self, regions: Regions, size_px: int) -> list[Future[Tensor]]:
        boxes = zip(regions.image.tolist(), regions.box_l0_yxyx.tolist(), strict=True)
        return [self._submit(self._look, self.scenes[image], tuple(box), size_px) for image, box in boxes]

    def _look(self, scene: Scene, box_l0_yxyx: BoxL0, size_px: int) -> Tensor:
        return scene.glimpse(box_l0_yxyx, size_px, channels=self.channels, resize=self.resize, fill=self.fill)

    def _submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run in a thread; without threads at once, and an error is raised here."""
        if self.threads:
            return _executor(self.threads).submit(function, *args)
        done: Future[T] = Future()
        done.set_result(function(*args))
        return done


def _executor(threads: int) -> ThreadPoolExecutor:
    """The threads that all batches of this process share."""
    with _executors_lock:
        if threads not in _executors:
            _executors[threads] = ThreadPoolExecutor(threads, thread_name_prefix="tnet-read")
        return _executors[threads]


def _results(futures: list[Future[T]]) -> list[T]:
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)  # nothing goes on reading behind the caller's back
        raise


def _what(regions: Regions, size_px: int) -> tuple[Any, ...]:
    return size_px, regions.image.tolist(), regions.box_l0_yxyx.tolist()


def _size_hw(scene: Scene) -> tuple[int, int]:
    return scene.size_hw
