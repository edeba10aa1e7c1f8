"""Maps of what each cell of each training image is worth to a teacher, kept in a file."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tnet.data.augment import sample_generator
from tnet.data.digits import MegapixelDigits
from tnet.data.folder import LabelledImages
from tnet.data.loading import LabelledData, eval_loader
from tnet.data.sample import Batch
from tnet.errors import CheckpointError, ConfigError
from tnet.files import atomic_path
from tnet.geometry import Grid
from tnet.inference.progress import track_images
from tnet.scenes.transform import mirrored

_SAVE_EVERY_S = 60.0
_FORM = "tnet worth maps, 1"


class WorthMaps:
    """Maps of all images of a training set, of which some may not be measured yet.

    Args:
        path: the file (safetensors); maps that it has are read.
        data: the training images, with their augmentation.
        made: what else the maps depend on, such as the hash of the teacher.
        grid: the cells.

    Raises:
        CheckpointError: the file is damaged, or of other images, another teacher or another grid.
        ConfigError: two images have the same name.
    """

    def __init__(self, path: Path, data: LabelledData, made: Mapping[str, str], grid: Grid) -> None:
        self.path, self.grid = path, grid
        self.data = cast(LabelledImages | MegapixelDigits, data)
        self.made = {"form": _FORM, "images": fingerprint(self.data), **made}
        self.places = {self.data.name(place): place for place in range(len(data))}
        if len(self.places) < len(data):
            problem = "several training images have the same file, which train.guide.maps cannot tell apart"
            raise ConfigError(f"{problem}; list each once, or set maps to null")
        self.maps = self._read() if path.exists() else torch.full((len(data), grid.cells), torch.nan)

    def complete(
        self,
        measure: Callable[[Batch], Float[Tensor, "images cells"]],
        batch_size: int,
        workers: int,
        progress: bool,
    ) -> None:
        """Measure the maps that are missing, of images without augmentation; what is done is kept if it is stopped."""
        missing = self.maps.isnan().any(dim=1).nonzero().flatten().tolist()
        if not missing:
            return
        plain = copy.copy(self.data)
        plain.augment = None
        loader = eval_loader(plain, batch_size, workers, indices=missing)
        self._save()  # fails before the work if it cannot be written
        saved = time.monotonic()
        try:
            for batch in track_images(loader, len(missing), "measuring where to look", progress):
                self.maps[[self.places[name] for name in batch.names]] = measure(batch).float().cpu()
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self._save()
                    saved = time.monotonic()
        finally:
            self._save()

    def of(self, names: Sequence[str]) -> Float[Tensor, "images cells"]:
        """Return the maps of images of the current epoch, flipped and turned as the images are."""
        data, found = self.data, []
        for name in names:
            place = self.places[name]
            cells = self.maps[place].unflatten(0, (self.grid.rows, self.grid.cols))
            if data.augment is not None:
                # The draw of the dataset; without crops it does not depend on the size of the image.
                change = data.augment.draw((1, 1), sample_generator(data.seed, data.epoch, place))
                cells = mirrored(cells, change)
            found.append(cells.flatten())
        return torch.stack(found)

    def _read(self) -> Float[Tensor, "images cells"]:
        try:
            with safe_open(self.path, framework="pt") as file:
                theirs, maps = file.metadata() or {}, file.get_tensor("maps")
        except (OSError, SafetensorError):
            theirs, maps = {}, torch.zeros(0)
        remedy = "give another train.guide.maps, or remove the file"
        if theirs.get("form") != _FORM:
            raise CheckpointError(f"{self.path} is damaged, or no file of maps that this version writes; {remedy}")
        for key, ours in self.made.items():
            if theirs.get(key) != ours:
                values = f"{theirs.get(key)} instead of {ours}"
                raise CheckpointError(f"{self.path} holds maps with other {key}, {values}; {remedy}")
        if maps.shape != (len(self.data), self.grid.cells) or not maps.is_floating_point():
            shapes = f"{list(maps.shape)} instead of {[len(self.data), self.grid.cells]}"
            raise CheckpointError(f"{self.path} holds maps of shape {shapes}; {remedy}")
        return maps.float()

    def _save(self) -> None:
        content = save({"maps": self.maps}, metadata=self.made)
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(content)


def fingerprint(data: LabelledImages | MegapixelDigits) -> str:
    """Return a hash of training images and their labels: names and sizes of files, and how they are read."""
    if isinstance(data, LabelledImages):
        sizes = [path.stat().st_size if path.exists() else -1 for path in data.paths]
        files = [(path.parent.name, path.name, size) for path, size in zip(data.paths, sizes, strict=True)]
        reading = replace(data.reading, overview_px=0, overview_folder=None)
        content = repr((files, data.targets.tolist(), data.classes, reading))
    else:
        content = repr(data.config)
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]
