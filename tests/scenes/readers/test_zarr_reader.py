from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.readers import Reader, ReaderOptions, open_reader
from tnet.scenes.readers.zarr_limits import check_encoded
from tnet.scenes.readers.zarr_reader import ZarrReader

pytest.importorskip("zarr")

RAMPS = make.ramps(100, 150)
VERSIONS = pytest.mark.parametrize("version", ["0.4", "0.5"])


def whole(reader: Reader, level: int = 0) -> Any:
    pixels = reader.read(level, (0, 0, *reader.info.levels[level].size_hw))
    assert pixels.shape[2] == reader.info.channels and pixels.dtype == reader.info.dtype
    return pixels


def opened(path: Path, **options: Any) -> Reader:
    return ZarrReader(path, ReaderOptions(**options))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@VERSIONS
@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "czyx", "tczyx", "yxc"])
def test_of_times_and_depths_the_first_of_channels_all(tmp_path: Path, version: str, axes: str) -> None:
    pixels = RAMPS if "c" in axes else RAMPS[..., :1]
    reader = opened(make.ome_zarr(tmp_path / "a", [pixels], version=version, axes=axes))
    assert reader.info.color == ("rgb" if "c" in axes else "grey")
    np.testing.assert_array_equal(whole(reader), pixels)
    np.testing.assert_array_equal(reader.read(0, (60, 61, 70, 150)), pixels[60:70, 61:])


@VERSIONS
@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int32", "float32", "float64"])
def test_types_stay(tmp_path: Path, version: str, dtype: str) -> None:
    pixels = make.ramps(100, 150, np.dtype(dtype).newbyteorder("=").name, 4)
    reader = opened(make.ome_zarr(tmp_path / "a", [pixels], version=version, dtype=dtype))
    assert reader.info.dtype.isnative and reader.info.color == "bands" and reader.info.channels == 4
    np.testing.assert_array_equal(whole(reader), pixels)


@VERSIONS
@pytest.mark.parametrize(
    ("unit", "metres"), [("micrometer", 1e-6), ("nanometer", 1e-9), ("parsec", None), (None, None)]
)
def test_spacing_needs_a_unit_of_length(tmp_path: Path, version: str, unit: str | None, metres: float | None) -> None:
    spacing = opened(make.ome_zarr(tmp_path / "a", [RAMPS], version=version, unit=unit)).info.spacing_m_yx
    assert spacing == (None if metres is None else pytest.approx((0.5 * metres, 0.5 * metres)))


@VERSIONS
@pytest.mark.parametrize("name", ["blosc", "zstd", "gzip", None])
def test_compressors(tmp_path: Path, version: str, name: str | None) -> None:
    import numcodecs
    import zarr.codecs

    if version == "0.4":
        codec: Any = name and {"blosc": numcodecs.Blosc, "zstd": numcodecs.Zstd, "gzip": numcodecs.GZip}[name]()
    else:
        kinds: Any = {"blosc": zarr.codecs.BloscCodec, "zstd": zarr.codecs.ZstdCodec, "gzip": zarr.codecs.GzipCodec}
        codec = name and kinds[name]()
    reader = opened(make.ome_zarr(tmp_path / "a", [RAMPS], version=version, compressors=codec))
    np.testing.assert_array_equal(whole(reader), RAMPS)
    assert reader.tiles_read == 2 * 3 * 3
    files = [
        file for file in (tmp_path / "a" / "0").rglob("*") if file.is_file() and not file.name.startswith((".", "zarr"))
    ]
    read = sum(file.stat().st_size for file in files)
    assert read <= reader.bytes_read < read + 5000  # and the descriptions


def test_shards_are_read_in_part(tmp_path: Path) -> None:
    reader = opened(make.ome_zarr(tmp_path / "a", [make.ramps(256, 256)], chunk=32, shards=128))
    assert reader.info.tile_hw == (32, 32)
    np.testing.assert_array_equal(reader.read(0, (100, 120, 110, 140)), make.ramps(256, 256)[100:110, 120:140])
    assert reader.tiles_read == 3 * 2
    np.testing.assert_array_equal(whole(reader), make.ramps(256, 256))


@VERSIONS
def test_a_chunk_without_a_file_is_fill_value(tmp_path: Path, version: str) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version=version, fill_value=9)
    chunk = path / "0" / ("0/0/1" if version == "0.4" else "c/0/0/1")
    chunk.unlink()
    got = whole(opened(path))
    assert (got[:64, 64:128, 0] == 9).all()
    np.testing.assert_array_equal(got[64:], RAMPS[64:])


@VERSIONS
@pytest.mark.parametrize("linked", ["chunk", "row", "level", "description", "attributes"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, version: str, linked: str) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version=version)
    attributes, mark, row = (".zattrs", ".zarray", "0") if version == "0.4" else ("zarr.json", "zarr.json", "c/0")
    place = {"chunk": f"0/{row}/0/1", "row": f"0/{row}", "level": "0", "description": f"0/{mark}"}
    file = path / place.get(linked, attributes)
    inside, outside = path / "kept", tmp_path / "elsewhere"
    file.rename(inside)
    file.symlink_to(inside)
    np.testing.assert_array_equal(whole(opened(path)), RAMPS)
    inside.rename(outside)
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(ImageError, match="is behind a link that leads out of it; put a copy") as problem:
        whole(opened(path))
    assert "elsewhere" not in str(problem.value)


def test_the_folder_may_be_a_link(tmp_path: Path) -> None:
    make.ome_zarr(tmp_path / "a", [RAMPS]).rename(tmp_path / "real")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "real")
    np.testing.assert_array_equal(whole(opened(tmp_path / "link.zarr")), RAMPS)


@VERSIONS
@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("axes", ["yx", "cyx", "tczyx"])
def test_chunks_under_other_names_are_not_fill_values(tmp_path: Path, version: str, separator: str, axes: str) -> None:
    encoding = {"name": "v2" if version == "0.4" else "default", "separator": separator}
    levels = [RAMPS if "c" in axes else RAMPS[..., :1]]
    path = make.ome_zarr(tmp_path / "a", levels, version=version, axes=axes, chunk_key_encoding=encoding)
    (path / "0/.DS_Store").touch()
    np.testing.assert_array_equal(whole(opened(path)), levels[0])
    other = "." if separator == "/" else "/"
    if version == "0.4":
        edit(path / "0/.zarray", dimension_separator=other)
    else:
        edit(path / "0/zarr.json", chunk_key_encoding={"name": "default", "configuration": {"separator": other}})
    with pytest.raises(
        ImageError, match=r"level '0' has files such as .*, but no chunk was found, such as .*separator"
    ):
        opened(path)


def test_a_separator_that_is_not_stated_is_a_dot(tmp_path: Path) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS, make.halved(RAMPS)], version="0.4")
    description = json.loads((path / "1/.zarray").read_text())
    del description["dimension_separator"]
    (path / "1/.zarray").write_text(json.dumps(description))
    with pytest.raises(ImageError, match=r"level '1' has files such as [012]/[01]/[01], .* such as 0\.0\.0; .*zarray"):
        opened(path)


def test_chunks_of_another_version_are_not_fill_values(tmp_path: Path) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version="0.5", shards=128, chunk=64)
    np.testing.assert_array_equal(whole(opened(path)), RAMPS)
    (path / "0/c").rename(path / "0/d")
    with pytest.raises(ImageError, match="no chunk was found, such as c/0/0/0"):
        opened(path)


@VERSIONS
def test_chunks_outside_the_array_do_not_count(tmp_path: Path, version: str) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version=version)
    columns = [each for each in (path / "0").rglob("[0-9]") if each.is_file()]
    for chunk in columns:
        chunk.rename(chunk.with_name(f"{int(chunk.name) + 3}"))
    with pytest.raises(ImageError, match="no chunk was found"):
        opened(path)


@VERSIONS
def test_a_folder_that_goes_is_no_picture_of_fill_values(tmp_path: Path, version: str) -> None:
    path = make.ome_zarr(tmp_path / "a", make.pyramid(RAMPS, 2), version=version)
    reader = opened(path)
    shutil.rmtree(path / "1")
    whole(reader, 0)
    with pytest.raises(ImageError, match="of level 1 is gone"):
        whole(reader, 1)


def test_scales_say_how_coarse_levels_are(tmp_path: Path) -> None:
    path = make.ome_zarr(tmp_path / "a", make.pyramid(make.ramps(101, 151), 3))
    assert [level.downsample_yx for level in opened(path).info.levels] == [(1, 1), (2, 2), (4, 4)]
    described = json.loads((path / "zarr.json").read_text())
    for dataset in described["attributes"]["ome"]["multiscales"][0]["datasets"]:
        del dataset["coordinateTransformations"]
    (path / "zarr.json").write_text(json.dumps(described))
    info = opened(path).info
    assert info.levels[1].downsample_yx == (101 / 51, 151 / 76) and info.spacing_m_yx is None


def test_display_colours_tell_rgb_from_three_stains(tmp_path: Path) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version="0.4")
    for colors, expected in ((["FF0000", "00FF00", "0000FF"], "rgb"), (["0000FF", "00FF00", "FF0000"], "bands")):
        edit(path / ".zattrs", omero={"channels": [{"color": color} for color in colors]})
        assert opened(path).info.color == expected


def test_images_of_bioformats2raw_are_series(tmp_path: Path) -> None:
    for number in range(2):
        make.ome_zarr(tmp_path / "a" / str(number), [make.ramps(100 + number, 150)], version="0.4")
    (tmp_path / "a" / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    (tmp_path / "a" / ".zgroup").write_text('{"zarr_format": 2}')
    np.testing.assert_array_equal(whole(opened(tmp_path / "a", series=1)), make.ramps(101, 150))
    with pytest.raises(ImageError, match="a cannot be read"):
        opened(tmp_path / "a", series=2)


def test_several_multiscales_are_series(tmp_path: Path) -> None:
    path = make.ome_zarr(tmp_path / "a", make.pyramid(RAMPS, 2), version="0.4")
    first = json.loads((path / ".zattrs").read_text())["multiscales"][0]
    edit(path / ".zattrs", multiscales=[first, first | {"datasets": first["datasets"][1:]}])
    assert opened(path, series=1).info.levels[0].size_hw == (50, 75)
    with pytest.raises(ImageError, match="series is 2, but it holds 2"):
        opened(path, series=2)


@pytest.mark.parametrize(
    ("shape", "size_hw", "channels"), [((70, 90), (70, 90), 1), ((5, 70, 90), (70, 90), 5), ((70, 90, 3), (70, 90), 3)]
)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_array_is_a_picture(
    tmp_path: Path, shape: tuple[int, ...], size_hw: tuple[int, int], channels: int, zarr_format: Any
) -> None:
    import zarr

    values = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    zarr.save_array(tmp_path / "a", values, zarr_format=zarr_format)
    reader = open_reader(tmp_path / "a")
    assert reader.info.levels[0].size_hw == size_hw and reader.info.channels == channels
    expected = {2: values[..., None], 5: np.moveaxis(values, 0, 2) if values.ndim == 3 else values}
    stored = values if channels == 3 else expected[2] if channels == 1 else expected[5]
    np.testing.assert_array_equal(whole(reader), stored)


# Bad input


@pytest.mark.parametrize("name", ["../secret", "/etc", "a/../../b", "http://127.0.0.1:9/a", "..\\b", "s3:x"])
def test_levels_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    make.ome_zarr(tmp_path / "secret", [RAMPS], version="0.4")
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version="0.4")
    image = json.loads((path / ".zattrs").read_text())["multiscales"][0]
    edit(path / ".zattrs", multiscales=[image | {"datasets": [{"path": name}]}])
    with pytest.raises(ImageError, match="a cannot be read: it names a level .*, which is not inside it"):
        opened(path)


def test_codecs_that_could_do_anything_are_refused(tmp_path: Path) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version="0.4")
    edit(path / "0" / ".zarray", filters=[{"id": "pickle"}], dtype="|O", fill_value=None)
    with pytest.raises(ImageError, match="codec 'pickle'"):
        opened(path)
    edit(path / "0" / ".zarray", filters=None, compressor={"id": "msgpack2"}, dtype="|u1", fill_value=0)
    with pytest.raises(ImageError, match="codec 'msgpack2'"):
        opened(path)
    newer = make.ome_zarr(tmp_path / "b", [RAMPS])
    edit(newer / "0" / "zarr.json", codecs=[{"name": "numcodecs.pickle", "configuration": {}}])
    with pytest.raises(ImageError, match="codec 'numcodecs.pickle'"):
        opened(newer)


def _zstd_frame(size: int) -> bytes:
    return struct.pack("<IBQ", 0xFD2FB528, 0xE0, size) + bytes(20)


def _blosc_frame(size: int) -> bytes:
    return struct.pack("<BBBBIII", 2, 1, 0x21, 1, size, size, 36) + bytes(20)


BIG = 1 << 26
BOMBS = {
    "blosc": _blosc_frame(2**31 - 1),
    "zstd": _zstd_frame(2**40),
    "gzip": gzip.compress(bytes(BIG)),
    "zlib": zlib.compress(bytes(BIG)),
    "bz2": bz2.compress(bytes(BIG)),
    "lzma": lzma.compress(bytes(BIG), preset=0),
    "lz4": struct.pack("<I", 2**31 - 1) + bytes(20),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_chunk_that_unpacks_to_more_is_refused_v2(tmp_path: Path, name: str) -> None:
    path = make.bomb_zarr(tmp_path / "a", "0.4", {"id": name}, BOMBS[name])
    with pytest.raises(ImageError, match="a cannot be read.*decodes to .* or more, not 4,096"):
        whole(opened(path))


@pytest.mark.parametrize("name", ["blosc", "zstd", "gzip"])
def test_a_chunk_that_unpacks_to_more_is_refused_v3(tmp_path: Path, name: str) -> None:
    settings = {"blosc": {"typesize": 1, "cname": "lz4", "clevel": 1, "shuffle": "noshuffle", "blocksize": 0}}
    settings |= {"zstd": {"level": 1, "checksum": False}, "gzip": {"level": 1}}
    path = make.bomb_zarr(tmp_path / "a", "0.5", {"name": name, "configuration": settings[name]}, BOMBS[name])
    with pytest.raises(ImageError, match="a cannot be read.*decodes to .* or more"):
        whole(opened(path))


@pytest.mark.parametrize("name", BOMBS)
def test_sizes_within_the_limit_pass(name: str) -> None:
    import numcodecs

    makers: Any = {"gzip": "GZip", "bz2": "BZ2", "lz4": "LZ4", "lzma": "LZMA"}
    codec = getattr(numcodecs, makers.get(name, name.capitalize()))()
    data = codec.encode(np.zeros(10_000, np.uint8))
    check_encoded(name, bytes(data), 10_000)
    with pytest.raises(ValueError, match="decodes to"):
        check_encoded(name, bytes(data), 9_999)


def test_zstandard_that_does_not_state_its_size_is_bounded() -> None:
    # RFC 8878: magic number, a descriptor without a size, a window, and blocks of one byte repeated (type 1).
    block = (128 * 1024) << 3 | 1 << 1
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 0x88)
    frame += (struct.pack("<I", block)[:3] + b"a") * 600 + struct.pack("<I", block | 1)[:3] + b"a"
    check_encoded("zstd", frame, 601 * 128 * 1024)
    with pytest.raises(Exception, match="Destination buffer is too small"):
        check_encoded("zstd", frame, 1 << 20)


@pytest.mark.parametrize("chunk", [(100_000, 100_000), (1, 2**31)])
def test_chunks_over_the_limit_are_refused(tmp_path: Path, chunk: tuple[int, int]) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS[..., :1]], version="0.4", axes="yx")
    edit(path / "0" / ".zarray", chunks=chunk, shape=chunk)
    with pytest.raises(ImageError, match="over the limit max_pixels"):
        opened(path)


@VERSIONS
def test_a_chunk_that_is_a_pipe_is_refused(tmp_path: Path, version: str) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version=version)
    chunk = path / "0" / ("0/0/0" if version == "0.4" else "c/0/0/0")
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(ImageError, match="not a regular file"):
        whole(opened(path))


@VERSIONS
def test_a_chunk_that_is_damaged_leaves_the_others_readable(tmp_path: Path, version: str) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version=version)
    make.truncated(path / "0" / ("0/0/1" if version == "0.4" else "c/0/0/1"), 0.3)
    reader = opened(path)
    with pytest.raises(ImageError, match="a cannot be read"):
        whole(reader)
    np.testing.assert_array_equal(reader.read(0, (0, 0, 64, 64)), RAMPS[:64, :64])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"multiscales": []}',
        '{"multiscales": [{"datasets": []}]}',
        '{"multiscales": [{"datasets": [{}]}]}',
        '{"multiscales": [{"datasets": [{"path": "9"}]}]}',
        '{"multiscales": 3}',
        '{"multiscales": [{"axes": ["q", "r", "s"], "datasets": [{"path": "0"}]}]}',
        '{"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": "0"}]}]}',
        '{"plate": {}}',
        "[" * 100_000,
    ],
)
def test_damaged_descriptions_are_refused(tmp_path: Path, content: str) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version="0.4")
    (path / ".zattrs").write_text(content)
    with pytest.raises(ImageError, match="a cannot be read"):
        opened(path)


@pytest.mark.parametrize(
    "changes",
    [{"shape": [0, 5, 5]}, {"shape": [3]}, {"shape": "no"}, {"dtype": "<U9"}, {"dtype": "<c8"}, {"chunks": [1, 0, 0]}],
)
def test_arrays_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = make.ome_zarr(tmp_path / "a", [RAMPS], version="0.4")
    edit(path / "0" / ".zarray", **changes)
    with pytest.raises(ImageError, match="a cannot be read"):
        opened(path)
