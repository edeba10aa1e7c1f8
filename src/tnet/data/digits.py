"""Megapixel digits: a synthetic task in which a few small digits on a large, cluttered canvas decide the label.

The Megapixel-MNIST task of Katharopoulos and Fleuret (2019), with the four questions of Bergner et al. (2023). Images
are generated on access from seed, split and index alone, so worker count and order change nothing.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch.utils.data import Dataset

from tnet.config import check_least, check_most
from tnet.data.augment import Augment, sample_generator
from tnet.data.glyphs import CLASSES, CLUTTER_BANK, SPLITS, GlyphBank, Split, clutter_bank, load_glyphs
from tnet.data.sample import Sample
from tnet.errors import ConfigError
from tnet.scenes.base import Scene

Task = Literal["majority", "max", "top", "multi"]
Variant = Literal["ips", "ats"]

MAX_CANVAS_PX = 32_768
"""Largest canvas side: 1 GiB per image."""
_TRIES_PER_DIGIT = 100
_LARGEST = {"noise_patterns": 10**5, "images_train": 10**8, "images_val": 10**8, "images_test": 10**8}
_SMALLEST = {
    "canvas_px": 1, "digit_px": 4, "noise_px": 2, "target_copies": 1, "other_digits": 0, "noise_patterns": 0,
    "images_train": 0, "images_val": 0, "images_test": 0, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True)
class DigitsConfig:
    """Content of the synthetic images, and the question about them.

    Images do not depend on ``task``: one seed gives the same images with four kinds of label.

    Attributes:
        task: ``majority``: the class with the most copies; ``max``: the largest digit; ``top``: the topmost digit (of
            equal rows, the leftmost); ``multi``: for each class, whether it is present.
        variant: ``ips``: digits are pasted last and never hidden; ``ats``: clutter is pasted last and can hide them.
        canvas_px: side of the square image.
        digit_px: side of a pasted digit (28 px glyphs, resized).
        target_copies: number of digits of the target class.
        other_digits: number of digits of other classes; if possible, none of these has as many copies as the target.
        noise_patterns: pieces of clutter per image, drawn from 50 patterns determined by ``seed``.
        noise_px: side of a piece of clutter.
        images_train: images in the train split.
        images_val: images in the val split.
        images_test: images in the test split.
        seed: determines images and clutter; the source digits stay the same.
        mnist_dir: folder with MNIST's IDX files (plain or .gz; flat, raw/ or MNIST/raw/); None for scikit-learn's
            bundled digits.

    Raises:
        ConfigError: a value is out of range, the digits do not fit, or the majority would not be unique.
    """

    task: Task = "majority"
    variant: Variant = "ips"
    canvas_px: int = 1500
    digit_px: int = 28
    target_copies: int = 3
    other_digits: int = 2
    noise_patterns: int = 50
    noise_px: int = 28
    images_train: int = 5000
    images_val: int = 1000
    images_test: int = 1000
    seed: int = 0
    mnist_dir: str | None = None

    def __post_init__(self) -> None:
        for key, allowed in (("task", get_args(Task)), ("variant", get_args(Variant))):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{key} is {getattr(self, key)!r}; give one of {', '.join(allowed)}")
        check_least(self, "", _SMALLEST)
        check_most(self, "", _LARGEST)
        if self.canvas_px > MAX_CANVAS_PX:
            raise ConfigError(f"canvas_px is {self.canvas_px}; give at most {MAX_CANVAS_PX}")
        for key in ("digit_px", "noise_px"):
            if getattr(self, key) > self.canvas_px:
                raise ConfigError(f"{key} is {getattr(self, key)}; give at most canvas_px, {self.canvas_px}")
        fit = (self.canvas_px // self.digit_px) ** 2
        if self.digits > fit:
            room = f"at most {fit} digits of {self.digit_px} px fit on {self.canvas_px} px"
            remedy = "raise canvas_px, or lower digit_px or the number of digits"
            raise ConfigError(f"target_copies plus other_digits is {self.digits}, but {room}; {remedy}")
        if self.task == "majority" and self.other_digits > self.unique_majority_limit:
            problem = f"other_digits is {self.other_digits}, so another class could tie for the majority"
            remedy = f"give at most {self.unique_majority_limit}, or raise target_copies ({self.target_copies})"
            raise ConfigError(f"{problem}; {remedy}")

    @property
    def digits(self) -> int:
        """Number of digits on an image."""
        return self.target_copies + self.other_digits

    @property
    def unique_majority_limit(self) -> int:
        """Largest number of other digits that leaves the target class the most copies."""
        return (CLASSES - 1) * (self.target_copies - 1)

    def images(self, split: Split) -> int:
        """Return the number of images in a split."""
        return {"train": self.images_train, "val": self.images_val, "test": self.images_test}[split]


@dataclass(frozen=True, eq=False)
class DigitLayout:
    """Positions of digits and clutter on one image, in the order of pasting.

    Boxes are ``(y0, x0, y1, x1)`` in pixels of the canvas (full resolution), ends exclusive.
    """

    labels: Int64[np.ndarray, " digits"]  # the target_copies digits of the target class come first
    glyphs: Int64[np.ndarray, " digits"]  # index of each digit in the split's glyph bank
    digit_box_l0_yxyx: Int64[np.ndarray, "digits 4"]  # never overlap
    clutter_patterns: Int64[np.ndarray, " pieces"]  # index of each piece in the seed's clutter bank
    clutter_box_l0_yxyx: Int64[np.ndarray, "pieces 4"]  # may overlap each other and the digits

    @property
    def digits(self) -> list[tuple[int, int, int]]:
        """``(label, y0, x0)`` of each digit."""
        y0, x0 = self.digit_box_l0_yxyx[:, 0], self.digit_box_l0_yxyx[:, 1]
        return list(zip(self.labels.tolist(), y0.tolist(), x0.tolist(), strict=True))

    def answer(self, task: Task) -> torch.Tensor:
        """Return the label: a scalar ``int64`` class, or ten ``float32`` 0/1 values for ``multi``."""
        if task == "multi":
            present = torch.zeros(CLASSES)
            present[torch.from_numpy(self.labels)] = 1.0
            return present
        if task == "majority":
            digit = int(np.bincount(self.labels).argmax())
        elif task == "max":
            digit = int(self.labels.max())
        else:
            digit = min((y0, x0, label) for label, y0, x0 in self.digits)[2]
        return torch.tensor(digit, dtype=torch.int64)


class MegapixelDigits(Dataset[Sample]):
    """Synthetic images of a few digits among clutter.

    The same configuration, split and index give the same bytes in every process with the same release of NumPy (other
    releases rarely draw other numbers). The three splits share clutter patterns, but no source digits.

    Augmentation depends on ``(seed, epoch, index)`` only; see :meth:`set_epoch`. It changes the image, not its answer.

    Args:
        config: content of the images.
        split: train, val or test.
        augment: random augmentation, or None.
        seed: seed of the augmentation; that of the images is ``config.seed``.

    Raises:
        ConfigError: ``split`` is not one of train, val, test.
        DataError: a file in ``config.mnist_dir`` is missing or damaged.
    """

    def __init__(self, config: DigitsConfig, split: Split, *, augment: Augment | None = None, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}; give one of {', '.join(SPLITS)}")
        self.config = config
        self.split: Split = split
        self.augment, self.seed, self.epoch = augment, seed, 0
        self.classes = [str(digit) for digit in range(CLASSES)]
        self.multilabel = config.task == "multi"
        load_glyphs(config.mnist_dir, split)  # a damaged file fails here, not in a worker; not stored, see _bank

    @property
    def _bank(self) -> GlyphBank:
        # From the process's cache, so that pickling for a worker carries no pixels.
        return load_glyphs(self.config.mnist_dir, self.split)

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch, from 0, which determines the augmentation together with the seed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.config.images(self.split)

    def __getitem__(self, index: int) -> Sample:
        """Return the image ``[1, canvas_px, canvas_px]``, its answer and the name ``made/<split>/<index>``."""
        layout = self.layout(index)
        image: torch.Tensor | Scene = torch.from_numpy(self._draw(layout)[None])
        if self.augment is not None:
            image = self.augment(image, sample_generator(self.seed, self.epoch, index))
        return Sample(image, layout.answer(self.config.task), self.name(index))

    def name(self, index: int) -> str:
        """Return the name of a sample, without drawing it."""
        return f"made/{self.split}/{index:06d}"

    def layout(self, index: int) -> DigitLayout:
        """Return the layout of one image without drawing it, before augmentation."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}; the {self.split} split has images 0 to {len(self) - 1}")
        config = self.config
        key = (SPLITS.index(self.split), index)
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=key))
        labels = _draw_labels(rng, config)
        of_class = self._bank.of_class
        glyphs = np.array([rng.choice(of_class[label]) for label in labels], dtype=np.int64)
        digit_yx = _place_apart(rng, config.digits, config.digit_px, config.canvas_px)
        size = (config.noise_patterns, 2)
        clutter_yx = rng.integers(0, config.canvas_px - config.noise_px, size=size, endpoint=True)
        return DigitLayout(
            labels=labels, glyphs=glyphs, digit_box_l0_yxyx=np.hstack((digit_yx, digit_yx + config.digit_px)),
            clutter_patterns=rng.integers(0, CLUTTER_BANK, size=config.noise_patterns),
            clutter_box_l0_yxyx=np.hstack((clutter_yx, clutter_yx + config.noise_px)),
        )  # fmt: skip

    def _draw(self, layout: DigitLayout) -> UInt8[np.ndarray, "canvas canvas"]:
        """Paste in the order of the variant; each piece hides everything under its box."""
        config = self.config
        bank, patterns = self._bank, clutter_bank(config.seed, config.noise_px)
        glyphs = [bank.resized(glyph, config.digit_px) for glyph in layout.glyphs.tolist()]
        digits = [*zip(glyphs, layout.digit_box_l0_yxyx.tolist(), strict=True)]
        clutter = [*zip(patterns[layout.clutter_patterns], layout.clutter_box_l0_yxyx.tolist(), strict=True)]
        canvas = np.zeros((config.canvas_px, config.canvas_px), dtype=np.uint8)
        for pixels, (y0, x0, y1, x1) in clutter + digits if config.variant == "ips" else digits + clutter:
            canvas[y0:y1, x0:x1] = pixels
        return canvas


def _draw_labels(rng: np.random.Generator, config: DigitsConfig) -> Int64[np.ndarray, " digits"]:
    """Draw the target class, repeat it ``target_copies`` times, and draw others among the classes below their limit."""
    target = int(rng.integers(CLASSES))
    labels = [target] * config.target_copies
    # Fewer copies of each other class than of the target's, if possible.
    limit = config.target_copies - 1 if config.other_digits <= config.unique_majority_limit else config.other_digits
    room = [0 if digit == target else limit for digit in range(CLASSES)]
    for _ in range(config.other_digits):
        open_classes = [digit for digit in range(CLASSES) if room[digit]]
        digit = open_classes[int(rng.integers(len(open_classes)))]
        room[digit] -= 1
        labels.append(digit)
    return np.array(labels, dtype=np.int64)


def _place_apart(rng: np.random.Generator, count: int, side_px: int, canvas_px: int) -> Int64[np.ndarray, "count 2"]:
    """Draw top left corners ``(y, x)`` of boxes that do not overlap, by rejection.

    If a digit finds no place in 100 tries, all go to random cells of a grid instead, at a random position within each,
    which always succeeds if ``count`` is at most ``(canvas_px // side_px) ** 2``.
    """
    placed = np.empty((count, 2), dtype=np.int64)
    for done in range(count):
        for _ in range(_TRIES_PER_DIGIT):
            corner = rng.integers(0, canvas_px - side_px, size=2, endpoint=True)
            if (np.abs(placed[:done] - corner).max(axis=1) >= side_px).all():
                placed[done] = corner
                break
        else:
            cells = canvas_px // side_px
            cell_px = canvas_px // cells
            chosen = rng.choice(cells * cells, size=count, replace=False)
            spare = rng.integers(0, cell_px - side_px, size=(count, 2), endpoint=True)
            return np.stack(np.divmod(chosen, cells), axis=1) * cell_px + spare
    return placed
