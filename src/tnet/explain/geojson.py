"""Where a model looked, as GeoJSON: for slides as QuPath reads it, for maps in map coordinates."""

from __future__ import annotations

import colorsys
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from uuid import NAMESPACE_URL, uuid5

from tnet.errors import ImageError, OutputError
from tnet.files import make_folder, name_after, write_text
from tnet.inference.records import Prediction, RegionRecord
from tnet.scenes.readers.base import GeoReference

Coordinates = Literal["auto", "pixels", "native", "wgs84"]
"""Of a GeoJSON file. ``pixels``: x to the right and y down from the top left corner, level-0 pixels, as QuPath wants.
``native``: of the raster's own coordinate system. ``wgs84``: longitude and latitude, as RFC 7946 has it. ``auto``:
``wgs84`` if the picture is georeferenced in a known system, else ``pixels``."""

_DEGREE_DIGITS = 9  # a tenth of a millimetre

Ring = list[list[float]]


def regions_geojson(
    prediction: Prediction,
    georeference: GeoReference | None = None,
    *,
    coordinates: Coordinates = "auto",
    colors: Mapping[str, tuple[int, int, int]] | None = None,
) -> dict[str, Any]:
    """The regions of one picture as a GeoJSON FeatureCollection, a polygon each, in the order they are recorded.

    In pixels a feature is a QuPath annotation (``objectType``, ``name``, ``classification`` with colour,
    ``measurements``). In map coordinates its properties are flat, as GIS programs show them. Coordinates of ``native``
    carry the member ``crs`` that GDAL and QGIS read where the system has an EPSG code, else ``crs_wkt``. What the model
    says of the whole picture stands beside the features as ``tnet``.

    Args:
        prediction: boxes in level-0 pixels; they may reach past the picture's edge and are given as they are.
        georeference: where the picture lies.
        coordinates: see :data:`Coordinates`.
        colors: of classes, red, green and blue from 0 to 255; others get one made from their name, always the same.

    Raises:
        ImageError: map coordinates are asked for, but where the picture lies is not known, or rasterio is missing.
    """
    kind = _settled(coordinates, georeference, prediction.path)
    features = []
    for order, region in enumerate(prediction.regions, start=1):
        ring = _ring(region.box_l0_yxyx, None if kind == "pixels" else georeference)
        geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
        if kind == "wgs84" and georeference is not None:
            geometry = _to_wgs84(geometry, georeference, prediction.path)
        properties = (
            _annotation(region, order, colors or {})
            if kind == "pixels"
            else {"image": prediction.path, **_flat(region)}
        )
        identity = f"tnet:{prediction.path}:{region.number}:{region.box_l0_yxyx}".encode("utf-8", "backslashreplace")
        feature_id = str(uuid5(NAMESPACE_URL, identity.decode("utf-8")))
        features.append({"type": "Feature", "id": feature_id, "geometry": geometry, "properties": properties})
    whole = {
        "image": prediction.path,
        "label": prediction.label,
        "probability": prediction.probability,
        "size_hw": list(prediction.size_hw),
        "coordinates": kind,
    }
    crs = _crs_members(georeference.crs) if kind == "native" and georeference is not None else {}
    return {"type": "FeatureCollection", **crs, "tnet": whole, "features": features}


def write_geojson(
    prediction: Prediction,
    path: str | Path,
    georeference: GeoReference | None = None,
    *,
    coordinates: Coordinates = "auto",
    colors: Mapping[str, tuple[int, int, int]] | None = None,
) -> Path:
    """Write :func:`regions_geojson` to a file, whole or not at all.

    Raises:
        ImageError: as for :func:`regions_geojson`.
        OutputError: the file cannot be written.
    """
    return _write(regions_geojson(prediction, georeference, coordinates=coordinates, colors=colors), path)


def _write(collection: dict[str, Any], path: str | Path) -> Path:
    text = json.dumps(collection, ensure_ascii=False, allow_nan=False) + "\n"
    # A name that is not UTF-8 keeps its bytes, as escapes.
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))
    return Path(path)


def write_all_geojson(
    predictions: Sequence[tuple[Prediction, GeoReference | None]],
    out: str | Path,
    *,
    coordinates: Coordinates = "auto",
) -> list[Path]:
    """Write one file a picture, since pixels of several pictures share no frame.

    All are made before the first is written, so that a picture that cannot be placed leaves nothing behind.

    Args:
        predictions: each with where its picture lies.
        out: a file (``.geojson`` or ``.json``) for one picture; else a folder, for files named after the pictures.
        coordinates: see :data:`Coordinates`.

    Returns:
        The files, in the order of ``predictions``.

    Raises:
        ImageError: as for :func:`regions_geojson`.
        OutputError: one file for several pictures, a folder where a file is meant, or no place that can be written.
    """
    out = Path(out)
    single = check_geojson_output(out, len(predictions))
    made = [
        (prediction.path, regions_geojson(prediction, georeference, coordinates=coordinates))
        for prediction, georeference in predictions
    ]
    if not single:
        make_folder(out)
    taken: set[str] = set()
    return [
        _write(collection, out if single else out / name_after(source, ".geojson", taken))
        for source, collection in made
    ]


def check_geojson_output(out: str | Path, count: int) -> bool:
    """Refuse a place for the regions of ``count`` pictures that cannot be, before any work.

    Returns:
        Whether ``out`` is one file, rather than a folder.

    Raises:
        OutputError: one file for several pictures, or a folder where a file is meant.
    """
    out = Path(out)
    single = out.suffix.lower() in (".geojson", ".json")
    if single and count > 1:
        raise OutputError(f"{out} is one file, but there are {count} pictures; name a folder")
    if single and out.is_dir():
        raise OutputError(f"{out} is a folder; name a file in it, such as {out / 'regions.geojson'}")
    if not single and out.is_file():
        raise OutputError(f"{out} is a file that is no .geojson; name a folder, or a file that ends with .geojson")
    return single


def class_color(label: str) -> tuple[int, int, int]:
    """A colour for a class, from its name alone: the same in every file; red, green and blue from 0 to 255."""
    hue = zlib.crc32(label.encode("utf-8", "surrogatepass")) / 2**32
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 0.9))
    return red, green, blue


def _settled(
    coordinates: Coordinates, georeference: GeoReference | None, path: str
) -> Literal["pixels", "native", "wgs84"]:
    if coordinates == "auto":
        return "wgs84" if georeference is not None and georeference.crs else "pixels"
    if coordinates != "pixels" and georeference is None:
        raise ImageError(f"{path} is not georeferenced, so that it has no {coordinates} coordinates; use pixels")
    if coordinates == "wgs84" and georeference is not None and not georeference.crs:
        raise ImageError(f"{path} does not say in which coordinate system it lies; use native coordinates, or pixels")
    return coordinates


def _ring(box_yxyx: tuple[int, int, int, int], georeference: GeoReference | None) -> Ring:
    """Outline of a box, closed; on a map counter-clockwise, as RFC 7946 asks."""
    y0, x0, y1, x1 = box_yxyx
    corners: list[tuple[float, float]] = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if georeference is not None:
        a, b, c, d, e, f = georeference.transform
        corners = [(a * x + b * y + c, d * x + e * y + f) for x, y in corners]
        if a * e - b * d < 0:  # y goes up on the map, as nearly always: the sense of rotation turns round
            corners.reverse()
    return [list(corner) for corner in [*corners, corners[0]]]


def _to_wgs84(geometry: dict[str, Any], georeference: GeoReference, path: str) -> dict[str, Any]:
    """Corners as longitude and latitude; edges are straight between them. Cut in two where it crosses 180 degrees."""
    if find_spec("rasterio") is None:
        raise ImageError(
            "rasterio is needed for longitude and latitude, but is not installed; run: pip install 'tnet[geo]', or use "
            "native coordinates"
        )
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_geom

    try:
        return dict(transform_geom(georeference.crs, "EPSG:4326", geometry, precision=_DEGREE_DIGITS))
    except (RasterioError, ValueError) as error:
        raise ImageError(
            f"{path} cannot be placed by longitude and latitude ({error}); use native coordinates, or pixels"
        ) from None


def _crs_members(crs: str) -> dict[str, Any]:
    """How GeoJSON of another system than WGS 84 names it: the member of GeoJSON 2008, which GDAL and QGIS read."""
    code = _epsg_code(crs)
    if code is not None:
        # EPSG:4326 has latitude first; what is written here, and what GDAL writes, is CRS84.
        name = "urn:ogc:def:crs:OGC:1.3:CRS84" if code == 4326 else f"urn:ogc:def:crs:EPSG::{code}"
        return {"crs": {"type": "name", "properties": {"name": name}}}
    return {"crs_wkt": crs} if crs else {}


def _epsg_code(crs: str) -> int | None:
    match = re.fullmatch(r"EPSG:(\d+)", crs.strip(), flags=re.IGNORECASE)
    if match is not None:
        return int(match[1])
    if not crs or find_spec("rasterio") is None:
        return None
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_string(crs).to_epsg()
    except CRSError:
        return None


def _annotation(region: RegionRecord, order: int, colors: Mapping[str, tuple[int, int, int]]) -> dict[str, Any]:
    """A region as QuPath's annotations are written."""
    measurements = {
        "order": order,
        "level": region.level,
        "probability": region.probability,
        "weight": region.weight,
        "location probability": region.location_probability,
    }
    return {
        "objectType": "annotation",
        "name": region.number,
        **({} if region.label is None else {"classification": _classification(region.label, colors)}),
        "isLocked": True,
        "measurements": {name: value for name, value in measurements.items() if value is not None},
    }


def _classification(label: str, colors: Mapping[str, tuple[int, int, int]]) -> dict[str, Any]:
    return {"name": label, "color": list(colors.get(label, class_color(label)))}


def _flat(region: RegionRecord) -> dict[str, Any]:
    """A region's properties as the columns of a table."""
    return {
        "number": region.number,
        "level": region.level,
        "label": region.label,
        "probability": region.probability,
        "weight": region.weight,
        "location_probability": region.location_probability,
        "box_l0_yxyx": list(region.box_l0_yxyx),
    }
