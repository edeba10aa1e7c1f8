"""Batches across requests: one thread runs the model, everyone else waits for their result.

Knows nothing of HTTP or decoding.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tnet.inference.predictor import AnyImage
from tnet.inference.records import Prediction
from tnet.view.errors import BusyError

Predict = Callable[[Sequence[AnyImage], int | None], list[Prediction]]


@dataclass
class Counts:
    """What was done since the start."""

    images: int = 0
    batches: int = 0
    failed: int = 0
    seconds: float = 0.0  # in the model
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Job:
    image: AnyImage
    looks: int | None
    future: Future[Prediction]


class Batches:
    """Runs a model on images that arrive one by one.

    A batch begins with the image that has waited longest, and takes others with the same number of looks that are
    there, or come within ``wait_s``.

    Args:
        predict: classifies images with a number of looks, in order.
        batch_size: largest number of images per batch.
        waiting: largest number of images that wait; more are refused.
        wait_s: seconds that an image waits for others.
    """

    def __init__(self, predict: Predict, batch_size: int = 8, waiting: int = 64, wait_s: float = 0.005) -> None:
        self.predict, self.batch_size, self.wait_s = predict, batch_size, wait_s
        self.counts = Counts()
        self._queue: queue.Queue[_Job | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        return self._queue.qsize()

    def submit(self, image: AnyImage, looks: int | None = None) -> Future[Prediction]:
        """Put an image into the queue, and return its future prediction; raise BusyError if the queue is full."""
        job = _Job(image, looks, Future())
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            raise BusyError("too many images are waiting; try again in a second") from None
        return job.future

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        held: _Job | None = None  # the first one with another number of looks, which begins the next batch
        while True:
            job = held or self._queue.get()
            held = None
            if job is None:
                return
            batch, is_last = [job], False
            until = time.monotonic() + self.wait_s
            while len(batch) < self.batch_size:
                try:
                    other = self._queue.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if other is None:
                    is_last = True
                    break
                if other.looks != job.looks:
                    held = other
                    break
                batch.append(other)
            self._answer(batch)
            if is_last:
                return

    def _answer(self, batch: list[_Job]) -> None:
        """Run a batch; if it fails, image by image, so that one does not take others with it."""
        batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
        if not batch:
            return
        start = time.monotonic()
        try:
            results: list[Any] = list(self.predict([job.image for job in batch], batch[0].looks))
        except Exception as error:
            results = [error] if len(batch) == 1 else [self._alone(job) for job in batch]
        self.counts.seconds += time.monotonic() - start
        self.counts.batches += 1
        self.counts.images += len(batch)
        for job, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                self.counts.failed += 1
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    def _alone(self, job: _Job) -> Prediction | Exception:
        try:
            return self.predict([job.image], job.looks)[0]
        except Exception as error:
            return error
