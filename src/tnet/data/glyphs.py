"""Small images to paste on a canvas: handwritten digits, and line-segment clutter.

Digits come from MNIST's IDX files if a folder is given, else from scikit-learn's bundled set; train, val and test share
none. Everything is cached per process and read-only, so datasets pickle cheaply.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from tnet.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
CLASSES = 10
GLYPH_PX = 28
CLUTTER_BANK = 50
"""Number of patterns in a clutter bank, from which the published task draws any number of pieces."""

_MAX_IDX_ITEMS = 1_000_000  # 784 MB of images: above MNIST and its relatives; limits what a header can claim
_IDX_SUBFOLDERS = ("", "raw", "MNIST/raw")
_IDX_REMEDY = (
    "put MNIST's four files (train- and t10k-, -images-idx3-ubyte and -labels-idx1-ubyte, plain or .gz) there, or "
    "leave mnist_dir empty to use scikit-learn's digits"
)
_CLUTTER_STREAM = len(SPLITS)  # images use the spawn keys (split number, index); the bank must not share one


@dataclass(frozen=True, eq=False)
class GlyphBank:
    """The glyphs of one split; read-only."""

    pixels: UInt8[np.ndarray, "glyphs 28 28"]  # white on black
    labels: Int64[np.ndarray, " glyphs"]
    of_class: Sequence[Int64[np.ndarray, " _"]]  # indices of the glyphs of each class; never empty

    def resized(self, glyph: int, side_px: int) -> UInt8[np.ndarray, "side side"]:
        """Return a glyph resized to ``side_px`` pixels (bilinear, antialiased when downscaled)."""
        pixels: np.ndarray = self.pixels[glyph]
        if side_px == GLYPH_PX:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BILINEAR))


@lru_cache(maxsize=12)
def load_glyphs(mnist_dir: str | None, split: Split) -> GlyphBank:
    """Return the glyphs of one split, read once per process.

    With MNIST, ``test`` is the t10k set, ``val`` the last sixth (10,000 images) of the training set, and ``train`` the
    rest. With scikit-learn's digits (``mnist_dir`` is None), each class is split 60/20/20 into train, val and test,
    independently of the seed and the library version.

    Raises:
        DataError: a file is missing or damaged, or a class has no glyph in this split.
    """
    if mnist_dir is None:
        pixels, labels = _bundled_digits()
        keep = _bundled_split(labels, split)
        pixels, labels = pixels[keep], labels[keep]
    else:
        pixels, labels = _mnist_part(mnist_dir, "t10k" if split == "test" else "train")
        if split != "test":
            cut = len(labels) - len(labels) // 6
            part = slice(0, cut) if split == "train" else slice(cut, None)
            pixels, labels = pixels[part], labels[part]
    of_class = tuple(np.flatnonzero(labels == digit) for digit in range(CLASSES))
    empty = [str(digit) for digit, members in enumerate(of_class) if len(members) == 0]
    if empty:
        problem = f"the {split} split in {mnist_dir} has {len(labels)} digits, but none of class {', '.join(empty)}"
        raise DataError(f"{problem}; {_IDX_REMEDY}")
    _freeze(pixels, labels, *of_class)
    return GlyphBank(pixels=pixels, labels=labels, of_class=of_class)


@lru_cache(maxsize=4)
def clutter_bank(seed: int, side_px: int) -> UInt8[np.ndarray, "patterns side side"]:
    """Return the clutter patterns of a seed, read-only.

    A pattern is a line from a corner, ``y = slope * x`` at ``2 * side_px`` points with
    ``slope = tan(u * pi / 2.5)``, combined with the line of another pattern, flipped on each axis with probability
    0.33, at one grey level of 0.8 to 1 times white (as in the Megapixel-MNIST task, for 28 px and 56 points).
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_CLUTTER_STREAM,)))
    slopes = np.tan(rng.random(CLUTTER_BANK) * np.pi / 2.5)
    reach_px = (side_px - 1) / np.maximum(slopes, 1.0)  # a steep line leaves through the side, not the end
    x = np.linspace(0.0, reach_px, 2 * side_px, axis=1)
    y = slopes[:, None] * x
    lines = np.zeros((CLUTTER_BANK, side_px, side_px), dtype=bool)
    lines[np.arange(CLUTTER_BANK)[:, None], np.rint(y).astype(int), np.rint(x).astype(int)] = True
    others = lines[rng.permutation(CLUTTER_BANK)]
    for axis in (1, 2):
        flipped = rng.random(CLUTTER_BANK) < 0.33
        others[flipped] = np.flip(others[flipped], axis=axis)
    grey = np.rint(255 * rng.uniform(0.8, 1.0, size=CLUTTER_BANK)).astype(np.uint8)
    patterns = (lines | others) * grey[:, None, None]
    _freeze(patterns)
    return patterns


def _freeze(*arrays: np.ndarray) -> None:
    """Make arrays read-only: caches are shared, and a write would change all later images."""
    for array in arrays:
        array.setflags(write=False)


@lru_cache(maxsize=1)
def _bundled_digits() -> tuple[UInt8[np.ndarray, "glyphs 28 28"], Int64[np.ndarray, " glyphs"]]:
    """Return scikit-learn's 1,797 digits (8 px, 0 to 16) as 28 px glyphs, with a margin of one source pixel."""
    from sklearn.datasets import load_digits  # imported here because it takes a second

    bundle = load_digits()
    small = np.rint(np.pad(bundle.images, ((0, 0), (1, 1), (1, 1))) * (255 / 16)).astype(np.uint8)
    size = (GLYPH_PX, GLYPH_PX)
    pixels = np.stack([np.asarray(Image.fromarray(glyph).resize(size, Image.Resampling.BICUBIC)) for glyph in small])
    return pixels, bundle.target.astype(np.int64)


def _bundled_split(labels: Int64[np.ndarray, " glyphs"], split: Split) -> Int64[np.ndarray, " kept"]:
    """Return the indices of one split: per class, in the order of a hash of the index, cut at 60 and 80 percent."""
    kept = []
    for digit in range(CLASSES):
        members = np.flatnonzero(labels == digit).tolist()
        members.sort(key=lambda index: hashlib.sha256(str(index).encode()).digest())
        cuts = {"train": (0, 60), "val": (60, 80), "test": (80, 100)}[split]
        first, end = (len(members) * percent // 100 for percent in cuts)
        kept.extend(members[first:end])
    return np.array(sorted(kept), dtype=np.int64)


@lru_cache(maxsize=4)
def _mnist_part(
    mnist_dir: str, part: Literal["train", "t10k"]
) -> tuple[UInt8[np.ndarray, "glyphs 28 28"], Int64[np.ndarray, " glyphs"]]:
    image_path = _find_idx(mnist_dir, f"{part}-images-idx3-ubyte")
    label_path = _find_idx(mnist_dir, f"{part}-labels-idx1-ubyte")
    pixels = _read_idx(image_path, magic=2051, item_shape=(GLYPH_PX, GLYPH_PX))
    labels = _read_idx(label_path, magic=2049, item_shape=())
    if len(pixels) != len(labels):
        problem = f"{label_path} has {len(labels)} labels, but {image_path.name} has {len(pixels)} images"
        raise DataError(f"{problem}; {_IDX_REMEDY}")
    if len(labels) and labels.max() >= CLASSES:
        raise DataError(f"{label_path} has a label {labels.max()}, above {CLASSES - 1}; {_IDX_REMEDY}")
    return pixels, labels.astype(np.int64)


def _find_idx(mnist_dir: str, name: str) -> Path:
    """Return the file of that name, plain or gzipped, in the folder or in a subfolder that downloaders create."""
    root = Path(mnist_dir).expanduser()
    for subfolder in _IDX_SUBFOLDERS:
        for candidate in (root / subfolder / name, root / subfolder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    missing = f"no {name} or {name}.gz, nor in raw/ or MNIST/raw/" if root.is_dir() else "not been found"
    raise DataError(f"the folder {root} has {missing}; {_IDX_REMEDY}")


def _read_idx(path: Path, magic: int, item_shape: tuple[int, ...]) -> UInt8[np.ndarray, "items ..."]:
    header_bytes = 4 * (2 + len(item_shape))
    try:
        with gzip.GzipFile(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(header_bytes)
            if len(header) < header_bytes:
                raise DataError(f"{path} ends after {len(header)} bytes, within its header; {_IDX_REMEDY}")
            file_magic, items, *file_shape = np.frombuffer(header, dtype=">u4").tolist()
            if file_magic != magic:
                raise DataError(f"{path} starts with {file_magic:#010x} instead of {magic:#010x}; {_IDX_REMEDY}")
            if tuple(file_shape) != item_shape:
                raise DataError(f"{path} has images of {tuple(file_shape)} instead of {item_shape} px; {_IDX_REMEDY}")
            if items > _MAX_IDX_ITEMS:
                raise DataError(f"{path} claims {items} items, above the limit {_MAX_IDX_ITEMS}; {_IDX_REMEDY}")
            expected = items * int(np.prod(item_shape, dtype=np.int64))
            data = file.read(expected + 1)  # one more than expected reveals a file that is too long
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_IDX_REMEDY}") from error
    if len(data) != expected:
        actual = "more" if len(data) > expected else str(len(data))
        raise DataError(f"{path} claims {items} items, {expected} bytes, but {actual} follow; {_IDX_REMEDY}")
    return np.frombuffer(data, dtype=np.uint8).reshape(items, *item_shape)
