"""Without a terminal, progress is at most a line a minute."""

from __future__ import annotations

import sys

import pytest

from tnet.inference import progress
from tnet.inference.progress import progress_bar


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    Clock.now = 0.0
    return Clock()


@pytest.mark.parametrize("shown", [True, False])
def test_a_line_a_minute(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar(shown) as bar:
        task = bar.add_task("reading", total=500)
        for step in range(500):
            Clock.now = step * 0.5  # 250 s
            bar.advance(task)
    with progress_bar(shown) as bar:  # another one right after it
        task = bar.add_task("drawing", total=2)
        bar.update(task, completed=2)
    left = {121: "2.02 per second, 0:03:08", 241: "2.01 per second, 0:02:09"}
    left |= {361: "2.01 per second, 0:01:09", 481: "2 per second, 0:00:09"}
    lines = [f"reading: {step} of 500, {rest} left" for step, rest in left.items()]
    assert capsys.readouterr() == ("", "".join(f"{line}\n" for line in lines) if shown else "")


def test_no_standard_error(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(True) as bar:
        for _ in bar.track(range(3), description="reading"):
            Clock.now += 100
