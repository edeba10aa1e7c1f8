"""The sorted tables (LevelDB's form) that TensorFlow writes, and the checksum it uses throughout.

Data from outside: blocks and keys must ascend and counts are limited, so that time and memory are bounded by the
size of the table, and every block is held against its checksum.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 1 << 16
_MAX_KEY_BYTES = 1 << 10
_MAX_VALUE_BYTES = 1 << 16

_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # of a block: kind of compression, checksum
TABLE_MARK = bytes.fromhex("57fb808b247547db")
"""What every table ends with."""


class FormatError(ValueError):
    """What is wrong with a table or a message in it, and the remedy; the caller adds which file it is.

    Args:
        what: a clause.
        remedy: another.
    """

    def __init__(self, what: str, remedy: str = "copy it again") -> None:
        super().__init__(f"{what}; {remedy}")


def read_table(table: bytes) -> dict[bytes, bytes]:
    """Every key and value of a table, in the order of the keys.

    Raises:
        FormatError: truncated, damaged, compressed, too many or too long keys, or not a table.
    """
    footer = table[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or not footer.endswith(TABLE_MARK):
        raise FormatError("it does not end as one, so it is truncated or another kind of file")
    _, at = _handle(footer, 0)  # an index of metadata, which is empty
    index, _ = _handle(footer, at)
    rows: dict[bytes, bytes] = {}
    end = 0
    last = None
    for _, place in _pairs(_block(table, *index)):
        (offset, size), _ = _handle(place, 0)
        if offset < end:
            raise FormatError("its blocks overlap")
        end = offset + size + _TRAILER_BYTES
        for key, value in _pairs(_block(table, offset, size)):
            if last is not None and key <= last:
                raise FormatError("its names are not in order")
            if len(rows) >= MAX_ROWS:
                raise FormatError(f"it holds more than {MAX_ROWS:,} variables", "no model known here has as many")
            rows[key] = value
            last = key
    return rows


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where the next handle begins."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(table: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + _TRAILER_BYTES > len(table) - _FOOTER_BYTES:
        raise FormatError(f"a block is said to be at bytes {offset} to {end} of {len(table)}")
    stored = int.from_bytes(table[end + 1 : end + _TRAILER_BYTES], "little")
    found = masked_crc32c(table[offset : end + 1])
    if found != stored:
        raise FormatError(
            f"the block at bytes {offset} to {end} has checksum {found:#010x}, but {stored:#010x} is stored with it"
        )
    if table[end] != 0:
        way = "with snappy" if table[end] == 1 else f"in way {table[end]}"
        raise FormatError(f"it is compressed {way}", "load the checkpoint with TensorFlow and save it in format V2")
    return table[offset:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; a key is stored as what differs from the key before."""
    count = int.from_bytes(block[-4:], "little")  # of restarts, places to begin a binary search
    end = len(block) - 4 * (count + 1)
    if end < 0:
        raise FormatError(f"a block of {len(block)} bytes is said to have {count} restarts")
    at = rows = 0
    key = b""
    while at < end:
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + unshared + length > end:
            raise FormatError("an entry goes beyond its block")
        if shared + unshared > _MAX_KEY_BYTES or length > _MAX_VALUE_BYTES or rows > MAX_ROWS:
            raise FormatError(
                f"entry {rows} of a block has a name of {shared + unshared} bytes and a value of {length}, but at most "
                f"{_MAX_KEY_BYTES} and {_MAX_VALUE_BYTES} are read, and {MAX_ROWS} entries"
            )
        key = key[:shared] + block[at : at + unshared]
        at += unshared + length
        rows += 1
        yield key, block[at - length : at]


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number stored 7 bits a byte, at most 64 bits in all, and the place behind it.

    Raises:
        FormatError: the data end within it, or it is longer.
    """
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise FormatError("a number is cut off")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128 and value < 1 << 64:
            return value, at
    raise FormatError("a number has more than 64 bits")


def masked_crc32c(data: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C (Castagnoli) of some bytes, masked as TensorFlow stores it; a few hundred megabytes a second.

    The checksum of two parts is that of the first, advanced over as many zeros as the second is long, xor that of the
    second. So all pairs of neighbours are joined at once, then all pairs of pairs, and so on.
    """
    content = np.frombuffer(data, np.uint8)
    tables = _advance_tables()
    crc = 0xFFFFFFFF
    odd = len(content) % 4
    for byte in content[:odd].tolist():
        crc = crc >> 8 ^ int(tables[0][3, (crc ^ byte) & 255])
    all_words = content[odd:].view("<u4")
    chunk = 1 << len(tables) - 1  # what the tables reach over; small enough for the processor's cache
    for start in range(0, len(all_words), chunk):
        words = all_words[start : start + chunk].astype(np.uint32)
        words[0] ^= np.uint32(crc)
        for table in tables:
            if len(words) == 1:
                break
            if len(words) % 2:
                words = np.concatenate([np.zeros(1, np.uint32), words])  # zeros in front change nothing
            words = _advance(table, words[::2]) ^ words[1::2]
        crc = int(_advance(tables[0], words)[0])
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _advance_tables() -> list[NDArray[np.uint32]]:
    """For 1, 2, 4, ... words of 4 bytes: what each value of each byte of a checksum becomes after as many zeros."""
    one_word: NDArray[np.uint32] = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(32):
        one_word = (one_word >> np.uint32(1)) ^ (np.uint32(0x82F63B78) * (one_word & np.uint32(1)))
    tables = [one_word]
    for _ in range(16):
        tables.append(_advance(tables[-1], tables[-1]))
    return tables


def _advance(table: NDArray[np.uint32], crcs: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return table[0][crcs & 255] ^ table[1][crcs >> 8 & 255] ^ table[2][crcs >> 16 & 255] ^ table[3][crcs >> 24]
