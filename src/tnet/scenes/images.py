"""Pictures on disk: find them, and decode one safely into a tensor.

Only formats that Pillow decodes by itself are read; a file that says it is anything else (EPS, for one, would be
handed to another program) is refused, whatever its name ends with. How grey levels and colours become 0 to 255:

======================================  =====================================================================
stored as                               read as
======================================  =====================================================================
8-bit grey, RGB                         as it is
1 bit                                   0 and 255
palette                                 its colours
16 bits a channel                       the high byte: 0 to 65535 becomes 0 to 255, whatever range is in use
CMYK, YCbCr, HSV                        RGB by Pillow's formula; colour profiles are not applied
alpha, transparent colour               laid over white
32-bit integer, signed, floating point  refused: which value is white is not known
animation, several pages                the first
======================================  =====================================================================

One channel out of colour is luma (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B); three channels out of grey are equal.
The EXIF orientation is applied, so that a picture is upright as viewers show it.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin
from torch import Tensor

from tnet.errors import ConfigError, DataError, ImageError

SLIDE_SUFFIXES: frozenset[str] = frozenset({".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide"})
"""What names of whole-slide images end with (lower case), which are looked at rather than decoded."""

IMAGE_SUFFIXES: frozenset[str] = SLIDE_SUFFIXES | frozenset(
    {".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What names of pictures end with (lower case)."""

FOLDER_SUFFIXES: frozenset[str] = frozenset({".zarr"})
"""What names of folders end with (lower case) that are one picture."""

DEFAULT_MAX_PIXELS = 268_435_456
"""Largest picture (width x height) that is decoded unless told otherwise: 2**28, 16,384 x 16,384."""

_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
_CHECKED_WHILE_OPENING = ("GIF", "WEBP")  # their Pillow readers look at Pillow's own pixel limit while opening
_PILLOW_NEVER_COMPLAINS_PX = 1 << 26  # Pillow's own limit is a third more than this
_REDUCING_GAP = 1.5  # on photographs as close to a plain resize as 2, Pillow's choice for thumbnails, and quicker
_PILLOW_LIMIT_LOCK = threading.Lock()
_RESAVE = "save it again as an 8-bit PNG, JPEG or TIFF, or remove it"

_TURNED = {5, 6, 7, 8}  # EXIF orientations that exchange height and width
_ORIENTATION = 0x0112


def load_image(
    path: str | os.PathLike[str],
    *,
    channels: Literal[1, 3] = 3,
    max_side_px: int | None = None,
    max_short_side_px: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> UInt8[Tensor, "channels height width"]:
    """Decode one picture into memory.

    The size is read from the header and held against ``max_pixels`` before any pixel is decoded. Decoding takes 9 to
    13 bytes a pixel at its peak (16 to 18 where there is transparency), of which ``channels`` stay.

    Args:
        path: the picture.
        channels: 3 for RGB, 1 for grey levels.
        max_side_px: shrink, antialiased (bilinear) and with the aspect kept, so that the longer side has this many
            pixels; never enlarges. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where that still leaves
            1.5 times the pixels asked for, which saves time and memory; so do averages of 2x2, 3x3, ... pixels
            in other formats. Levels then differ from a plain antialiased resize by less than 1 on average.
        max_short_side_px: the same of the shorter side; with both, whichever shrinks more.
        max_pixels: largest width x height, before shrinking, that is decoded.

    Returns:
        Levels 0 to 255, upright; see the table in :mod:`tnet.scenes.images` for how they come about.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, larger than ``max_pixels``, not a picture of a
            known kind, or may not be read; the message names the path, the reason and what to do.
        ConfigError: ``max_side_px``, ``max_short_side_px`` or ``max_pixels`` is below 1.
    """
    for name, side_px in (("max_side_px", max_side_px), ("max_short_side_px", max_short_side_px)):
        if side_px is not None and side_px < 1:
            raise ConfigError(f"{name} is {side_px}, but must be at least 1 pixel, or None to keep the size.")
    if max_pixels < 1:
        raise ConfigError(f"max_pixels is {max_pixels}, but must be at least 1.")
    path = Path(path)
    try:
        with open_picture(path) as stream:
            image = read_header(stream, path, max_pixels)
            with pillow_limit(image.width * image.height):
                picture = _decode(image, path, channels, shrunk_size(image.size, max_side_px, max_short_side_px))
            return _to_tensor(picture)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise unreadable(
            path, f"it is larger than the limit max_pixels={max_pixels:,} ({error})", "raise max_pixels, or shrink it"
        ) from error
    except MemoryError as error:
        raise unreadable(
            path, "there is not enough memory to decode it", "lower max_pixels, or use fewer workers"
        ) from error
    except Exception as error:  # on damaged files, Pillow's readers raise nearly every kind there is
        raise _damaged(path, error) from error


def image_size_hw(path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture as it is stored, but upright (EXIF orientation); only its header is read.

    Args:
        path: of the picture.
        max_pixels: refuse larger pictures.

    Raises:
        ImageError: it cannot be read, or is too large.
    """
    path = Path(path)
    with open_picture(path) as stream:
        try:
            header = read_header(stream, path, max_pixels)
        except ImageError:
            raise
        except Exception as error:  # as in load_image
            raise _damaged(path, error) from error
        try:
            # Pillow gives the size of a TIFF as it is after turning, that of other formats as stored.
            turned = header.format != "TIFF" and header.getexif().get(_ORIENTATION) in _TURNED
        except Exception:  # an unreadable EXIF block: load_image leaves such a picture as it is
            turned = False
        return (header.width, header.height) if turned else (header.height, header.width)


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """Whether a name ends like a picture's (:data:`IMAGE_SUFFIXES`, :data:`FOLDER_SUFFIXES`, in upper or lower case).

    Nothing is opened.
    """
    return Path(path).suffix.lower() in IMAGE_SUFFIXES | FOLDER_SUFFIXES


def is_image_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder that is one picture, by its name (OME-Zarr)."""
    # Unlike Path.is_dir, os.path.isdir is false, and raises nothing, in a folder that may not be entered.
    return Path(path).suffix.lower() in FOLDER_SUFFIXES and os.path.isdir(path)  # noqa: PTH112


def image_exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, or a folder that is one picture."""
    return os.path.isfile(path) or is_image_folder(path)  # noqa: PTH113 (as above)


def find_images(path: str | os.PathLike[str]) -> list[Path]:
    """List the pictures in a folder and the folders inside it.

    Pictures are told by their names (:func:`is_image_path`); a folder that is one (OME-Zarr) is not looked into. Files
    and folders whose name starts with a dot are skipped. Links to folders are followed, each real folder once.

    Args:
        path: a folder, or one picture.

    Returns:
        Paths that start with ``path``, sorted; at least one.

    Raises:
        DataError: there is no such folder, it may not be listed, or no picture is in it.
    """
    path = Path(path)
    try:
        if is_image_folder(path) or (path.is_file() and is_image_path(path)):
            return [path]
        if not path.is_dir():
            state = "is not a folder, nor a picture by its name" if path.exists() else "does not exist"
            raise DataError(f"Pictures were looked for in {path}, which {state}; name a folder of pictures.")
        images = sorted(_walk(path))
    except OSError as error:
        raise DataError(
            f"The folder {error.filename or path} cannot be looked into ({error.strerror}); make it readable for this "
            "user."
        ) from error
    if not images:
        raise DataError(
            f"No picture was found in {path} or the folders inside it; put pictures there, with names that end with "
            f"one of {' '.join(sorted(IMAGE_SUFFIXES))}, or name another folder."
        )
    return images


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:  # os.walk would skip what it cannot list, and so lose pictures silently
        raise error

    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in folders if is_image_path(name))
        folders[:] = [name for name in folders if not is_image_path(name)]
        yield from (Path(folder, name) for name in names if not name.startswith(".") and is_image_path(name))


def unreadable(path: Path, reason: str, remedy: str) -> ImageError:
    """The error for a picture that cannot be read: where it is, why, and what to do."""
    return ImageError(f"The picture {path} cannot be read: {reason}; {remedy}.")


def _damaged(path: Path, error: Exception) -> ImageError:
    return unreadable(path, f"it is truncated, damaged or of an unknown kind ({one_line(error)})", _RESAVE)


def one_line(error: Exception) -> str:
    """What a library's error says, in one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def open_picture(path: Path) -> IO[bytes]:
    """Open a regular file that is not empty, else say what is there instead.

    Raises:
        ImageError: there is none, or it may not be read.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise unreadable(path, "it is a folder", "name a picture inside it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise unreadable(path, "it is not a regular file", "name a picture file")
        if status.st_size == 0:
            raise unreadable(path, "the file is empty (0 bytes)", "fetch or save it again, or remove it")
        return path.open("rb")
    except ImageError:  # which is a ValueError
        raise
    except FileNotFoundError as error:
        raise unreadable(path, "there is no such file", "correct the path, or restore the file") from error
    except PermissionError as error:
        raise unreadable(
            path, "permission was denied", "make the file and its folders readable for this user"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise unreadable(path, f"the file cannot be opened ({one_line(error)})", "correct the path") from error


def read_header(stream: IO[bytes], path: Path, max_pixels: int) -> ImageFile.ImageFile:
    """Tell the format by the first bytes, read the header, and hold the size against the budget.

    ``Image.open`` would compare the size with a limit that is one for the whole process, and warn or raise before
    ours could be looked at; so the readers that it would call are called here.

    Raises:
        ImageError: it has more than ``max_pixels``, or is no picture of a known kind. What else Pillow raises on a
            damaged header is passed on.
    """
    Image.init()
    prefix = stream.read(16)
    for name in _FORMATS:
        reader, accepts = Image.OPEN.get(name, (None, None))  # no AVIF or JPEG 2000 in some builds of Pillow
        if reader is None or accepts is None or accepts(prefix) is not True:
            continue
        if name == "JPEG":  # of a multi-picture JPEG the first is wanted, without the others' index
            reader = JpegImagePlugin.JpegImageFile
        stream.seek(0)
        with pillow_limit(max_pixels if name in _CHECKED_WHILE_OPENING else 0):
            image = reader(stream, "")
        if image.width * image.height > max_pixels:
            raise unreadable(
                path,
                f"it has {image.width:,} x {image.height:,} = {image.width * image.height:,} pixels, over the limit "
                f"max_pixels={max_pixels:,}",
                "shrink or cut the picture, or raise max_pixels if there is memory for it",
            )
        return image
    raise unreadable(path, f"it is not a picture of a known kind ({', '.join(_FORMATS)})", _RESAVE)


@contextmanager
def pillow_limit(pixels: int) -> Iterator[None]:
    """Let Pillow's readers decode this many pixels, once our own budget has allowed them.

    Pillow's limit is one for the whole process. It is raised no further than to ``pixels``, only for pictures that
    need it, one at a time, and put back.
    """
    if pixels <= _PILLOW_NEVER_COMPLAINS_PX:
        yield
        return
    with _PILLOW_LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        try:
            if limit is not None:
                Image.MAX_IMAGE_PIXELS = max(limit, pixels)
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(image: ImageFile.ImageFile, path: Path, channels: Literal[1, 3], size: tuple[int, int]) -> Image.Image:
    """Decode, convert to grey or RGB, shrink to a width and height, and turn upright."""
    width, height = size
    box_px = None
    if (width, height) != image.size and isinstance(image, JpegImagePlugin.JpegImageFile):
        drafted = image.draft(None, (math.ceil(_REDUCING_GAP * width), math.ceil(_REDUCING_GAP * height)))
        box_px = drafted[1] if drafted else None  # the picture's true extent: a draft rounds its size up
    image.load()
    picture = _convert(image, path, channels)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box_px, reducing_gap=_REDUCING_GAP)
    picture.info = image.info
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except Exception:  # an unreadable EXIF block says nothing about orientation, and the pixels are sound
        return picture
    return picture


def shrunk_size(
    size: tuple[int, int], max_side_px: int | None, max_short_side_px: int | None = None
) -> tuple[int, int]:
    """Both sides of a picture, in the order given, shrunk to at most so many pixels of the longer and the shorter."""
    limits = ((max_side_px, max(size)), (max_short_side_px, min(size)))
    scale = min((limit / side for limit, side in limits if limit is not None), default=1.0)
    return size if scale >= 1 else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def _convert(image: ImageFile.ImageFile, path: Path, channels: Literal[1, 3]) -> Image.Image:
    """To mode ``L`` or ``RGB``, as the table at the head of this module says."""
    picture: Image.Image = image
    if picture.mode.startswith("I;16") or (picture.mode == "I" and image.format in ("PNG", "PPM")):
        picture = _high_byte(image)
    elif picture.mode in ("I", "F"):
        raise unreadable(
            path,
            f"its grey levels are stored as 32-bit, signed or floating-point numbers (mode {picture.mode}), of which "
            "it is not known which is white",
            "scale it to 8 or 16 bits first",
        )
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)  # convert always copies


def _high_byte(image: ImageFile.ImageFile) -> Image.Image:
    """16-bit grey levels to 8 bits, as Pillow itself reads 16-bit colour."""
    levels = np.asarray(image)
    grey = (levels >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[levels == transparent] = 255
    return Image.fromarray(grey)


def _to_tensor(picture: Image.Image) -> UInt8[Tensor, "channels height width"]:
    """Channel by channel: a quarter of the time, and less memory, than to reorder all pixels at once."""
    levels = torch.empty(len(picture.getbands()), picture.height, picture.width, dtype=torch.uint8)
    for channel, plane in enumerate(levels.numpy()):
        plane[:] = np.asarray(picture.getchannel(channel))
    return levels
