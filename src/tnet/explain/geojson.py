"""Regions as GeoJSON: in pixels for QuPath, or in map coordinates."""

from __future__ import annotations

import colorsys
import json
import re
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from uuid import NAMESPACE_URL, uuid5

from tnet.errors import ImageError, OutputError
from tnet.explain.exports import region_facts
from tnet.explain.scale import map_point
from tnet.files import check_outputs, name_after, write_text
from tnet.inference.records import Prediction, RegionRecord
from tnet.scenes.readers.base import GeoReference

Coordinates = Literal["auto", "pixels", "native", "wgs84"]
"""Coordinates of a GeoJSON file. ``pixels``: level-0 pixels, x to the right and y down from the top left corner, as in
QuPath. ``native``: the raster's own coordinate system. ``wgs84``: longitude and latitude, as in RFC 7946. ``auto``:
``wgs84`` if the image is georeferenced in a known system, else ``pixels``."""

_DEGREE_DIGITS = 9  # a tenth of a millimetre

_COLUMNS = ("number", "level", "label", "probability", "weight", "location_probability")  # in map coordinates


def regions_geojson(
    prediction: Prediction, georeference: GeoReference | None = None, *, coordinates: Coordinates = "auto"
) -> dict[str, Any]:
    """Return the regions of one image as a GeoJSON FeatureCollection, one polygon per region.

    In pixels, features are QuPath annotations. In map coordinates, properties are flat, as GIS programs show them;
    ``native`` adds the member ``crs`` that GDAL and QGIS read if the system has an EPSG code, else ``crs_wkt``. The
    prediction for the whole image is in the member ``tnet``.
    """
    kind = _settled(coordinates, georeference, prediction.path)
    features = []
    for order, region in enumerate(prediction.regions, start=1):
        ring = _ring(region.box_l0_yxyx, None if kind == "pixels" else georeference)
        geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
        if kind == "wgs84" and georeference is not None:
            geometry = _to_wgs84(geometry, georeference, prediction.path)
        flat = {"image": prediction.path, **{name: getattr(region, name) for name in _COLUMNS}}
        flat["box_l0_yxyx"] = list(region.box_l0_yxyx)
        properties = _annotation(region, order) if kind == "pixels" else flat
        identity = f"tnet:{prediction.path}:{region.number}:{region.box_l0_yxyx}".encode("utf-8", "backslashreplace")
        feature_id = str(uuid5(NAMESPACE_URL, identity.decode("utf-8")))
        features.append({"type": "Feature", "id": feature_id, "geometry": geometry, "properties": properties})
    whole = {"image": prediction.path, "label": prediction.label, "probability": prediction.probability}
    whole |= {"size_hw": list(prediction.size_hw), "coordinates": kind}
    crs = _crs_members(georeference.crs) if kind == "native" and georeference is not None else {}
    return {"type": "FeatureCollection", **crs, "tnet": whole, "features": features}


def write_all_geojson(
    predictions: Sequence[tuple[Prediction, GeoReference | None]],
    out: str | Path,
    *,
    coordinates: Coordinates = "auto",
    overwrite: bool = False,
) -> list[Path]:
    """Write one file per image, named after it; on an error about any of them, none.

    ``out`` is a folder; or, for one image, a file (``.geojson`` or ``.json``). Files are replaced only with
    ``overwrite``, and never an image.
    """
    names = [prediction.path for prediction, _ in predictions]
    files = geojson_files(out, names)
    check_outputs(files, inputs=names, overwrite=overwrite)
    collections = [regions_geojson(prediction, place, coordinates=coordinates) for prediction, place in predictions]
    for collection, file in zip(collections, files, strict=True):
        write_text(file, json.dumps(collection, ensure_ascii=False, allow_nan=False) + "\n")
    return files


def geojson_files(out: str | Path, images: Sequence[str]) -> list[Path]:
    """Return the file for each image: ``out`` itself, for one image, or named after the image in the folder ``out``."""
    out = Path(out)
    single = out.suffix.lower() in (".geojson", ".json")
    if single and len(images) > 1:
        raise OutputError(f"{out} is one file for {len(images)} images; give a folder")
    if not single and out.is_file():
        raise OutputError(f"{out} is a file without suffix .geojson; give a folder, or a .geojson file")
    taken: set[str] = set()
    return [out if single else out / name_after(image, ".geojson", taken) for image in images]


def class_color(label: str) -> tuple[int, int, int]:
    """Derive the color of a class from its name: red, green and blue from 0 to 255."""
    hue = zlib.crc32(label.encode("utf-8", "surrogatepass")) / 2**32
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 0.9))
    return red, green, blue


def _settled(
    coordinates: Coordinates, georeference: GeoReference | None, path: str
) -> Literal["pixels", "native", "wgs84"]:
    if coordinates == "auto":
        return "wgs84" if georeference is not None and georeference.crs else "pixels"
    if coordinates != "pixels" and georeference is None:
        raise ImageError(f"{path} is not georeferenced, so it has no {coordinates} coordinates; use pixels")
    if coordinates == "wgs84" and georeference is not None and not georeference.crs:
        raise ImageError(f"{path} does not name its coordinate system; use native coordinates, or pixels")
    return coordinates


def _ring(box_yxyx: tuple[int, int, int, int], georeference: GeoReference | None) -> list[list[float]]:
    """Return the closed outline of a box, counter-clockwise on a map, as RFC 7946 requires."""
    y0, x0, y1, x1 = box_yxyx
    corners: list[tuple[float, float]] = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if georeference is not None:
        a, b, _, d, e, _ = georeference.transform
        corners = [map_point(georeference, x, y) for x, y in corners]
        if a * e - b * d < 0:  # y goes up on the map, as nearly always, which reverses the orientation
            corners.reverse()
    return [list(corner) for corner in [*corners, corners[0]]]


def _to_wgs84(geometry: dict[str, Any], georeference: GeoReference, path: str) -> dict[str, Any]:
    """Transform corners to longitude and latitude; cuts the polygon in two at 180 degrees."""
    if find_spec("rasterio") is None:
        raise ImageError("wgs84 coordinates need rasterio; run pip install 'tnet[geo]', or use native coordinates")
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_geom

    try:
        return dict(transform_geom(georeference.crs, "EPSG:4326", geometry, precision=_DEGREE_DIGITS))
    except (RasterioError, ValueError) as error:
        raise ImageError(f"{path} cannot be transformed to wgs84 ({error}); use native or pixel coordinates") from None


def _crs_members(crs: str) -> dict[str, Any]:
    """Return the member of GeoJSON 2008 that names a coordinate system, which GDAL and QGIS read."""
    code = _epsg_code(crs)
    if code is not None:
        # EPSG:4326 has latitude first; longitude first, as written here and by GDAL, is CRS84.
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


def _annotation(region: RegionRecord, order: int) -> dict[str, Any]:
    label, annotation = region.label, {"objectType": "annotation", "name": region.number}
    kind = {} if label is None else {"classification": {"name": label, "color": list(class_color(label))}}
    return {**annotation, **kind, "isLocked": True, "measurements": region_facts(region, order)}
