"""Image files for tests, sound and hostile, of every format that there is a reader for."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SPACING_M = 0.5e-6
"""Of what has a physical scale: half a micron."""

GEO_TRANSFORM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
"""Ten metres a pixel, in UTM 32N."""


def ramps(height: int, width: int, dtype: str = "uint8", channels: int = 3) -> NDArray[Any]:
    """A picture whose pixels say where they are: rising to the right, downwards, and both; then falling to the right.

    The mean over any rectangle is the value at its middle, so that a level of any downsample can be checked.
    """
    step = ramp_step(height, width, dtype)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    planes = [step * x, step * y, step * (x + y) / 2, step * (width - 1 - x), step * (height - 1 - y)]
    values = np.stack([planes[channel % len(planes)] for channel in range(channels)], axis=2)
    return np.rint(values).astype(dtype) if np.dtype(dtype).kind in "ui" else values.astype(dtype)


def ramp_step(height: int, width: int, dtype: str = "uint8") -> float:
    """How much the ramps rise from a pixel to the next."""
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "ui" else 1.0
    return float(top) / max(height, width)


def halved(pixels: NDArray[Any]) -> NDArray[Any]:
    """Means over 2 x 2, of what there is of them at an odd end: exactly half the resolution."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels.astype(np.float64), [(0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    means = padded.reshape(len(padded) // 2, 2, -1, 2, pixels.shape[2]).mean((1, 3))
    return np.rint(means).astype(pixels.dtype) if pixels.dtype.kind in "ui" else means.astype(pixels.dtype)


def pyramid(pixels: NDArray[Any], levels: int) -> list[NDArray[Any]]:
    """A picture and its halves, finest first: a pixel stands for exactly 2 x 2, 4 x 4, ..."""
    found = [pixels]
    while len(found) < levels:
        found.append(halved(found[-1]))
    return found


def fitted(pixels: NDArray[Any], levels: int) -> list[NDArray[Any]]:
    """The same, but the edges of all levels coincide: a pixel stands for the ratio of the sizes."""
    found = [pixels]
    height, width, channels = pixels.shape
    for power in range(1, levels):
        size_px = (-(-width // 2**power), -(-height // 2**power))
        planes = [Image.fromarray(pixels[..., channel].astype(np.float32)) for channel in range(channels)]
        level = np.stack([np.asarray(plane.resize(size_px, Image.Resampling.BOX)) for plane in planes], axis=2)
        found.append(np.rint(level).astype(pixels.dtype) if pixels.dtype.kind in "ui" else level.astype(pixels.dtype))
    return found


def png(path: Path, pixels: NDArray[Any]) -> Path:
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path, format="PNG")
    return path


def jpeg(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.save(path, format="JPEG", **{"quality": 95, "subsampling": 0, **options})
    return path


def _samples(pixels: NDArray[Any]) -> dict[str, Any]:
    channels = pixels.shape[2]
    is_rgb = channels in (3, 4)
    form: dict[str, Any] = {"photometric": "rgb" if is_rgb else "minisblack", "planarconfig": "contig"}
    if channels == 1:
        form.pop("planarconfig")
    extra = channels - (3 if is_rgb else 1)
    if extra:
        form["extrasamples"] = ["unassalpha"] if is_rgb else ["unspecified"] * extra
    return form


def _stored(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def tiled_tiff(path: Path, pixels: NDArray[Any], *, tile: int = 64, **options: Any) -> Path:
    """Without a pyramid."""
    form = {**_samples(pixels), "tile": (tile, tile), "compression": "zlib", "metadata": None, **options}
    tifffile.imwrite(path, _stored(pixels), **form)
    return path


def pyramid_tiff(
    path: Path, levels: list[NDArray[Any]], *, tile: int = 64, subifds: bool = False, **options: Any
) -> Path:
    """Levels as pages that say they are reduced, or as directories inside the first."""
    with tifffile.TiffWriter(
        path, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("byteorder", None)
    ) as file:
        for number, pixels in enumerate(levels):
            form = {**_samples(pixels), "tile": (tile, tile), "compression": "zlib", "metadata": None, **options}
            if subifds and number == 0:
                form["subifds"] = len(levels) - 1
            file.write(_stored(pixels), subfiletype=1 if number else 0, **form)
    return path


def ome_tiff(path: Path, levels: list[NDArray[Any]], *, planar: bool = False, tile: int = 64) -> Path:
    """Pixels of half a micron; RGB in one page a level, or (``planar``) one page a channel."""
    metadata: dict[str, Any] = {"axes": "CYX" if planar else "YXS"}
    for axis in "XY":
        metadata |= {f"PhysicalSize{axis}": SPACING_M * 1e6, f"PhysicalSize{axis}Unit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as file:
        for number, pixels in enumerate(levels):
            form: dict[str, Any] = {"tile": (tile, tile), "compression": "zlib"}
            form |= {"photometric": "minisblack"} if planar else _samples(pixels)
            data = np.moveaxis(pixels, 2, 0) if planar else _stored(pixels)
            if number:
                file.write(data, subfiletype=1, **form)
            else:
                file.write(data, subifds=len(levels) - 1, metadata=metadata, **form)
    return path


def geotiff(
    path: Path,
    pixels: NDArray[Any],
    *,
    overviews: tuple[int, ...] = (2, 4),
    crs: str | None = "EPSG:32632",
    mask: NDArray[Any] | None = None,
    driver: str = "GTiff",
    **options: Any,
) -> Path:
    """A GeoTIFF with overviews that GDAL makes by averaging, and so, in essence, a COG."""
    import rasterio
    from rasterio.enums import Resampling

    height, width, count = pixels.shape
    form: dict[str, Any] = {"driver": driver, "height": height, "width": width, "count": count, "dtype": pixels.dtype}
    form |= {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    form |= {"photometric": "rgb"} if count in (3, 4) and pixels.dtype.itemsize < 4 else {}
    where = {"crs": crs, "transform": rasterio.Affine(*GEO_TRANSFORM)} if crs else {}
    settings = {"GDAL_TIFF_INTERNAL_MASK": True, "GDAL_TIFF_OVR_BLOCKSIZE": 64}
    with warnings.catch_warnings(), rasterio.Env(**settings):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **{**form, **where, **options}) as dataset:
            dataset.write(np.moveaxis(pixels, 2, 0))
            if mask is not None:
                dataset.write_mask(mask)
        if overviews:
            with rasterio.open(path, "r+") as dataset:
                dataset.build_overviews(overviews, Resampling.average)
    return path


def cog(path: Path, pixels: NDArray[Any]) -> Path:
    """By GDAL's own COG driver."""
    from rasterio.shutil import copy

    plain = geotiff(path.with_name(f"plain-{path.name}.tif"), pixels, overviews=())
    copy(plain, path, driver="COG", BLOCKSIZE=128, OVERVIEW_RESAMPLING="AVERAGE", COMPRESS="DEFLATE")
    plain.unlink()
    return path


def jp2(path: Path, pixels: NDArray[Any]) -> Path:
    """A lossless JPEG 2000 in tiles, georeferenced."""
    from rasterio.shutil import copy

    plain = geotiff(path.with_name(f"plain-{path.name}.tif"), pixels, overviews=())
    options = {"BLOCKXSIZE": 128, "BLOCKYSIZE": 128, "RESOLUTIONS": 3}
    named = path.with_suffix(".jp2")  # by which GDAL knows that there is to be more than the bare codestream
    copy(plain, named, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", YCBCR420="NO", **options)
    plain.unlink()
    return named.rename(path)


def ome_zarr(
    path: Path,
    levels: list[NDArray[Any]],
    *,
    version: str = "0.5",
    chunk: int = 64,
    axes: str = "cyx",
    shards: int | None = None,
    unit: str | None = "micrometer",
    **array_options: Any,
) -> Path:
    """Levels that are halves of each other; ``axes`` may add ``t`` and ``z`` (of two planes, the second all zero)."""
    import zarr

    zarr_format: Any = 2 if version == "0.4" else 3
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    datasets = []
    for number, pixels in enumerate(levels):
        sizes = dict(zip("yxc", pixels.shape, strict=True)) | {"t": 2, "z": 2}
        chunks = tuple((chunk if shards else min(chunk, sizes[axis])) if axis in "yx" else 1 for axis in axes)
        form: dict[str, Any] = {"shape": tuple(sizes[axis] for axis in axes), "chunks": chunks, "dtype": pixels.dtype}
        if zarr_format == 2:
            form["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
        if shards:
            form["shards"] = tuple(shards if axis in "yx" else 1 for axis in axes)
        array = group.create_array(str(number), **{**form, **array_options})
        kept = [axis for axis in axes if axis in "cyx"]
        stored = pixels if "c" in kept else pixels[..., 0]
        order = ["yxc".index(axis) for axis in kept]
        array[tuple(slice(None) if axis in "cyx" else 0 for axis in axes)] = stored.transpose(order)
        scale = [2.0**number * SPACING_M * 1e6 if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    named: list[dict[str, str]] = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    if unit:
        named = [{**axis, "unit": unit} if axis["type"] == "space" else axis for axis in named]
    image = {"axes": named, "datasets": datasets, "name": "ramps"}
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": version, **image}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    return path


# Hostile files


def truncated(path: Path, share: float = 0.5) -> Path:
    """Cut a file short."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def flipped(path: Path, seed: int, count: int = 20, start: int = 0) -> Path:
    """Turn over some bits of a file, at random."""
    data = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    for at in random.integers(start, len(data), count):
        data[at] ^= 1 << int(random.integers(8))
    path.write_bytes(bytes(data))
    return path


ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(path: Path, samples: NDArray[Any], bits: int, color: int, *chunks: bytes, interlaced: bool = False) -> Path:
    """PNG of any depth and type of colour; ``chunks`` come before the pixels ``[height, width, samples]``."""
    height, width, _ = samples.shape
    rows = b""
    for y, x, down, across in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        for row in samples[y::down, x::across]:
            if row.size:
                digits = "".join(format(int(value), f"0{bits}b") for value in row.flat)
                digits += "0" * (-len(digits) % 8)
                rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced))
    pixels = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels)
    return path


def giant_png(path: Path, width: int = 100_000, height: int = 100_000) -> Path:
    """A header that claims ten thousand million pixels, and nothing after it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def giant_jpeg(path: Path, side: int = 65_000) -> Path:
    """A small JPEG whose header claims another size."""
    jpeg(path, ramps(32, 32))
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    path.write_bytes(bytes(data))
    return path


def raw_tiff(
    path: Path, ifds: list[dict[int, tuple[int, int, int]]], *, next_of_last: int = 0, tail: bytes = b""
) -> Path:
    """A classic TIFF of directories ``{tag: (type, count, value)}`` one after the other.

    Args:
        path: of the file.
        ifds: the directories; values are written as they are, in four bytes.
        next_of_last: where the last one says that another follows.
        tail: appended.
    """
    sizes = [2 + 12 * len(ifd) + 4 for ifd in ifds]
    starts = [8 + sum(sizes[:number]) for number in range(len(ifds) + 1)]
    body = b""
    for number, ifd in enumerate(ifds):
        body += struct.pack("<H", len(ifd))
        body += b"".join(struct.pack("<HHII", tag, *ifd[tag]) for tag in sorted(ifd))
        body += struct.pack("<I", starts[number + 1] if number + 1 < len(ifds) else next_of_last)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + body + tail)
    return path


def tiff_ifd(side: int = 64, *, tile: int | None = 64, **tags: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """A directory of an 8-bit grey picture whose pixels would start behind the end of a small file.

    Args:
        side: of the picture.
        tile: side of its tiles; ``None`` for one strip.
        tags: others, or instead of these, as ``t256=(type, count, value)``.
    """
    short, long = 3, 4
    ifd = {256: (long, 1, side), 257: (long, 1, side), 258: (short, 1, 8), 259: (short, 1, 1), 262: (short, 1, 1)}
    ifd |= {277: (short, 1, 1)}
    if tile:
        ifd |= {
            322: (long, 1, tile),
            323: (long, 1, tile),
            324: (long, 1, 100_000),
            325: (long, 1, min(tile * tile, 2**32 - 1)),
        }
    else:
        ifd |= {273: (long, 1, 100_000), 278: (long, 1, side), 279: (long, 1, min(side * side, 2**32 - 1))}
    return ifd | {int(name[1:]): value for name, value in tags.items()}


def cyclic_tiff(path: Path) -> Path:
    """Two directories, of which the second leads back to the first."""
    return raw_tiff(path, [tiff_ifd(), tiff_ifd()], next_of_last=8)


def giant_tiff(path: Path, *, tile: int | None = 64) -> Path:
    """A directory that claims 100,000 x 100,000 pixels, in a file of 200 bytes."""
    return raw_tiff(path, [tiff_ifd(100_000, tile=tile)])


def vrt(path: Path, source: str) -> Path:
    """A VRT that refers to another file or URL."""
    band = f'<SimpleSource><SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>1</SourceBand>'
    path.write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1">'
        f"{band}</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


def bomb_tiff(path: Path) -> Path:
    """A Deflate tile of 64 x 64 pixels that decodes to 64 MiB."""
    deflate = zlib.compressobj(9)
    data = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(64)) + deflate.flush()
    ifd = tiff_ifd(t259=(3, 1, 8))
    start = 8 + 2 + 12 * len(ifd) + 4
    return raw_tiff(path, [ifd | {324: (4, 1, start), 325: (4, 1, len(data))}], tail=data)


def bomb_zarr(path: Path, version: str, compressor: dict[str, Any], data: bytes) -> Path:
    """An OME-Zarr whose only chunk is ``data``, said to be compressed so and to be 64 x 64 bytes."""
    ome_zarr(path, [ramps(64, 64)[..., :1]], version=version, axes="yx")
    described = path / "0" / (".zarray" if version == "0.4" else "zarr.json")
    content = json.loads(described.read_text())
    if version == "0.4":
        content["compressor"] = compressor
    else:
        content["codecs"] = [{"name": "bytes"}, compressor]
    described.write_text(json.dumps(content))
    chunk = path / "0" / ("0/0" if version == "0.4" else "c/0/0")
    chunk.write_bytes(data)
    return path


Writer = Callable[[Path, NDArray[Any]], Path]
Maker = Callable[[Path], Path]

WRITERS: dict[str, Writer] = {
    "png": png,
    "jpeg": jpeg,
    "geotiff": geotiff,
    "cog": cog,
    "jp2": jp2,
    "tiled_tiff": tiled_tiff,
    "pyramid_tiff": lambda path, pixels: pyramid_tiff(path, fitted(pixels, 3)),
    "subifd_tiff": lambda path, pixels: pyramid_tiff(path, fitted(pixels, 3), subifds=True),
    "ome_tiff": lambda path, pixels: ome_tiff(path, fitted(pixels, 3)),
    "planar_ome_tiff": lambda path, pixels: ome_tiff(path, fitted(pixels, 3), planar=True),
    "ome_zarr_0_4": lambda path, pixels: ome_zarr(path, pyramid(pixels, 3), version="0.4"),
    "ome_zarr_0_5": lambda path, pixels: ome_zarr(path, pyramid(pixels, 3), version="0.5"),
    "sharded_zarr": lambda path, pixels: ome_zarr(path, pyramid(pixels, 3), version="0.5", shards=128),
}
"""Writers of the same picture, by name of the form; three levels where a form has levels."""


def slide(path: Path, pixels: NDArray[Any], *, levels: int = 3, mpp: float | None = 0.5, **options: Any) -> Path:
    """Like an Aperio SVS: tiled levels, and a thumbnail after the first."""
    described = f"Aperio Image Library v11.2.1 \r\n{pixels.shape[1]}x{pixels.shape[0]} (64x64)"
    described += f"|AppMag = 20|MPP = {mpp}" if mpp else "|AppMag = 20"
    form = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None} | options
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(fitted(pixels, levels)):
            file.write(level, description=described, **form)
            if number == 0:
                file.write(halved(halved(halved(pixels))), photometric="rgb", metadata=None, description=described)
    return path
