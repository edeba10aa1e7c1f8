"""A TNet whose network runs in another engine: exported parts under tnet's own traversal, scenes and records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from tnet.errors import ConfigError
from tnet.export.metadata import METADATA_NAME, read_metadata
from tnet.export.runtime import Engine, Run, open_session
from tnet.files import file_digest
from tnet.geometry import Regions
from tnet.models.aggregation import AGGREGATIONS, Features, Mask, PlacedAggregation, Places
from tnet.models.engine import Seen
from tnet.models.parts import Locator
from tnet.models.tnet import TNet

SEE, SEE_WHOLE, SEE_REGION = "see.onnx", "see_whole.onnx", "see_region.onnx"
LOCATE, ANSWER = "locate.onnx", "answer.onnx"


class EngineTNet(TNet):
    """A TNet that runs the parts in a folder of ``tnet export --parts``; on the CPU, for inference only.

    It predicts no gains. Everything else is that of the exported model, up to rounding.

    Raises:
        ConfigError: the engine is not installed.
        ExportError: a file is missing or damaged.
    """

    def __init__(self, folder: str | Path, engine: Engine = "onnx") -> None:
        folder = Path(folder)
        metadata = read_metadata(folder)
        config = metadata.config
        names = [SEE] if metadata.values.get("see") == [SEE] else [SEE_WHOLE, SEE_REGION]
        super(TNet, self).__init__(config)  # without the network
        self.calibration = None
        self.grid, self.levels = config.grid, config.levels
        self.locator = cast(Locator, nn.Identity())  # there is one
        self.population_norms = None
        self.look_backbone = None
        self._see = [open_session(folder / name, engine) for name in names]
        self._locate, self._answer = (open_session(folder / name, engine) for name in (LOCATE, ANSWER))
        self.eval()

    @override
    def encode(self, pixels: Float[Tensor, "regions channels side side"], regions: Regions) -> Seen:
        pixels = pixels * self.get_buffer("std") + self.get_buffer("mean")
        position = regions.position_yxl
        if len(self._see) == 1:
            return _seen(self._see[0], pixels, position)
        rows = [(regions.level == 0).nonzero().flatten(), (regions.level > 0).nonzero().flatten()]
        parts = [
            _seen(see, pixels[mine], position[mine]) for see, mine in zip(self._see, rows, strict=True) if len(mine)
        ]
        back = torch.cat(rows).argsort()
        return Seen(*(torch.cat(values)[back] for values in zip(*parts, strict=True)))

    @override
    def score(
        self,
        cell_map: Float[Tensor, "regions cell_dim h w"],
        pooled: Float[Tensor, "regions dim"],
        y_spans: Float[Tensor, "regions rows 2"],
        x_spans: Float[Tensor, "regions cols 2"],
        head: Locator | None = None,
    ) -> Float[Tensor, "regions ..."]:
        return self._locate(cell_map=cell_map, pooled=pooled, y_spans=y_spans, x_spans=x_spans)["scores"]

    @override
    def gains(
        self, seen: Seen, regions: Regions, scored: Bool[Tensor, " regions"] | None = None
    ) -> Float[Tensor, "scored cells"] | None:
        return None

    @override
    def begin(
        self, cell_map: Float[Tensor, "views cell_dim h w"], regions: Regions, sizes_hw: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "images channels _ _"] | None:
        """Return the cell maps of the whole images, from which the exported answer starts its canvas."""
        make = AGGREGATIONS[self.config.aggregation]
        if not (isinstance(make, type) and issubclass(make, PlacedAggregation)):
            return None
        if len(regions) != len(sizes_hw):
            raise ConfigError("a canvas in another engine sees whole images only; omit --aspect keep, or use PyTorch")
        return cell_map

    @override
    def decide(
        self, features: Features, seen: Mask = None, places: Places | None = None
    ) -> tuple[
        Float[Tensor, "batch classes"],
        Float[Tensor, "batch n classes"],
        Float[Tensor, "batch dim"],
        Float[Tensor, "batch n"],
    ]:
        given = {} if places is None or places.start is None else {"boxes": places.boxes, "cell_map": places.start}
        seen = torch.ones(features.shape[:2], dtype=torch.bool) if seen is None else seen
        answered = self._answer(features=features, seen=seen, **given)
        return answered["logits"], answered["region_logits"], answered["aggregate"], answered["weights"]

    @override
    def classify(
        self, features: Features, seen: Mask = None, places: Places | None = None
    ) -> Float[Tensor, "batch classes"]:
        return self.decide(features, seen, places)[0]


def _seen(see: Run, pixels: Tensor, position: Tensor) -> Seen:
    return Seen(**see(pixels=pixels, position=position))


def export_digest(folder: str | Path) -> str:
    """Return a hash of the files of an export."""
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".onnx", ".json"))
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()[:16]


def is_export(folder: str | Path) -> bool:
    """Return whether a folder was written by ``tnet export``."""
    return (Path(folder) / METADATA_NAME).is_file()
