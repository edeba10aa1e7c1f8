"""Regions for programs in which people annotate: Label Studio, FiftyOne and CVAT. QuPath takes GeoJSON.

All formats are written from one form of record, :func:`marked_regions`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, Literal, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

from tnet.geometry import clipped_box
from tnet.inference.records import Prediction, RegionRecord
from tnet.text import on_one_line

ExportFormat = Literal["labelstudio", "fiftyone", "cvat"]


class MarkedRegion(NamedTuple):
    """One region inside its image.

    Attributes:
        number: label in figures.
        label: most probable class of the region alone, or of the image for models that do not classify regions.
        score: probability of that class.
        box_yxyx: ``(y0, x0, y1, x1)`` in pixels of the image, end exclusive, without padding.
        facts: what else is known: order of looking, level, probability, weight and location probability.
    """

    number: str
    label: str
    score: float
    box_yxyx: tuple[int, int, int, int]
    facts: dict[str, float]


def region_facts(region: RegionRecord, order: int) -> dict[str, float]:
    """Return the known numbers about a region, by name; ``order`` counts from 1."""
    values = {"order": order, "level": region.level, "probability": region.probability, "weight": region.weight}
    values |= {"location probability": region.location_probability}
    return {name: value for name, value in values.items() if value is not None}


def marked_regions(prediction: Prediction) -> list[MarkedRegion]:
    """Return the regions of an image in the order of looking, without those in the padding alone."""
    found = []
    for order, region in enumerate(prediction.regions, start=1):
        box = clipped_box(region.box_l0_yxyx, prediction.size_hw)
        label, score = region.label, region.probability
        if label is None or score is None:
            label, score = prediction.top5[0]
        if box is not None:
            found.append(MarkedRegion(region.number, label, score, box, region_facts(region, order)))
    return found


def _shares(prediction: Prediction, region: MarkedRegion) -> tuple[float, float, float, float]:
    """Return left, top, width and height as shares of the image."""
    (height, width), (y0, x0, y1, x1) = prediction.size_hw, region.box_yxyx
    return x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height


def labelstudio(predictions: Sequence[Prediction], model: str) -> str:
    """Return tasks of Label Studio with the regions as predictions of ``RectangleLabels``, as JSON.

    The labelling interface needs ``<Image name="image" value="$image"/>`` and ``<RectangleLabels name="label"
    toName="image">`` with the classes. Images are named as Label Studio serves local files.
    """
    tasks = []
    for prediction in predictions:
        height, width = prediction.size_hw
        results: list[dict[str, Any]] = []
        for region in marked_regions(prediction):
            x, y, w, h = (100 * share for share in _shares(prediction, region))
            value = {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": [region.label]}
            results.append({
                "id": f"look-{region.number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
                "original_width": width, "original_height": height, "image_rotation": 0, "score": region.score,
                "value": value,
            })  # fmt: skip
        path = PurePath(prediction.path).as_posix().lstrip("/")
        url = f"/data/local-files/?d={quote(path, errors='surrogateescape')}"
        data = {"image": url, "predicted": prediction.label, "probability": prediction.probability}
        answer = {"model_version": model, "score": prediction.probability, "result": results}
        tasks.append({"data": data, "predictions": [answer]})
    return _json(tasks)


def fiftyone(predictions: Sequence[Prediction], model: str) -> str:
    """Return samples with the regions as arguments of ``fiftyone.Detection``, as JSON."""
    samples = []
    for prediction in predictions:
        detections = []
        for region in marked_regions(prediction):
            known = {name.replace(" ", "_"): value for name, value in region.facts.items() if name != "probability"}
            box = list(_shares(prediction, region))
            detection = {"label": region.label, "confidence": region.score, "bounding_box": box}
            detections.append({**detection, "number": region.number, **known})
        sample = {"filepath": prediction.path, "label": prediction.label, "confidence": prediction.probability}
        samples.append({**sample, "model": model, "detections": detections})
    return _json(samples)


def cvat(predictions: Sequence[Prediction], model: str) -> str:
    """Return the regions as boxes in the XML of "CVAT for images 1.1"."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    for name, text in (("name", model), ("size", str(len(predictions))), ("mode", "annotation")):
        ElementTree.SubElement(task, name).text = on_one_line(text)
    labels = ElementTree.SubElement(task, "labels")
    marked = [marked_regions(prediction) for prediction in predictions]
    facts = sorted({"number", *(name for regions in marked for region in regions for name in region.facts)})
    for label in sorted({region.label for regions in marked for region in regions}):
        item = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(item, "name").text = on_one_line(label)
        attributes = ElementTree.SubElement(item, "attributes")
        for name in facts:
            attribute = ElementTree.SubElement(attributes, "attribute")
            for key, text in (("name", name), ("mutable", "False"), ("input_type", "text"), ("default_value", "")):
                ElementTree.SubElement(attribute, key).text = text
            ElementTree.SubElement(attribute, "values")
    for index, (prediction, regions) in enumerate(zip(predictions, marked, strict=True)):
        height, width = map(str, prediction.size_hw)
        name = on_one_line(PurePath(prediction.path).as_posix())
        image = ElementTree.SubElement(root, "image", id=str(index), name=name, width=width, height=height)
        for region in regions:
            corners = zip(("ytl", "xtl", "ybr", "xbr"), (f"{side:.2f}" for side in region.box_yxyx), strict=True)
            options = {"label": on_one_line(region.label), "source": "auto", "occluded": "0", **dict(corners)}
            box = ElementTree.SubElement(image, "box", {**options, "z_order": "0"})
            for name, value in {"number": region.number, **region.facts}.items():
                ElementTree.SubElement(box, "attribute", name=name).text = f"{value}"
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _json(items: Sequence[dict[str, Any]]) -> str:
    lines = ",\n".join(json.dumps(item, ensure_ascii=False, allow_nan=False) for item in items)
    return f"[\n{lines}\n]\n"


class Export(NamedTuple):
    """A format: the name of its file, and its text from predictions and the name of the model."""

    name: str
    text: Callable[[Sequence[Prediction], str], str]


EXPORTS: dict[ExportFormat, Export] = {
    "labelstudio": Export("labelstudio.json", labelstudio),
    "fiftyone": Export("fiftyone.json", fiftyone),
    "cvat": Export("cvat.xml", cvat),
}
