"""Explanations of many images: a folder of figures and one file of regions, written completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from tnet.data.folder import LabelledImages
from tnet.data.loading import LabelledData
from tnet.errors import DataError, ImageError, OutputError
from tnet.explain.explanation import Explanation, look
from tnet.explain.exports import EXPORTS, ExportFormat
from tnet.explain.figure import write_figure
from tnet.explain.geojson import Coordinates, geojson_files, write_all_geojson
from tnet.files import atomic_folder, check_outputs, name_after, write_text
from tnet.inference.predictor import DEFAULT_READ, load_input
from tnet.inference.progress import progress_bar
from tnet.inference.records import Prediction, Unreadable
from tnet.models.base import Model
from tnet.scenes.readers.base import GeoReference
from tnet.scenes.reading import ReadOptions
from tnet.traversal import Policy

REGIONS_NAME = "regions.json"  # the prediction, regions and figure of each image

T = TypeVar("T")


class _Drawn(NamedTuple):
    figure: Path
    prediction: Prediction
    georeference: GeoReference | None


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
    exports: Sequence[ExportFormat] = (),
    model_name: str = "tnet",
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> list[Path | Unreadable]:
    """Explain image files: a PNG figure each, and their regions as JSON; return the figures and skipped images.

    ``out`` is a folder for figures named after the images and ``regions.json``; or, for one image, a ``.png`` file,
    beside which ``<name>.regions.json`` is written. ``exports`` (see :mod:`tnet.explain.exports`) are written likewise,
    with the name of the model. ``geojson`` is a file for one image, or a folder. Files that exist are replaced only
    with ``overwrite``, and images and other ``inputs`` never. The other arguments are as in
    :func:`tnet.predict`. Nothing is written after an error.
    """
    chosen = model.config.resolve_looks(looks)

    def explained(path: str | os.PathLike[str]) -> Explanation:
        loaded = load_input(path, model.config, looks=chosen, allow_small=allow_small, read=read)
        return look(
            model, loaded.image, looks=chosen, policy=policy, title=Path(loaded.path).name, source=loaded.path,
            stored_size_hw=loaded.stored_size_hw,
        )  # fmt: skip

    texts = list(map(str, paths))
    names, files = _outputs(Path(out), texts, exports)
    more = [] if geojson is None else geojson_files(geojson, texts)
    check_outputs([*files, *more], inputs=[*paths, *inputs], overwrite=overwrite)
    model.to(device).eval()
    results = _explain(explained, paths, names, Path(out), progress, skip_unreadable, exports, model_name)
    if geojson is not None:
        placed = [(item.prediction, item.georeference) for item in results if isinstance(item, _Drawn)]
        write_all_geojson(placed, geojson, coordinates=coordinates, overwrite=overwrite)
    return [item.figure if isinstance(item, _Drawn) else item for item in results]


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
    exports: Sequence[ExportFormat] = (),
    model_name: str = "tnet",
    overwrite: bool = False,
) -> list[Path | Unreadable]:
    """Explain up to ``count`` samples spread evenly over a labelled dataset, with the true labels in the figures."""
    chosen = model.config.resolve_looks(looks)
    count = min(count, len(data))
    # Datasets are sorted by class: the first samples would all be of one.
    indices = [index * len(data) // count for index in range(count)]

    def explained(index: int) -> Explanation:
        image, target, name = data[index]
        # A model without looks may have been trained on small images, enlarged.
        loaded = load_input(image, model.config, looks=chosen, allow_small=not chosen, name=name)
        present = target.nonzero().flatten() if target.ndim else target[None]
        truth = "|".join(data.classes[label] for label in present)
        return look(model, loaded.image, looks=chosen, policy=policy, truth=truth, title=name, source=name)

    sources = data.paths if isinstance(data, LabelledImages) else []
    named = [str(sources[index]) if sources else f"{index:06d}" for index in indices]
    names, files = _outputs(Path(out), named, exports)
    check_outputs(files, inputs=sources, overwrite=overwrite)
    model.to(device).eval()
    skip = isinstance(data, LabelledImages) and data.most_unreadable > 0
    results = _explain(explained, indices, names, Path(out), progress, skip, exports, model_name)
    return [item.figure for item in results if isinstance(item, _Drawn)]


def _outputs(out: Path, images: Sequence[str], exports: Sequence[ExportFormat]) -> tuple[list[str], list[Path]]:
    """Return the names of the figures of images, and all files that are written."""
    single = out.suffix.lower() == ".png"
    if not images:
        raise DataError("there are no images to explain; give at least one")
    if single and len(images) > 1:
        raise OutputError(f"{out} is one file for {len(images)} images; give a folder with --out")
    taken: set[str] = {REGIONS_NAME}
    names = [out.name] if single else [name_after(image, ".png", taken) for image in images]
    folder = out.parent if single else out
    more = [_beside(out, name) for name in (REGIONS_NAME, *(EXPORTS[item].name for item in exports))]
    return names, [folder / name for name in (*names, *more)]


def _beside(out: Path, name: str) -> str:
    """Return the name of a file beside the figures, or beside a single figure."""
    return f"{out.stem}.{name}" if out.suffix.lower() == ".png" else name


def _explain(
    explained: Callable[[T], Explanation], sources: Sequence[T], names: list[str], out: Path, progress: bool,
    skip_unreadable: bool, exports: Sequence[ExportFormat], model_name: str,
) -> list[_Drawn | Unreadable]:  # fmt: skip
    """Draw all figures in a temporary folder, and only then move them to ``out``."""
    single = out.suffix.lower() == ".png"
    folder = out.parent if single else out
    results: list[_Drawn | Unreadable] = []
    records: list[dict[str, Any]] = []
    with atomic_folder(folder) as scratch, progress_bar(progress) as bar:
        for source, name in zip(bar.track(sources, total=len(names), description="explaining"), names, strict=True):
            try:
                explanation = explained(source)
                write_figure(explanation, scratch / name)
            except ImageError as error:  # perhaps only when the figure reads a file that is read lazily
                if not skip_unreadable:
                    raise
                unreadable = Unreadable(str(source), str(error))
                results.append(unreadable)
                records.append(asdict(unreadable))
            else:
                prediction, place = explanation.prediction, explanation.place
                results.append(_Drawn(folder / name, prediction, place.georeference))
                record = asdict(prediction) | {"true_label": explanation.truth, "figure": name}
                for region in record["regions"]:
                    region |= place.record(region["box_l0_yxyx"])
                records.append(record)
        lines = ",\n".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
        write_text(scratch / _beside(out, REGIONS_NAME), f"[\n{lines}\n]\n")
        for item in exports:
            predictions = [result.prediction for result in results if isinstance(result, _Drawn)]
            write_text(scratch / _beside(out, EXPORTS[item].name), EXPORTS[item].text(predictions, model_name))
    return results
