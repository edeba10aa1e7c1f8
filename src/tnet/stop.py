"""Signals that ask a process to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_received: list[int] = []  # the first signal
_owner: list[int] = []  # the process that has the handlers; a fork of it inherits them


def stop_on_signals() -> None:
    """Raise :class:`Stopped` in the main thread at Ctrl-C, SIGTERM and SIGHUP; a second signal ends the process.

    Signals that are ignored (``nohup``) stay so.
    """
    _owner[:] = [os.getpid()]
    sys.unraisablehook = _raise_again
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def received() -> int | None:
    """Return the number of the signal that asked this process to end, if one did."""
    return _received[0] if _received else None


def _stop(number: int, _: Any) -> None:
    if _received or [os.getpid()] != _owner:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    # PyTorch would raise an error about each worker that ends.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _received.append(number)
    raise Stopped(number)


def _raise_again(lost: Any) -> None:
    """Raise later what a destructor swallowed; PyTorch's loaders join their workers in one, at the end of an epoch."""
    if isinstance(lost.exc_value, Stopped):
        _received.clear()
        threading.Timer(0.1, os.kill, (os.getpid(), lost.exc_value.number)).start()
    elif "DataLoader worker" not in str(lost.exc_value):  # one that was no longer needed
        sys.__unraisablehook__(lost)
