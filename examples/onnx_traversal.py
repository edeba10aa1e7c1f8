"""Classify images with a model exported by tnet, without tnet: numpy, onnxruntime and Pillow are enough.

    tnet export runs/photos exported            # one function of an image of one size
    tnet export runs/photos exported --parts    # three steps, and the loop below, for images of any size
    python onnx_traversal.py exported IMAGE ...

Prints one JSON object per image: label, probability, and the boxes of the regions in the order of looking, as
(y0, x0, y1, x1) in pixels, ends exclusive.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

Box = tuple[int, int, int, int]


class Exported:
    """A folder written by ``tnet export --format onnx``."""

    def __init__(self, folder: Path) -> None:
        self.about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.geometry, self.preprocessing = self.about["geometry"], self.about["preprocessing"]
        self.sessions = {path.stem: onnxruntime.InferenceSession(str(path)) for path in folder.glob("*.onnx")}

    def run(self, name: str, **given: np.ndarray) -> dict[str, np.ndarray]:
        """Run one file; inputs that it does not take are left out."""
        session = self.sessions[name]
        results = session.run(None, {item.name: given[item.name] for item in session.get_inputs()})
        return {item.name: value for item, value in zip(session.get_outputs(), results, strict=True)}

    def classify(self, path: Path) -> dict[str, Any]:
        """Classify one image file."""
        mode = {1: "L", 3: "RGB"}[self.preprocessing["channels"]]
        image = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert(mode))
        image = image[..., None] if mode == "L" else image
        logits, boxes = self.whole(image, path) if self.about["kind"] == "whole" else self.traverse(image, path)
        if self.about["multilabel"]:
            probabilities = 1 / (1 + np.exp(-logits))
        else:
            powers = np.exp(logits - logits.max())
            probabilities = powers / powers.sum()
        best = int(probabilities.argmax())
        return {
            "path": str(path),
            "label": self.about["classes"][best],
            "probability": float(probabilities[best]),
            "logits": logits.tolist(),
            "boxes": boxes,
        }

    def whole(self, image: np.ndarray, path: Path) -> tuple[np.ndarray, list[Box]]:
        """Run the whole model, which takes images of one size."""
        size_hw = tuple(self.about["image_size_hw"])
        if image.shape[:2] != size_hw:
            got = f"{image.shape[0]} x {image.shape[1]}"
            made = f"the model was exported for {size_hw[0]} x {size_hw[1]} (height x width)"
            sys.exit(f"error: image {path} has {got} px, but {made}; resize it, or export with --size or --parts")
        output = self.run("model", image=image.transpose(2, 0, 1)[None])
        return output["logits"][0], [tuple(box) for box in output["boxes"][0, 1:].tolist()]

    def traverse(self, image: np.ndarray, path: Path) -> tuple[np.ndarray, list[Box]]:
        """See the whole image, then level by level the best cells of every region, then answer."""
        rows, cols = self.geometry["rows"], self.geometry["cols"]
        level: list[tuple[Box, tuple[int, int]]] = [((0, 0, *image.shape[:2]), (0, 0))]  # boxes, positions in the grid
        features, boxes, whole_map = [], [], None
        looks = self.about["looks"]
        for depth in range(len(looks) + 1):
            side = self.geometry["look_px" if depth else "base_px"]
            pixels = np.stack([self.glimpse(image, box, side) for box, _ in level])
            position = np.array([(*place, depth) for _, place in level], np.float32)
            files = self.about["see"]  # one, or one for whole images and one for regions
            seen = self.run(Path(files[min(depth, len(files) - 1)]).stem, pixels=pixels, position=position)
            whole_map = seen["cell_map"] if whole_map is None else whole_map
            features.append(seen["feature"])
            boxes += [box for box, _ in level]
            if depth == len(looks):
                break
            y_cells, x_cells = (
                [cells(box[axis + 2] - box[axis], count, self.geometry["cell_extent"]) for box, _ in level]
                for axis, count in ((0, rows), (1, cols))
            )
            y_spans, x_spans = (np.array([spans(*cell) for cell in of], np.float32) for of in (y_cells, x_cells))
            located = self.run("locate", **{**seen, "y_spans": y_spans, "x_spans": x_spans})
            children = []
            for number, ((y0, x0, _, _), (row, col)) in enumerate(level):
                (y_starts, height, _), (x_starts, width, _) = y_cells[number], x_cells[number]
                for cell in self.best(located["scores"][number], looks[depth]):
                    i, j = divmod(cell, cols)
                    y, x = y0 + y_starts[i], x0 + x_starts[j]
                    children.append(((y, x, y + height, x + width), (row * rows + i, col * cols + j)))
            level = children
        stacked = np.concatenate(features)[None]
        size = np.array(image.shape[:2] * 2)
        low, high = np.array(boxes)[:, :2], np.array(boxes)[:, 2:]
        shares = np.hstack([np.minimum(low.clip(0), size[:2] - 1), np.minimum(high.clip(1), size[2:])]) / size
        output = self.run(
            "answer",
            features=stacked,
            seen=np.ones(stacked.shape[:2], bool),
            boxes=shares[None].astype(np.float32),  # only of a canvas
            cell_map=whole_map,
        )
        return output["logits"][0], boxes[1:]

    def glimpse(self, image: np.ndarray, box: Box, side: int) -> np.ndarray:
        """Crop a box, which may reach past the edge, and resize it: ``[channels, side, side]`` in [0, 1]."""
        y0, x0, y1, x1 = box
        height, width, channels = image.shape
        outside = np.rint(255 * np.array(self.preprocessing["outside"])).astype(np.uint8)
        crop = np.empty((y1 - y0, x1 - x0, channels), np.uint8)
        crop[:] = outside
        top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
        crop[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
        if self.preprocessing["resize"] == "antialias":
            planes = [
                Image.fromarray(crop[..., c]).resize((side, side), Image.Resampling.BILINEAR) for c in range(channels)
            ]
            crop = np.stack([np.asarray(plane) for plane in planes], axis=-1)
        else:
            crop = two_taps(two_taps(crop, 1, side), 0, side)
        return crop.transpose(2, 0, 1).astype(np.float32) / 255

    def best(self, scores: np.ndarray, count: int) -> list[int]:
        """Return the cells with the largest scores in raster order; those too close to a better one come last."""
        apart = self.overlaps() > self.geometry["max_overlap"]
        skipped, chosen = np.zeros(len(scores), bool), []
        for _ in range(count):
            rank = sorted(
                (bool(skipped[cell]), -float(scores[cell]), cell) for cell in range(len(scores)) if cell not in chosen
            )
            chosen.append(rank[0][2])
            skipped |= apart[chosen[-1]]
        return sorted(chosen)

    def overlaps(self) -> np.ndarray:
        """Return which share of each cell every other cell covers."""
        shares = []
        for count in (self.geometry["rows"], self.geometry["cols"]):
            starts, size, _ = cells(10**6, count, self.geometry["cell_extent"])
            distance = np.abs(np.subtract.outer(starts, starts))
            shares.append((1 - distance / size).clip(0))
        return np.kron(*shares).astype(np.float32)


def cells(size_px: int, count: int, extent: float) -> tuple[list[int], int, int]:
    """Place cells along an axis of a region: first pixel of each in the region, and their size; size of the region."""
    cell = round(size_px * extent)
    if cell < 1 or (count > 1 and size_px - cell < 1):
        sys.exit(f"error: a region of {size_px} px cannot hold {count} cells; give larger images, or fewer levels")
    if count == 1:
        return [(size_px - cell) // 2], cell, size_px
    stride = math.ceil((size_px - cell) / (count - 1))
    before = math.ceil(max(stride * (count - 1) + cell - size_px, 0) / 2)
    return [index * stride - before for index in range(count)], cell, size_px


def spans(starts: list[int], cell: int, size_px: int) -> list[tuple[float, float]]:
    """Return the edges of cells as shares of their region, within it."""
    edges = [(min(max(start, 0), size_px - 1), min(max(start + cell, 1), size_px)) for start in starts]
    return [(low / size_px, high / size_px) for low, high in edges]


def two_taps(pixels: np.ndarray, axis: int, side: int) -> np.ndarray:
    """Resize an axis by linear interpolation, without antialiasing."""
    size = pixels.shape[axis]
    if size == side:
        return pixels
    at = ((np.arange(side) + 0.5) * size / side - 0.5).clip(0, size - 1)
    low = np.floor(at).astype(int)
    share = (at - low).reshape([-1 if other == axis else 1 for other in range(3)])
    near, far = pixels.take(low, axis), pixels.take(np.minimum(low + 1, size - 1), axis)
    return np.rint(near * (1 - share) + far * share).astype(np.uint8)


def main() -> None:
    """Classify the images of the command line."""
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} EXPORTED IMAGE ...")
    exported = Exported(Path(sys.argv[1]))
    for name in sys.argv[2:]:
        print(json.dumps(exported.classify(Path(name))))


if __name__ == "__main__":
    main()
