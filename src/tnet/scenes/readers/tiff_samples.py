"""What the samples of a TIFF mean, decided from its header alone, and their conversion to channels, for every reader.

==========================================  ================================================================
stored as                                   returned as
==========================================  ================================================================
grey, RGB, JPEG's YCbCr                     unchanged (YCbCr as RGB)
white is zero                               inverted, if integers
1, 2 or 4 bits                              stretched to 8 bits
palette                                     RGB, 8 bits
CMYK of 8 or 16 bits                        RGB: (1 - ink) x (1 - black)
alpha                                       the last channel; colours divided by it if they were multiplied
nodata in all samples but alpha, or masked  0, with an alpha of 0
==========================================  ================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnet.scenes.guard import unreadable
from tnet.scenes.readers import tiff_header as tiff
from tnet.scenes.readers.base import Color
from tnet.scenes.readers.common import opaque, unpremultiplied
from tnet.scenes.readers.tiff_header import TiffHeader

_WHITE_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 2, 3, 5, 6, 8
_GREY = (_WHITE_IS_ZERO, 1, 32803, 34892)  # also colour filter arrays, and linear raw values
_PHOTOMETRICS = {4: "transparency mask", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32844: "LogL"}
_COMPRESSIONS = {34887: "LERC", 34933: "PNG", 34934: "JPEG XR", 50002: "JPEG XL", 52546: "JPEG XL"}
_DECODED = (7, 33005, 34712, 50001)  # image codecs, which return YCbCr as RGB
_PILLOW_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000, 50001}
# What Pillow reads as it is meant: photometric, format and bits of the samples, and extra samples.
_PILLOW_SAMPLES = {
    *((grey, 1, (bits,), ()) for grey in (_WHITE_IS_ZERO, 1, _PALETTE) for bits in (1, 2, 4, 8)),
    *((color, 1, (8, 8, 8), ()) for color in (_RGB, _YCBCR, _LAB)),
    *((1, 1, (16,), ()), (1, 1, (8, 8), (2,)), (_RGB, 1, (8, 8, 8, 8), (2,)), (_CMYK, 1, (8, 8, 8, 8), ())),
}
# And what is reduced to the high byte, or refused, when an image is decoded into memory.
_PILLOW_DEEP = {(_RGB, 1, (16,) * 3, ()), (_RGB, 1, (16,) * 4, (2,)), (_CMYK, 1, (16,) * 4, ())}
_PILLOW_DEEP |= {(1, 2, (32,), ()), (1, 3, (32,), ())}


@dataclass(frozen=True, eq=False)
class Samples:
    """Meaning of the samples of a pixel."""

    stored: np.dtype[Any]  # type of the samples
    count: int
    color: Color  # of the channels other than alpha
    bits: int = 0  # of each sample, if they are fewer than those of the type
    alpha: int | None = None  # index of the sample
    is_multiplied: bool = False  # whether alpha has been multiplied into the colours
    is_inverted: bool = False
    is_cmyk: bool = False
    table: NDArray[np.uint8] | None = None  # colours by value, [values, 3 or 4]
    nodata: Any = None  # stored value of missing pixels
    is_masked: bool = False  # whether a mask says which pixels are missing

    @property
    def form(self) -> tuple[int, np.dtype[Any], Color, bool]:
        """Number of channels, their type and meaning, and whether the last is alpha."""
        is_short = self.table is not None or self.bits in (1, 2, 4)
        has_alpha = self.is_masked or self.nodata is not None or self.alpha is not None
        colors = self.count - (self.alpha is not None) - self.is_cmyk
        if self.table is not None:
            colors, has_alpha = 3, has_alpha or self.table.shape[1] == 4
        return colors + has_alpha, np.dtype(np.uint8) if is_short else self.stored, self.color, has_alpha

    def apply(self, samples: NDArray[Any], mask: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Convert ``[height, width, samples]`` to channels; pixels are missing by ``mask``: from 0 to 255, present."""
        colors = stored = samples.astype(self.stored, copy=False)
        alpha: NDArray[Any] | None = None
        _, dtype, _, has_alpha = self.form
        full = opaque(dtype)
        if self.alpha is not None:
            colors = stored = np.delete(stored, self.alpha, axis=2)
            alpha = samples[..., self.alpha].astype(self.stored)
            if self.is_multiplied:
                colors = unpremultiplied(np.concatenate([colors, alpha[..., None]], axis=2))[..., :-1]
            alpha = self._stretched(alpha, dtype)
        if self.table is not None:
            colors = self.table[np.minimum(colors[..., 0], len(self.table) - 1)]
            if colors.shape[2] == 4:
                colors, alpha = colors[..., :3], colors[..., 3]
        elif self.bits in (1, 2, 4):
            colors = self._stretched(colors, dtype)
        if self.is_inverted and dtype.kind in "ui":
            top = 2**self.bits - 1 if self.bits > 8 else full if dtype.kind == "u" else -1
            colors = np.subtract(top, colors, dtype=dtype)
        if self.is_cmyk:
            light = full - colors[..., :4].astype(np.float64)
            shown = np.rint(light[..., :3] * light[..., 3:] / full).astype(dtype)
            colors = np.concatenate([shown, colors[..., 4:]], axis=2)
        if not has_alpha:
            return colors
        alpha = np.full(colors.shape[:2], full, dtype) if alpha is None else alpha
        out = np.concatenate([colors, alpha[..., None]], axis=2)
        if mask is not None:
            share = alpha * (mask / 255.0)
            out[..., -1] = np.rint(share) if dtype.kind in "ui" else share
            out[mask == 0] = 0
        if self.nodata is not None:
            is_nan = self.stored.kind == "f" and np.isnan(self.nodata)
            out[(np.isnan(stored) if is_nan else stored == self.nodata).all(axis=2)] = 0
        return out

    def _stretched(self, values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        top = 2**self.bits - 1 if self.bits and self.stored.kind == "u" else opaque(self.stored)
        if top == opaque(dtype):
            return values
        return np.rint(values.astype(np.float64) * (opaque(dtype) / top)).astype(dtype)


def tiff_samples(header: TiffHeader, *, planes: int = 1, is_masked: bool = False) -> Samples:
    """Return the meaning of the samples of ``planes`` pages of a TIFF; raises ``ImageError`` if it is unknown."""
    if reason := _unknown(header):
        raise unreadable(header.path, f"it has {reason}, which is not supported", "save it as RGB or grey")
    format_, bits, photometric = *_type(header), header.photometric
    nbytes = next(size for size in (1, 2, 4, 8) if bits <= 8 * size)
    stored = np.dtype(f"{'uif'[format_ - 1]}{nbytes}")
    first = header.samples - len(header.extra)
    alphas = [first + index for index, kind in enumerate(header.extra) if kind in (1, 2) and first + index > 0]
    alpha = alphas[0] if alphas and planes == 1 else None
    colors = header.samples * planes - (alpha is not None)
    table, is_cmyk = None, photometric == _CMYK
    if photometric == _PALETTE and colors == 1:
        entries = np.array(header.numbers(tiff.TAG_COLORMAP)).reshape(3, -1).T
        table = (entries >> 8 if entries.max() > 255 else entries).astype(np.uint8)  # some write 8 bits
    is_rgb = table is not None or (photometric in (_RGB, _YCBCR) and colors == 3) or (is_cmyk and colors == 4)
    color: Color = "rgb" if is_rgb else "grey" if colors == 1 and photometric in _GREY else "bands"
    return Samples(
        stored, header.samples * planes, color, bits if bits != 8 * nbytes else 0, alpha,
        is_multiplied=alpha is not None and header.extra[alpha - first] == 1,
        is_inverted=photometric == _WHITE_IS_ZERO, is_cmyk=is_cmyk, table=table,
        nodata=_nodata(header.text(tiff.TAG_GDAL_NODATA), stored), is_masked=is_masked,
    )  # fmt: skip


def lost(header: TiffHeader, reader: str, *, keep_depth: bool = True) -> str:
    """Name what a reader would lose or misread of a TIFF; empty if it honours everything.

    Without ``keep_depth``, deep samples that Pillow opens are none of its losses.
    """
    missing = "its missing pixels" if header.masks_hw or tiff.TAG_GDAL_NODATA in header.main else ""
    if reader == "tifffile":
        known = header.is_ome or header.compression in tiff.TIFFFILE_COMPRESSIONS
        return ("" if known else compression_of(header)) or _unknown(header) or ("its mask" if header.masks_hw else "")
    behind = "an image behind another, or several" if header.is_ome or header.is_stack or header.at != (0,) else ""
    bits = header.numbers(tiff.TAG_BITS) or (1,)
    form = (header.photometric, _type(header)[0], bits, header.extra)
    if reader == "pillow":
        is_readable = form in _PILLOW_SAMPLES or (form in _PILLOW_DEEP and not keep_depth)
        if header.photometric == _YCBCR and header.compression not in (6, 7):
            is_readable &= header.numbers(tiff.TAG_YCBCR_SUBSAMPLING) == (1, 1)
        if header.photometric == _CMYK:
            is_readable &= not _unknown(header)
        is_readable &= not header.is_planar and not header.is_swapped and len(bits) == header.samples
        known = header.compression in _PILLOW_COMPRESSIONS
        return ("" if known else compression_of(header)) or missing or behind or ("" if is_readable else "its samples")
    is_8_bit_rgb = form[1:] == (1, (8, 8, 8), ()) and header.photometric in (_RGB, _YCBCR) and not header.is_planar
    if reader == "openslide" and not (is_8_bit_rgb and header.is_tiled and not missing):
        return "its samples"
    return _unknown(header) or behind


def compression_of(header: TiffHeader) -> str:
    """Return the name of a compression that not every reader supports, or its number."""
    return f"its compression {_COMPRESSIONS.get(header.compression, header.compression)}"


def _type(header: TiffHeader) -> tuple[int, int]:
    """Format (1 unsigned, 2 signed, 3 floating point; 0 if samples differ) and number of bits of the samples."""
    formats = set(header.numbers(tiff.TAG_SAMPLE_FORMAT)) or {1}
    return formats.pop() if len(formats) == 1 and len(set(header.numbers(tiff.TAG_BITS))) < 2 else 0, header.bits


def _unknown(header: TiffHeader) -> str:
    """Name what no meaning is known for; empty if there is nothing."""
    (format_, bits), photometric, colors = _type(header), header.photometric, header.samples - len(header.extra)
    if format_ not in (1, 2, 3) or bits > 64 or (format_ == 3 and bits < 16):
        kinds = {0: "different types", 5: "complex numbers", 6: "complex numbers"}
        return f"samples of {kinds.get(format_, f'format {format_}')}, {bits} bits"
    if photometric == _CMYK:
        is_cmyk = colors == 4 and header.number(tiff.TAG_INK_SET, 1) == 1 and format_ == 1 and bits in (8, 16)
        return "" if is_cmyk else "inks other than CMYK of 8 or 16 bits"
    if photometric == _PALETTE:
        length = len(header.numbers(tiff.TAG_COLORMAP))
        is_table = length and length % 3 == 0 and colors == 1 and format_ == 1 and bits <= 16
        return "" if is_table else "a palette that is not one of colours"
    is_decoded = photometric == _YCBCR and header.compression in _DECODED and not header.is_planar
    known = photometric in (_RGB, *_GREY) or is_decoded
    return "" if known else f"the photometric {_PHOTOMETRICS.get(photometric, photometric)}"


def _nodata(text: bytes, dtype: np.dtype[Any]) -> Any:
    """Return the value of missing pixels; ``None`` without one, or for one that the type cannot hold."""
    content = text.split(b"\0")[0].decode("ascii", "replace").strip()
    try:
        value = int(content) if content.lstrip("+-").isdigit() else float(content)
    except ValueError:
        return None
    with np.errstate(over="ignore"):
        if dtype.kind == "f":
            return dtype.type(value)
    limits = np.iinfo(dtype)
    return dtype.type(int(value)) if limits.min <= value <= limits.max and value == int(value) else None
