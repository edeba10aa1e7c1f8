"""The ``tnet`` command."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tnet.allocator import keep_freed_memory
from tnet.cli.common import say
from tnet.cli.data import data
from tnet.cli.import_tf import EPILOG, import_tf
from tnet.errors import TnetError
from tnet.remote import check_local
from tnet.stop import received, stop_on_signals
from tnet.text import on_one_line
from tnet.threads import choose_threads

# In the order of the help; each is a function in the module of its name.
_VERBS = ["demo", "suggest", "split", "recipes", "train", "crossval", "evaluate", "report", "calibrate", "compare"]
_VERBS += ["predict", "explain", "export", "view", "serve", "models", "info", "bench", "pyramid", "doctor"]

# Permissions, and disks that are full or read-only: not bugs.
_SYSTEM_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is )?(killed by signal: \w+|exited unexpectedly)")
_LOST_PROCESS = re.compile(r"(?:gloo|NCCL).*(Connection (?:reset|closed) by peer|remote process exited)", re.DOTALL)
_TOO_MANY_FILES = re.compile("Too many open files|received 0 items of ancdata")


class _Group(TyperGroup):
    """Prints errors that a user can cause as one sentence, with an exit status; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            for argument in [*ctx._protected_args, *ctx.args]:
                check_local(argument.rpartition("=")[2])  # also of --option=value and key=value
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if _DEAD_WORKER.search(str(error)):
                with suppress(KeyboardInterrupt):  # the signal may be on its way to this process too
                    time.sleep(0.5)
            number = received() or signal.SIGINT
            if received() or isinstance(error, KeyboardInterrupt):
                # How to go on is the last note on the exception.
                again = [] if number == signal.SIGINT else ["the same command starts over"]
                what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
                say("\n" + ": ".join([what, *map(on_one_line, getattr(error, "__notes__", again)[-1:])]), err=True)
                raise typer.Exit(128 + number) from None
            sentence = _sentence(error)
            if sentence is None:
                raise
            say(f"error: {on_one_line('; '.join([sentence, *getattr(error, '__notes__', [])[-1:]]))}", err=True)
            raise typer.Exit(1) from None


def _sentence(error: Exception) -> str | None:
    """Return the message of an error that is not a bug; ``None`` for a bug."""
    if isinstance(error, TnetError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; change its permissions, free space, or choose another path"
    if _TOO_MANY_FILES.search(str(error)):
        return "too many open files; raise the limit (ulimit -n 4096), or use fewer workers"
    if dead := _DEAD_WORKER.search(str(error)):
        return f"a process that reads images ended ({dead[1]}), perhaps for want of memory; use fewer workers"
    if lost := _LOST_PROCESS.search(str(error)):
        return f"another process of this training ended ({lost[1]}); see what it wrote, perhaps above"
    # torch's error is recognized by name, since torch is not imported here.
    is_accelerator = type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, MemoryError) or is_accelerator or "can't allocate memory" in str(error):
        reason = str(error).splitlines()[0][:200] if str(error) else "no memory left"
        return f"out of memory ({reason}); use a smaller batch (--batch-size, or train.batch_size=8) or smaller images"
    return None


app = typer.Typer(
    name="tnet",
    cls=_Group,
    no_args_is_help=True,
    # Framed help takes three times as long.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        from tnet import __version__

        say(f"tnet {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _tnet(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Classify images that are too large to process whole, by looking at a few regions of them.

    Start with `tnet demo`: it trains, evaluates and explains on synthetic images, offline, in a few minutes.
    """


for _verb in _VERBS:
    app.command()(getattr(import_module(f"tnet.cli.{_verb}"), _verb))
app.command(epilog=EPILOG)(import_tf)
app.add_typer(data)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show our own warnings as one sentence, others as Python does."""
    if category.__module__ == "tnet.errors":
        say(f"warning: {on_one_line(str(message))}", err=True)
    else:
        _python_shows(message, category, *place, **more)


_python_shows = warnings.showwarning


def main() -> None:
    """Run the command line: the entry point of ``tnet``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show "×" must not end a run.
            stream.reconfigure(errors="replace")
    warnings.showwarning = _show_warning
    stop_on_signals()
    choose_threads()
    keep_freed_memory()
    try:
        app()
    finally:
        _flush()


def _flush() -> None:
    """Flush standard output; silent if its reader is gone, as after ``tnet models | head -1``."""
    try:
        if sys.stdout is not None:  # closed by the shell: >&-
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at exit, which must succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
