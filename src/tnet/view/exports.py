"""Files that a run can be saved as."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tnet.explain.explanation import Explanation
from tnet.explain.exports import labelstudio
from tnet.explain.figure import write_figure
from tnet.explain.geojson import regions_geojson

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
        return _json(regions_geojson(prediction, explanation.place.georeference)), "application/geo+json", ".geojson"
    if form == "labelstudio":
        tasks = labelstudio([prediction], explanation.model.config.title)
        return tasks.encode("utf-8", "backslashreplace"), "application/json", ".json"
    return _json(asdict(prediction)), "application/json", ".json"


def _json(content: Any) -> bytes:
    return (json.dumps(content, allow_nan=False, indent=1) + "\n").encode()
