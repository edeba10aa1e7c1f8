"""Checkpoints of TensorFlow: what it wrote, what the writer beside wrote, and every way in which they can be broken."""

from __future__ import annotations

import os
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.interop.tf_writer import Raw, entry, field, header, table, varint, write_checkpoint, write_index

from tnet.errors import CheckpointError
from tnet.interop.tf_bundle import TFCheckpoint, find_checkpoint
from tnet.interop.tf_table import TABLE_MARK, masked_crc32c

VARIABLES = {
    "stem/kernel": np.arange(54, dtype=np.float32).reshape(3, 3, 2, 3),
    "stem/bias": np.array([1.5, -2.0, np.inf]),
    "step": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A sound checkpoint in a folder of its own."""
    return write_checkpoint(tmp_path / "trained" / "ckpt-3", VARIABLES)


def data_file(prefix: Path, number: int = 0, count: int = 1) -> Path:
    return prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{count:05d}")


def index_file(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def crafted(tmp_path: Path, rows: dict[bytes, bytes], content: bytes = b"") -> Path:
    """A checkpoint with this index, right checksums of blocks, and this data file."""
    prefix = tmp_path / "crafted"
    write_index(prefix, rows)
    data_file(prefix).write_bytes(content)
    return prefix


def test_what_tensorflow_wrote(repository: Path) -> None:
    checkpoint = TFCheckpoint(find_checkpoint(repository / "tests" / "data" / "tf_checkpoint"))
    expected = {
        "kernel": np.arange(-1, 17, dtype=np.float32).reshape(3, 3, 1, 2),
        "half": np.arange(-1, 5, dtype=np.float16).reshape(2, 3),
        "brain": np.arange(-1, 4, dtype=np.float32),
        "step": np.array(-1, np.int64),
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 4)),
    }
    for name, value in expected.items():
        read = checkpoint.read(f"model/{name}/.ATTRIBUTES/VARIABLE_VALUE")
        assert read.dtype == value.dtype and read.shape == value.shape and np.array_equal(read, value), name
        assert checkpoint.shapes[f"model/{name}/.ATTRIBUTES/VARIABLE_VALUE"] == value.shape
    assert checkpoint.dtypes["model/brain/.ATTRIBUTES/VARIABLE_VALUE"] == "bfloat16"
    assert checkpoint.dtypes["_CHECKPOINTABLE_OBJECT_GRAPH"] == "string"
    assert len(checkpoint.shapes) == len(expected) + 2  # and the count of saves
    with pytest.raises(CheckpointError, match=r"'_CHECKPOINTABLE_OBJECT_GRAPH' of .* has type string.*leave it out"):
        checkpoint.read("_CHECKPOINTABLE_OBJECT_GRAPH")


@pytest.mark.parametrize(("num_shards", "block_bytes"), [(1, 1 << 18), (1, 60), (3, 200)])
def test_many_names_blocks_and_data_files(tmp_path: Path, num_shards: int, block_bytes: int) -> None:
    names = [f"efficientnet-b0/blocks_{block}/conv2d{suffix}/kernel" for block in range(40) for suffix in ("", "_1")]
    variables = {name: np.full((2, count), count, np.float32) for count, name in enumerate(names)}
    write_checkpoint(tmp_path / "model.ckpt", variables, num_shards=num_shards, block_bytes=block_bytes)
    checkpoint = TFCheckpoint(tmp_path / "model.ckpt")
    assert list(checkpoint.shapes) == sorted(names)
    for name, value in variables.items():
        assert np.array_equal(checkpoint.read(name), value) and checkpoint.shapes[name] == value.shape


@pytest.mark.parametrize(
    "dtype", ["float16", "int8", "uint8", "int16", "int32", "uint32", "uint64", "complex64", "bool"]
)
def test_types(tmp_path: Path, dtype: str) -> None:
    value = np.array([[0, 1], [2, 250]]).astype(dtype)
    read = TFCheckpoint(write_checkpoint(tmp_path / "a", {"x": value})).read("x")
    assert read.dtype == value.dtype and read.dtype.isnative and np.array_equal(read, value)
    read[...] = 0  # its own memory, to write in


def test_bfloat16_widens_exactly(tmp_path: Path) -> None:
    raw = Raw(14, (3,), struct.pack("<3H", 0x3F80, 0xC049, 0x7F80))
    read = TFCheckpoint(write_checkpoint(tmp_path / "a", {"x": raw})).read("x")
    assert read.dtype == np.float32 and read.tolist() == [1.0, -3.140625, np.inf]


# RFC 3720, appendix B.4, and the usual check value.
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_checksum_of_known_data(data: bytes, crc: int) -> None:
    assert masked_crc32c(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("size", [*range(12), 255, 4097, (1 << 18) + 7])
def test_checksum_by_definition(size: int) -> None:
    data = random.randbytes(size)
    step = list(range(256))
    for _ in range(8):
        step = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in step]
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ step[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    assert masked_crc32c(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize(
    "given", ["", "checkpoint", "ckpt-3", "ckpt-3.index", "ckpt-3.data-00000-of-00001", "ckpt-3.meta"]
)
def test_every_path_of_a_checkpoint_means_it(prefix: Path, given: str) -> None:
    assert find_checkpoint(prefix.parent / given) == prefix
    assert find_checkpoint(str(prefix.parent / given)) == prefix


def test_the_newest_of_a_folder_and_the_only_one(prefix: Path) -> None:
    write_checkpoint(prefix.with_name("ckpt-4"), VARIABLES)
    assert find_checkpoint(prefix.parent).name == "ckpt-4"
    (prefix.parent / "checkpoint").unlink()
    with pytest.raises(
        CheckpointError, match=r"trained holds 2 checkpoints \(ckpt-3.index, ckpt-4.index .*give the path"
    ):
        find_checkpoint(prefix.parent)
    index_file(prefix).unlink()
    assert find_checkpoint(prefix.parent).name == "ckpt-4"


@pytest.mark.parametrize("folder", ["/home/someone/runs/", "../", "../../etc/", "C:\\\\runs\\\\", "elsewhere/"])
def test_a_state_file_cannot_lead_out_of_the_folder(prefix: Path, folder: str) -> None:
    write_checkpoint(prefix.parent.parent / "ckpt-3", {"other": np.zeros(1)})
    write_checkpoint(prefix.parent.parent / "outside", {"other": np.zeros(1)})
    state = prefix.parent / "checkpoint"
    state.write_text(f'model_checkpoint_path: "{folder}ckpt-3"\nall_model_checkpoint_paths: "x"\n')
    assert find_checkpoint(prefix.parent) == prefix
    state.write_text(f'model_checkpoint_path: "{folder}outside"\n')
    with pytest.raises(CheckpointError, match=r"checkpoint names 'outside' .* but 'outside.index' is missing; copy it"):
        find_checkpoint(prefix.parent)


@pytest.mark.parametrize("state", [b"", b"\xff\xfe\x00", b'model_checkpoint_path: ""', b'model_checkpoint_path: "a/"'])
def test_a_state_file_that_names_nothing(prefix: Path, state: bytes) -> None:
    (prefix.parent / "checkpoint").write_bytes(state)
    with pytest.raises(CheckpointError, match=r"checkpoint names no checkpoint; give the path"):
        find_checkpoint(prefix.parent)


@pytest.mark.parametrize("name", [b"x" * 5000, b"a\0b", b".", b".."])
def test_a_state_file_with_an_impossible_name(prefix: Path, name: bytes) -> None:
    (prefix.parent / "checkpoint").write_bytes(b'model_checkpoint_path: "' + name + b'"\n')
    with pytest.raises(CheckpointError, match=r"is missing; copy it there"):
        find_checkpoint(prefix.parent)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no TensorFlow checkpoint; give the path"):
        find_checkpoint(tmp_path)
    for open_it in (find_checkpoint, TFCheckpoint):
        with pytest.raises(
            CheckpointError, match=r"no TensorFlow checkpoint .*/a: .*/a.index is missing; check the path"
        ):
            open_it(tmp_path / "a")


def test_an_index_that_was_not_copied(prefix: Path) -> None:
    index_file(prefix).unlink()
    (prefix.parent / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match=r"ckpt-3.index is missing"):
        find_checkpoint(data_file(prefix))


def test_format_v1_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(table([(b"", field(1, b"meta"))]))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    for path in (tmp_path, tmp_path / "model.ckpt"):
        with pytest.raises(CheckpointError, match=r"model.ckpt is a TensorFlow checkpoint of format V1.*format V2"):
            find_checkpoint(path)
    (tmp_path / "model.ckpt").rename(tmp_path / "model.ckpt.index")
    with pytest.raises(CheckpointError, match=r"tells of 0 data files; check that it is a checkpoint of format V2"):
        TFCheckpoint(tmp_path / "model.ckpt")
    for content in (b"", b"\x80\x02}q", bytes(100)):
        (tmp_path / "weights.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"weights.pt is not a TensorFlow checkpoint; give its folder"):
            find_checkpoint(tmp_path / "weights.pt")


def test_a_pipe_is_not_waited_for(prefix: Path) -> None:
    for path in (data_file(prefix), index_file(prefix)):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(CheckpointError, match=r"is missing"):
            TFCheckpoint(prefix).read("step")
    with pytest.raises(CheckpointError, match=r"is missing"):
        find_checkpoint(index_file(prefix))


def test_unknown_variable(prefix: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"ckpt-3 has no variable 'stem' among its 4; it is a checkpoint of another"
    ):
        TFCheckpoint(prefix).read("stem")


def test_missing_data_file(tmp_path: Path) -> None:
    prefix = write_checkpoint(tmp_path / "a", VARIABLES, num_shards=2)
    data_file(prefix, 1, 2).unlink()
    checkpoint = TFCheckpoint(prefix)  # names and shapes need no data
    assert checkpoint.shapes == {name: value.shape for name, value in VARIABLES.items()}
    assert np.array_equal(checkpoint.read("stem/kernel"), VARIABLES["stem/kernel"])
    with pytest.raises(
        CheckpointError, match=r"a.data-00001-of-00002, which holds variable 'stem/bias', is missing; copy it"
    ):
        for name in checkpoint.shapes:
            checkpoint.read(name)


def test_truncated_data_names_the_variable(prefix: Path) -> None:
    data = data_file(prefix).read_bytes()
    checkpoint = TFCheckpoint(prefix)
    data_file(prefix).write_bytes(data[:100])  # after the 24 bytes of stem/bias, within the 216 of stem/kernel
    assert np.array_equal(checkpoint.read("stem/bias"), VARIABLES["stem/bias"])
    with pytest.raises(
        CheckpointError, match=r"00001 is truncated: it has 100 bytes, but variable 'stem/kernel' is at bytes 24 to 240"
    ):
        checkpoint.read("stem/kernel")


def test_every_byte_of_the_data_is_covered(prefix: Path) -> None:
    data = data_file(prefix).read_bytes()
    checkpoint = TFCheckpoint(prefix)
    for at in range(len(data)):
        data_file(prefix).write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(
            CheckpointError, match=r"is damaged: variable '.*' has checksum 0x.* copy the checkpoint again"
        ):
            [checkpoint.read(name) for name in VARIABLES]


def test_every_truncation_of_the_index_is_refused(prefix: Path) -> None:
    content = index_file(prefix).read_bytes()
    for size in range(len(content)):
        index_file(prefix).write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"ckpt-3.index cannot be read .* truncated or another kind of file"):
            TFCheckpoint(prefix)


def test_a_flipped_bit_of_the_index_is_refused_or_without_effect(prefix: Path) -> None:
    content = index_file(prefix).read_bytes()
    entries = TFCheckpoint(prefix)._entries
    without_effect = []
    for at in range(len(content)):
        index_file(prefix).write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        try:
            assert TFCheckpoint(prefix)._entries == entries, at
            without_effect.append(at)
        except CheckpointError:
            pass
    # Only in the index of metadata, which is empty and not read, its place, and the padding of the footer.
    footer = len(content) - 48
    end_of_block = struct.pack("<2I", 0, 1) + b"\0"
    metadata = content.rindex(end_of_block, 0, content.rindex(end_of_block))
    assert set(range(metadata, metadata + 13)) <= set(without_effect)
    assert all(metadata <= at < metadata + 13 or footer <= at < footer + 40 for at in without_effect)


@given(rows=st.dictionaries(st.binary(max_size=8), st.binary(max_size=40), max_size=6), first=st.booleans())
def test_any_content_with_right_checksums(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[bytes, bytes], first: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    prefix = crafted(folder, dict(sorted((rows | ({b"": header()} if first else {})).items())), bytes(64))
    message = ""
    try:
        checkpoint = TFCheckpoint(prefix)
        for name in checkpoint.shapes:
            checkpoint.read(name)
    except CheckpointError as error:
        message = str(error)
    assert not message or (str(prefix) in message and "; " in message)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "tells of 0 data files"),
        ({b"x": entry(1, (1,))}, "tells of 0 data files"),
        ({b"": header(-1)}, "tells of 18446744073709551615 data files"),
        ({b"": header(byte_order=1)}, "its numbers are big-endian; load it on such a machine"),
        ({b"": header(min_consumer=2)}, "needs a reader of version 2, and this is 1; update tnet"),
        ({b"": b"\x08"}, "a number is cut off"),
        ({b"": b"\x08" + b"\xff" * 10 + b"\x01"}, "a number has more than 64 bits"),
        ({b"": b"\x08" + b"\xff" * 9 + b"\x02"}, "a number has more than 64 bits"),
        ({b"": header() + b"\x0b"}, "an entry is cut off, or of an unknown form"),
        ({b"": header() + b"\x1a\xff\xff\xff\xff\x7f"}, "an entry is cut off"),
        ({b"": header(), b"\xff": entry(1, ())}, "is not UTF-8"),
        ({b"": header(), b"x": entry(1, (-1,))}, "'x' has 1 dimensions, .18446744073709551615., or an unknown number"),
        ({b"": header(), b"x": entry(1, (1 << 21, 0, 1 << 21))}, "'x' has 3 dimensions, .2097152, 0, 2097152."),
        ({b"": header(), b"x": entry(1, (1,) * 65)}, "'x' has 65 dimensions, .* but at most 64"),
        ({b"": header(), b"x": field(2, field(3, 1))}, "'x' has 0 dimensions, .*, or an unknown number"),
        ({b"": header(), b"x": entry(1, (), shard=1)}, "'x' is said to be in data file 1, but there are 1"),
        ({b"": header(), b"x": entry(1, (), shard=-1)}, "'x' is said to be in data file 18446744073709551615"),
        (
            {b"": header(), b"x": entry(1, (), offset=-4)},
            "'x' is said to have 0 bytes from byte 18446744073709551612 on",
        ),
        ({b"": header(), b"x": entry(1, (), size=-4)}, "'x' is said to have 18446744073709551612 bytes"),
        ({b"": header(), b"b": b"", b"a": b""}, "its names are not in order; copy it again"),
        ({b"": header(), b"x" * 5000: b""}, "a name of 5000 bytes and a value of [0-9]+, but at most 1024"),
        ({b"": header(), b"x": bytes(70_000)}, "a name of 1 bytes and a value of 70000, but at most 1024 and 65536"),
    ],
)
def test_an_index_that_lies(tmp_path: Path, rows: dict[bytes, bytes], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"crafted.index cannot be read as the index .*{message}"):
        TFCheckpoint(crafted(tmp_path, rows))


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (entry(1, (3,), size=16), r"'x' of .* is said to have 16 bytes, but float32 of shape \[3\] has 12; copy"),
        (entry(1, (3,)), r"'x' of .* is said to have 0 bytes, but float32 of shape \[3\] has 12; copy"),
        (entry(1, (1 << 30,), size=1 << 32), r"'x' of .* has 4,294,967,296 bytes, but at most 1,073,741,824 are read"),
        (entry(1, (4,), size=16, offset=60), r"truncated: it has 64 bytes, but variable 'x' is at bytes 60 to 76"),
        (entry(1, (4,), size=16, offset=1 << 61), r"truncated: it has 64 bytes, but variable 'x' is at bytes 23"),
        (entry(1, (1 << 28,), size=1 << 30), r"truncated: it has 64 bytes, but variable 'x' is at bytes 0 to 10"),
        (
            entry(1, (4,), size=16),
            r"is damaged: variable 'x' has checksum 0x[0-9a-f]{8}, but the index says 0x00000000",
        ),
        (entry(1, (4,), slices=2), r"'x' of .* is stored in slices \(a partitioned variable\).*save it whole"),
        (entry(7, (1,), size=2), r"'x' of .* has type string, which holds no plain numbers; leave it out"),
        (entry(0, ()), r"'x' of .* has type invalid"),
        (entry(11, (4,), size=4), r"'x' of .* has type qint8"),
        (entry(101, (4,), size=16), r"'x' of .* has type number 101"),
    ],
)
def test_an_entry_that_lies(tmp_path: Path, lie: bytes, message: str) -> None:
    good = entry(1, (16,), size=64, checksum=masked_crc32c(bytes(64)))
    checkpoint = TFCheckpoint(crafted(tmp_path, {b"": header(), b"\0part": b"?", b"w": good, b"x": lie}, bytes(64)))
    assert list(checkpoint.shapes) == ["w", "x"] and not checkpoint.read("w").any()
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read("x")


def test_compressed_tables_are_refused(tmp_path: Path) -> None:
    for compression, way in ((1, "with snappy"), (4, "in way 4")):
        write_index(tmp_path / "a", {b"": header()}, compression=compression)
        with pytest.raises(CheckpointError, match=rf"a.index .* it is compressed {way}; load the checkpoint with"):
            TFCheckpoint(tmp_path / "a")


def test_blocks_that_lie(tmp_path: Path) -> None:
    def refused(content: bytes, message: str) -> None:
        (tmp_path / "a.index").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            TFCheckpoint(tmp_path / "a")

    def sealed(block: bytes) -> bytes:
        return block + b"\0" + struct.pack("<I", masked_crc32c(block + b"\0"))

    def alone(block: bytes) -> bytes:
        """A table whose index of blocks is this block."""
        return sealed(block) + (varint(0) * 2 + varint(0) + varint(len(block))).ljust(40, b"\0") + TABLE_MARK

    none = struct.pack("<2I", 0, 1)
    refused(alone(b""), "a block of 0 bytes is said to have 0 restarts")
    refused(alone(b"\xff" * 4), "a block of 4 bytes is said to have 4294967295 restarts")
    refused(alone(b"\1\0\0" + none), "an entry goes beyond its block")
    refused(alone(b"\0\0\x7f" + none), "an entry goes beyond its block")
    refused(alone(b"\0\0\2\0\x20" + none), "a block is said to be at bytes 0 to 32 of 66")
    refused(alone(b"\0\0\1\0" + none), "a number is cut off")
    refused(alone(none), "tells of 0 data files")
    # The same block again and again would make a small file a large one.
    rows = b"\0\0" + varint(len(header())) + header() + struct.pack("<2I", 0, 1)
    place = varint(0) + varint(len(rows))
    index = (b"\0\0" + varint(len(place)) + place) * 2 + none
    footer = varint(0) * 2 + varint(len(rows) + 5) + varint(len(index))
    refused(sealed(rows) + sealed(index) + footer.ljust(40, b"\0") + TABLE_MARK, "its blocks overlap; copy it again")


def test_a_huge_index_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.index").open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(CheckpointError, match=r"a.index .* it has more than 8,388,608 bytes"):
        TFCheckpoint(tmp_path / "a")


def test_too_many_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnet.interop.tf_table.MAX_ROWS", 100)
    prefix = crafted(tmp_path, {b"": header()} | {b"%03d" % count: entry(1, ()) for count in range(99)})
    assert len(TFCheckpoint(prefix).shapes) == 99
    crafted(tmp_path, {b"": header()} | {b"%03d" % count: entry(1, ()) for count in range(100)})
    with pytest.raises(CheckpointError, match=r"it holds more than 100 variables; no model"):
        TFCheckpoint(prefix)


@pytest.mark.skipif(os.geteuid() == 0, reason="no permission is refused to root")
def test_no_permission(prefix: Path) -> None:
    for path in (data_file(prefix), index_file(prefix)):
        path.chmod(0)
        with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
            TFCheckpoint(prefix).read("step")
