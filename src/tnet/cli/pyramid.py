"""``tnet pyramid``: convert an image to a tiled TIFF with coarser levels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tnet.cli.common import OverwriteOption, ProgressOption, say

_COMPRESSION_HELP = (
    "deflate: lossless, supported everywhere; zstd: lossless and faster, for newer programs; jpeg: small, lossy, for "
    "8-bit gray or RGB."
)


def pyramid(
    image: Annotated[Path, typer.Argument(help="Image of any supported format.")],
    out: Annotated[Path, typer.Argument(help="File to write, .tif or .tiff.")],
    compression: Annotated[Literal["deflate", "zstd", "jpeg"], typer.Option(help=_COMPRESSION_HELP)] = "deflate",
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality; colors are not subsampled.")] = 90,
    smallest_px: Annotated[int, typer.Option(min=1, help="Add levels until the longer side is at most this.")] = 256,
    series: Annotated[int, typer.Option(min=0, help="Index of the image in a file with several.")] = 0,
    apply_icc: Annotated[bool, typer.Option("--apply-icc", help="Convert colors to sRGB by the profile.")] = False,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Maximum pixels of an image that is decoded whole. [default: 2^28]")
    ] = None,
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
) -> None:
    """Convert an image to a tiled TIFF with coarser levels (a pyramid), so that regions of any size are read fast.

    Each level has half the resolution of the one before, down to about the size of a glimpse, by area means. The image
    is read once, a few rows of tiles at a time, except formats that are decoded as a whole (JPEG, PNG). Scale and
    georeference are kept.
    """
    from dataclasses import replace

    from tnet.inference.progress import progress_bar
    from tnet.scenes.pyramid import write_pyramid
    from tnet.scenes.readers.base import ReaderOptions

    options = ReaderOptions(series=series, apply_icc=apply_icc)
    if max_pixels is not None:
        options = replace(options, max_pixels=max_pixels)
    with progress_bar(progress) as bar:
        task = bar.add_task("tiles", total=None, visible=False)
        written = write_pyramid(
            image, out, compression=compression, quality=quality, smallest_px=smallest_px, overwrite=overwrite,
            options=options, on_tile=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )  # fmt: skip
    levels = ", ".join(f"{height} x {width}" for height, width in written.levels_hw)
    say(f"{written.path}: {written.bytes / 1e6:.1f} MB, {len(written.levels_hw)} levels ({levels})")
