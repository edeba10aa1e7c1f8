"""One picture, one meaning: every way to store it in a TIFF, through every reader that accepts it.

Values are computed from the stored ones here, by the definitions of TIFF and GDAL.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from tests.scenes.readers import make

from tnet.errors import ImageError
from tnet.scenes.file import open_scene
from tnet.scenes.pyramid import geo_tags, write_pyramid
from tnet.scenes.readers import READERS
from tnet.scenes.readers.base import GeoReference

pytest.importorskip("rasterio")

SIDE = 24
GEO = geo_tags(GeoReference(make.GEO_TRANSFORM, "EPSG:32632"))


class Case(NamedTuple):
    dtype: str
    planar: str
    photometric: str
    alpha: str
    missing: str
    layout: str
    is_geo: bool
    byteorder: str


AXES: tuple[tuple[Any, ...], ...] = (  # in the order of a case
    ("uint1", "uint4", "uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"),
    ("contig", "separate"),
    ("minisblack", "miniswhite", "rgb", "palette", "separated"),
    ("", "unassalpha", "assocalpha"),
    ("", "nodata", "nan", "absent", "mask", "beside"),
    ("strips", "tiles", "deflate"),
    (False, True),
    ("<", ">"),
)


def _is_possible(case: Case) -> bool:
    colors = {"rgb": 3, "separated": 4}.get(case.photometric, 1)
    if case.dtype == "uint4" and case.layout == "deflate":  # not with tifffile
        return False
    if case.dtype in ("uint1", "uint4") and (case.photometric in ("rgb", "separated") or case.alpha):
        return False
    if case.photometric == "palette" and (case.alpha or case.dtype not in ("uint8", "uint16")):
        return False
    if case.photometric == "separated" and case.dtype not in ("uint8", "uint16"):
        return False
    if case.missing == "nan" and "float" not in case.dtype:
        return False
    return case.planar == "contig" or colors + bool(case.alpha) > 1


EVERY = [case for case in map(Case._make, product(*AXES)) if _is_possible(case)]


def _pairwise() -> Iterator[Case]:
    """Cases that hold every possible pair of values at least once."""
    seen: set[Any] = set()
    for index in np.random.default_rng(0).permutation(len(EVERY)):
        pairs = set(combinations(enumerate(EVERY[index]), 2))
        if len(pairs - seen) > 1 or (len(seen) > 250 and pairs - seen):  # first those that add several
            seen |= pairs
            yield EVERY[index]


def _range(dtype: str) -> tuple[float, float]:
    """Stored values of 0 and 1."""
    return {"uint1": (0, 1), "uint4": (0, 15), "uint8": (0, 255), "uint16": (0, 65535), "int16": (-1000, 3000)}.get(
        dtype, (0, 100_000) if dtype == "uint32" else (-2.0, 6.0)
    )


class Written(NamedTuple):
    path: Path
    expected: NDArray[Any]  # what a glimpse over white shows, [channels, SIDE, SIDE]
    options: dict[str, Any]


def write(path: Path, case: Case) -> Written:
    """Store noise with a block of missing pixels, and compute what is to be seen of it."""
    random = np.random.default_rng(EVERY.index(case))
    colors = {"rgb": 3, "separated": 4}.get(case.photometric, 1)
    stored_type = {"uint1": "bool", "uint4": "uint8"}.get(case.dtype, case.dtype)
    is_integer = np.dtype(stored_type).kind in "uib"
    low, high = _range(case.dtype)
    limits = _range(case.dtype) if is_integer and case.dtype != "int16" else (low, high)
    values = limits[0] + random.random((SIDE, SIDE, colors)) * (limits[1] - limits[0])
    is_table = case.photometric == "palette"
    values = np.floor(random.random((SIDE, SIDE, 1)) * 256) if is_table else values
    share = random.choice([0.0, 0.5, 1.0], (SIDE, SIDE)) if case.alpha else np.ones((SIDE, SIDE))
    full = {"int16": 32767.0}.get(case.dtype, high if is_integer and case.dtype != "uint32" else 1.0)
    full = 2.0**32 - 1 if case.dtype == "uint32" else full
    alpha = np.rint(share * full) if is_integer else share
    if case.alpha == "assocalpha":
        values = values * share[..., None]
    values = (np.rint(values) if is_integer else values).astype(stored_type)

    tags: list[Any] = list(GEO) if case.is_geo else []
    missing = np.zeros((SIDE, SIDE), bool)
    if case.missing in ("nodata", "nan"):
        nodata = np.nan if case.missing == "nan" else {"int16": -999.0, "uint1": 1.0}.get(case.dtype, 3.0)
        values[:5] = nodata
        values[6, 6, 0] = nodata
        missing = np.isnan(values).all(2) if case.missing == "nan" else (values == nodata).all(2)
        tags.append((42113, "s", 0, f"{nodata:g}", True))
    elif case.missing == "absent":  # no value of an integer
        tags.append((42113, "s", 0, "-99999", True))
    elif case.missing:
        missing[:, :6] = True

    samples = np.concatenate([values, alpha[..., None].astype(stored_type)], 2) if case.alpha else values
    form: dict[str, Any] = {"photometric": case.photometric, "metadata": None, "byteorder": case.byteorder}
    if case.layout != "strips":
        form["tile"] = (16, 16)
    if case.layout == "deflate":
        form["compression"] = "zlib"
    if samples.shape[2] > 1:
        form["planarconfig"] = case.planar
        form["extrasamples"] = [case.alpha] if case.alpha else None
        samples = np.moveaxis(samples, 2, 0) if case.planar == "separate" else samples
    else:
        samples = samples[..., 0]
    if case.dtype == "uint4":
        form["bitspersample"] = 4
    table = random.integers(0, 65536, (3, {"uint16": 65536}.get(case.dtype, 256))).astype(np.uint16)
    if is_table:
        form["colormap"] = table
    order = form.pop("byteorder")
    with tifffile.TiffWriter(path, byteorder=order) as file:
        file.write(np.ascontiguousarray(samples), extratags=tags, **form)
        if case.missing == "mask":
            mask: dict[str, Any] = {"photometric": 4, "subfiletype": 4, "metadata": None}
            file.write(~missing, tile=(16, 16) if "tile" in form else None, **mask)
    if case.missing == "beside":
        beside = np.where(missing, 0, 255).astype(np.uint8)
        tifffile.imwrite(f"{path}.msk", beside, photometric="minisblack", metadata=None)

    plain = values.astype(np.float64)
    with np.errstate(all="ignore"):
        if case.alpha == "assocalpha":
            plain = plain / (alpha / full)[..., None]
    options: dict[str, Any] = (
        {} if np.dtype(stored_type).name in ("uint8", "uint16", "bool") else {"value_range": (low, high)}
    )
    if case.photometric == "miniswhite" and is_integer:
        top = {"int16": -1.0, "uint32": 2.0**32 - 1}.get(case.dtype, high)
        plain = top - plain
        if case.dtype in ("int16", "uint32"):
            low, high = top - high, top - low
            options["value_range"] = (low, high)
    shown = (plain - low) / (high - low)
    if is_table:
        shown = (table >> 8).T[values[..., 0].astype(int)] / 255
    if case.photometric == "separated":
        shown = (1 - shown[..., :3]) * (1 - shown[..., 3:])
    opacity = np.where(missing, 0.0, alpha / full if case.alpha else 1.0)[..., None]
    shown = np.where(opacity > 0, shown, 0).clip(0, 1) * opacity + 1 - opacity
    shown = np.where(np.isnan(shown), 1.0, shown)  # a value that is no number is filled, as the outside is
    return Written(path, np.moveaxis(shown, 2, 0), options)


def _seen(path: Path, case: Case, options: dict[str, Any]) -> NDArray[Any]:
    scene = open_scene(path, **options)
    channels = 1 if case.photometric in ("minisblack", "miniswhite") else 3
    assert (scene.georeference is not None) == case.is_geo or scene.options.reader not in (None, "rasterio")
    box = (0, 0, SIDE, SIDE)
    seen = scene.glimpse(box, SIDE, channels=channels, resize="antialias", fill=(1.0,) * channels).numpy()
    scene.close()
    return seen


def _check(tmp_path: Path, case: Case, *, with_pyramid: bool) -> None:
    written = write(tmp_path / "a.tif", case)
    # What is divided by alpha, or made of inks, is rounded to the stored type.
    atol = {"uint8": 1.01 / 255, "float16": 4e-3}.get(case.dtype, 6e-4)
    accepted: list[Any] = []
    refused: dict[Any, str] = {}
    for reader in (None, *(name for name in READERS if name != "zarr")):
        try:
            seen = _seen(written.path, case, {**written.options, "reader": reader})
        except ImageError as error:
            refused[reader] = str(error)
            continue
        np.testing.assert_allclose(seen, written.expected, atol=atol, err_msg=f"{reader} {case}")
        accepted.append(reader)
    assert None in accepted, f"{case}: {refused}"
    if with_pyramid and case.dtype != "float16":
        write_pyramid(written.path, tmp_path / "pyramid.tif")
        seen = _seen(tmp_path / "pyramid.tif", case, written.options)
        np.testing.assert_allclose(seen, written.expected, atol=atol, err_msg=f"pyramid of {case}")


@pytest.mark.parametrize("case", list(_pairwise()), ids=lambda case: "-".join(map(str, filter(None, case))))
def test_every_pair_of_properties(tmp_path: Path, case: Case) -> None:
    _check(tmp_path, case, with_pyramid=EVERY.index(case) % 2 == 0)


@pytest.mark.slow
def test_combinations_from_all_over_the_product(tmp_path: Path) -> None:
    for index in range(0, len(EVERY), 41):  # all of them take a quarter of an hour
        folder = tmp_path / str(index)
        folder.mkdir()
        _check(folder, EVERY[index], with_pyramid=False)
