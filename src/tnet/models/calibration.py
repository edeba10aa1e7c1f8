"""Calibration of stopping: which threshold gives which number of looks and which accuracy; saved with a model."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from tnet.config import parse_dataclass, to_plain
from tnet.errors import CheckpointError, ConfigError, TnetError
from tnet.traversal import BestFirst, Certain, StoppingRule, TimeLimit

CALIBRATION_NAME = "calibration.json"
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class Calibration:
    """Thresholds of certainty, and what stopping by them gave on validation images.

    Attributes:
        measure: measure of certainty, see :data:`tnet.traversal.CERTAINTIES`.
        looks: largest number of looks per image.
        levels: levels that were searched, including the whole image.
        score: score of the search, see :class:`tnet.traversal.BestFirst`.
        thresholds: ascending.
        mean_looks: mean looks per image for each threshold; does not fall.
        accuracy: share of images answered rightly, for each threshold.
        images: number of images.
        class_names: classes of the model when it was calibrated.
    """

    measure: str
    looks: int
    levels: int
    score: str
    thresholds: tuple[float, ...]
    mean_looks: tuple[float, ...]
    accuracy: tuple[float, ...]
    images: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.thresholds) == len(self.mean_looks) == len(self.accuracy):
            counts = f"{len(self.thresholds)}, {len(self.mean_looks)} and {len(self.accuracy)}"
            raise ConfigError(f"thresholds, mean_looks and accuracy have {counts} values; give as many of each")
        if list(self.thresholds) != sorted(self.thresholds):
            raise ConfigError("thresholds do not ascend; calibrate again")

    def for_looks(self, mean_looks: float) -> float:
        """Return the threshold at which images take ``mean_looks`` looks on average.

        Raises:
            ConfigError: the number is not positive.
        """
        if not mean_looks > 0:
            raise ConfigError(f"the budget is {mean_looks:g} looks per image; give more than 0")
        after = bisect_right(self.mean_looks, mean_looks)
        if after == 0:
            return self.thresholds[0]
        if after == len(self.thresholds):
            return self.thresholds[-1]
        low, high = self.mean_looks[after - 1], self.mean_looks[after]
        share = (mean_looks - low) / (high - low)
        return self.thresholds[after - 1] + share * (self.thresholds[after] - self.thresholds[after - 1])

    def for_accuracy(self, accuracy: float) -> float:
        """Return the lowest threshold that reached an accuracy on the calibration images.

        Raises:
            ConfigError: no threshold reached it.
        """
        reached = (t for t, share in zip(self.thresholds, self.accuracy, strict=True) if share >= accuracy)
        threshold = next(reached, None)
        if threshold is None or not 0 < accuracy <= 1:
            best = max(self.accuracy)
            raise ConfigError(
                f"an accuracy of {accuracy:g} was never reached on the {self.images} calibration images; give at most "
                f"{best:.4g}, or calibrate with more looks than {self.looks}"
            )
        return threshold

    def search(
        self,
        mean_looks: float | None = None,
        accuracy: float | None = None,
        max_ms: float | None = None,
        multilabel: bool = False,
    ) -> BestFirst:
        """Return the search that keeps a budget of looks, reaches an accuracy, or both, whichever stops first."""
        rules: list[StoppingRule] = []
        if mean_looks is not None:
            rules.append(Certain(self.for_looks(mean_looks), self.measure, multilabel))
        if accuracy is not None:
            rules.append(Certain(self.for_accuracy(accuracy), self.measure, multilabel))
        if max_ms is not None:
            rules.append(TimeLimit(max_ms))
        return BestFirst(self.looks, self.levels, score=self.score, stop=tuple(rules))  # type: ignore[arg-type]

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
        calibration = parse_dataclass(Calibration, data, str(path))
    except (OSError, ValueError, RecursionError, TnetError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); run `tnet calibrate` again") from None
    if calibration.class_names != class_names:
        raise CheckpointError(f"{path} is of a model with other classes; run `tnet calibrate` again")
    return calibration
