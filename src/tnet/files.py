"""Writing files: what may be written where, whole files and folders or none, and folders that one process claims."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tnet.errors import OutputError
from tnet.remote import check_local

_STEM_BYTES = 200  # of 255 for a file name, which also holds a number, a suffix and the marks of a temporary file
CLAIM_NAME = ".tnet-claim"
_HOST = platform.node() or "this machine"
_HOST_KEY = f"{zlib.crc32(_HOST.encode('utf-8', 'surrogateescape')):08x}"
# Temporary files are named after the process that writes them, so that those of a killed one can be recognized.
_TEMPORARY = re.compile(r"\.tnet-([0-9a-f]{8})-(\d+)-(\d*)-[0-9a-f]{8}(\..*)?", re.DOTALL)
_CLAIM_SECONDS = 60  # by then it is written


def check_outputs(
    outputs: Iterable[str | Path], *, inputs: Iterable[str | os.PathLike[str]] = (), overwrite: bool = False
) -> None:
    """Decide whether files may be written, before any work, and remove what killed processes left beside them.

    An output is never an input, whatever it is called (links, other case), nor in a folder that is an input; two
    outputs are never the same file; and a file that exists is replaced only with ``overwrite``.

    Raises:
        OutputError: a file may not be written.
    """
    sources = {found for path in inputs if (found := _identity(path))}
    seen: set[str] = set()
    folders: set[Path] = set()
    for path in map(Path, outputs):
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file in it, such as {path / f'output{path.suffix}'}")
        places = [path, *(folder for folder in path.absolute().parents if sources and folder.is_dir())]
        if any(_identity(place) in sources for place in places):
            raise OutputError(f"{path} is an input, or in one; choose another place for the output")
        if os.path.lexists(path) and not overwrite:
            raise OutputError(f"{path} exists; choose another place, or replace it with --overwrite (overwrite=True)")
        name = os.path.normpath(path.absolute()).casefold()
        if name in seen:
            raise OutputError(f"{path} would be written twice; choose different files")
        seen.add(name)
        folders.add(path.parent)
    for folder in folders:
        remove_leftovers(folder)


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_new_folder(path: Path, *, overwrite: bool = False) -> None:
    """Raise OutputError unless a folder is missing or empty, or files in it may be replaced."""
    if os.path.lexists(path) and not path.is_dir():
        raise OutputError(f"{path} is a file, not a folder; choose another place for the output")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        remedy = "choose another folder, or replace the files in it with --overwrite (overwrite=True)"
        raise OutputError(f"{path} exists and is not empty; {remedy}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it if the block ends without an error.

    The temporary path keeps the suffix, by which many writers choose the format.
    """
    path = Path(path)
    temporary = _temporary(make_folder(path.parent), path.suffix)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` if the block ends without an error.

    If ``path`` exists, the files replace those of the same names in it, one after the other in reversed order of names,
    and others stay.
    """
    path = Path(path)
    exists = os.path.lexists(path)
    temporary = _temporary(make_folder(path if exists else path.parent))
    try:
        temporary.mkdir()
        yield temporary
        if exists:
            for file in sorted(temporary.iterdir(), reverse=True):
                file.replace(path / file.name)
        else:
            temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cannot_write(path: str | Path, error: OSError) -> OutputError:
    """Return the error about a path that cannot be written, with a remedy."""
    if isinstance(error, OutputError):
        return error
    remedy = "choose another folder with --out, or change its permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room there, or choose another folder with --out"
    return OutputError(f"{path} cannot be written ({error.strerror or error}); {remedy}")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically; bytes of names that are not UTF-8 become escapes, as JSON reads them."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def make_folder(path: str | Path) -> Path:
    """Create a folder with its parents, and check that it is writable; raise OutputError if not."""
    check_local(path, OutputError)
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise cannot_write(path, error) from None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Create a folder and claim it by a file that names this process; a folder that stays empty is removed again.

    The claim of an ended process of this machine is taken over, and the temporary files of such processes are removed.

    Raises:
        OutputError: another process works in the folder, or it cannot be written.
    """
    created = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    claim = make_folder(folder) / CLAIM_NAME
    owner = {"pid": os.getpid(), "host": _HOST, "since": time.strftime("%Y-%m-%d %H:%M:%S"), "start": _started()}
    text = json.dumps(owner)
    while True:
        try:
            with claim.open("x", encoding="utf-8") as file:
                file.write(text)
            break
        except FileExistsError:
            _release(claim, _stale(claim))
        except OSError as error:
            raise cannot_write(folder, error) from None
    try:
        remove_leftovers(folder, deep=True)
        yield
    finally:
        for remove in (lambda: _release(claim, text), *(path.rmdir for path in created)):
            with suppress(OSError):  # the block may have removed the folder, or left files in it
                remove()


def check_unclaimed(folder: Path) -> None:
    """Raise OutputError if another process works in a folder."""
    _stale(folder / CLAIM_NAME)


def _stale(claim: Path) -> str:
    """Return the text of a claim whose owner has ended; raise OutputError if it may still be at work."""
    try:
        text, age = claim.read_text(encoding="utf-8"), time.time() - claim.stat().st_mtime
    except FileNotFoundError:
        return ""
    try:
        owner = json.loads(text)
        who = f"process {int(owner['pid'])} on {owner['host']} since {owner['since']}"
        has_ended = owner["host"] == _HOST and _has_ended(int(owner["pid"]), str(owner["start"]))
    except (ValueError, KeyError, TypeError):
        who, has_ended = "another process", age > _CLAIM_SECONDS
    if has_ended:
        return text
    raise OutputError(f"{claim.parent} is in use by {who}; give another --out, or delete {claim} if it has ended")


def _release(claim: Path, text: str) -> None:
    """Remove a claim, unless another process has made a new one."""
    with suppress(FileNotFoundError):
        if claim.read_text(encoding="utf-8") == text:
            claim.unlink()


def remove_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Remove temporary files that ended processes of this machine left in a folder, ``deep`` in its subfolders too."""
    with suppress(OSError):
        for path in list(folder.rglob(".tnet-*") if deep else folder.glob(".tnet-*")):
            match = _TEMPORARY.fullmatch(path.name)
            if match is None or match[1] != _HOST_KEY or not _has_ended(int(match[2]), match[3]):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _temporary(folder: Path, suffix: str = "") -> Path:
    """Return an unused path in a folder that names this process."""
    return folder / f".tnet-{_HOST_KEY}-{os.getpid()}-{_started()}-{os.urandom(4).hex()}{suffix[:20]}"


def _started(pid: int | None = None) -> str | None:
    """Return when a process of this machine started, in ticks; empty if unknown, ``None`` if it has ended."""
    pid = os.getpid() if pid is None else pid
    try:
        os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:  # the process is another user's, or the system has no /proc
        return ""


def _has_ended(pid: int, start: str) -> bool:
    """Return whether a process of this machine has ended; another one may have its number by now."""
    now = _started(pid)
    return now is None or ("" not in (now, start) and now != start)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_regular(path: Path) -> None:
    """Raise OSError for a pipe or a device, which may never end; files, folders and missing files pass."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError("it is a pipe or a device, not a regular file")


def name_after(source: str, suffix: str, taken: set[str]) -> str:
    """Return a file name from the stem of a path, numbered if in ``taken``, and add its lower case to ``taken``.

    A stem whose name would be too long for a file system is cut, and ends with a hash.
    """
    # Bytes of a path that are not UTF-8 become lone surrogates, which JSON cannot hold.
    stem = Path(source).stem.encode("utf-8", "replace").decode("utf-8") or "image"
    if len(stem.encode()) > _STEM_BYTES:
        cut = stem.encode()[: _STEM_BYTES - 9].decode("utf-8", "ignore")
        stem = f"{cut}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    name, number = f"{stem}{suffix}", 1
    while name.lower() in taken:  # some file systems ignore case
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name.lower())
    return name
