"""Read TensorFlow checkpoints without TensorFlow.

A checkpoint ``PREFIX`` of format V2 ("tensor bundle": what TensorFlow 2 and ``tf.compat.v1.train.Saver`` write) is

* ``PREFIX.index``: a sorted table. The empty key holds the header; every other key is the name of a variable and holds
  its type, shape, place and checksum (protocol buffers ``BundleHeaderProto`` and ``BundleEntryProto``);
* ``PREFIX.data-00000-of-0000N``: the bytes of the variables, one after the other.

Checkpoints come from outside: sizes, counts and places are held against limits and against the files before anything
is allocated, every checksum is verified, and nothing in a checkpoint can lead to a file elsewhere.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnet.errors import CheckpointError
from tnet.interop.tf_table import MAX_ROWS, TABLE_MARK, FormatError, masked_crc32c, read_table, varint

# EfficientNet-B7 and its optimiser: some 5,000 names, an index under 0.5 MB.
_MAX_INDEX_BYTES = 1 << 23
_MAX_DIMS = 64  # NumPy's
_MAX_ELEMENTS = 1 << 40
_MAX_VARIABLE_BYTES = 1 << 30
_MAX_STATE_BYTES = 1 << 16

# By their number in TensorFlow's DataType.
_TYPE_NAMES = [
    "invalid", "float32", "float64", "int32", "uint8", "int16", "int8", "string", "complex64", "int64", "bool",
    "qint8", "quint8", "qint32", "bfloat16", "qint16", "quint16", "uint16", "complex128", "float16", "resource",
    "variant", "uint32", "uint64",
]  # fmt: skip
_PLAIN = re.compile(r"u?int\d+|float\d+|complex\d+")  # NumPy has them by the same names
_STORED_AS = {name: np.dtype(name).newbyteorder("<") for name in _TYPE_NAMES if _PLAIN.fullmatch(name)}
_STORED_AS |= {"bfloat16": np.dtype("<u2"), "bool": np.dtype(np.uint8)}

# Fields of TensorFlow's protocol buffers that are read, by number and wire type; others are passed over.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_HEADER = {(1, _VARINT): "shards", (2, _VARINT): "byte order", (3, _BYTES): "version"}
_VERSION = {(2, _VARINT): "needed"}
_ENTRY = {(1, _VARINT): "type", (2, _BYTES): "shape", (3, _VARINT): "shard", (4, _VARINT): "offset"}
_ENTRY |= {(5, _VARINT): "size", (6, _FIXED32): "checksum", (7, _BYTES): "slices"}
_SHAPE = {(2, _BYTES): "dims", (3, _VARINT): "unknown"}
_DIM = {(1, _VARINT): "size"}
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class _Entry:
    type_name: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    is_partitioned: bool


class TFCheckpoint:
    """The variables of a checkpoint: the index is read at once, values when asked for; no file is kept open.

    Args:
        prefix: path of the checkpoint without ``.index``, as :func:`find_checkpoint` gives it.

    Attributes:
        prefix: as given.
        shapes: of every variable, by name, in the order of the names; also of those that :meth:`read` refuses, as the
            string ``_CHECKPOINTABLE_OBJECT_GRAPH`` in which TensorFlow 2 describes the objects it saved.
        dtypes: of every variable, TensorFlow's name: "float32", "bfloat16", "string".

    Raises:
        CheckpointError: the index is missing, truncated, damaged, unreasonably large, compressed, of a big-endian
            machine, of format V1, or not an index.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = Path(prefix)
        index = _index_of(self.prefix)
        if not _is_file(index):
            raise _no_index(self.prefix)
        try:
            rows = read_table(_read_index(index))
            self._num_shards = _parse_header(rows.pop(b"", b""))
            self._entries = {
                name: _parse_entry(name, value, self._num_shards)
                for name, value in ((_decode(key), value) for key, value in rows.items() if not _is_slice(key))
            }
        except FormatError as error:
            raise CheckpointError(f"{index} cannot be read as the index of a TensorFlow checkpoint: {error}") from None
        self.shapes: dict[str, tuple[int, ...]] = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes: dict[str, str] = {name: entry.type_name for name, entry in self._entries.items()}

    def read(self, name: str) -> NDArray[Any]:
        """The value of one variable, in memory of its own.

        Args:
            name: a key of :attr:`shapes`.

        Returns:
            An array of the variable's shape and type; bfloat16, which NumPy lacks, becomes float32 (exactly).

        Raises:
            CheckpointError: no such variable; a string or another type without plain numbers; partitioned; more than
                1 GiB; a size that contradicts the shape; a data file missing or truncated; a wrong checksum.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise CheckpointError(
                f"{self.prefix} has no variable {name!r} among its {len(self._entries)}; it is a checkpoint of another "
                "model, or of another training script"
            )
        self._check(name, entry)
        shard = self._shard(entry)
        content = _read_range(shard, name, entry.offset, entry.size)
        found = masked_crc32c(content)
        if found != entry.checksum:
            raise CheckpointError(
                f"{shard} is damaged: variable {name!r} has checksum {found:#010x}, but the index says "
                f"{entry.checksum:#010x}; copy the checkpoint again"
            )
        value = content.view(_STORED_AS[entry.type_name]).reshape(entry.shape)
        if entry.type_name == "bfloat16":
            return (value.astype(np.uint32) << 16).view(np.float32)
        if entry.type_name == "bool":
            return value != 0
        return value.astype(value.dtype.newbyteorder("="), copy=False)

    def check_complete(self) -> None:
        """Hold the place of every variable, read or not, against the size of its data file.

        Raises:
            CheckpointError: a data file is missing, or ends before a variable does.
        """
        for name, entry in sorted(self._entries.items(), key=lambda item: (item[1].shard, item[1].offset)):
            shard = self._shard(entry)
            if not _is_file(shard):
                raise _no_shard(shard, name)
            available = shard.stat().st_size
            if entry.offset + entry.size > available:
                raise _truncated(shard, name, entry.offset, entry.size, available)

    def _shard(self, entry: _Entry) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard:05d}-of-{self._num_shards:05d}")

    def _check(self, name: str, entry: _Entry) -> None:
        where = f"variable {name!r} of {self.prefix}"
        stored_as = _STORED_AS.get(entry.type_name)
        if stored_as is None:
            raise CheckpointError(f"{where} has type {entry.type_name}, which holds no plain numbers; leave it out")
        if entry.is_partitioned:
            raise CheckpointError(
                f"{where} is stored in slices (a partitioned variable), which are not put together here; load it with "
                "TensorFlow and save it whole"
            )
        expected = math.prod(entry.shape) * stored_as.itemsize
        if entry.size != expected:
            raise CheckpointError(
                f"{where} is said to have {entry.size} bytes, but {entry.type_name} of shape {list(entry.shape)} has "
                f"{expected}; copy the checkpoint again"
            )
        if entry.size > _MAX_VARIABLE_BYTES:
            raise CheckpointError(
                f"{where} has {entry.size:,} bytes, but at most {_MAX_VARIABLE_BYTES:,} are read; no model known here "
                "has as large a weight"
            )


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The prefix of the checkpoint that a path means.

    Args:
        path: a folder (the newest checkpoint by its file ``checkpoint``, of which only the name is taken, so that the
            answer is always in the folder; without that file, the only ``*.index``), a prefix, or any one file of a
            checkpoint: ``checkpoint``, ``*.index``, ``*.data-*``, ``*.meta``.

    Returns:
        The prefix, for :class:`TFCheckpoint`; its index exists.

    Raises:
        CheckpointError: nothing there, several checkpoints and nothing that says which, no index, a checkpoint of
            format V1, or another kind of file.
    """
    path = Path(path)
    try:
        if path.is_dir():
            prefix = _prefix_in(path)
        elif _is_file(_index_of(path)):
            prefix = path
        elif path.name == "checkpoint" and _is_file(path):
            prefix = _prefix_in(path.parent)
        else:
            part = re.fullmatch(r"(.+)\.(?:index|meta|data-\d+-of-\d+)", path.name)
            prefix = path.with_name(part[1]) if part else path
    except OSError as error:
        raise _unreadable(path, error) from None
    if not _is_file(_index_of(prefix)):
        raise _no_index(prefix)
    return prefix


def _prefix_in(folder: Path) -> Path:
    state = folder / "checkpoint"
    if _is_file(state):
        with state.open("rb") as file:
            text = file.read(_MAX_STATE_BYTES).decode("utf-8", "replace")
        path = re.search(r'^\s*model_checkpoint_path:\s*"([^"\r\n]+)"', text, re.MULTILINE)
        # Its folder, if any, is of the machine that trained.
        name = re.split(r"[/\\]", path[1])[-1] if path else ""
        if not name:
            raise CheckpointError(f"{state} names no checkpoint; give the path of one without .index")
        if not _is_file(_index_of(folder / name)) and not _is_file(folder / name):
            raise CheckpointError(
                f"{state} names {name!r} as the newest checkpoint, but {name + '.index'!r} is missing; copy it there, "
                "or give the path of another without .index"
            )
        return folder / name
    found = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".index") and _is_file(entry))
    if len(found) != 1:
        what = f"{len(found)} checkpoints ({found[0]}, {found[1]} ...)" if found else "no TensorFlow checkpoint"
        raise CheckpointError(f"{folder} holds {what}; give the path of one without .index")
    return folder / found[0].removesuffix(".index")


def _no_index(prefix: Path) -> CheckpointError:
    """Why there is no index."""
    if not _is_file(prefix):
        return CheckpointError(
            f"there is no TensorFlow checkpoint {prefix}: {_index_of(prefix)} is missing; check the path, and copy "
            "the index and all data files"
        )
    try:
        with prefix.open("rb") as file:
            file.seek(-min(len(TABLE_MARK), prefix.stat().st_size), os.SEEK_END)
            is_table = file.read() == TABLE_MARK
    except OSError as error:
        return _unreadable(prefix, error)
    if is_table:
        return CheckpointError(
            f"{prefix} is a TensorFlow checkpoint of format V1, a single file; load it with TensorFlow and save it in "
            "format V2"
        )
    return CheckpointError(f"{prefix} is not a TensorFlow checkpoint; give its folder, or its path without .index")


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the path and its permissions")


def _index_of(prefix: Path) -> Path:
    return prefix.parent / f"{prefix.name}.index"


def _is_file(path: Path) -> bool:
    """Whether it is a plain file, or leads to one: not a pipe, which could block for ever, nor an impossible name."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read_index(index: Path) -> bytes:
    try:
        with index.open("rb") as file:
            table = file.read(_MAX_INDEX_BYTES + 1)
    except OSError as error:
        raise _unreadable(index, error) from None
    if len(table) > _MAX_INDEX_BYTES:
        raise FormatError(f"it has more than {_MAX_INDEX_BYTES:,} bytes", "those of known models are far smaller")
    return table


def _read_range(shard: Path, name: str, offset: int, size: int) -> NDArray[np.uint8]:
    """The bytes of one variable."""
    if not _is_file(shard):
        raise _no_shard(shard, name)
    try:
        with shard.open("rb") as file:
            available = os.fstat(file.fileno()).st_size
            if offset + size <= available:
                file.seek(offset)
                content = np.fromfile(file, np.uint8, size)
                if len(content) == size:
                    return content
    except OSError as error:
        raise _unreadable(shard, error) from None
    raise _truncated(shard, name, offset, size, available)


def _no_shard(shard: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{shard}, which holds variable {name!r}, is missing; copy it beside the index")


def _truncated(shard: Path, name: str, offset: int, size: int, available: int) -> CheckpointError:
    return CheckpointError(
        f"{shard} is truncated: it has {available} bytes, but variable {name!r} is at bytes {offset} to "
        f"{offset + size}; copy it again"
    )


def _parse_header(header: bytes) -> int:
    """The number of data files."""
    values = _fields(header, _HEADER)
    version = max((_number(_fields(message, _VERSION), "needed") for message in values["version"]), default=0)
    if version > _FORMAT_VERSION:
        raise FormatError(f"it needs a reader of version {version}, and this is {_FORMAT_VERSION}", "update tnet")
    if _number(values, "byte order") != 0:
        raise FormatError("its numbers are big-endian", "load it on such a machine, and save it on another")
    shards = _number(values, "shards")
    if not 1 <= shards <= MAX_ROWS:
        raise FormatError(f"its header tells of {shards} data files", "check that it is a checkpoint of format V2")
    return shards


def _parse_entry(name: str, entry: bytes, num_shards: int) -> _Entry:
    values = _fields(entry, _ENTRY)
    type_number, shard, offset, size, checksum = (
        _number(values, field) for field in ("type", "shard", "offset", "size", "checksum")
    )
    if shard >= num_shards:
        raise FormatError(f"variable {name!r} is said to be in data file {shard}, but there are {num_shards}")
    if max(offset, size) >= 1 << 62:  # below, sums fit into the file system's 64 bits
        raise FormatError(f"variable {name!r} is said to have {size} bytes from byte {offset} on")
    type_name = _TYPE_NAMES[type_number] if type_number < len(_TYPE_NAMES) else f"number {type_number}"
    return _Entry(type_name, _parse_shape(name, values["shape"]), shard, offset, size, checksum, bool(values["slices"]))


def _parse_shape(name: str, messages: list[Any]) -> tuple[int, ...]:
    values = _fields(messages[-1] if messages else b"", _SHAPE)
    shape = tuple(_number(_fields(dim, _DIM), "size") for dim in values["dims"])
    elements = math.prod(max(size, 1) for size in shape[:_MAX_DIMS])
    if _number(values, "unknown") or len(shape) > _MAX_DIMS or elements > _MAX_ELEMENTS:
        raise FormatError(
            f"variable {name!r} has {len(shape)} dimensions, {list(shape[:8])}, or an unknown number of them, but at "
            f"most {_MAX_DIMS} and {_MAX_ELEMENTS:,} elements are read"
        )
    return shape


def _number(values: dict[str, list[Any]], field: str) -> int:
    """A number that may be left out, which means 0; the last one counts."""
    return values[field][-1] if values[field] else 0


def _fields(message: bytes, names: dict[tuple[int, int], str]) -> dict[str, list[Any]]:
    """The values of the named fields of a protocol buffer: numbers (unsigned), or bytes."""
    values: dict[str, list[Any]] = {name: [] for name in names.values()}
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        wire = tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, at = varint(message, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
            if wire == _BYTES:
                size, at = varint(message, at)
            if size is None or size > len(message) - at:
                raise FormatError("an entry is cut off, or of an unknown form")
            content = message[at : at + size]
            value = content if wire == _BYTES else int.from_bytes(content, "little")
            at += size
        if (tag >> 3, wire) in names:
            values[names[tag >> 3, wire]].append(value)
    return values


def _is_slice(key: bytes) -> bool:
    """Whether it is a part of a partitioned variable; their names are encoded, and begin with a zero byte."""
    return key.startswith(b"\0")


def _decode(key: bytes) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"the name {key[:100]!r} is not UTF-8") from None
