"""Files that a run can be saved as."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tnet.explain.explanation import Explanation
from tnet.explain.figure import write_figure
from tnet.explain.geojson import regions_geojson
from tnet.inference.records import Prediction

Format = Literal["json", "geojson", "labelstudio", "png"]


def exported(explanation: Explanation, form: Format) -> tuple[bytes, str, str]:
    """Return a file's content, type and ending."""
    prediction = explanation.prediction
    if form == "png":
        with tempfile.TemporaryDirectory() as folder:
            figure = Path(folder) / "figure.png"
            write_figure(explanation, figure)
            return figure.read_bytes(), "image/png", ".png"
    if form == "geojson":
        place = getattr(explanation.image, "georeference", None)
        return _json(regions_geojson(prediction, place)), "application/geo+json", ".geojson"
    if form == "labelstudio":
        return _json([label_studio_task(prediction, explanation.model.config.title)]), "application/json", ".json"
    return _json(asdict(prediction)), "application/json", ".json"


def label_studio_task(prediction: Prediction, model_version: str) -> dict[str, Any]:
    """Return a task of Label Studio with the regions as predicted rectangles, in percent of the image."""
    height, width = prediction.size_hw
    result = []
    for region in prediction.regions:
        y0, x0, y1, x1 = region.box_l0_yxyx
        result.append(
            {
                "id": region.number,
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "rotation": 0,
                    "x": 100 * x0 / width,
                    "y": 100 * y0 / height,
                    "width": 100 * (x1 - x0) / width,
                    "height": 100 * (y1 - y0) / height,
                    "rectanglelabels": [region.label or prediction.label],
                },
            }
        )
    predicted = {"model_version": model_version, "score": prediction.probability, "result": result}
    return {"data": {"image": prediction.path}, "predictions": [predicted]}


def _json(content: Any) -> bytes:
    return (json.dumps(content, allow_nan=False, indent=1) + "\n").encode()
