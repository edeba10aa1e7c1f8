"""A batch of images in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor

from tnet.errors import GeometryError
from tnet.geometry import Regions
from tnet.scenes.base import Resize
from tnet.scenes.resample import BAND_BYTES, CHUNK_BYTES, interpolate


class TensorBatch:
    """Images in memory, of one size or several.

    Only the chosen regions are cropped and resized; nothing is copied at full size, so a glimpse costs memory for its
    result and a few megabytes, whatever the image's size.

    Args:
        images: ``[batch, channels, height, width]``, or one ``[channels, height, width]`` per image. ``uint8`` pixels
            are returned as 0 to 1; floating-point pixels must be normalised already and are returned unchanged.
        resize: see :data:`tnet.scenes.base.Resize`.
        fill: value outside the image, one or one per channel, in the units of the result. The reference implementation
            pads with 0, mid-grey after its normalisation.
    """

    def __init__(
        self,
        images: Num[Tensor, "batch channels height width"] | Sequence[Num[Tensor, "_ _ _"]],
        resize: Resize = "antialias",
        fill: Sequence[float] | float = 0.0,
    ) -> None:
        self.images = images
        self.resize: Resize = resize
        self.fill = fill
        if len(images) == 0 or any(image.ndim != 3 for image in images):
            raise GeometryError("images are missing or not three-dimensional; give [channels, height, width]")
        first = images[0]
        self.is_normalized = first.dtype.is_floating_point
        if not self.is_normalized and first.dtype != torch.uint8:
            raise GeometryError(f"images are {first.dtype}; give uint8 or normalised floating-point pixels")
        for image in images:
            if (image.dtype, image.shape[0]) != (first.dtype, first.shape[0]):
                form = f"{first.dtype} with {first.shape[0]} channel(s) and {image.dtype} with {image.shape[0]}"
                raise GeometryError(f"images differ: {form}; give images of the same dtype and number of channels")

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Height and width of each image, pixels."""
        return [(int(image.shape[-2]), int(image.shape[-1])) for image in self.images]

    @property
    def device(self) -> torch.device:
        """Device of the pixels."""
        return self.images[0].device

    def glimpse(self, regions: Regions, size_px: int) -> Float[Tensor, "regions channels size size"]:
        """Return the pixels of each region: ``float32`` in [0, 1] for ``uint8`` images, else their own type."""
        boxes = list(zip(regions.image.tolist(), regions.box_l0_yxyx.tolist(), strict=True))
        result: list[Tensor] = []
        group: list[Tensor] = []
        for image, (y0, x0, y1, x1) in boxes:
            crop = self._crop(image, y0, x0, y1, x1)
            nbytes = (len(group) + 1) * crop.numel() * crop.element_size()
            if group and (group[0].shape != crop.shape or nbytes > CHUNK_BYTES):
                result.append(self._resized(group, size_px))
                group = []
            group.append(crop)
        result.append(self._resized(group, size_px))
        return torch.cat(result) if len(result) > 1 else result[0]

    def _crop(self, image: int, y0: int, x0: int, y1: int, x1: int) -> Tensor:
        """Crop one region: a view if it lies inside the image, else a padded copy."""
        source = self.images[image]
        height, width = source.shape[-2:]
        # A negative end would count from the far edge.
        inside = source[:, max(y0, 0) : max(min(y1, height), 0), max(x0, 0) : max(min(x1, width), 0)]
        if inside.shape[-2:] == (y1 - y0, x1 - x0):
            return inside
        fill = torch.as_tensor(self.fill, dtype=torch.float32, device=source.device).expand(source.shape[0])
        fill = fill if self.is_normalized else (fill * 255).round()
        padded = fill.to(source.dtype)[:, None, None].repeat(1, y1 - y0, x1 - x0)
        top, left = max(-y0, 0), max(-x0, 0)
        padded[:, top : top + inside.shape[-2], left : left + inside.shape[-1]] = inside
        return padded

    def _resized(self, crops: list[Tensor], size_px: int) -> Tensor:
        """Resize crops of one shape, and scale ``uint8`` to [0, 1]."""
        # uint8 interpolation exists on the CPU only, where it is several times faster than float.
        if not self.is_normalized and crops[0].device.type != "cpu":
            crops = [crop.float() for crop in crops]
        if crops[0].numel() * crops[0].element_size() > CHUNK_BYTES:
            pixels = torch.stack([self._resize_banded(crop, size_px) for crop in crops])
        else:
            pixels = interpolate(torch.stack(crops), (size_px, size_px), self.resize)
        return pixels if self.is_normalized else pixels.float() / 255

    def _resize_banded(self, crop: Tensor, size_px: int) -> Tensor:
        """Resize one large crop: a channel at a time, its columns in bands of rows first, then its rows.

        Both filters are separable and leave an axis alone if its size does not change, so the result is the same as in
        one call, which would first copy the whole crop.
        """
        _, height, width = crop.shape
        rows = max(1, BAND_BYTES // (width * crop.element_size()))
        channels = []
        for channel in crop.split(1):
            narrow = channel.new_empty(1, 1, height, size_px)
            for top in range(0, height, rows):
                band = channel[None, :, top : top + rows]
                narrow[:, :, top : top + rows] = interpolate(band, (band.shape[-2], size_px), self.resize)
            channels.append(interpolate(narrow, (size_px, size_px), self.resize)[0])
        return torch.cat(channels)
