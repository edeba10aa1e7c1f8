from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tnet.errors import ImageError, OutputError
from tnet.explain import geojson
from tnet.explain.geojson import class_color, regions_geojson, write_all_geojson
from tnet.inference.records import Prediction, RegionRecord
from tnet.scenes.readers.base import GeoReference

REGIONS = (
    RegionRecord("1", 1, (100, 200, 300, 500), 4, -1, 0.75, 0.5, "tumour", 0.9),
    RegionRecord("1.1", 2, (150, -5, 250, 100), 0, 0, None, 0.25, "stroma", 0.6),
)
PREDICTION = Prediction(
    "slides/a.svs", "tumour", ("tumour",), 1, 0.875, (("tumour", 0.875), ("stroma", 0.125)), (1000, 2000), REGIONS
)
UTM = GeoReference((10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), "EPSG:32633")


def ring_of(collection: dict[str, Any], feature: int = 0) -> list[list[float]]:
    geometry = collection["features"][feature]["geometry"]
    assert geometry["type"] == "Polygon" and len(geometry["coordinates"]) == 1
    return geometry["coordinates"][0]


def signed_area(ring: Sequence[Sequence[float]]) -> float:
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring)) / 2


def test_pixels_are_annotations_of_qupath() -> None:
    found = regions_geojson(PREDICTION)
    assert found["type"] == "FeatureCollection" and "crs" not in found
    assert [feature["type"] for feature in found["features"]] == ["Feature", "Feature"]
    assert ring_of(found) == [[200, 100], [500, 100], [500, 300], [200, 300], [200, 100]]
    first, second = (feature["properties"] for feature in found["features"])
    assert first == {
        "objectType": "annotation",
        "name": "1",
        "classification": {"name": "tumour", "color": list(class_color("tumour"))},
        "isLocked": True,
        "measurements": {
            "order": 1, "level": 1, "probability": 0.9, "weight": 0.5, "location probability": 0.75,
        },
    }  # fmt: skip
    assert second["classification"]["color"] == list(class_color("stroma"))
    assert "location probability" not in second["measurements"]  # QuPath takes numbers only
    assert found["tnet"] == {
        "image": "slides/a.svs", "label": "tumour", "probability": 0.875, "size_hw": [1000, 2000],
        "coordinates": "pixels",
    }  # fmt: skip


def test_ids_are_stable_uuids() -> None:
    ids = [feature["id"] for feature in regions_geojson(PREDICTION)["features"]]
    assert ids == [feature["id"] for feature in regions_geojson(PREDICTION)["features"]]
    other = regions_geojson(replace(PREDICTION, path="slides/b.svs"))["features"]
    assert len({*map(UUID, ids), *(UUID(feature["id"]) for feature in other)}) == 4


def test_native_coordinates_name_their_system() -> None:
    found = regions_geojson(PREDICTION, UTM, coordinates="native")
    ring = ring_of(found)
    assert sorted(map(tuple, ring[:4])) == [
        (502_000, 4_997_000), (502_000, 4_999_000), (505_000, 4_997_000), (505_000, 4_999_000)
    ]  # fmt: skip
    assert ring[0] == ring[-1] and signed_area(ring) == pytest.approx(3000 * 2000)  # counter-clockwise
    assert found["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    assert found["features"][0]["properties"] == {
        "image": "slides/a.svs", "number": "1", "level": 1, "label": "tumour", "probability": 0.9, "weight": 0.5,
        "location_probability": 0.75, "box_l0_yxyx": [100, 200, 300, 500],
    }  # fmt: skip


@pytest.mark.parametrize("transform", [(2.0, 1.0, 7.0, 1.0, -3.0, 9.0), (2.0, 1.0, 7.0, 1.0, 3.0, 9.0)])
def test_turned_rasters(transform: tuple[float, float, float, float, float, float]) -> None:
    ring = ring_of(regions_geojson(PREDICTION, GeoReference(transform, "EPSG:32633"), coordinates="native"))
    a, b, c, d, e, f = transform
    expected = {(a * x + b * y + c, d * x + e * y + f) for x in (200, 500) for y in (100, 300)}
    assert set(map(tuple, ring)) == expected
    assert signed_area(ring) == pytest.approx(300 * 200 * abs(a * e - b * d))


def test_systems_without_a_code() -> None:
    local = GeoReference(UTM.transform)
    found = regions_geojson(PREDICTION, local, coordinates="native")
    assert "crs" not in found and "crs_wkt" not in found
    found = regions_geojson(PREDICTION, replace(UTM, crs='LOCAL_CS["mine"]'), coordinates="native")
    assert found["crs_wkt"] == 'LOCAL_CS["mine"]'
    found = regions_geojson(PREDICTION, replace(UTM, crs="EPSG:4326"), coordinates="native")
    assert found["crs"]["properties"]["name"] == "urn:ogc:def:crs:OGC:1.3:CRS84"  # longitude first


def test_a_system_given_as_text_is_recognized() -> None:
    rasterio = pytest.importorskip("rasterio")
    wkt = rasterio.crs.CRS.from_epsg(32633).to_wkt()
    found = regions_geojson(PREDICTION, replace(UTM, crs=wkt), coordinates="native")
    assert found["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"


def test_longitude_and_latitude() -> None:
    pytest.importorskip("rasterio")
    found = regions_geojson(PREDICTION, UTM)
    assert found["tnet"]["coordinates"] == "wgs84" and "crs" not in found
    # Zone 33 has its meridian, easting 500 km, at 15 degrees; northing 5000 km is just above 45 degrees there.
    middle = regions_geojson(replace(PREDICTION, regions=(replace(REGIONS[0], box_l0_yxyx=(0, 0, 100, 100)),)), UTM)
    ring = ring_of(middle)
    north_west = max(ring, key=lambda corner: corner[1] - corner[0])
    assert north_west[0] == pytest.approx(15.0, abs=1e-8)
    assert north_west[1] == pytest.approx(45.153, abs=0.001)
    assert signed_area(ring) > 0
    width, height = (max(corner[i] for corner in ring) - min(corner[i] for corner in ring) for i in (0, 1))
    assert width == pytest.approx(1000 / 78_600, rel=0.01) and height == pytest.approx(1000 / 111_140, rel=0.01)


def test_what_lies_on_the_date_line_is_cut_there() -> None:
    pytest.importorskip("rasterio")
    fiji = GeoReference((100.0, 0.0, 150_000.0, 0.0, -100.0, 8_200_000.0), "EPSG:32701")
    region = replace(REGIONS[0], box_l0_yxyx=(0, 0, 600, 600))
    geometry = regions_geojson(replace(PREDICTION, regions=(region,)), fiji)["features"][0]["geometry"]
    assert geometry["type"] == "MultiPolygon"
    longitudes = [corner[0] for part in geometry["coordinates"] for ring in part for corner in ring]
    assert min(longitudes) == -180 and max(longitudes) == 180 and all(abs(value) > 179 for value in longitudes)


def test_auto_takes_what_there_is() -> None:
    assert regions_geojson(PREDICTION)["tnet"]["coordinates"] == "pixels"
    assert regions_geojson(PREDICTION, GeoReference(UTM.transform))["tnet"]["coordinates"] == "pixels"


@pytest.mark.parametrize(
    ("where", "coordinates", "message"),
    [
        (None, "native", "a.svs"),
        (None, "wgs84", "a.svs"),
        (GeoReference(UTM.transform), "wgs84", "a.svs"),
    ],
)
def test_what_cannot_be_placed(where: GeoReference | None, coordinates: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        regions_geojson(PREDICTION, where, coordinates=coordinates)


def test_a_system_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    with pytest.raises(ImageError, match="a.svs"):
        write_all_geojson([(PREDICTION, replace(UTM, crs="no such system"))], tmp_path / "a.geojson")
    assert list(tmp_path.iterdir()) == []


def test_without_rasterio_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geojson, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match="native"):
        regions_geojson(PREDICTION, UTM)
    assert regions_geojson(PREDICTION, UTM, coordinates="native")["crs"]["type"] == "name"


def test_colours_of_classes_are_their_own() -> None:
    colors = [class_color(str(n)) for n in range(20)]
    assert len(set(colors)) > 15 and colors == [class_color(str(n)) for n in range(20)]
    assert all(0 <= part <= 255 for color in colors for part in color)


def test_a_file(tmp_path: Path) -> None:
    odd = replace(PREDICTION, path="tää\udcff.png", regions=())
    for prediction in (PREDICTION, odd):
        [path] = write_all_geojson([(prediction, None)], tmp_path / "new" / "a.geojson", overwrite=True)
        assert json.loads(path.read_text(encoding="utf-8")) == regions_geojson(prediction)
    assert regions_geojson(replace(odd, regions=REGIONS))["features"][0]["id"]


def test_many_files_are_named_after_their_pictures(tmp_path: Path) -> None:
    others = [replace(PREDICTION, path=path) for path in ("x/a.svs", "y/A.tif", "x/b.svs")]
    written = write_all_geojson([(other, None) for other in others], tmp_path / "regions")
    assert [path.name for path in written] == ["a.geojson", "A-2.geojson", "b.geojson"]
    assert [json.loads(path.read_text())["tnet"]["image"] for path in written] == ["x/a.svs", "y/A.tif", "x/b.svs"]


def test_one_picture_can_have_a_file_of_its_own(tmp_path: Path) -> None:
    assert write_all_geojson([(PREDICTION, None)], tmp_path / "a.geojson") == [tmp_path / "a.geojson"]
    with pytest.raises(OutputError, match="2 images"):
        write_all_geojson([(PREDICTION, None)] * 2, tmp_path / "b.geojson")
    (tmp_path / "c.geojson").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_all_geojson([(PREDICTION, None)], tmp_path / "c.geojson")
    (tmp_path / "d.txt").write_text("mine")
    with pytest.raises(OutputError, match="d.txt"):
        write_all_geojson([(PREDICTION, None)], tmp_path / "d.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.geojson", "c.geojson", "d.txt"]


def test_all_files_or_none(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not georeferenced"):
        write_all_geojson([(PREDICTION, UTM), (PREDICTION, None)], tmp_path / "regions", coordinates="native")
    assert list(tmp_path.iterdir()) == []
