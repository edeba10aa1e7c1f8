from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from tnet.explain.exports import EXPORTS, cvat, fiftyone, labelstudio, marked_regions
from tnet.explain.geojson import regions_geojson
from tnet.inference.records import Prediction, RegionRecord

# An image 2000 px wide and 1000 px tall; the second region reaches into the padding, the third lies in it.
REGIONS = (
    RegionRecord("1", 1, (100, 200, 300, 500), 4, -1, 0.75, 0.5, "tumour", 0.9),
    RegionRecord("1.1", 2, (150, -50, 250, 100), 0, 0, None, 0.25, "stroma", 0.6),
    RegionRecord("1.2", 2, (150, -50, 250, 0), 0, 0, 0.1, 0.25, "stroma", 0.6),
)
PREDICTION = Prediction(
    "slides/a.svs", "tumour", ("tumour",), 1, 0.875, (("tumour", 0.875), ("stroma", 0.125)), (1000, 2000), REGIONS
)


def test_regions_are_marked_inside_the_image() -> None:
    first, second = marked_regions(PREDICTION)
    assert (first.number, first.label, first.score, first.box_yxyx) == ("1", "tumour", 0.9, (100, 200, 300, 500))
    assert second.box_yxyx == (150, 0, 250, 100)
    assert second.facts == {"order": 2, "level": 2, "probability": 0.6, "weight": 0.25}
    measured = regions_geojson(PREDICTION)["features"][1]["properties"]["measurements"]
    assert measured == second.facts  # one form for all


def test_models_that_do_not_classify_regions_lend_them_the_answer() -> None:
    silent = tuple(replace(region, label=None, probability=None) for region in REGIONS[:1])
    (region,) = marked_regions(replace(PREDICTION, label="", labels=(), regions=silent))  # no label above 0.5
    assert (region.label, region.score) == ("tumour", 0.875) and "probability" not in region.facts


def test_label_studio_takes_percent_of_the_image() -> None:
    (task,) = json.loads(labelstudio([PREDICTION], "runs/slides"))
    assert task["data"]["image"] == "/data/local-files/?d=slides/a.svs"
    (answer,) = task["predictions"]
    assert (answer["model_version"], answer["score"]) == ("runs/slides", 0.875)
    first, second = answer["result"]
    assert first == {
        "id": "look-1", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "original_width": 2000,
        "original_height": 1000, "image_rotation": 0, "score": 0.9,
        "value": {"x": 10, "y": 10, "width": 15, "height": 20, "rotation": 0, "rectanglelabels": ["tumour"]},
    }  # fmt: skip
    assert second["value"]["x"] == 0 and second["value"]["width"] == pytest.approx(5)


def test_fiftyone_takes_shares_of_the_image() -> None:
    (sample,) = json.loads(fiftyone([PREDICTION], "slides"))
    assert (sample["filepath"], sample["label"], sample["confidence"]) == ("slides/a.svs", "tumour", 0.875)
    first, second = sample["detections"]
    assert first == {
        "label": "tumour", "confidence": 0.9, "bounding_box": [0.1, 0.1, 0.15, 0.2], "number": "1", "order": 1,
        "level": 1, "weight": 0.5, "location_probability": 0.75,
    }  # fmt: skip
    assert "location_probability" not in second and None not in second.values()


def test_cvat_takes_pixels() -> None:
    root = ElementTree.fromstring(cvat([PREDICTION, replace(PREDICTION, path="b.svs", regions=())], "slides"))
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    assert [label.findtext("name") for label in root.iterfind("meta/task/labels/label")] == ["stroma", "tumour"]
    names = [item.findtext("name") for item in root.iterfind("meta/task/labels/label[1]/attributes/attribute")]
    assert names == ["level", "location probability", "number", "order", "probability", "weight"]
    images = root.findall("image")
    assert [image.attrib for image in images] == [
        {"id": "0", "name": "slides/a.svs", "width": "2000", "height": "1000"},
        {"id": "1", "name": "b.svs", "width": "2000", "height": "1000"},
    ]
    first, second = images[0].findall("box")
    assert {key: first.get(key) for key in ("label", "xtl", "ytl", "xbr", "ybr")} == {
        "label": "tumour", "xtl": "200.00", "ytl": "100.00", "xbr": "500.00", "ybr": "300.00"
    }  # fmt: skip
    facts = {item.get("name"): item.text for item in second.findall("attribute")}
    assert facts == {"number": "1.1", "order": "2", "level": "2", "probability": "0.6", "weight": "0.25"}
    assert not images[1].findall("box")


@pytest.mark.parametrize("kind", list(EXPORTS))
def test_odd_names_stay_names(kind: Any) -> None:
    path, label = 'in/<img onerror="x">&\udcff\x07 #1?.png', "</label>\"'& \u2028é"
    odd = replace(PREDICTION, path=path, regions=(replace(REGIONS[0], label=label),))
    text = EXPORTS[kind].text([odd], "<model>\x00").encode("utf-8", "backslashreplace").decode()
    if kind == "cvat":
        image = ElementTree.fromstring(text).find("image")
        assert image is not None and image.get("name") == 'in/<img onerror="x">&\\udcff\\x07 #1?.png'
        box = image.find("box")
        assert box is not None and box.get("label") == "</label>\"'& \\u2028é"
        return
    (item,) = json.loads(text)
    if kind == "fiftyone":
        assert item["filepath"] == path and item["detections"][0]["label"] == label
    else:
        assert item["data"]["image"] == "/data/local-files/?d=in/%3Cimg%20onerror%3D%22x%22%3E%26%FF%07%20%231%3F.png"
        assert item["predictions"][0]["result"][0]["value"]["rectanglelabels"] == [label]


@pytest.mark.parametrize("kind", list(EXPORTS))
def test_nothing_to_export(kind: Any) -> None:
    text = EXPORTS[kind].text([], "slides")
    assert not (ElementTree.fromstring(text).findall("image") if kind == "cvat" else json.loads(text))
