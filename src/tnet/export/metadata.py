"""What an exported file says about itself: in its own metadata, and in ``export.json`` beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tnet.config import parse_dataclass, to_plain
from tnet.errors import ExportError, TnetError
from tnet.models.base import ModelConfig
from tnet.models.config import TNetConfig
from tnet.models.kind import kind_of

METADATA_NAME = "export.json"
_MAX_BYTES = 16 * 2**20

Metadata = dict[str, Any]


def describe_export(config: ModelConfig, form: str, looks: tuple[int, ...], **more: Any) -> Metadata:
    """Return what users of an export need to know without tnet, and the configuration for tnet itself."""
    from tnet import __version__

    geometry: dict[str, Any] = {"boxes": "y0, x0, y1, x1 in pixels of the image, ends exclusive"}
    geometry |= {"levels": len(looks) + 1, "base_px": config.whole_px, "look_px": config.region_px}
    if isinstance(config, TNetConfig):
        config, grid = replace(config, levels=len(looks) + 1, looks=looks), config.grid
        geometry |= {"rows": grid.rows, "cols": grid.cols, "cell_extent": grid.cell_extent}
        geometry |= {"max_overlap": config.policy.max_overlap}
    mean, std = config.normalization
    return {
        "tnet": __version__,
        "format": form,
        "classes": list(config.class_names) or [str(index) for index in range(config.num_classes)],
        "multilabel": config.multilabel,
        "looks": list(looks),  # per region, for levels 1, 2, ...
        "preprocessing": {
            "channels": config.in_channels,
            "channel_order": "RGB" if config.in_channels == 3 else "as trained",
            "value_range": [0, 255],
            "mean": list(mean),  # of values in [0, 1], per channel or one for all
            "std": list(std),
            "resize": config.resize,
            "outside": list(mean),
        },
        "geometry": geometry,
        **more,
        "model_type": kind_of(config),
        "model": to_plain(config.without_weights()),
    }


@dataclass(frozen=True)
class ReadMetadata:
    """Metadata of the parts in a folder."""

    values: Metadata
    config: TNetConfig


def read_metadata(folder: Path) -> ReadMetadata:
    """Read the metadata of parts that tnet can run.

    Raises:
        ExportError: the file is missing or damaged, or of another kind of export.
    """
    path = folder / METADATA_NAME
    if not path.is_file():
        raise ExportError(f"{folder} has no {METADATA_NAME}; give a folder written by tnet export --parts")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise ValueError("it describes no model")
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} is damaged ({error}); export the model again") from None
    if values.get("kind") != "parts":
        raise ExportError(f"{folder} holds a whole model, which needs no loop; tnet runs parts: export with --parts")
    try:
        return ReadMetadata(values, parse_dataclass(TNetConfig, values["model"], str(path)))
    except TnetError as error:
        raise ExportError(f"{path} is damaged ({error}); export the model again") from None
