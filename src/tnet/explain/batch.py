"""Explanations of many images: a folder of figures and one file of regions, written completely or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnet.data.loading import LabelledData
from tnet.errors import DataError, ImageError, OutputError
from tnet.explain.explanation import look
from tnet.explain.figure import save_explanation
from tnet.explain.geojson import Coordinates, check_geojson_output, write_all_geojson
from tnet.files import make_folder, name_after, write_text
from tnet.inference.predictor import DEFAULT_READ, LoadedImage, load_input
from tnet.inference.progress import progress_bar
from tnet.inference.records import Prediction, Unreadable
from tnet.models.base import Model
from tnet.scenes.readers.base import GeoReference
from tnet.scenes.reading import ReadOptions
from tnet.traversal import Policy

REGIONS_NAME = "regions.json"  # the prediction, regions and figure of each image

_Item = tuple[LoadedImage, str | None] | Unreadable  # an image with its true label, if known


def explain_paths(
    model: Model,
    paths: Sequence[str | os.PathLike[str]],
    out: str | Path,
    *,
    looks: int | Sequence[int] | None = None,
    policy: Policy | str | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
    skip_unreadable: bool = False,
    allow_small: bool = False,
    read: ReadOptions = DEFAULT_READ,
    geojson: str | Path | None = None,
    coordinates: Coordinates = "auto",
) -> list[Path | Unreadable]:
    """Explain image files: a PNG figure each, and their regions as JSON; return the figures and skipped images.

    ``out`` is a folder for figures named after the images and ``regions.json``; or, for one image, a ``.png`` file,
    beside which ``<name>.regions.json`` is written. Files of these names are replaced. ``geojson`` is a file for one
    image, or a folder. The other arguments are as in :func:`tnet.predict`. Nothing is written after an error.
    """
    chosen = model.config.resolve_looks(looks)

    def items() -> Iterator[_Item]:
        for path in paths:
            try:
                yield load_input(path, model.config, looks=chosen, allow_small=allow_small, read=read), None
            except ImageError as error:
                if not skip_unreadable:
                    raise
                yield Unreadable(str(path), str(error))

    if geojson is not None:
        check_geojson_output(geojson, len(paths))
    placed: list[tuple[Prediction, GeoReference | None]] = []
    figures = _explain(model, items(), len(paths), Path(out), chosen, policy, device, progress, placed, skip_unreadable)
    if geojson is not None:
        write_all_geojson(placed, geojson, coordinates=coordinates)
    return figures


def explain_samples(
    model: Model,
    data: LabelledData,
    count: int,
    out: str | Path,
    *,
    looks: int | Sequence[int] | None = None,
    policy: Policy | str | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> list[Path | Unreadable]:
    """Explain up to ``count`` samples spread evenly over a labelled dataset, with the true labels in the figures."""
    chosen = model.config.resolve_looks(looks)
    count = min(count, len(data))

    def items() -> Iterator[_Item]:
        for index in range(count):
            # Datasets are sorted by class: the first samples would all be of one.
            image, target, name = data[index * len(data) // count]
            # A model without looks may have been trained on small images, enlarged.
            loaded = load_input(image, model.config, looks=chosen, allow_small=not chosen, name=name)
            yield loaded, _true_label(target, data.classes)

    return _explain(model, items(), count, Path(out), chosen, policy, device, progress, [], False)


def _true_label(target: Tensor, classes: Sequence[str]) -> str:
    if target.ndim == 0:
        return classes[int(target)]
    return "|".join(name for name, present in zip(classes, target.tolist(), strict=True) if present)


def _explain(
    model: Model,
    items: Iterable[_Item],
    count: int,
    out: Path,
    looks: tuple[int, ...],
    policy: Policy | str | None,
    device: str | torch.device,
    progress: bool,
    placed: list[tuple[Prediction, GeoReference | None]],
    skip_unreadable: bool,
) -> list[Path | Unreadable]:
    """Draw all figures in a temporary folder, and only then move them to ``out``; appends to ``placed``."""
    single = out.suffix.lower() == ".png"
    if count < 1:
        raise DataError("there are no images to explain; give at least one")
    if single and count > 1:
        raise OutputError(f"{out} is one file for {count} images; give a folder with --out")
    if single and out.is_dir():
        raise OutputError(f"{out} is a folder with suffix .png; give a file, or a folder with another name")
    model = model.to(device).eval()
    folder = out.parent if single else out
    existed = folder.exists()
    make_folder(folder)
    results: list[Path | Unreadable] = []
    records: list[dict[str, Any]] = []
    names: set[str] = {REGIONS_NAME}
    try:
        with tempfile.TemporaryDirectory(prefix=".explain.", dir=folder) as scratch, progress_bar(progress) as bar:
            for item in bar.track(items, total=count, description="explaining"):
                if not isinstance(item, Unreadable):
                    loaded, truth = item
                    name = out.name if single else name_after(loaded.path, ".png", names)
                    try:
                        title = Path(loaded.path).name if truth is None else loaded.path
                        explanation = look(
                            model, loaded.image, looks=looks, policy=policy, truth=truth, title=title,
                            source=loaded.path, stored_size_hw=loaded.stored_size_hw,
                        )  # fmt: skip
                        save_explanation(explanation, Path(scratch) / name)
                    except ImageError as error:  # a lazily read file that is damaged
                        if not skip_unreadable:
                            raise
                        item = Unreadable(loaded.path, str(error))
                    else:
                        placed.append((explanation.prediction, getattr(loaded.image, "georeference", None)))
                        records.append({**asdict(explanation.prediction), "true_label": truth, "figure": name})
                        results.append(folder / name)
                if isinstance(item, Unreadable):
                    results.append(item)
                    records.append(asdict(item))
            lines = ",\n".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
            text = f"[\n{lines}\n]\n".encode("utf-8", "backslashreplace").decode("utf-8")  # names may not be UTF-8
            write_text(Path(scratch) / (f"{out.stem}.{REGIONS_NAME}" if single else REGIONS_NAME), text)
            for file in sorted(Path(scratch).iterdir()):
                try:
                    file.replace(folder / file.name)
                except OSError as error:
                    reason = error.strerror or error
                    raise OutputError(
                        f"{folder / file.name} cannot be written ({reason}); choose another --out"
                    ) from None
    finally:
        if not existed and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
    return results
