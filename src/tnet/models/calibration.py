"""Calibration of stopping: which price of a look gives which number of looks and which accuracy; saved with a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tnet.config import parse_dataclass, to_plain
from tnet.errors import CheckpointError, ConfigError, TnetError
from tnet.traversal import BestFirst, Calibrated, LookGain, StoppingRule, TimeLimit
from tnet.traversal.best_first import Score

CALIBRATION_NAME = "calibration.json"
_VERSION = 2
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Calibration:
    """What looks gained on validation images, and what stopping at a price per look gives.

    Attributes:
        measure: measure of certainty, see :data:`tnet.traversal.CERTAINTIES`.
        looks: largest number of looks per image.
        levels: levels that were searched, including the whole image.
        score: score of the search, see :class:`tnet.traversal.BestFirst`.
        gains: expected gains after 0, 1, ... looks, see :class:`tnet.traversal.Calibrated`.
        prices: descending.
        mean_looks: mean looks per image for each price; does not fall.
        accuracy: share of right answers at each of these mean looks, on images that the gains were not fitted on.
        images: number of images.
        class_names: classes of the model when it was calibrated.
        version: form of the file.
    """

    measure: str
    looks: int
    levels: int
    score: Score
    gains: tuple[LookGain, ...]
    prices: tuple[float, ...]
    mean_looks: tuple[float, ...]
    accuracy: tuple[float, ...]
    images: int
    class_names: tuple[str, ...] = ()
    version: int = _VERSION

    def __post_init__(self) -> None:
        if not 0 < len(self.prices) == len(self.mean_looks) == len(self.accuracy):
            counts = f"{len(self.prices)}, {len(self.mean_looks)} and {len(self.accuracy)}"
            raise ConfigError(f"prices, mean_looks and accuracy have {counts} values; give as many of each")
        if list(self.prices) != sorted(self.prices, reverse=True) or list(self.mean_looks) != sorted(self.mean_looks):
            raise ConfigError("prices do not descend, or mean looks fall; calibrate again")
        if len(self.gains) != self.looks:
            raise ConfigError(f"there are {len(self.gains)} gains for {self.looks} looks; give one per look")

    def for_looks(self, mean_looks: float) -> float:
        """Return the price at which images take ``mean_looks`` looks on average, or as many as were calibrated.

        Raises:
            ConfigError: the number is not positive, or below the fewest looks that were calibrated.
        """
        if not mean_looks > 0:
            raise ConfigError(f"the budget is {mean_looks:g} looks per image; give more than 0")
        if mean_looks < self.mean_looks[0]:
            least = f"{self.mean_looks[0]:g} that every image takes since calibration"
            raise ConfigError(f"the budget is {mean_looks:g} looks per image, below the {least}; give more")
        return float(np.interp(mean_looks, self.mean_looks, self.prices))

    def for_accuracy(self, accuracy: float) -> float:
        """Return the highest price whose mean looks reached an accuracy.

        Raises:
            ConfigError: the accuracy is not a share above 0, or was never reached.
        """
        if not 0 < accuracy <= 1:
            raise ConfigError(f"the accuracy to reach is {accuracy:g}; give more than 0 and at most 1")
        price = next((p for p, share in zip(self.prices, self.accuracy, strict=True) if share >= accuracy), None)
        if price is None:
            best = max(self.accuracy)
            raise ConfigError(
                f"an accuracy of {accuracy:g} was never reached on the {self.images} calibration images; give at most "
                f"{best:.4g}, or calibrate with more looks than {self.looks}"
            )
        return price

    def search(
        self,
        mean_looks: float | None = None,
        accuracy: float | None = None,
        max_ms: float | None = None,
        multilabel: bool = False,
    ) -> BestFirst:
        """Return the search that keeps a budget of looks, reaches an accuracy, or both, whichever stops first."""
        prices = [] if mean_looks is None else [self.for_looks(mean_looks)]
        prices += [] if accuracy is None else [self.for_accuracy(accuracy)]
        rules: list[StoppingRule] = [Calibrated(price, self.gains, self.measure, multilabel) for price in prices]
        if max_ms is not None:
            rules.append(TimeLimit(max_ms))
        return BestFirst(self.looks, self.levels, score=self.score, stop=tuple(rules))

    def text(self) -> str:
        """Return the calibration as JSON."""
        return json.dumps(to_plain(self)) + "\n"


def read_calibration(folder: Path, class_names: tuple[str, ...]) -> Calibration | None:
    """Read the calibration in a model's folder, if there is one.

    Raises:
        CheckpointError: the file is damaged, or of a model with other classes.
    """
    path = folder / CALIBRATION_NAME
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it must hold keys and values")
        if data.get("version") != _VERSION:
            raise ValueError(f"its form is not version {_VERSION}")
        calibration = parse_dataclass(Calibration, data, str(path))
    except (OSError, ValueError, RecursionError, TnetError) as error:
        raise CheckpointError(f"{path} cannot be used ({error}); run `tnet calibrate` again") from None
    if calibration.class_names != class_names:
        raise CheckpointError(f"{path} is of a model with other classes; run `tnet calibrate` again")
    return calibration
