"""Limits for Zarr: a store that reads only regular files, and a codec that checks chunks before they are decoded.

Zarr's compressors decode whatever the bytes of a chunk claim, up to all of memory. The decoded size of a chunk is
known, so it is compared first.
"""

from __future__ import annotations

import bz2
import lzma
import stat
import struct
import threading
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs.abc import Codec as NumcodecsCodec
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest
from zarr.codecs import BloscCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import LocalStore, StorePath

from tnet.scenes.guard import check_inside

_SLACK_BYTES = 1 << 16  # checksums, headers
_STEP_BYTES = 1 << 20
_ZSTD_MAGIC = 0xFD2FB528


@dataclass
class Meter:
    """Bytes and tiles read, counted from several threads."""

    bytes_read: int = 0
    tiles_read: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, read: int = 0, tiles: int = 0) -> None:
        """Count bytes and tiles."""
        with self.lock:
            self.bytes_read += read
            self.tiles_read += tiles


def open_limited(folder: Path, image: Path, zarr_format: int, meter: Meter) -> zarr.Array[Any]:
    """Open an array of an image for reading, with limits on the decoded size of its chunks; ``meter`` counts reads."""
    store = _MeteredStore(folder, image, meter)
    array = zarr.open_array(store, mode="r", zarr_format=2 if zarr_format == 2 else 3)
    itemsize = array.dtype.itemsize
    largest = int(np.prod([float(side) for side in array.shards or array.chunks])) * itemsize
    store.max_bytes = 2 * largest + 16 * _SLACK_BYTES
    metadata = array.metadata
    limited: ArrayV2Metadata | ArrayV3Metadata
    if isinstance(metadata, ArrayV2Metadata):
        nbytes = int(np.prod([float(side) for side in metadata.chunks])) * itemsize
        limited = replace(metadata, compressor=_LimitedCompressor(metadata.compressor, nbytes, meter))
    else:
        limited = replace(metadata, codecs=_limited(metadata.codecs, meter))
    return zarr.Array(zarr.AsyncArray(limited, StorePath(store), array.config))


def check_encoded(name: str, data: bytes | memoryview, limit: int) -> None:
    """Raise ``ValueError`` if compressed bytes decode to more than ``limit`` bytes, without allocating them."""
    view = memoryview(data)
    if name == "blosc":
        size, _, encoded = struct.unpack_from("<III", view, 4)
        if encoded != len(view):  # Blosc itself believes its header, and reads on in memory that is not the chunk's
            raise ValueError(f"a chunk of {len(view):,} bytes claims to have {encoded:,}")
    elif name == "lz4":
        (size,) = struct.unpack_from("<I", view, 0)
    elif name == "zstd":
        size = _zstd_size(view, limit)
    elif name in ("gzip", "zlib", "bz2", "lzma"):
        size = _streamed_size(name, view, limit)
    else:
        size = len(view)
    if size > limit:
        raise ValueError(f"a chunk of {len(view):,} bytes decodes to {size:,} or more, not {limit:,}")


def _zstd_size(view: memoryview, limit: int) -> int:
    """Return the size that a Zstandard frame states (RFC 8878, 3.1.1.1); without one it is decoded with a bound."""
    magic, descriptor = struct.unpack_from("<IB", view)
    if magic != _ZSTD_MAGIC:
        raise ValueError("a chunk does not start with the Zstandard magic number")
    size_flag, single, dictionary = descriptor >> 6, descriptor >> 5 & 1, descriptor & 3
    at = 5 + (not single) + (0, 1, 2, 4)[dictionary]
    if size_flag == 0 and not single:
        import imagecodecs

        return len(imagecodecs.zstd_decode(bytes(view), out=limit))
    (size,) = struct.unpack_from(("<B", "<H", "<I", "<Q")[size_flag], view, at)
    return int(size) + 256 * (size_flag == 1)


def _streamed_size(name: str, view: memoryview, limit: int) -> int:
    """Decode all members in steps that are discarded, until the end or the limit."""
    total = 0
    rest = bytes(view)
    while rest and total <= limit:
        decoder: Any
        if name in ("gzip", "zlib"):
            decoder = zlib.decompressobj(47)
        else:
            decoder = bz2.BZ2Decompressor() if name == "bz2" else lzma.LZMADecompressor(memlimit=2**28)
        while not decoder.eof and total <= limit:
            step = len(decoder.decompress(rest, _STEP_BYTES))
            rest = decoder.unconsumed_tail if name in ("gzip", "zlib") else b""
            total += step
            if not step and not rest:
                break
        rest = decoder.unused_data if decoder.eof else b""
    return total


class _MeteredStore(LocalStore):
    """A read-only folder whose files are counted; refuses pipes, devices, links out of the image, and large files."""

    def __init__(self, root: Path, image: Path, meter: Meter) -> None:
        super().__init__(root, read_only=True)
        self._image, self._meter = image, meter
        self.max_bytes = 1 << 24  # limit for a description; chunks have their own limit

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self._check(key)
        return self._counted(super().get_sync(key, prototype=prototype, byte_range=byte_range))

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self._check(key)
        return self._counted(await super().get(key, prototype, byte_range))

    def _check(self, key: str) -> None:
        check_inside(self._image, self.root / key)
        try:
            status = (self.root / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{key} is not a regular file")
        if status.st_size > self.max_bytes:
            raise ValueError(f"{key} has {status.st_size:,} bytes, over {self.max_bytes:,}")

    def _counted(self, buffer: Buffer | None) -> Buffer | None:
        if buffer is not None:
            self._meter.add(read=len(buffer))
        return buffer


class _LimitedCompressor(NumcodecsCodec):  # type: ignore[misc]
    """A compressor of Zarr v2, or none, that checks before it decodes."""

    codec_id = "tnet_limited"

    def __init__(self, inner: Any, nbytes: int, meter: Meter) -> None:
        self._inner, self._nbytes, self._meter = inner, nbytes, meter

    def encode(self, buf: Any) -> Any:
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        name = self._inner.codec_id if self._inner is not None else ""
        check_encoded(name, memoryview(buf), self._nbytes)
        self._meter.add(tiles=1)
        return self._inner.decode(buf, out) if self._inner is not None else buf


@dataclass(frozen=True)
class _LimitCodec(BytesBytesCodec):
    """A codec after a compressor of Zarr v3, which checks a chunk before that decodes it."""

    name: str
    meter: Meter
    slack: int = _SLACK_BYTES

    is_fixed_size = True

    def to_dict(self) -> dict[str, Any]:
        return {"name": "tnet_limit", "configuration": {}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return input_byte_length

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        pixels = int(np.prod([float(side) for side in chunk_spec.shape]))
        limit = pixels * chunk_spec.dtype.to_native_dtype().itemsize + self.slack
        check_encoded(self.name, memoryview(chunk_data.as_numpy_array().tobytes()), limit)
        self.meter.add(tiles=1)
        return chunk_data

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise NotImplementedError


def _limited(codecs: tuple[Any, ...], meter: Meter) -> tuple[Any, ...]:
    """Return the same codecs, each compressor preceded by a check when decoding."""
    names = {BloscCodec: "blosc", ZstdCodec: "zstd", GzipCodec: "gzip"}
    out: list[Any] = []
    for codec in codecs:
        is_sharding = isinstance(codec, ShardingCodec)
        out.append(replace(codec, codecs=_limited(codec.codecs, meter)) if is_sharding else codec)
        if type(codec) in names:
            out.append(_LimitCodec(names[type(codec)], meter))
    if not any(isinstance(codec, ShardingCodec | _LimitCodec) for codec in out):
        out.append(_LimitCodec("", meter))  # for the count
    return tuple(out)
