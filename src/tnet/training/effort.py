"""Training effort in multiply-adds, which unlike time does not depend on what else the machine does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tnet.cost import build_outline, multiply_adds
from tnet.data.loading import LabelledData
from tnet.training.recipe import Recipe

_IMAGES_MEASURED = 16


def within_effort(recipe: Recipe, data: LabelledData) -> Recipe:
    """Return the recipe with no more epochs and images per epoch than ``train.max_gmacs`` allows."""
    train = recipe.train
    if train.max_gmacs is None:
        return recipe
    images = train.images_per_epoch or len(data)
    batch = min(images, train.batch_size * train.devices)
    most = images // batch
    budget, first = round(train.max_gmacs * 1e9), train.no_looks_epochs
    step = batch * _macs_per_image(recipe, data, None)
    step_without = batch * _macs_per_image(recipe, data, 0) if first else 0
    # Equal epochs, so that the schedule, which counts epochs, needs no length of its own.
    epochs = first + max(1, -(-((budget - first * most * step_without) // step) // most))
    if epochs > train.epochs:
        return recipe
    steps = max(1, budget // (first * step_without + (epochs - first) * step))
    return replace(recipe, train=replace(train, epochs=epochs, images_per_epoch=min(most, steps) * batch))


def _macs_per_image(recipe: Recipe, data: LabelledData, looks: int | None) -> int:
    """Return the cost of a training image, the mean of some if it depends on their sizes."""
    model = build_outline(recipe.model)
    if not recipe.model.cost_depends_on_size:
        return multiply_adds(model, looks)
    sizes = Counter(data[index].size_hw for index in range(min(len(data), _IMAGES_MEASURED)))
    return (
        sum(count * multiply_adds(model, looks, image_size_hw=size) for size, count in sizes.items()) // sizes.total()
    )
