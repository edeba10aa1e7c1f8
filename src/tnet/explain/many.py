"""Explanations of many pictures, as a folder of figures and one file of regions; all of them or none."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from tnet.data.loading import LabelledData
from tnet.errors import DataError, ImageError, OutputError
from tnet.explain.explanation import size_of
from tnet.explain.figure import save_explanation
from tnet.explain.geojson import Coordinates, check_geojson_output, write_all_geojson
from tnet.files import make_folder, name_after, write_text
from tnet.inference.predict import DEFAULT_READING, check_image_size, check_reading, read_picture
from tnet.inference.progress import progress_bar
from tnet.inference.records import Prediction, Unreadable
from tnet.models.base import Model
from tnet.scenes.base import Scene
from tnet.scenes.readers.base import GeoReference
from tnet.scenes.reading import Reading
from tnet.traversal import Policy

REGIONS_NAME = "regions.json"
"""File beside the figures: for each picture its prediction, its regions and the name of its figure."""


@dataclass(frozen=True)
class _Item:
    """A picture to explain.

    Attributes:
        image: levels 0 to 255, or a scene.
        source: path, or what else names it.
        own_size_hw: height and width before it was shrunk on reading: the frame of the boxes that are written.
        truth: right label, if known.
        georeference: where it lies on a map, if known.
    """

    image: UInt8[Tensor, "channels height width"] | Scene
    source: str
    own_size_hw: tuple[int, int]
    truth: str | None
    georeference: GeoReference | None = None


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
    max_side_px: int | None = None,
    max_short_side_px: int | None = None,
    preprocess: str | None = None,
    allow_small: bool = False,
    reading: Reading = DEFAULT_READING,
    geojson: str | Path | None = None,
    coordinates: Coordinates = "auto",
) -> list[Path | Unreadable]:
    """Explain pictures: a PNG figure each, and their regions as JSON.

    Args:
        model: put on ``device`` and into evaluation mode.
        paths: pictures.
        out: a folder for figures named after the pictures and ``regions.json``; or, for one picture, a file that ends
            with ``.png``, beside which ``<name>.regions.json`` is written. Files of these names are replaced, others
            left alone.
        looks: as for :func:`tnet.inference.predict_paths`.
        policy: as for :func:`tnet.inference.predict_paths`.
        device: as for :func:`tnet.inference.predict_paths`.
        progress: show a bar on standard error.
        skip_unreadable: leave out a picture that cannot be read or is too small, and go on.
        max_side_px: as for :func:`tnet.inference.predict_paths`.
        max_short_side_px: as for :func:`tnet.inference.predict_paths`.
        preprocess: as for :func:`tnet.inference.predict_paths`.
        allow_small: as for :func:`tnet.inference.predict_paths`.
        reading: as for :func:`tnet.inference.predict_paths`.
        geojson: also write the regions as GeoJSON: a file for one picture, or a folder.
        coordinates: of GeoJSON, see :data:`tnet.explain.geojson.Coordinates`.

    Returns:
        The figures, and in the place of each picture that was left out why.

    Raises:
        DataError: no picture.
        GeometryError: looks that the model does not allow.
        ImageError: a picture that cannot be read or is too small, unless ``skip_unreadable``.
        OutputError: ``out`` cannot be written, or is one file for several pictures. Nothing is written then.
    """
    config = model.config
    chosen = config.resolve_looks(looks)

    def items() -> Iterator[_Item | Unreadable]:
        for path in paths:
            try:
                picture = read_picture(
                    path,
                    config,
                    looks=chosen,
                    max_side_px=max_side_px,
                    max_short_side_px=max_short_side_px,
                    preprocess=preprocess,
                    allow_small=allow_small,
                    reading=reading,
                )
            except ImageError as error:
                if not skip_unreadable:
                    raise
                yield Unreadable(str(path), str(error))
            else:
                place = getattr(picture.image, "georeference", None)
                yield _Item(picture.image, picture.path, picture.own_size_hw, None, place)

    check_reading(reading, max_side_px, max_short_side_px, preprocess)
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
    """Explain the first samples of a labelled data set, with the true labels in the figures.

    Args:
        model: put on ``device`` and into evaluation mode.
        data: labelled images, of files or made on the fly.
        count: how many; all if there are fewer.
        out: as for :func:`explain_paths`.
        looks: as for :func:`explain_paths`.
        policy: as for :func:`explain_paths`.
        device: as for :func:`explain_paths`.
        progress: show a bar on standard error.

    Returns:
        The figures.

    Raises:
        DataError: no sample.
        GeometryError: looks that the model or the images do not allow.
        ImageError: a sample that cannot be read or is too small.
        OutputError: as for :func:`explain_paths`.
    """
    config = model.config
    chosen = config.resolve_looks(looks)
    count = min(count, len(data))

    def items() -> Iterator[_Item | Unreadable]:
        for index in range(count):
            # Data come class by class: over all of them, or all that is shown would be of one class.
            image, target, name = data[index * len(data) // count]
            size_hw = size_of(image)
            # A model that does not look closer may have been trained on small pictures, enlarged.
            check_image_size(size_hw, config, name, looks=chosen, allow_small=not chosen)
            yield _Item(image, name, size_hw, _true_label(target, data.classes))

    return _explain(model, items(), count, Path(out), chosen, policy, device, progress, [], False)


def _true_label(target: Tensor, classes: Sequence[str]) -> str:
    if target.ndim == 0:
        return classes[int(target)]
    return "|".join(name for name, present in zip(classes, target.tolist(), strict=True) if present)


def _explain(
    model: Model,
    items: Iterator[_Item | Unreadable],
    count: int,
    out: Path,
    looks: tuple[int, ...],
    policy: Policy | str | None,
    device: str | torch.device,
    progress: bool,
    placed: list[tuple[Prediction, GeoReference | None]],
    skip_unreadable: bool,
) -> list[Path | Unreadable]:
    """Draw all figures in a folder of their own, and only then move them to where they belong; adds to ``placed``."""
    single = out.suffix.lower() == ".png"
    if count < 1:
        raise DataError("There is no picture to explain; give at least one.")
    if single and count > 1:
        raise OutputError(f"{out} is one file, but there are {count} pictures; name a folder with --out")
    if single and out.is_dir():
        raise OutputError(f"{out} is a folder, but its name ends with .png; name a file, or a folder called otherwise")
    model = model.to(device).eval()
    folder = out.parent if single else out
    was_there = folder.exists()
    make_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".explain.", dir=folder) as scratch, progress_bar(progress) as bar:
            records: list[dict[str, Any]] = []
            found: list[Path | Unreadable] = []
            task = bar.add_task("explaining", total=count)
            names: set[str] = {REGIONS_NAME}
            for item in items:
                if isinstance(item, Unreadable):
                    records.append(asdict(item))
                    found.append(item)
                else:
                    name = out.name if single else name_after(item.source, ".png", names)
                    try:
                        told = save_explanation(
                            model, item.image, Path(scratch) / name, looks=looks, policy=policy, truth=item.truth,
                            title=Path(item.source).name if item.truth is None else item.source, source=item.source,
                            own_size_hw=item.own_size_hw,
                        )  # fmt: skip
                    except ImageError as error:  # damaged where it was looked at
                        if not skip_unreadable:
                            raise
                        skipped = Unreadable(item.source, str(error))
                        found.append(skipped)
                        records.append(asdict(skipped))
                        bar.advance(task)
                        continue
                    placed.append((told, item.georeference))
                    records.append({**asdict(told), "true_label": item.truth, "figure": name})
                    found.append(folder / name)
                bar.advance(task)
            regions = Path(scratch) / (f"{out.stem}.{REGIONS_NAME}" if single else REGIONS_NAME)
            write_text(regions, _json(records))
            _move_all(Path(scratch), folder)
    finally:
        if not was_there and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
    return found


def _json(records: Sequence[dict[str, Any]]) -> str:
    """A JSON array with a record a line; names that are not UTF-8 keep their bytes, as escapes."""
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _move_all(scratch: Path, folder: Path) -> None:
    for file in sorted(scratch.iterdir()):
        try:
            file.replace(folder / file.name)
        except OSError as error:
            raise OutputError(
                f"{folder / file.name} cannot be written ({error.strerror or error}); choose another --out"
            ) from None
