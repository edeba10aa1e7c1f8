"""Readers and pictures kept between looks: within limits, by one thread at a time, never past a fork."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.scenes.fakes import FakeReader, noise

from tnet.scenes import cache
from tnet.scenes.cache import DecodedImages, FileKey, ReaderPool
from tnet.scenes.readers.base import ImageInfo, ReaderOptions, StoredLevel


def key(name: str) -> FileKey:
    return FileKey(name, None, ReaderOptions(), (0,))


class Opener:
    """Opens readers of a picture of 8 x 8 pixels."""

    def __init__(self, thread_safe: bool = True) -> None:
        self.made: list[FakeReader] = []
        self.thread_safe = thread_safe

    def __call__(self) -> FakeReader:
        info = ImageInfo((StoredLevel((8, 8)),), 1, np.dtype(np.uint8), "grey")
        self.made.append(FakeReader(info, [noise(8, 8, 1)], Path("x"), self.thread_safe))
        return self.made[-1]


def use(pool: ReaderPool, name: str, opener: Opener) -> None:
    with pool.lend(key(name), opener) as reader:
        reader.read(0, (0, 0, 2, 3))


def test_the_least_recently_used_reader_is_closed() -> None:
    pool, opener = ReaderPool(limit=2), Opener()
    for name in ("a", "b", "a", "c"):
        use(pool, name, opener)
    a, b, c = opener.made
    assert (a.closed, b.closed, c.closed) == (False, True, False) and len(pool) == 2
    use(pool, "b", opener)
    assert a.closed and len(opener.made) == 4


def test_readers_in_use_are_left_open_beyond_the_limit() -> None:
    pool, opener = ReaderPool(limit=1), Opener()
    with pool.lend(key("a"), opener) as a, pool.lend(key("b"), opener) as b:
        assert len(pool) == 2 and not opener.made[0].closed
        a.read(0, (0, 0, 1, 1)), b.read(0, (0, 0, 1, 1))
    assert len(pool) == 1 and sum(reader.closed for reader in opener.made) == 1


@pytest.mark.parametrize("thread_safe", [True, False])
def test_threads_share_a_reader_only_if_it_is_safe(thread_safe: bool) -> None:
    pool, opener = ReaderPool(), Opener(thread_safe)
    together = threading.Barrier(4)

    def look(_: int) -> None:
        with pool.lend(key("a"), opener) as reader:
            together.wait(10)
            reader.read(0, (0, 0, 8, 8))  # the reader itself fails if two threads use it and it is not safe

    use(pool, "a", opener)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(look, range(8)))
    assert len(opener.made) == (1 if thread_safe else 4)
    assert pool.stats(key("a")).tiles_read == 9


def test_a_reader_that_failed_is_not_used_again() -> None:
    pool, opener = ReaderPool(), Opener()
    with pool.lend(key("a"), opener), pytest.raises(ValueError, match="bad tile"), pool.lend(key("a"), opener):
        raise ValueError("bad tile")
    assert opener.made[0].closed and len(opener.made) == 1 and len(pool) == 0
    use(pool, "a", opener)
    assert len(opener.made) == 2


def test_closing_a_file_waits_for_those_that_use_it() -> None:
    pool, opener = ReaderPool(), Opener()
    use(pool, "b", opener)
    with pool.lend(key("a"), opener) as reader:
        pool.close(key("a"))
        reader.read(0, (0, 0, 1, 1))
    b, a = opener.made
    assert a.closed and not b.closed


def test_stats_count_until_the_readers_are_closed() -> None:
    pool, opener = ReaderPool(limit=1), Opener()
    for _ in range(2):
        use(pool, "a", opener)
    assert pool.stats(key("a")) == (12, 2)
    use(pool, "b", opener)  # closes the reader of a
    assert pool.stats(key("a")) == (0, 0) and pool.stats(key("b")).tiles_read == 1


# --- decoded pictures


def test_pictures_are_kept_within_the_budget() -> None:
    kept, made = DecodedImages(budget_bytes=250), []

    def picture(name: str, nbytes: int = 100) -> None:
        def decode() -> np.ndarray:
            made.append(name)
            return np.zeros(nbytes, np.uint8)

        assert kept.get((key(name), 0), nbytes, decode).nbytes == nbytes

    for name in ("a", "b", "a", "c", "a", "b"):
        picture(name)
    assert made == ["a", "b", "c", "b"] and kept.nbytes == 200
    picture("huge", 1000)
    picture("huge", 1000)
    assert made[-1] == "huge" and made.count("huge") == 1 and kept.nbytes == 1000  # one is kept, however large
    picture("a")
    assert kept.nbytes == 100
    kept.drop(key("a"))
    assert kept.nbytes == 0


def test_a_picture_is_decoded_by_one_thread_and_no_more_at_a_time_than_fit() -> None:
    kept = DecodedImages(budget_bytes=250)
    at_work, most, made = 0, 0, []
    lock = threading.Lock()

    def look(index: int) -> int:
        def decode() -> np.ndarray:
            nonlocal at_work, most
            with lock:
                at_work, most = at_work + 1, max(most, at_work + 1)
                made.append(index // 4)
            time.sleep(0.02)
            with lock:
                at_work -= 1
            return np.full(100, index // 4, np.uint8)

        return int(kept.get((key(str(index // 4)), 0), 100, decode)[0])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(look, range(8))) == [0] * 4 + [1] * 4
        assert sorted(made) == [0, 1]
        assert list(threads.map(look, range(8, 40))) == [index // 4 for index in range(8, 40)]
    assert most == 2


def test_a_picture_that_cannot_be_decoded_blocks_nobody() -> None:
    kept = DecodedImages(budget_bytes=100)

    def fail() -> np.ndarray:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            kept.get((key("a"), 0), 80, fail)
    assert kept.get((key("a"), 0), 80, lambda: np.zeros(80, np.uint8)).nbytes == 80


# --- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_with_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "readers", ReaderPool(limit=7))
    monkeypatch.setattr(cache, "decoded", DecodedImages(budget_bytes=123))
    opener = Opener()
    use(cache.readers, "a", opener)
    before = cache.readers
    with before._lock:  # as if another thread of the parent were in the middle of something
        child = os.fork()
        if child == 0:
            fresh = cache.readers is not before and len(cache.readers) == 0
            limits = (cache.readers.limit, cache.decoded.budget_bytes) == (7, 123)
            use(cache.readers, "a", opener)
            os._exit(0 if fresh and limits and not opener.made[0].closed and len(opener.made) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.readers is before and len(before) == 1 and not opener.made[0].closed
