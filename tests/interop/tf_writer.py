"""Write TensorFlow checkpoints of format V2 with right checksums, as TensorFlow does; wrong ones on request."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnet.interop.tf_table import TABLE_MARK, masked_crc32c

TYPE_NUMBERS = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "complex64": 8, "int64": 9, "bool": 10,
    "uint16": 17, "complex128": 18, "float16": 19, "uint32": 22, "uint64": 23,
}  # fmt: skip


@dataclass
class Raw:
    """A variable of a type that NumPy lacks: its number in TensorFlow's DataType, its shape, its bytes."""

    type_number: int
    shape: tuple[int, ...]
    content: bytes


def write_checkpoint(
    prefix: Path, variables: Mapping[str, NDArray[Any] | Raw], *, num_shards: int = 1, block_bytes: int = 4096
) -> Path:
    """Write index, data files and the folder's ``checkpoint``; variables are dealt to the data files in turn."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    shards = [bytearray() for _ in range(num_shards)]
    rows = {b"": header(num_shards)}
    for count, name in enumerate(sorted(variables, key=str.encode)):
        value = variables[name]
        if not isinstance(value, Raw):
            little = value.astype(value.dtype.newbyteorder("<"))
            value = Raw(TYPE_NUMBERS[value.dtype.name], value.shape, little.tobytes())
        shard = shards[count % num_shards]
        rows[name.encode()] = entry(
            value.type_number,
            value.shape,
            shard=count % num_shards,
            offset=len(shard),
            size=len(value.content),
            checksum=masked_crc32c(value.content),
        )
        shard += value.content
    for number, shard in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{num_shards:05d}").write_bytes(shard)
    write_index(prefix, rows, block_bytes=block_bytes)
    (prefix.parent / "checkpoint").write_text(f'model_checkpoint_path: "{prefix.name}"\n')
    return prefix


def write_index(prefix: Path, rows: Mapping[bytes, bytes], **options: Any) -> Path:
    """Write ``prefix.index`` and give its path."""
    index = prefix.with_name(prefix.name + ".index")
    index.write_bytes(table(rows.items(), **options))
    return index


def header(num_shards: int = 1, byte_order: int = 0, min_consumer: int = 0) -> bytes:
    """A BundleHeaderProto."""
    version = field(1, 1) + field(2, min_consumer)
    return field(1, num_shards) + field(2, byte_order) + field(3, version)


def entry(
    type_number: int,
    shape: tuple[int, ...],
    *,
    shard: int = 0,
    offset: int = 0,
    size: int = 0,
    checksum: int = 0,
    slices: int = 0,
) -> bytes:
    """A BundleEntryProto."""
    dims = b"".join(field(2, field(1, length)) for length in shape)
    numbers = field(3, shard) + field(4, offset) + field(5, size)
    parts = b"".join(field(7, field(1, b"")) for _ in range(slices))
    return field(1, type_number) + field(2, dims) + numbers + b"\x35" + struct.pack("<I", checksum) + parts


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer; a number that is 0 is left out."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value) if value else b""


def varint(value: int) -> bytes:
    """A number of 7 bits a byte; a negative one as TensorFlow stores it, in 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def table(rows: Iterable[tuple[bytes, bytes]], *, block_bytes: int = 4096, compression: int = 0) -> bytes:
    """A sorted table of the rows in the order given; ``compression`` is only claimed."""
    out = bytearray()
    places: list[tuple[bytes, bytes]] = []
    pending: list[tuple[bytes, bytes]] = []

    def flush() -> None:
        if pending:
            places.append((pending[-1][0], add_block(out, block(pending), compression)))
            pending.clear()

    for row in rows:
        pending.append(row)
        if sum(len(key) + len(value) for key, value in pending) >= block_bytes:
            flush()
    flush()
    footer = add_block(out, block([]), 0) + add_block(out, block(places), 0)
    return bytes(out) + footer.ljust(40, b"\0") + TABLE_MARK


def add_block(out: bytearray, content: bytes, compression: int) -> bytes:
    """Append a block with its trailer; gives its place as stored."""
    place = varint(len(out)) + varint(len(content))
    out += content + bytes([compression])
    out += struct.pack("<I", masked_crc32c(content + bytes([compression])))
    return place


def block(rows: Iterable[tuple[bytes, bytes]], restart_every: int = 16) -> bytes:
    """Keys and values; what a key shares with the one before is left out, but at every restart."""
    out = bytearray()
    restarts = [0]
    last = b""
    for count, (key, value) in enumerate(rows):
        shared = 0
        if count and count % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return bytes(out) + np.array([*restarts, len(restarts)], "<u4").tobytes()
