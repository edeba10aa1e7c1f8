"""Many pictures, one model: decode in workers, look in batches, hand out plain data in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tnet.data.transforms import named_transform
from tnet.errors import CheckpointError, ConfigError, DataError, ImageError
from tnet.inference.progress import progress_bar
from tnet.inference.records import Prediction, RegionRecord, Unreadable, prediction_of
from tnet.models.base import Model, ModelConfig
from tnet.scenes.base import Scene
from tnet.scenes.file import SceneOptions
from tnet.scenes.images import image_size_hw, load_image
from tnet.scenes.memory import MemoryScene
from tnet.scenes.reading import Reading
from tnet.traversal import Policy

__all__ = ["Prediction", "RegionRecord", "Unreadable", "check_image_size", "predict_paths", "read_picture"]

_BATCH_BYTES = 2**29

DEFAULT_READING = Reading("auto")
"""Large pictures, slides and OME-Zarr are read where they are looked at, others decoded."""


def check_image_size(
    size_hw: tuple[int, int],
    config: ModelConfig,
    name: str,
    *,
    looks: Sequence[int] | None = None,
    allow_small: bool = False,
) -> None:
    """Refuse a picture that is too small to be looked at closely.

    A picture whose shorter side is below the base resolution would be enlarged to be seen at all, and regions of it
    even more: looking cannot show anything that is not seen at once.

    Args:
        size_hw: height and width, pixels, as the model gets it.
        config: of the model: base resolution and grid.
        name: of the picture, for the message.
        looks: locations per region for each level that will be looked at; the model's own if ``None``.
        allow_small: enlarge such pictures; only one that has no pixel for each cell is refused.

    Raises:
        ImageError: too small.
    """
    height, width = size_hw
    if min(size_hw) < config.needed_px and not allow_small:
        raise ImageError(
            f"The picture {name} has {width} x {height} pixels, but its shorter side must have at least the model's "
            f"base resolution, {config.needed_px} px; give a larger picture, or allow small ones (--allow-small), "
            "which are enlarged."
        )
    problem = config.size_problem(size_hw, config.default_looks if looks is None else looks)
    if problem:
        raise ImageError(
            f"The picture {name} has {width} x {height} pixels, {problem}; give a larger picture, or look at fewer "
            "levels (--looks)."
        )


@dataclass(frozen=True)
class Picture:
    """A picture to be looked at.

    Attributes:
        path: where it came from.
        image: levels 0 to 255, shrunk if that was asked for; or a scene, of which only what is looked at is read.
        own_size_hw: height and width before shrinking, upright: the frame of the boxes that are handed out.
    """

    path: str
    image: UInt8[Tensor, "channels height width"] | Scene
    own_size_hw: tuple[int, int]


def read_picture(
    path: str | os.PathLike[str],
    config: ModelConfig,
    *,
    looks: Sequence[int] | None = None,
    max_side_px: int | None = None,
    max_short_side_px: int | None = None,
    preprocess: str | None = None,
    allow_small: bool = False,
    reading: Reading = DEFAULT_READING,
) -> Picture:
    """Get one picture ready for a model: decoded, or as a scene of its file.

    Args:
        path: the picture.
        config: of the model: channels, base resolution and grid.
        looks: as for :func:`check_image_size`.
        max_side_px: shrink a larger picture so that its longer side has this many pixels.
        max_short_side_px: the same of its shorter side; both may be given.
        preprocess: name of a preparation, such as ``reference_448``; see :func:`tnet.data.transforms.named_transform`.
        allow_small: as for :func:`check_image_size`.
        reading: which pictures are read only where they are looked at; all are decoded that are to be shrunk or
            prepared.

    Raises:
        ImageError: it cannot be read, or is too small.
        ConfigError: the model takes pictures of neither 1 nor 3 channels, and this one is decoded.
    """
    changed = _are_changed(max_side_px, max_short_side_px, preprocess)
    if not changed and reading.is_lazy(path):
        scene = reading.open_scene(path, config.in_channels)
        check_image_size(scene.size_hw, config, str(path), looks=looks, allow_small=allow_small)
        return Picture(str(path), scene, scene.size_hw)
    channels = cast(Literal[1, 3], check_channels(config))
    transform = named_transform(preprocess) if preprocess is not None else None
    image = load_image(path, channels=channels, max_side_px=max_side_px, max_short_side_px=max_short_side_px)
    image = image if transform is None else transform(image)
    size_hw = (int(image.shape[1]), int(image.shape[2]))
    check_image_size(size_hw, config, str(path), looks=looks, allow_small=allow_small)
    return Picture(str(path), image, image_size_hw(Path(path)) if changed else size_hw)


def _are_changed(max_side_px: int | None, max_short_side_px: int | None, preprocess: str | None) -> bool:
    """Whether pictures are shrunk or prepared, for which they are decoded."""
    return not (max_side_px is None and max_short_side_px is None and preprocess is None)


def check_reading(
    reading: Reading, max_side_px: int | None, max_short_side_px: int | None, preprocess: str | None
) -> None:
    """Refuse to change pictures that are to be read lazily.

    Raises:
        ConfigError: both are asked for.
    """
    if _are_changed(max_side_px, max_short_side_px, preprocess) and (
        reading.mode == "lazy" or reading.scene != SceneOptions()
    ):
        raise ConfigError(
            "pictures that are read lazily (--read lazy, --bands, --value-range) are neither shrunk nor prepared; "
            "leave that out, or --max-side-px and --preprocess, and from the run's recipe data.max_side_px, "
            "data.max_short_side_px and data.preprocess"
        )


def check_channels(config: ModelConfig) -> int:
    """Channels that pictures are read with.

    Raises:
        ConfigError: the model takes neither 1 nor 3.
    """
    if config.in_channels not in (1, 3):
        raise ConfigError(
            f"the model takes images of {config.in_channels} channels, but pictures are read with 1 or 3; call the "
            "model on your own tensors"
        )
    return config.in_channels


class _Pictures(Dataset[Picture | Unreadable]):
    """Decodes in the loader's workers; errors come back as data, since a worker's exception loses its sentence."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Picture]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Picture | Unreadable:
        path = self.paths[index]
        try:
            return self.read(path)
        except ImageError as error:
            return Unreadable(str(path), str(error))


def predict_paths(
    model: Model,
    paths: Sequence[str | os.PathLike[str]],
    *,
    looks: int | Sequence[int] | None = None,
    policy: Policy | str | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
    skip_unreadable: bool = False,
    max_side_px: int | None = None,
    max_short_side_px: int | None = None,
    preprocess: str | None = None,
    allow_small: bool = False,
    reading: Reading = DEFAULT_READING,
) -> Iterator[Prediction | Unreadable]:
    """Classify pictures, and say where the model looked.

    Pictures are decoded one by one, in worker processes if asked, and looked at together whatever their sizes; a
    batch is closed early when its pictures take half a gigabyte. Of large ones, slides and OME-Zarr only what is looked
    at is read, in threads. The number of workers changes nothing but time.

    Args:
        model: put on ``device`` and into evaluation mode.
        paths: pictures.
        looks: locations, as for :meth:`tnet.models.TNet.forward`.
        policy: how locations are chosen; the model's own for evaluation if ``None``.
        batch_size: pictures looked at together, at most.
        workers: processes that decode; 0 decodes in this one.
        device: where the model runs.
        progress: show a bar on standard error.
        skip_unreadable: hand out an :class:`Unreadable` for a picture that cannot be read or is too small, and go on.
        max_side_px: shrink larger pictures on reading. Boxes are scaled back: they are always in the pixels of the
            picture as it is stored, upright (EXIF orientation applied).
        max_short_side_px: the same of the shorter side; both may be given.
        preprocess: name of a preparation of every picture, such as ``reference_448``.
        allow_small: take pictures below the base resolution too; they are enlarged.
        reading: which pictures are read only where they are looked at, and how (:class:`tnet.scenes.reading.Reading`).

    Returns:
        One entry a picture, in the order given, as they come.

    Raises:
        DataError: no picture; at once.
        GeometryError: looks that the model does not allow; at once.
        ConfigError: batch size or workers that cannot be, at once; channels that cannot be, when their turn comes.
        ImageError: a picture that cannot be read or is too small, unless ``skip_unreadable``; when its turn comes.
    """
    config = model.config
    if not paths:
        raise DataError("There are no pictures to predict; give at least one path.")
    check_reading(reading, max_side_px, max_short_side_px, preprocess)
    if batch_size < 1 or workers < 0:
        raise ConfigError(f"batch_size is {batch_size} and workers {workers}; give at least 1 and at least 0")
    if preprocess is not None:
        named_transform(preprocess)  # an unknown name is said at once
    chosen = config.resolve_looks(looks)
    model = model.to(device).eval()
    policy = model.policy(policy) if policy is None or isinstance(policy, str) else policy
    read = partial(
        read_picture,
        config=config,
        looks=chosen,
        max_side_px=max_side_px,
        max_short_side_px=max_short_side_px,
        preprocess=preprocess,
        allow_small=allow_small,
        reading=reading,
    )
    # Pictures come one by one, so that a batch can be closed by its size in memory.
    loader = DataLoader(_Pictures([Path(path) for path in paths], read), batch_size=None, num_workers=workers)
    return _predict(model, loader, chosen, policy, batch_size, progress, skip_unreadable)


def _predict(
    model: Model,
    loader: DataLoader[Picture | Unreadable],
    looks: tuple[int, ...],
    policy: Policy | str,
    batch_size: int,
    progress: bool,
    skip_unreadable: bool,
) -> Iterator[Prediction | Unreadable]:
    with progress_bar(progress) as bar:
        task = bar.add_task("predicting", total=len(loader))
        for batch in _batches(loader, batch_size, skip_unreadable):
            yield from _look_or_skip(model, batch, looks, policy, skip_unreadable)
            bar.advance(task, len(batch))


def _batches(
    loader: DataLoader[Picture | Unreadable], batch_size: int, skip_unreadable: bool
) -> Iterator[list[Picture | Unreadable]]:
    """Entries together, until there are enough or they take too much memory."""
    batch: list[Picture | Unreadable] = []
    used_bytes = 0
    for entry in loader:
        if isinstance(entry, Unreadable) and not skip_unreadable:
            yield batch
            raise ImageError(entry.error)
        size_bytes = entry.image.numel() if isinstance(entry, Picture) and isinstance(entry.image, Tensor) else 0
        if batch and (len(batch) == batch_size or used_bytes + size_bytes > _BATCH_BYTES):
            yield batch
            batch, used_bytes = [], 0
        batch.append(entry)
        used_bytes += size_bytes
    yield batch


def _look_or_skip(
    model: Model, batch: Sequence[Picture | Unreadable], looks: tuple[int, ...], policy: Policy | str, skip: bool
) -> list[Prediction | Unreadable]:
    """Look at a batch; if a file turns out damaged where it is looked at, one by one, and skip that one if asked to."""
    try:
        return list(_look(model, batch, looks, policy))
    except ImageError as error:
        if not skip:
            raise
        if len(batch) == 1:
            (entry,) = batch
            return [Unreadable(entry.path, str(error))]
    return [item for entry in batch for item in _look_or_skip(model, [entry], looks, policy, skip)]


def _look(
    model: Model, batch: Sequence[Picture | Unreadable], looks: tuple[int, ...], policy: Policy | str
) -> Iterator[Prediction | Unreadable]:
    """Look at the pictures of a batch that could be read; all come back in order."""
    pictures = [entry for entry in batch if isinstance(entry, Picture)]
    if not pictures:
        yield from (entry for entry in batch if isinstance(entry, Unreadable))
        return
    images: list[Tensor] | list[Scene] = [p.image for p in pictures if isinstance(p.image, Tensor)]
    if len(images) < len(pictures):
        images = [MemoryScene(p.image, p.path) if isinstance(p.image, Tensor) else p.image for p in pictures]
    with torch.inference_mode():
        output = model(images, looks, policy)
    if not bool(torch.isfinite(output.logits).all()):
        raise CheckpointError(
            f"the model answers with numbers that are infinite or NaN (first picture {pictures[0].path}): its weights "
            "are damaged; load an earlier checkpoint"
        )
    image = 0
    for entry in batch:
        if isinstance(entry, Unreadable):
            yield entry
            continue
        yield prediction_of(
            output, image, model.config, entry.path, located=model.is_located(policy), own_size_hw=entry.own_size_hw
        )
        image += 1
