"""Where a trained model looks, drawn at the end of its run."""

from __future__ import annotations

import shutil
from pathlib import Path

from tnet.data.loading import LabelledData
from tnet.explain.batch import explain_samples
from tnet.files import atomic_folder
from tnet.models.base import Model


def draw_overlays(model: Model, data: LabelledData, folder: str | Path, count: int) -> list[Path]:
    """Explain some validation samples, with their true labels.

    Args:
        model: trained; comes back on its device and in its mode.
        data: validation samples.
        folder: of the figures, replaced if it exists; the whole set or nothing is written.
        count: samples, evenly over all of them; nothing is drawn for 0, and a folder of before is removed.

    Returns:
        The figures, in the order of the samples; ``regions.json`` is beside them.

    Raises:
        OutputError: the folder cannot be written.
        ImageError: a sample that cannot be read or is too small for the model.
    """
    folder = Path(folder)
    if count < 1 or len(data) < 1:
        shutil.rmtree(folder, ignore_errors=True)
        return []
    was_training = model.training
    device = next(model.parameters()).device
    try:
        with atomic_folder(folder) as temporary:
            figures = explain_samples(model, data, count, temporary, device=device, progress=False)
    finally:
        model.train(was_training)
    return [folder / figure.name for figure in figures if isinstance(figure, Path)]
