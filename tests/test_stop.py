"""A process asked to end by a signal cleans up; asked twice, it ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tnet.stop import STOP_SIGNALS

Start = Callable[..., subprocess.Popen[str]]

PROGRAM = """
import os, signal, sys, time
from tnet.stop import Stopped, received, stop_on_signals
class Slow:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
signal.signal(signal.SIGINT, signal.default_int_handler)
stop_on_signals()
if sys.argv[2] == "fork":
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.3)  # Python drops signals that arrive while it forks
    os.kill(child, signal.SIGTERM)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
try:
    if sys.argv[2] == "destructor":
        Slow()
        print("swallowed", flush=True)
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt as stop:
    print(type(stop).__name__, stop, stop.number, received(), flush=True)
    if sys.argv[2] == "slow":
        time.sleep(60)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def begin(hang_up: str = "SIG_DFL", end: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, hang_up, end]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == {"destructor": "swallowed", "fork": "15"}.get(end, "ready") + "\n"
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_an_exception_and_the_second_the_end(start: Start, number: signal.Signals) -> None:
    process = start(end="slow")
    process.send_signal(number)
    assert process.stdout.readline() == f"Stopped {number.name} {number} {number}\n"
    process.send_signal(number)
    assert process.wait(10) == -number


def test_a_signal_that_is_ignored_stays_ignored(start: Start) -> None:
    process = start("SIG_IGN")
    os.kill(process.pid, signal.SIGHUP)
    os.kill(process.pid, signal.SIGTERM)
    assert process.stdout.read() == "Stopped SIGTERM 15 15\n"
    assert process.wait(10) == 0


def test_a_signal_during_a_destructor_is_not_lost(start: Start) -> None:
    process = start(end="destructor")
    assert (process.stdout.read(), process.stderr.read()) == ("ready\nStopped SIGTERM 15 15\n", "")


def test_a_fork_ends_in_silence(start: Start) -> None:
    process = start(end="fork")
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert (process.stdout.read(), process.stderr.read()) == ("Stopped SIGTERM 15 15\n", "")
