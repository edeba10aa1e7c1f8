"""Predictions of one model for many images: decoding in workers, batches of any sizes, plain records in order."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jaxtyping import Num
from torch import Tensor
from torch.utils.data import Dataset

from tnet.config import parse_dataclass
from tnet.data.config import DataConfig
from tnet.data.loading import read_options
from tnet.data.workers import image_loader
from tnet.errors import ConfigError, DataError, ImageError, ImageSizeError, MemoryWarning, RecipeError
from tnet.inference.inputs import find_inputs
from tnet.inference.progress import progress_bar
from tnet.inference.records import Prediction, Unreadable, prediction_of
from tnet.models.base import Model, ModelConfig
from tnet.models.engine import traverse_all
from tnet.models.io import load_for_inference, recipe_path
from tnet.models.tnet import TNet
from tnet.scenes.base import Scene
from tnet.scenes.memory import MemoryScene, as_image, one_or_more
from tnet.scenes.reading import ReadOptions
from tnet.traversal import Policy, Search

AnyPath = str | os.PathLike[str]
AnyImage = AnyPath | Scene | Num[Tensor, "_ _ _"] | Any
"""An image file, a scene, or a ``[channels, height, width]`` tensor: ``uint8``, or normalized floating point.

Pillow images and ``uint8`` arrays are converted; see :func:`tnet.scenes.memory.as_image`."""
DEFAULT_READ = ReadOptions("auto")
"""Read large images, slides and OME-Zarr lazily, and decode all others."""

_BATCH_BYTES = 2**29
_MAX_RECIPE_BYTES = 2**20


def predict(
    model: Model | AnyPath,
    images: AnyImage | Num[Tensor, "_ _ _ _"] | Sequence[AnyImage],
    *,
    looks: int | Sequence[int] | None = None,
    policy: Policy | str | None = None,
    search: Search | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str | torch.device | None = None,
    read: ReadOptions | None = None,
    allow_small: bool = False,
    progress: bool = False,
) -> list[Prediction]:
    """Classify images and return what the model saw of them.

    Example::

        for prediction in tnet.predict("runs/photos", "holiday/", looks=5):
            print(prediction.path, prediction.label, prediction.probability)
            print([region.box_l0_yxyx for region in prediction.regions])

    Args:
        model: a model, the folder of a saved model, or a run folder.
        images: an image file, a folder of images, a manifest (see :func:`tnet.inference.find_inputs`), a tensor of one
            image or of a batch, a scene, or a sequence of image files, folders, tensors and scenes.
        looks: number of looks, as in ``model(images, looks)``; the model's default if ``None``.
        policy: how locations are chosen; the model's default for evaluation if ``None``.
        search: search to use instead of ``looks`` and ``policy``, such as :class:`tnet.traversal.BestFirst` or, if the
            model is calibrated, ``model.calibration.search(mean_looks=2.5)``.
        batch_size: maximum number of images per batch; with a search, number of regions.
        workers: processes that decode files.
        device: device to run on. If ``None``, a model stays where it is, and a loaded one uses the GPU if available.
        read: how files are read. If ``None``, as in the recipe of the run folder, or :data:`DEFAULT_READ`.
        allow_small: enlarge images below the model's base resolution instead of refusing them.
        progress: show a progress bar on standard error.

    Returns:
        One prediction per image, in order. Boxes are in level-0 pixels of the image as stored, upright.

    Raises:
        CheckpointError: the model cannot be loaded, or its outputs are not finite.
        DataError: there are no images, or files are missing.
        GeometryError: the model does not allow this number of looks.
        ImageError: an image cannot be read, or is too small.
    """
    was_training = isinstance(model, Model) and model.training
    if not isinstance(model, Model):
        folder = Path(model)
        read = run_read_options(folder) if read is None else read
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = load_for_inference(folder, device=device)
    try:
        predictions = iter_predictions(
            model,
            list_images(images),
            looks=looks,
            policy=policy,
            search=search,
            batch_size=batch_size,
            workers=workers,
            device=model.get_buffer("mean").device if device is None else device,
            read=read or DEFAULT_READ,
            allow_small=allow_small,
            progress=progress,
        )
        return [item for item in predictions if isinstance(item, Prediction)]
    finally:
        model.train(was_training)


def list_images(images: AnyImage | Num[Tensor, "_ _ _ _"] | Sequence[AnyImage]) -> list[AnyImage]:
    """Return single images: files of folders and manifests, images of a batch."""
    single: list[Any] = []
    for item in one_or_more(images):
        single += find_inputs([item]) if isinstance(item, (str, os.PathLike)) else [item]
    return single


def data_read_options(config: DataConfig) -> ReadOptions:
    """Return the read options of a recipe's data section, without overviews, which serve training."""
    return replace(read_options(config, channels=3), overview_px=0, overview_folder=None)


def run_read_options(folder: Path) -> ReadOptions:
    """Return the read options of the recipe in a run folder; the default if it has no recipe."""
    path = recipe_path(folder)
    if path is None:
        return DEFAULT_READ
    try:
        if path.stat().st_size > _MAX_RECIPE_BYTES:
            raise RecipeError(f"{path} is larger than {_MAX_RECIPE_BYTES:,} bytes; pass read= instead")
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path} cannot be read ({type(error).__name__}); repair it, or pass read=") from None
    if not isinstance(recipe, dict) or "base" in recipe:
        raise RecipeError(f"{path} is not the recipe of a run; pass read= instead")
    return data_read_options(parse_dataclass(DataConfig, recipe.get("data") or {}, f"{path}: data"))


def check_image_size(
    size_hw: tuple[int, int],
    config: ModelConfig,
    name: str,
    *,
    looks: Sequence[int] | None = None,
    allow_small: bool = False,
) -> None:
    """Raise an :class:`ImageError` for an image below the base resolution, or too small for looks to show more."""
    has_size = f"image {name} has {size_hw[1]} x {size_hw[0]} pixels"
    if min(size_hw) < config.needed_px and not allow_small:
        raise ImageSizeError(
            f"{has_size}, but its shorter side must be at least the model's base resolution, {config.needed_px} px; "
            "give a larger image, or enlarge small ones with --allow-small"
        )
    problem = config.size_problem(size_hw, config.default_looks if looks is None else looks)
    if problem:
        raise ImageSizeError(f"{has_size}, {problem}; give a larger image, or use fewer levels (--looks)")


@dataclass(frozen=True)
class LoadedImage:
    """An image, ready for a model."""

    path: str
    image: Num[Tensor, "channels height width"] | Scene
    stored_size_hw: tuple[int, int]  # upright, before downscaling: the frame of the boxes


def size_of(image: Num[Tensor, "channels height width"] | Scene) -> tuple[int, int]:
    """Return height and width, level-0 pixels."""
    return (int(image.shape[1]), int(image.shape[2])) if isinstance(image, Tensor) else image.size_hw


def load_input(
    image: AnyImage,
    config: ModelConfig,
    *,
    looks: Sequence[int] | None = None,
    allow_small: bool = False,
    read: ReadOptions = DEFAULT_READ,
    name: str = "",
) -> LoadedImage:
    """Decode one image for a model, or open it as a scene, and check its size; ``name`` names a scene or tensor."""
    if isinstance(image, (str, os.PathLike)):
        name, loaded = str(image), replace(read, channels=config.in_channels).load(image)
        stored_hw = read.size_hw(image) if read.changes_images else size_of(loaded)
    else:
        loaded = as_image(image, config.in_channels)
        stored_hw = size_of(loaded)
    check_image_size(size_of(loaded), config, name, looks=looks, allow_small=allow_small)
    return LoadedImage(name, loaded, stored_hw)


class _Images(Dataset[LoadedImage | Unreadable]):
    """Loads images in workers; returns errors, as exceptions in workers carry their whole traceback."""

    def __init__(self, images: Sequence[AnyImage], load: Callable[..., LoadedImage]) -> None:
        self.images, self.load = images, load

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LoadedImage | Unreadable:
        try:
            return self.load(self.images[index], name=str(index))
        except ImageError as error:
            image = self.images[index]
            return Unreadable.of(str(image) if isinstance(image, (str, os.PathLike)) else str(index), error)


def iter_predictions(
    model: Model,
    images: Sequence[AnyImage],
    *,
    looks: int | Sequence[int] | None = None,
    policy: Policy | str | None = None,
    search: Search | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    skip_unreadable: bool = False,
    allow_small: bool = False,
    read: ReadOptions = DEFAULT_READ,
    parts: Sequence[int] | None = None,
) -> Iterator[Prediction | Unreadable]:
    """Classify images batch by batch and yield one result per image.

    A batch may mix image sizes; it is closed early once its decoded pixels reach 512 MiB, and at the end of each of
    ``parts``, given by their number of images, so that the results of a part do not depend on the parts before. A batch
    that does not fit into memory is divided. The model is moved to ``device`` and set to evaluation mode. With
    ``skip_unreadable``, an image that cannot be read or is too small yields :class:`Unreadable`. Other arguments and
    errors are as in :func:`predict`; invalid arguments raise at the call.
    """
    if not images:
        raise DataError("there are no images to predict; give at least one")
    if batch_size < 1 or workers < 0:
        raise ConfigError(f"batch_size is {batch_size} and workers {workers}; give at least 1 and at least 0")
    if search is not None and (looks is not None or policy is not None):
        raise ConfigError("both a search and looks or a policy are given; give one of the two")
    if search is not None and not (isinstance(model, TNet) and model.locator is not None):
        raise ConfigError(f"the model is a {model.config.title} without a search; give a TNet of 2 or more levels")
    chosen = model.config.resolve_looks(looks)
    model = model.to(device).eval()
    policy = model.policy(policy) if policy is None or isinstance(policy, str) else policy
    needed = chosen if search is None else ()  # a search leaves regions whole that are too small for cells
    load = partial(load_input, config=model.config, looks=needed, allow_small=allow_small, read=read)
    # Images come one by one, so that a batch can be closed by its size in memory.
    loader = image_loader(_Images(images, load), None, workers)

    def predictions() -> Iterator[Prediction | Unreadable]:
        with progress_bar(progress) as bar:
            task = bar.add_task("predicting", total=len(images))
            entries = iter(loader)
            for size in parts or (len(images),):
                part = islice(entries, size)
                if search is not None:
                    assert isinstance(model, TNet)
                    for item in _search_each(model, part, search, batch_size, skip_unreadable):
                        yield item
                        bar.advance(task)
                    continue
                for batch in _batches(part, batch_size, skip_unreadable):
                    yield from _predict_or_skip(model, batch, chosen, policy, skip_unreadable)
                    bar.advance(task, len(batch))

    return predictions()


def _search_each(
    model: TNet, loaded: Iterable[LoadedImage | Unreadable], search: Search, batch_size: int, skip: bool
) -> Iterator[Prediction | Unreadable]:
    """Search every image with its own number of looks, in full batches of glimpses; yields entries in order."""
    entries: deque[LoadedImage | Unreadable] = deque()

    def stream() -> Iterator[list[Tensor] | Scene]:
        for entry in loaded:
            if isinstance(entry, Unreadable) and not skip:
                raise ImageError(entry.error)
            entries.append(entry)
            if isinstance(entry, LoadedImage):
                yield [entry.image] if isinstance(entry.image, Tensor) else entry.image

    outputs = traverse_all(model, stream(), search, glimpses=batch_size, active=4 * batch_size)
    while True:
        with torch.inference_mode():  # not around the yields, whose caller it would reach
            output = next(outputs, None)
        while entries and isinstance(entries[0], Unreadable):
            yield cast(Unreadable, entries.popleft())
        if output is None:
            return
        entry = cast(LoadedImage, entries.popleft())
        if isinstance(output, ImageError):
            if not skip:
                raise output
            yield Unreadable.of(entry.path, output)
            continue
        yield prediction_of(output, 0, model.config, entry.path, stored_size_hw=entry.stored_size_hw)


def _batches(
    loaded: Iterable[LoadedImage | Unreadable], batch_size: int, skip_unreadable: bool
) -> Iterator[list[LoadedImage | Unreadable]]:
    """Collect entries until there are enough or they take too much memory."""
    batch: list[LoadedImage | Unreadable] = []
    used_bytes = 0
    for entry in loaded:
        if isinstance(entry, Unreadable) and not skip_unreadable:
            yield batch
            raise ImageError(entry.error)
        size_bytes = entry.image.nbytes if isinstance(entry, LoadedImage) and isinstance(entry.image, Tensor) else 0
        if batch and (len(batch) == batch_size or used_bytes + size_bytes > _BATCH_BYTES):
            yield batch
            batch, used_bytes = [], 0
        batch.append(entry)
        used_bytes += size_bytes
    yield batch


def _predict_or_skip(
    model: Model, batch: Sequence[LoadedImage | Unreadable], looks: tuple[int, ...], policy: Policy | str, skip: bool
) -> list[Prediction | Unreadable]:
    """Predict a batch, in halves if it does not fit into memory.

    If a lazily read file turns out to be damaged, image by image, to skip only that one.
    """
    size = 1
    try:
        return list(_predict_batch(model, batch, looks, policy))
    except ImageError as error:
        if not skip:
            raise
        if len(batch) == 1:
            return [Unreadable.of(batch[0].path, error)]
    except (MemoryError, RuntimeError) as error:
        if not _is_full(error) or (len(batch) == 1 and not skip):
            raise
        if len(batch) == 1:
            return [Unreadable(batch[0].path, f"too little memory for image {batch[0].path} alone", "memory")]
        size = -(-len(batch) // 2)
        text = "too little memory for a batch of images, which is divided; a smaller batch size avoids that"
        warnings.warn(text, MemoryWarning, stacklevel=2)  # once, since its text is always the same
    parts = (batch[start : start + size] for start in range(0, len(batch), size))
    return [item for part in parts for item in _predict_or_skip(model, part, looks, policy, skip)]


def _is_full(error: Exception) -> bool:
    """Return whether the processor or the GPU has too little memory."""
    is_gpu = isinstance(error, torch.OutOfMemoryError)
    return is_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _predict_batch(
    model: Model, batch: Sequence[LoadedImage | Unreadable], looks: tuple[int, ...], policy: Policy | str
) -> Iterator[Prediction | Unreadable]:
    """Predict the readable images of a batch; yields all entries in order."""
    loaded = [entry for entry in batch if isinstance(entry, LoadedImage)]
    if not loaded:
        yield from (entry for entry in batch if isinstance(entry, Unreadable))
        return
    images: list[Tensor] | list[Scene] = [entry.image for entry in loaded if isinstance(entry.image, Tensor)]
    if len(images) < len(loaded):
        images = [MemoryScene(e.image, e.path) if isinstance(e.image, Tensor) else e.image for e in loaded]
    with torch.inference_mode():
        output = model(images, looks, policy)
    number, located = count(), model.is_located(policy)
    for entry in batch:
        if isinstance(entry, Unreadable):
            yield entry
            continue
        row, stored_hw = next(number), entry.stored_size_hw
        yield prediction_of(output, row, model.config, entry.path, located=located, stored_size_hw=stored_hw)
