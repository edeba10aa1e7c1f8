"""Errors about image files, each naming the file, the reason and the remedy."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from tnet.errors import ImageError, ResourceError, TnetError
from tnet.remote import check_local

RESTORE = "fetch or save it again, or leave it out"
# How libraries say so without a MemoryError; -4 is zlib's number for it.
_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|unable to|failed to) allocate|(not enough|insufficient) memory|"
    r"can't start new thread|Error -4 while",
    re.IGNORECASE,
)
_RESERVE_BYTES = 2**30  # a library that fails with less than this left may have needed it, and few say so


def unreadable(path: str | Path, reason: str, remedy: str = RESTORE) -> ImageError:
    """Return the error for an image that cannot be read."""
    return ImageError(f"image {path} cannot be read: {reason}; {remedy}")


def one_line(error: Exception) -> str:
    """Return the type and message of a library's error on one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


@contextmanager
def guarded(path: str | Path, remedy: str = RESTORE) -> Iterator[None]:
    """Turn whatever a library raises on a file into an ``ImageError`` that names the file."""
    try:
        yield
    except TnetError:
        raise
    except Exception as error:  # on damaged files, libraries raise nearly every type there is
        check_resources(path, error)
        reason = f"it is truncated, damaged or in an unsupported format ({one_line(error)})"
        raise unreadable(path, reason, remedy) from error


def check_resources(path: str | Path, error: Exception) -> None:
    """Raise ``ResourceError`` if an image could not be read because of this process, not because of the image."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        problem = f"image {path} cannot be read: too many files are open"
        raise ResourceError(f"{problem}; raise the limit (ulimit -n), or use fewer workers") from error
    reason = "there is not enough memory for it"
    if not (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
        try:
            np.empty(_RESERVE_BYTES, np.uint8)  # not touched, so it costs nothing
            return
        except MemoryError:
            reason = f"there may be not enough memory for it ({one_line(error)})"
    raise ResourceError(f"image {path} cannot be read: {reason}; read fewer or smaller images at a time") from error


@contextmanager
def accessing(path: Path) -> Iterator[None]:
    """Turn an error of the file system into an ``ImageError`` that names the file and the remedy."""
    try:
        yield
    except ImageError:  # a ValueError
        raise
    except FileNotFoundError as error:
        check_local(path, ImageError)
        raise unreadable(path, "no such file", "correct the path, or restore the file") from error
    except PermissionError as error:
        raise unreadable(path, "permission was denied", "make the file and its folders readable") from error
    except (OSError, ValueError, MemoryError) as error:
        check_resources(path, error)
        raise unreadable(path, f"it cannot be opened ({one_line(error)})", "correct the path") from error


def check_inside(image: Path, file: Path) -> None:
    """Raise ``ImageError`` if a file of an image that is a folder is elsewhere, since a link leads out of it."""
    if not file.resolve().is_relative_to(image.resolve()):
        raise unreadable(image, f"{file.name} is behind a link that leads out of it", "put a copy in place of the link")


def open_file(path: Path) -> IO[bytes]:
    """Open a regular, non-empty file; raises ``ImageError`` for anything else."""
    with accessing(path):
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise unreadable(path, "it is a folder", "give an image inside it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
            raise unreadable(path, "it is not a regular file", "give an image file")
        if status.st_size == 0:
            raise unreadable(path, "the file is empty (0 bytes)")
        return path.open("rb")
