from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import tifffile
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.readers import open_reader, sniff, tiff_header
from tnet.scenes.readers.tiff_header import read_tiff_header

RAMPS = make.ramps(100, 150)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tags_are_read_in_every_flavour(tmp_path: Path, byteorder: str, bigtiff: bool) -> None:
    path = make.pyramid_tiff(
        tmp_path / "a", make.pyramid(RAMPS, 3), byteorder=byteorder, bigtiff=bigtiff, software="one", description="two"
    )
    header = read_tiff_header(path)
    assert header.count == 3 and header.is_tiled and header.is_pyramidal
    assert not header.is_ome and not header.has_geo_keys and not header.masks_hw
    assert header.number(tiff_header.TAG_WIDTH, 0) == 150 and header.number(tiff_header.TAG_HEIGHT, 0, 1) == 50
    assert header.ifds[0][tiff_header.TAG_BITS] == (8, 8, 8) and header.bits == 8
    assert header.text(tiff_header.TAG_SOFTWARE).startswith(b"one")
    assert header.text(tiff_header.TAG_DESCRIPTION).startswith(b"two")


def test_kinds_show(tmp_path: Path) -> None:
    assert read_tiff_header(make.ome_tiff(tmp_path / "a", make.pyramid(RAMPS, 2))).is_ome
    assert read_tiff_header(make.pyramid_tiff(tmp_path / "b", make.pyramid(RAMPS, 2), subifds=True)).is_pyramidal
    assert read_tiff_header(make.geotiff(tmp_path / "c", RAMPS, overviews=())).has_geo_keys
    flat = read_tiff_header(make.tiled_tiff(tmp_path / "d", RAMPS, tile=128))
    assert flat.count == 1 and not flat.is_pyramidal


def test_directories_in_a_ring_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="ring.tif.*lead back to the one at 8"):
        read_tiff_header(make.cyclic_tiff(tmp_path / "ring.tif"))
    own = make.raw_tiff(tmp_path / "own", [make.tiff_ifd(t330=(13, 1, 8))])
    with pytest.raises(ImageError, match="lead back to the one at 8"):
        read_tiff_header(own)


def test_too_many_directories_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_header, "MAX_IFDS", 20)
    assert read_tiff_header(make.raw_tiff(tmp_path / "a", [make.tiff_ifd()] * 20)).count == 20
    with pytest.raises(ImageError, match="more than 20"):
        read_tiff_header(make.raw_tiff(tmp_path / "b", [make.tiff_ifd()] * 21))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"II*\0", "not a TIFF"),
        (b"II+\0\x08\0\0\0\x10\0\0\0", "not a TIFF"),
        (b"PNG*\0aaaaaaaaaaaa", "not a TIFF"),
        (struct.pack("<2sHI", b"II", 42, 0), "there are none"),
        (struct.pack("<2sHI", b"II", 42, 500), "ends at 8 bytes"),
        (struct.pack("<2sHIH", b"II", 42, 8, 9), "ends at 10 bytes"),
        (struct.pack("<2sHIH", b"II", 42, 8, 0) + bytes(4), "0 entries"),
        (struct.pack("<2sHIH", b"II", 42, 8, 5000), "5,000 entries"),
        (struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**60), "entries"),
    ],
)
def test_damaged_directories(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.tif"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"bad.tif.*{reason}"):
        read_tiff_header(path)


def test_values_that_lie_outside_are_left_out(tmp_path: Path) -> None:
    far = read_tiff_header(make.raw_tiff(tmp_path / "far", [make.tiff_ifd(t305=(2, 2**31, 100))]))
    assert far.text(tiff_header.TAG_SOFTWARE) == b"" and far.number(tiff_header.TAG_WIDTH, 0) == 64


@pytest.mark.parametrize("tag", ["t270", "t324", "t330", "t34735"])
def test_a_picture_is_refused_without_what_says_its_kind(tmp_path: Path, tag: str) -> None:
    """Without its description an OME-TIFF of three channels would be a stack, of which the first plane is taken."""
    path = make.raw_tiff(tmp_path / "far", [make.tiff_ifd(**{tag: (4, 2**20, 100)})])
    with pytest.raises(ImageError, match=f"tag {tag[1:]} claims 4,194,304 bytes at 100"):
        read_tiff_header(path)


def test_too_many_directories_inside_one_are_refused(tmp_path: Path) -> None:
    many = make.raw_tiff(tmp_path / "many", [make.tiff_ifd(t330=(13, 300, 8))], tail=bytes(2000))
    with pytest.raises(ImageError, match="300 others inside"):
        read_tiff_header(many)


@pytest.mark.parametrize(
    ("first", "second", "inner", "at"),
    [
        ({}, {}, {}, (0,)),
        ({254: 1}, {}, {}, (1,)),
        ({255: 2}, {}, {}, (1,)),  # the older tag
        ({254: 1}, {254: 1}, {256: 65, 257: 65}, (0, 0)),
        ({}, {}, {256: 65, 257: 65}, (0, 0)),
        ({}, {}, {256: 65, 257: 65, 254: 1}, (0,)),
        ({254: 1}, {254: 4}, {}, (0,)),  # a mask is no image
    ],
)
def test_an_image_may_lie_behind_its_thumbnail(
    tmp_path: Path, first: dict[int, int], second: dict[int, int], inner: dict[int, int], at: tuple[int, ...]
) -> None:
    inside = {256: 16, 257: 16, **inner}
    ifds = [{**make.tiff_ifd(), **{tag: (4, 1, value) for tag, value in tags.items()}} for tags in (first, second)]
    size = sum(2 + 12 * (len(ifd) + (330 not in ifd and ifd is ifds[0])) + 4 for ifd in ifds)
    ifds[0][330] = (13, 1, 8 + size)
    body = struct.pack("<H", len(inside))
    body += b"".join(struct.pack("<HHII", tag, 4, 1, inside[tag]) for tag in sorted(inside)) + struct.pack("<I", 0)
    header = read_tiff_header(make.raw_tiff(tmp_path / "a.tif", ifds, tail=body))
    assert header.at == at and header.number(tiff_header.TAG_WIDTH, 0) == (65 if len(at) == 2 else 64)
    assert header.masks_hw == ({(64, 64)} if second == {254: 4} else set())


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"resolutionunit": "CENTIMETER"}, (5e-6, 2.5e-6)),
        ({"resolutionunit": "INCH"}, None),
        ({"resolutionunit": "NONE"}, None),
        ({"unit": "micron"}, (5e-4, 2.5e-4)),
        ({"unit": "\\u00B5m"}, (5e-4, 2.5e-4)),  # as ImageJ writes it, in ASCII
        ({"unit": "um"}, (5e-4, 2.5e-4)),
        ({"unit": "mm"}, (0.5, 0.25)),
        ({"unit": "pixel"}, None),
        ({"unit": "inch"}, None),
    ],
)
def test_spacing_by_the_unit_of_the_resolution(tmp_path: Path, form: dict[str, str], expected: Any) -> None:
    options: dict[str, Any] = {"resolution": (4000, 2000), "metadata": None, **form}
    if "unit" in form:
        options = {"imagej": True, "resolution": (0.004, 0.002), "metadata": {"unit": form["unit"]}}
    tifffile.imwrite(tmp_path / "a.tif", RAMPS[..., 0], photometric="minisblack", **options)
    found = read_tiff_header(tmp_path / "a.tif").spacing_m_yx
    assert found == (expected and pytest.approx(expected, rel=1e-4))
    with_reader = open_reader(tmp_path / "a.tif").info.spacing_m_yx
    assert with_reader == found and sniff(tmp_path / "a.tif") == "pillow"
