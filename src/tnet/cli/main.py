"""The ``tnet`` command."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tnet.allocator import keep_freed_memory
from tnet.cli.data import data
from tnet.cli.import_tf import EPILOG, import_tf
from tnet.errors import TnetError
from tnet.remote import check_local

# In the order of the help; each is a function in the module of its name.
_VERBS = ["demo", "suggest", "recipes", "train", "evaluate", "compare"]
_VERBS += ["predict", "explain", "models", "info", "pyramid", "doctor"]

# Permissions, and disks that are full or read-only: not bugs.
_SYSTEM_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_INTERRUPTED = 130  # exit status of shells after Ctrl-C


class _Group(TyperGroup):
    """Prints errors that a user can cause as one sentence, with an exit status; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            for argument in [*ctx._protected_args, *ctx.args]:
                check_local(argument.rpartition("=")[2])  # also of --option=value and key=value
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            # A verb that can resume says how in a note on the exception.
            typer.echo(": ".join(["\ninterrupted", *getattr(interrupt, "__notes__", [])]), err=True)
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            typer.echo(f"error: {sentence}", err=True)
            raise typer.Exit(1) from None


def _sentence(error: Exception) -> str | None:
    """Return the message of an error that is not a bug; ``None`` for a bug."""
    if isinstance(error, TnetError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; change its permissions, free space, or choose another path"
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

        typer.echo(f"tnet {__version__}")
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
        typer.echo(f"warning: {message}", err=True)
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
    keep_freed_memory()
    try:
        app()
    finally:
        _flush()


def _flush() -> None:
    """Flush standard output; silent if its reader is gone, as after ``tnet models | head -1``."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes again at exit, which must succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
