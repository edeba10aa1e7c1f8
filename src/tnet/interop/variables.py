"""Variables of a TensorFlow checkpoint from an ``.npz`` file, which :data:`tnet.interop.CONVERT` writes.

Files are not trusted: limits and shapes are checked before anything is allocated, and nothing is unpickled.
"""

from __future__ import annotations

import lzma
import math
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tnet.errors import CheckpointError
from tnet.interop import CONVERT

# EfficientNet-B7 with its optimizer: some 5,000 variables, 1 GiB.
MAX_VARIABLES = 1 << 16
MAX_BYTES = 1 << 32

_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError, EOFError, OSError, RuntimeError, SyntaxError,
    ValueError, OverflowError, MemoryError,
)  # fmt: skip


class Variables:
    """Arrays of an ``.npz`` file: ``shapes`` and ``dtypes`` by name are read at once, values on request.

    The file stays open until the object is gone.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype[Any]] = {}
        _check_is_npz(self.path)
        try:
            self._archive = zipfile.ZipFile(self.path)
            members = self._archive.infolist()
            total = sum(member.file_size for member in members)
            if len(members) > MAX_VARIABLES or total > MAX_BYTES:
                found, limits = f"{len(members):,} arrays of {total:,}", f"{MAX_VARIABLES:,} arrays and {MAX_BYTES:,}"
                raise CheckpointError(f"{self.path} holds {found} bytes; it must be at most {limits} bytes")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in self.shapes or not member.filename.endswith(".npy"):
                    problem = f"{member.filename!r} is not an array or appears twice"
                    raise CheckpointError(f"{self.path}: {problem}; save the variables again with numpy.savez")
                self.shapes[name], self.dtypes[name] = _read_header(self._archive, member)
        except _DAMAGE as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path} cannot be read as .npz ({error}); convert or copy it again") from None

    def read(self, name: str) -> NDArray[Any]:
        """Return the value of one variable."""
        try:
            with self._archive.open(f"{name}.npy") as file:
                value: NDArray[Any] = npy.read_array(file, allow_pickle=False)
                file.read(1)  # at the end, where the checksum is compared
                return value
        except (*_DAMAGE, KeyError) as error:
            problem = f"variable {name!r} of {self.path} cannot be read ({error})"
            raise CheckpointError(f"{problem}; convert or copy the file again") from None

    def scalar(self, name: str) -> float | None:
        """Return a number such as the training step, or ``None`` if there is no variable of that name."""
        if name not in self.shapes:
            return None
        if self.shapes[name] != () or self.dtypes[name].kind not in "iuf":
            form = f"shape {list(self.shapes[name])}, type {self.dtypes[name]}"
            raise CheckpointError(f"variable {name!r} of {self.path} has {form}; it must be one number")
        return float(self.read(name))


def _check_is_npz(path: Path) -> None:
    """Refuse files other than zip files, and TensorFlow's own files with the command that converts them."""
    if path.is_dir() or ".data-" in path.name or path.suffix in (".index", ".meta") or Path(f"{path}.index").exists():
        remedy = f"convert it to .npz where TensorFlow is installed: {CONVERT}"
        raise CheckpointError(f"{path} is a TensorFlow checkpoint; {remedy}")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file; give the .npz file of a checkpoint's variables")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is truncated or not an .npz file; write one from the checkpoint with: {CONVERT}")


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(member) as file:
        read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        needed, stored = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if min(shape, default=0) < 0 or (needed != stored and not dtype.hasobject):
        raise ValueError(f"{member.filename!r} has shape {list(shape)} of {dtype}, but {stored:,} bytes")
    return shape, dtype
