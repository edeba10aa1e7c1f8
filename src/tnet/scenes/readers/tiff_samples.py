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

import math
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
_COMPRESSIONS = {2: "CCITT", 3: "CCITT", 4: "CCITT", 34887: "LERC", 50002: "JPEG XL", 52546: "JPEG XL"}
_DECODED = (7, 33005, 34712, 50001, 50002, 52546)  # image codecs, which return YCbCr as RGB
_PILLOW_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000, 50001}
# What Pillow reads as it is meant: photometric, format and bits of the samples, and extra samples.
_PILLOW_SAMPLES = {
    *((grey, 1, (bits,), ()) for grey in (_WHITE_IS_ZERO, 1, _PALETTE) for bits in (1, 2, 4, 8)),
    *((1, *form, ()) for form in ((1, (16,)), (2, (32,)), (3, (32,)))),
    *((color, 1, (8, 8, 8), ()) for color in (_RGB, _YCBCR, _LAB)),
    *((1, 1, (8, 8), (2,)), (_RGB, 1, (8, 8, 8, 8), (2,)), (_CMYK, 1, (8, 8, 8, 8), ())),
}
# And of what it keeps the high byte, when an image is decoded into memory.
_PILLOW_DEEP = {(_RGB, 1, (16,) * 3, ()), (_RGB, 1, (16,) * 4, (2,)), (_CMYK, 1, (16,) * 4, ())}


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
    def dtype(self) -> np.dtype[Any]:
        """Type of the channels."""
        return np.dtype(np.uint8) if self.table is not None or self.bits in (1, 2, 4) else self.stored

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        in_table = self.table is not None and self.table.shape[1] == 4
        return in_table or self.is_masked or not (self.alpha is None and self.nodata is None)

    @property
    def channels(self) -> int:
        """Number of channels, alpha included."""
        colors = self.count - (self.alpha is not None) - self.is_cmyk
        return (colors if self.table is None else 3) + self.has_alpha

    def apply(self, samples: NDArray[Any], mask: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Convert ``[height, width, samples]`` to channels; pixels are missing by ``mask``: from 0 to 255, present."""
        samples = samples.astype(self.stored, copy=False)
        full = opaque(self.dtype)
        colors = kept = samples
        alpha = None
        if self.alpha is not None:
            colors = np.delete(samples, self.alpha, axis=2)
            alpha = self._full_range(samples[..., self.alpha])
            kept = colors
            if self.is_multiplied:
                colors = unpremultiplied(np.concatenate([colors, samples[..., self.alpha : self.alpha + 1]], axis=2))
                colors = colors[..., :-1]
        if self.table is not None:
            colors = self.table[np.minimum(colors[..., 0], len(self.table) - 1)]
            if colors.shape[2] == 4:
                colors, alpha = colors[..., :3], colors[..., 3]
        elif self.bits in (1, 2, 4):
            colors = self._full_range(colors)
        if self.is_inverted and self.dtype.kind in "ui":
            top = 2**self.bits - 1 if self.bits > 8 else full if self.dtype.kind == "u" else -1
            colors = np.subtract(top, colors, dtype=self.dtype)
        if self.is_cmyk:
            inks = full - colors[..., :4].astype(np.float64)
            shown = np.rint(inks[..., :3] * inks[..., 3:] / full).astype(self.dtype)
            colors = np.concatenate([shown, colors[..., 4:]], axis=2)
        if not self.has_alpha:
            return colors
        if alpha is None:
            alpha = np.full(colors.shape[:2], full, self.dtype)
        out = np.concatenate([colors, alpha[..., None]], axis=2)
        if mask is not None:
            part = out[..., -1] * (mask / 255.0)
            out[..., -1] = np.rint(part) if self.dtype.kind in "ui" else part
            out[mask == 0] = 0
        if self.nodata is not None:
            is_nan = self.stored.kind == "f" and np.isnan(self.nodata)
            out[(np.isnan(kept) if is_nan else kept == self.nodata).all(axis=2)] = 0
        return out

    def _full_range(self, values: NDArray[Any]) -> NDArray[Any]:
        """Stretch fractions of the largest value of the stored bits to the type of the channels."""
        top = 2**self.bits - 1 if self.bits and self.stored.kind == "u" else opaque(self.stored)
        full = opaque(self.dtype)
        if top == full:
            return values.astype(self.dtype, copy=False)
        return np.rint(values.astype(np.float64) * (full / top)).astype(self.dtype)


def tiff_samples(header: TiffHeader, *, planes: int = 1, is_masked: bool = False) -> Samples:
    """Return the meaning of the samples of ``planes`` pages of a TIFF; raises ``ImageError`` if it is unknown."""
    reason = _unsupported(header)
    if reason:
        raise unreadable(header.path, f"it has {reason}, which is not supported", "save it as RGB or grey")
    format_, bits, photometric = *_form(header), header.photometric
    nbytes = 2 ** max(math.ceil(math.log2(bits / 8)), 0)
    stored = np.dtype(f"{' uif'[format_]}{nbytes}")
    first = header.samples - len(header.extra)
    alphas = [first + index for index, kind in enumerate(header.extra) if kind in (1, 2) and first + index > 0]
    alpha = alphas[0] if alphas and planes == 1 else None
    colors = header.samples * planes - (alpha is not None)
    table, is_cmyk = None, photometric == _CMYK
    if photometric == _PALETTE and colors == 1:
        entries = np.array(header.numbers(tiff.TAG_COLORMAP)).reshape(3, -1).T
        table = (entries >> 8 if entries.max(initial=0) > 255 else entries).astype(np.uint8)  # some write 8 bits
    is_rgb = table is not None or (photometric in (_RGB, _YCBCR) and colors == 3) or (is_cmyk and colors == 4)
    color: Color = "rgb" if is_rgb else "grey" if colors == 1 and photometric in _GREY else "bands"
    return Samples(
        stored, header.samples * planes, color, bits if bits != 8 * nbytes else 0, alpha,
        is_multiplied=alpha is not None and header.extra[alpha - first] == 1,
        is_inverted=photometric == _WHITE_IS_ZERO, is_cmyk=is_cmyk, table=table,
        nodata=_nodata(header.text(tiff.TAG_GDAL_NODATA), stored), is_masked=is_masked,
    )  # fmt: skip


def compression_name(header: TiffHeader) -> str:
    """Return the name of a compression that not every reader supports, or its number."""
    return _COMPRESSIONS.get(header.compression, str(header.compression))


def lost(header: TiffHeader, reader: str, *, keep_depth: bool = True) -> str:
    """Name what a reader would lose or misread of a TIFF; empty if it honours everything.

    Without ``keep_depth``, Pillow may return the high byte of 16-bit colours.
    """
    compression = f"its compression {compression_name(header)}"
    if reader == "pillow":
        return _lost_by_pillow(header, compression, keep_depth)
    reason = _unsupported(header)
    if reader == "tifffile":
        if header.compression not in tiff.TIFFFILE_COMPRESSIONS and not header.is_ome:
            return compression
        return reason or ("its mask" if header.masks_hw else "")
    is_nested = "an image behind its thumbnail" if header.at != (0,) else ""
    reason = reason or ("planes after the first" if header.is_stack or header.is_ome else is_nested)
    if reader == "openslide" and not reason:
        if not header.is_tiled:
            return "strips"
        plain = (header.bits, header.samples, header.is_planar, _form(header)[0]) == (8, 3, False, 1)
        has_missing = header.masks_hw or tiff.TAG_GDAL_NODATA in header.main
        reason = "" if plain and header.photometric in (_RGB, _YCBCR) and not has_missing else "its samples"
    return reason


def _lost_by_pillow(header: TiffHeader, compression: str, keep_depth: bool) -> str:
    if header.compression not in _PILLOW_COMPRESSIONS:
        return compression
    if header.masks_hw or tiff.TAG_GDAL_NODATA in header.main:
        return "its missing pixels (nodata or mask)"
    if header.is_ome or header.is_stack or header.at != (0,):
        return "pages after the first"
    bits = header.numbers(tiff.TAG_BITS) or (1,)
    form = (header.photometric, _form(header)[0], bits, header.extra)
    known = form in _PILLOW_SAMPLES or (form in _PILLOW_DEEP and not keep_depth)
    is_whole = header.photometric != _YCBCR or header.is_jpeg or header.numbers(tiff.TAG_YCBCR_SUBSAMPLING) == (1, 1)
    if not known or not is_whole or header.is_planar or header.is_big_endian_big or len(bits) != header.samples:
        return "the form of its samples"
    return ""


def _form(header: TiffHeader) -> tuple[int, int]:
    """Format (1 unsigned, 2 signed, 3 floating point; 0 if samples differ) and number of bits of the samples."""
    formats = set(header.numbers(tiff.TAG_SAMPLE_FORMAT)) or {1}
    bits = set(header.numbers(tiff.TAG_BITS)) or {1}
    return (formats.pop(), header.bits) if len(formats) == len(bits) == 1 else (0, header.bits)


def _unsupported(header: TiffHeader) -> str:
    """Name what no meaning is known for; empty if there is nothing."""
    (format_, bits), photometric = _form(header), header.photometric
    if format_ not in (1, 2, 3) or bits > 64 or (format_ == 3 and bits < 16):
        kinds = {0: "different types", 5: "complex numbers", 6: "complex numbers"}
        return f"samples of {kinds.get(format_, f'format {format_}')}, {bits} bits"
    extra = len(header.extra)
    if photometric == _CMYK:
        is_cmyk = header.samples - extra == 4 and header.number(tiff.TAG_INK_SET, 1) == 1
        return "" if is_cmyk and format_ == 1 and bits in (8, 16) else "inks other than CMYK of 8 or 16 bits"
    if photometric == _PALETTE:
        length = len(header.numbers(tiff.TAG_COLORMAP))
        is_table = length and length % 3 == 0 and header.samples - extra == 1 and format_ == 1 and bits <= 16
        return "" if is_table else "a palette that is not one of colours"
    is_decoded = header.compression in _DECODED and not header.is_planar
    if photometric in (_RGB, *_GREY) or (photometric == _YCBCR and is_decoded):
        return ""
    return f"the photometric {_PHOTOMETRICS.get(photometric, photometric)}"


def _nodata(text: bytes, dtype: np.dtype[Any]) -> Any:
    """Return the value of missing pixels; ``None`` without one, or for one that the type cannot hold."""
    value: Any
    try:
        content = text.split(b"\0")[0].decode("ascii").strip()
        value = float(content)
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                return dtype.type(value)
        value = int(content) if content.lstrip("+-").isdigit() else value
        limits = np.iinfo(dtype)
        return dtype.type(int(value)) if limits.min <= value <= limits.max and value == int(value) else None
    except (ValueError, UnicodeDecodeError):
        return None
