"""Whether probabilities mean what they say, and the temperature that makes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tnet.data.loading import LabelledData, eval_loader
from tnet.evaluation.evaluator import check_data_fits
from tnet.inference.progress import track_images
from tnet.models.base import Model

Targets = Int[Tensor, " images"] | Float[Tensor, "images classes"]

BINS = 15
"""Bins of confidence in the calibration error."""
_LOG_LIMIT = 4.0  # temperatures of 0.018 to 55
_STEPS = 60


def calibration_error(confidence: Float[Tensor, " images"], right: Bool[Tensor, " images"]) -> float:
    """Return the expected calibration error (Guo et al. 2017): mean gap between confidence and accuracy, 15 bins."""
    gap = torch.zeros(BINS, dtype=torch.float64)
    gap.index_add_(0, bins_of(confidence), confidence.double() - right.double())
    return float(gap.abs().sum() / len(confidence))


def bins_of(confidence: Float[Tensor, " images"]) -> Int[Tensor, " images"]:
    """Return the bin of each confidence: of :data:`BINS` equal ones, which include their upper end."""
    return (confidence * BINS).ceil().clamp(1, BINS).long() - 1


def collect_logits(
    model: Model, data: LabelledData, *, batch_size: int = 16, workers: int = 0, progress: bool = True
) -> tuple[Float[Tensor, "images classes"], Targets]:
    """Return the logits of all images at the model's own number of looks, and their targets, on the CPU.

    Raises:
        DataError: the images do not fit the model, or cannot be read.
    """
    check_data_fits(model.config, data)
    device, fast = model.get_buffer("mean").device, model.prepare_for_inference()
    logits, targets = [], []
    with torch.inference_mode():
        for batch in track_images(eval_loader(data, batch_size, workers), len(data), "predicting", progress):
            logits.append(fast(batch.to(device).images).logits.float().cpu())
            targets.append(batch.targets.cpu())
    return torch.cat(logits), torch.cat(targets)


class Calibration(NamedTuple):
    """A temperature, and what it does to images that it was not fitted to.

    Attributes:
        temperature: divisor of the logits; 1 if fitting one does not lower the error.
        error_before: expected calibration error at a temperature of 1.
        error_after: the same with the temperature of each half of the images fitted to the other half.
    """

    temperature: float
    error_before: float
    error_after: float

    @property
    def helps(self) -> bool:
        """Whether the temperature lowers the error on images that it was not fitted to."""
        return self.error_after < self.error_before


def fit_calibration(logits: Float[Tensor, "images classes"], targets: Targets) -> Calibration:
    """Fit a temperature, and keep it if it lowers the expected calibration error on halves left out of the fit.

    If images have several labels, each label counts as an answer of its own.
    """
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    after = logits.clone()
    if len(order) > 1:
        for mine, other in (order[::2], order[1::2]), (order[1::2], order[::2]):
            after[mine] /= fit_temperature(logits[other], targets[other])
    found = Calibration(fit_temperature(logits, targets), _error(logits, targets), _error(after, targets))
    return found if found.helps else found._replace(temperature=1.0)


def _error(logits: Tensor, targets: Targets) -> float:
    if targets.ndim == 2:
        probs = logits.sigmoid().flatten()
        confidence, answer = torch.maximum(probs, 1 - probs), probs > 0.5
        return calibration_error(confidence, answer == targets.flatten().bool())
    best = logits.softmax(1).max(dim=1)
    return calibration_error(best.values, best.indices == targets)


def fit_temperature(logits: Float[Tensor, "images classes"], targets: Targets) -> float:
    """Return the divisor of the logits at which the cross entropy is least (Guo et al. 2017).

    Targets are class indices, or 0/1 values for multiple labels. The cross entropy is convex in the inverse of the
    divisor, so a search by thirds finds its least value, between 0.018 and 55.
    """
    logits, targets = logits.double(), targets.double() if targets.ndim == 2 else targets.long()
    loss = F.binary_cross_entropy_with_logits if targets.ndim == 2 else F.cross_entropy

    def cost(log_temperature: float) -> float:
        return float(loss(logits * torch.tensor(-log_temperature).exp(), targets))

    low, high = -_LOG_LIMIT, _LOG_LIMIT
    for _ in range(_STEPS):
        first, second = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, second) if cost(first) <= cost(second) else (first, high)
    return float(torch.tensor((low + high) / 2).exp())
