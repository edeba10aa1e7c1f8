"""Atomic writing: no partly written file or folder is ever left under its final name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tnet.errors import OutputError
from tnet.remote import check_local


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it if the block ends without an error.

    The temporary path keeps the suffix, by which many writers choose the format.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``path`` if the block ends without an error."""
    path = Path(path)
    make_folder(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _cannot_write(path, error) from None
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    remedy = "choose another folder with --out, or change its permissions"
    return OutputError(f"{path} cannot be written ({error.strerror or error}); {remedy}")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: str | Path) -> Path:
    """Create a folder with its parents, and check that it is writable; raise OutputError if not."""
    check_local(path, OutputError)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise _cannot_write(path, error) from None


def name_after(source: str, suffix: str, taken: set[str]) -> str:
    """Return a file name from the stem of a path, numbered if in ``taken``, and add its lower case to ``taken``."""
    # Bytes of a path that are not UTF-8 become lone surrogates, which JSON cannot hold.
    stem = Path(source).stem.encode("utf-8", "replace").decode("utf-8") or "image"
    name, number = f"{stem}{suffix}", 1
    while name.lower() in taken:  # some file systems ignore case
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name.lower())
    return name
