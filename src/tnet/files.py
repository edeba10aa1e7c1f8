"""Writing files so that nothing half-written is ever left under the final name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tnet.errors import OutputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place when the block ends without an error.

    The temporary path keeps the suffix, since many writers choose the format by it.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of ``path`` when the block ends without an error.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from None
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from None
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents, and check that files can be made in it.

    Raises:
        OutputError: it is a file, or there is no permission.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); choose another folder with --out, or change "
            "its permissions"
        ) from None
    return path


def name_after(source: str, suffix: str, taken: set[str]) -> str:
    """A name for a file about a picture, after its picture's; with a number if there is another of that name.

    Args:
        source: path of the picture.
        suffix: of the name, with its dot.
        taken: names in use, in lower case; the new one is added.
    """
    # Bytes that are no UTF-8 are lone surrogates in a path, which would not go into the JSON as they are.
    stem = Path(source).stem.encode("utf-8", "replace").decode("utf-8") or "picture"
    name, number = f"{stem}{suffix}", 1
    while name.lower() in taken:  # some file systems do not tell A from a
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name.lower())
    return name
