"""Everything that a figure shows of one image: the prediction, glimpses and probabilities of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from tnet.explain.panels import Bar, CellMap, ShareBox
from tnet.explain.scale import Place
from tnet.geometry import cell_boxes, whole_images
from tnet.inference.predictor import size_of
from tnet.inference.records import Prediction, class_labels, class_probs, prediction_of
from tnet.models.base import Model, ModelOutput
from tnet.models.config import TNetConfig
from tnet.models.tnet import TNetOutput
from tnet.scenes import LazyBatch, Scene, SceneBatch, TensorBatch
from tnet.traversal import Policy

_DISPLAY_PX = 1000


@dataclass(frozen=True)
class Explanation:
    """A model's output for one image, prepared for a figure."""

    model: Model
    image: UInt8[Tensor, "channels height width"] | Scene
    output: ModelOutput
    prediction: Prediction  # the output as plain data
    names: Sequence[str]  # of the classes
    located: bool  # the locator chose the regions
    title: str
    truth: str | None  # true label, if known; several are joined by |

    @property
    def place(self) -> Place:
        """What is known of where the image is."""
        return Place.of(self.image)

    @property
    def true_labels(self) -> set[str]:
        """True labels; empty if unknown."""
        if self.truth is None:
            return set()
        return set(self.truth.split("|")) - {""} if self.model.config.multilabel else {self.truth}

    @property
    def is_right(self) -> bool | None:
        """Whether the prediction is correct; ``None`` without a true label."""
        return None if self.truth is None else self.true_labels == set(self.prediction.labels)

    @property
    def has_maps(self) -> bool:
        """Whether regions have a grid of location probabilities."""
        return self.located and isinstance(self.output, TNetOutput)

    def whole_alone(self) -> tuple[str, float] | None:
        """Return class and probability for the whole image alone, if the model has them."""
        logits = self.output.whole_logits
        if logits is None:
            return None
        prob, index = class_probs(logits[0], self.model.config).max(dim=0)
        return self.names[int(index)], float(prob)

    def bars(self) -> list[Bar]:
        """Return the most probable classes, followed by true ones that are not among them."""
        probs = class_probs(self.output.logits[0], self.model.config).tolist()
        shown = list(self.prediction.top5)
        missing = [name for name in self.names if name in self.true_labels and name not in dict(shown)]
        shown += [(name, probs[self.names.index(name)]) for name in missing[:2]]
        return [Bar(name, p, name in self.prediction.labels, name in self.true_labels) for name, p in shown]

    def cell_map(self, record: int) -> CellMap | None:
        """Return the cells of region ``record`` (-1: the whole image), or ``None`` if they have no probabilities."""
        row = record + 1  # the whole image is row 0
        if not isinstance(self.output, TNetOutput) or row not in (divided := self.output.divided.tolist()):
            return None
        assert isinstance(self.model.config, TNetConfig)
        grid = self.model.config.grid
        parent = self.output.regions.take(torch.tensor([row]))
        y0, x0, y1, x1 = parent.box_l0_yxyx[0].tolist()
        boxes = [(b[0] - y0, b[1] - x0, b[2] - y0, b[3] - x0) for b in cell_boxes(parent, grid)[0].tolist()]
        probs = self.output.location_probs[divided.index(row)].float().cpu().tolist()
        chosen = frozenset(region.cell for region in self.prediction.regions if region.parent == record)
        inside = [shares(box, (y1 - y0, x1 - x0)) for box in boxes]
        return CellMap(probs, inside, grid.rows, grid.cols, chosen, level=int(parent.level) + 1)

    def glimpses(self, records: Sequence[int]) -> list[np.ndarray]:
        """Return regions at the resolution at which the model saw them; indices as in :meth:`cell_map`."""
        config, image = self.model.config, self.image
        regions = self.output.regions.take(torch.tensor(records, dtype=torch.long) + 1)
        scene = self.model.scene([image] if isinstance(image, Tensor) else image)
        pixels = scene.glimpse(regions, config.region_px if regions.depth else config.whole_px)
        return [_display(glimpse) for glimpse in (pixels * 255).round().to(torch.uint8)]

    def whole(self) -> np.ndarray:
        """Return the whole image, see :func:`overview`."""
        return overview(self.image, self.model.config.in_channels)


def look(
    model: Model,
    image: UInt8[Tensor, "channels height width"] | Scene,
    *,
    looks: int | Sequence[int] | None = None,
    policy: Policy | str | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    truth: str | None = None,
    source: str | None = None,
    stored_size_hw: tuple[int, int] | None = None,
) -> Explanation:
    """Run a model on one image; arguments are as in :func:`tnet.explain_image`.

    The prediction's path is ``source``, or ``title``; its boxes are scaled to ``stored_size_hw``, before downscaling.
    """
    labels = class_labels(model.config, names)
    if policy is None or isinstance(policy, str):
        policy = model.policy(policy)
    with torch.inference_mode():
        output: ModelOutput = model([image] if isinstance(image, Tensor) else image, looks, policy)
    located, path, shown = model.is_located(policy), source or title or "", title or source or ""
    prediction = prediction_of(
        output, 0, model.config, path, located=located, names=labels, stored_size_hw=stored_size_hw
    )
    return Explanation(model, image, output, prediction, labels, located, shown, truth)


def overview(image: UInt8[Tensor, "channels height width"] | Scene, channels: int) -> np.ndarray:
    """Return a whole image, downscaled to a square for display; a panel restores its aspect."""
    size_hw = size_of(image)
    batch: SceneBatch = TensorBatch([image]) if isinstance(image, Tensor) else LazyBatch([image], channels)
    pixels = batch.glimpse(whole_images([size_hw]), min(_DISPLAY_PX, max(size_hw)))[0]
    return _display((pixels * 255).round().to(torch.uint8))


def shares(box_yxyx: Sequence[float], size_hw: tuple[int, int]) -> ShareBox:
    """Return a box as fractions of its frame."""
    y0, x0, y1, x1 = box_yxyx
    return y0 / size_hw[0], x0 / size_hw[1], y1 / size_hw[0], x1 / size_hw[1]


def _display(image: UInt8[Tensor, "channels height width"]) -> np.ndarray:
    """Return a gray or RGB array: of two channels the first, of more than three the first three."""
    image = image.cpu()
    return image[0].numpy() if image.shape[0] < 3 else image[:3].permute(1, 2, 0).contiguous().numpy()
