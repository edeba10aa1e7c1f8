"""Batches across requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from tnet.serve.batches import Batches
from tnet.view.errors import BusyError


class Model:
    """Repeats its images; held until ``go`` is set, so that others can queue up."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], int | None]] = []
        self.go, self.began = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, images: Sequence[Any], looks: int | None) -> list[Any]:
        self.calls.append((list(images), looks))
        self.began.set()
        assert self.go.wait(10)
        if "bad" in images:
            raise ValueError("bad image")
        return [(image, looks) for image in images]


@pytest.fixture
def model() -> Model:
    return Model()


def queued(model: Model, batches: Batches, items: Sequence[tuple[Any, int | None]]) -> list[Future[Any]]:
    """Submit images while the model is busy with a first one."""
    model.go.clear()
    first = batches.submit("first")
    assert model.began.wait(10)
    futures = [batches.submit(*item) for item in items]
    model.go.set()
    assert first.result(10) == ("first", None)
    return futures


@pytest.fixture
def batches(model: Model) -> Iterator[Batches]:
    batches = Batches(model, batch_size=3, waiting=5, wait_s=0.02)  # type: ignore[arg-type]
    yield batches
    model.go.set()
    batches.close()


def test_images_that_wait_share_batches_in_order(model: Model, batches: Batches) -> None:
    futures = queued(model, batches, [(index, None) for index in range(5)])
    assert [future.result(10) for future in futures] == [(index, None) for index in range(5)]
    assert [images for images, _ in model.calls] == [["first"], [0, 1, 2], [3, 4]]
    assert (batches.counts.images, batches.counts.batches, batches.counts.failed) == (6, 3, 0)


def test_a_batch_has_one_number_of_looks(model: Model, batches: Batches) -> None:
    futures = queued(model, batches, [("a", 1), ("b", 1), ("c", 2), ("d", 2)])
    assert [future.result(10) for future in futures] == [("a", 1), ("b", 1), ("c", 2), ("d", 2)]
    assert model.calls[1:] == [(["a", "b"], 1), (["c", "d"], 2)]


def test_a_full_queue_is_refused_at_once(model: Model, batches: Batches) -> None:
    model.go.clear()
    futures = [batches.submit("first")]
    assert model.began.wait(10)
    futures += [batches.submit(index) for index in range(5)]
    assert batches.waiting == 5
    with pytest.raises(BusyError):
        batches.submit("more")
    model.go.set()
    assert len([future.result(10) for future in futures]) == 6


def test_one_bad_image_does_not_take_others_with_it(model: Model, batches: Batches) -> None:
    futures = queued(model, batches, [("a", None), ("bad", None), ("c", None)])
    assert futures[0].result(10) == ("a", None) and futures[2].result(10) == ("c", None)
    with pytest.raises(ValueError, match="bad image"):
        futures[1].result(10)
    assert batches.counts.failed == 1


def test_what_waits_is_finished_when_it_closes(model: Model) -> None:
    batches = Batches(model, batch_size=2)  # type: ignore[arg-type]
    model.go.clear()
    futures = [batches.submit(index) for index in range(5)]
    threading.Timer(0.05, model.go.set).start()
    batches.close()
    assert all(future.done() for future in futures)
